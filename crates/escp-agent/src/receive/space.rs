//! Whether a file fits before its first byte is taken.

use super::directory::Held;
use crate::reason::why;
use rustix::fs::{fstat, fstatvfs};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Files below this size, in bytes, are not remembered as promises: all that may be under way at once take
/// less than what any report of free space is off by.
const WORTH_A_PROMISE: u64 = 1024 * 1024;

/// Free space as one look showed it, less what was made since: a batch of small files needs no look for each.
#[derive(Debug, Default)]
pub(super) struct Room {
    device: u64,
    left: u64,
}

/// Free space less what was promised to files under way.
#[derive(Debug, Default)]
pub(super) struct Space {
    promises: Mutex<HashMap<u64, Promised>>,
}

#[derive(Debug)]
struct Promised {
    device: u64,
    size: u64,
    file: Arc<OwnedFd>,
}

/// A file that does not fit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    needed: u64,
    available: u64,
}

impl Shortage {
    pub(super) fn text(&self) -> String {
        format!("not enough space: {} bytes needed, {} available", self.needed, self.available)
    }
}

impl Space {
    /// Checks that `size` bytes fit on the directory's file system, `freed` bytes of it being freed first.
    pub(super) fn check(
        &self,
        directory: &Held,
        size: u64,
        freed: u64,
        room: &mut Room,
    ) -> Result<(), Shortage> {
        if size < WORTH_A_PROMISE && room.device == directory.device && room.left >= size {
            room.left -= size;
            return Ok(());
        }
        // A file system that cannot say is believed to have room: writing will tell.
        let Some(free) = free(directory) else { return Ok(()) };
        let free = free.saturating_add(freed);
        let promises = self.promises.lock().unwrap_or_else(PoisonError::into_inner);
        let here = || promises.values().filter(|promise| promise.device == directory.device);
        let promised: u64 = here().map(|promise| promise.size).fold(0, u64::saturating_add);
        if size.saturating_add(promised) <= free {
            // What a large file is promised the next small one has to see.
            let small = size < WORTH_A_PROMISE;
            *room = if small {
                Room { device: directory.device, left: free - promised - size }
            } else {
                Room::default()
            };
            return Ok(());
        }
        // Part of what was promised is allocated by now, and so missing from `free` already.
        let missing: u64 = here().map(Promised::missing).fold(0, u64::saturating_add);
        let available = free.saturating_sub(missing);
        if size <= available { Ok(()) } else { Err(Shortage { needed: size, available }) }
    }

    /// Remembers that `file` will take `size` bytes.
    pub(super) fn promise(&self, number: u64, directory: &Held, size: u64, file: &Arc<OwnedFd>) {
        if size >= WORTH_A_PROMISE {
            let promised = Promised { device: directory.device, size, file: Arc::clone(file) };
            self.promises.lock().unwrap_or_else(PoisonError::into_inner).insert(number, promised);
        }
    }

    /// The file is complete or given up.
    pub(super) fn release(&self, number: u64) {
        self.promises.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
    }
}

impl Promised {
    /// Bytes promised and not allocated yet.
    fn missing(&self) -> u64 {
        let blocks = fstat(&self.file).map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0));
        self.size.saturating_sub(blocks.saturating_mul(512))
    }
}

/// Bytes that this user may still write there.
pub(super) fn free(directory: &Held) -> Option<u64> {
    let found = fstatvfs(directory.as_fd()).ok()?;
    // All zero: a file system that does not count.
    (found.f_blocks > 0).then(|| found.f_bavail.saturating_mul(found.f_frsize))
}

/// What keeps a name from being made, with numbers where the disk is full: then it is inodes that are missing,
/// since bytes were checked.
pub(super) fn why_not_made(error: Errno, directory: &Held) -> String {
    match (error, fstatvfs(directory.as_fd())) {
        (Errno::NOSPC | Errno::DQUOT, Ok(found)) if found.f_files > 0 => {
            format!("{} ({} inodes available)", why(error), found.f_favail)
        }
        _ => why(error),
    }
}
