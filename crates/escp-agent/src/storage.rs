//! What kind of storage a file lies on.

use rustix::fs::{OFlags, Statx, StatxFlags, fcntl_setfl, fstatfs};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, PoisonError};

/// Files from this size up, in bytes, are moved with O_DIRECT. A smaller one is at most one block: it has
/// nothing to overlap with, and 20,000 of them took 3.9 s with O_DIRECT where buffered I/O and one barrier
/// took 1.3 to 2.6 s.
pub(crate) const DIRECT_FROM: u64 = 1024 * 1024;
/// Alignment where the kernel cannot say (before 6.1): enough for every sector size in use.
const USUAL_ALIGNMENT: u32 = 4096;
/// `f_type` of tmpfs and ramfs (statfs(2)).
const IN_MEMORY: [u64; 2] = [0x0102_1994, 0x8584_58f6];

/// Which file systems live in memory; asked once for each.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    known: Mutex<HashMap<u64, bool>>,
}

impl Memory {
    /// Whether a file on this device (`st_dev`) lives in memory.
    pub(crate) fn holds(&self, file: BorrowedFd<'_>, device: u64) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        *known.entry(device).or_insert_with(|| {
            // The type of `f_type` differs between architectures; its 32 bits of magic do not.
            fstatfs(file).is_ok_and(|found| IN_MEMORY.contains(&(found.f_type as u64 & 0xffff_ffff)))
        })
    }
}

/// Sets or clears O_DIRECT, and clears O_NONBLOCK: the only flags of an open file that these agents use and
/// the kernel lets change. Answers the alignment that O_DIRECT asks for, 0 when it is not `wanted`. Where the file system
/// refuses it, the file has an alignment and no O_DIRECT: so the engine sees that it has to fall back, and counts it.
pub(crate) fn set_direct(file: BorrowedFd<'_>, wanted: bool, stat: &Statx) -> Result<u32, Errno> {
    if !wanted {
        fcntl_setfl(file, OFlags::empty())?;
        return Ok(0);
    }
    let alignment = match stat.stx_mask & StatxFlags::DIOALIGN.bits() {
        0 => USUAL_ALIGNMENT,
        // Zero: the file does not support it.
        _ => stat.stx_dio_offset_align,
    };
    if alignment.is_power_of_two() && fcntl_setfl(file, OFlags::DIRECT).is_ok() {
        return Ok(alignment);
    }
    fcntl_setfl(file, OFlags::empty())?;
    Ok(USUAL_ALIGNMENT)
}
