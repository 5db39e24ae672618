//! Files by the thread's ring, with registered buffers where the pool has them.

use crate::files::File;
use crate::uring::{Keep, RingOp};
use escp_buf::Buf;
use io_uring::{opcode, types::Fd};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::Arc;

fn raw(file: &File) -> Fd {
    // -1 makes the kernel answer EBADF; a file without a descriptor is only ever given to a dummy disk.
    Fd(file.descriptor().map_or(-1, |descriptor| descriptor.as_raw_fd()))
}

pub(crate) fn read(file: &Arc<File>, mut buf: Buf, range: Range<usize>, offset: u64) -> RingOp {
    let (address, length) = buf.window(range);
    let entry = match buf.registered() {
        Some(index) => opcode::ReadFixed::new(raw(file), address, length, index).offset(offset).build(),
        None => opcode::Read::new(raw(file), address, length).offset(offset).build(),
    };
    RingOp::submit(entry, buf, Keep::File(Arc::clone(file)))
}

pub(crate) fn write(file: &Arc<File>, mut buf: Buf, range: Range<usize>, offset: u64) -> RingOp {
    let (address, length) = buf.window(range);
    let entry = match buf.registered() {
        Some(index) => opcode::WriteFixed::new(raw(file), address, length, index).offset(offset).build(),
        None => opcode::Write::new(raw(file), address, length).offset(offset).build(),
    };
    RingOp::submit(entry, buf, Keep::File(Arc::clone(file)))
}
