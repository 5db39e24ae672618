//! Files by plain system calls.

use crate::files::File;
use std::io;
use std::os::fd::BorrowedFd;

fn descriptor(file: &File) -> io::Result<BorrowedFd<'_>> {
    file.descriptor().ok_or_else(|| io::Error::other("the file came without a descriptor"))
}

/// pread(2), again when a signal interrupts it.
pub(crate) fn read(file: &File, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let descriptor = descriptor(file)?;
    Ok(rustix::io::retry_on_intr(|| rustix::io::pread(descriptor, &mut *into, offset))?)
}

/// pwrite(2), again when a signal interrupts it.
pub(crate) fn write(file: &File, from: &[u8], offset: u64) -> io::Result<usize> {
    let descriptor = descriptor(file)?;
    Ok(rustix::io::retry_on_intr(|| rustix::io::pwrite(descriptor, from, offset))?)
}

/// Reads from the start of the file until `into` is full or the file ends.
pub(crate) fn read_all(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < into.len() {
        match read(file, &mut into[got..], got as u64)? {
            0 => break,
            count => got += count,
        }
    }
    Ok(got)
}

/// Writes all of `from` at the start of the file.
pub(crate) fn write_all(file: &File, from: &[u8]) -> io::Result<()> {
    let mut put = 0;
    while put < from.len() {
        match write(file, &from[put..], put as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            count => put += count,
        }
    }
    Ok(())
}
