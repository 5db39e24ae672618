//! Temporary names: how they are chosen, that none is left behind, and what others left.

use super::directory::{Directory, Held};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::Arc;

/// How temporary names start; eight random characters follow.
const TEMPORARY: &[u8] = b".escp-";
/// Random characters of a temporary name.
const RANDOM: usize = 8;
/// Leftovers that are named; more are only counted.
const MOST_NAMED: usize = 8;

/// A name that is removed when this is dropped, unless it was kept.
#[derive(Debug)]
pub(super) struct Temporary {
    parent: Arc<Directory>,
    pub(super) name: Vec<u8>,
    kept: bool,
}

impl Temporary {
    pub(super) fn new(parent: &Arc<Directory>, name: Vec<u8>) -> Self {
        Self { parent: Arc::clone(parent), name, kept: false }
    }

    /// The name is no longer this session's to remove.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// Whether the name still leads to the file with this device and inode.
    pub(super) fn leads_to(&self, held: &Held, stat: &Stat) -> bool {
        statat(held.as_fd(), self.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)
            .is_ok_and(|found| (found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(held) = self.parent.wait() {
            // Someone may have removed it already; there is nobody to tell.
            let _ = unlinkat(held.as_fd(), self.name.as_slice(), AtFlags::empty());
        }
    }
}

/// Temporary names from the kernel's random bytes.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Not used yet.
    random: Vec<u8>,
}

impl Names {
    pub(super) fn next(&mut self) -> Result<Vec<u8>, Errno> {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        if self.random.len() < RANDOM {
            // As many as come whole (getrandom(2)).
            self.random.resize(256, 0);
            let got = getrandom(self.random.as_mut_slice(), GetRandomFlags::empty())?;
            self.random.truncate(got);
        }
        let own = self.random.split_off(self.random.len().saturating_sub(RANDOM));
        let letters = own.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 32)));
        Ok(TEMPORARY.iter().chain(letters).copied().collect())
    }
}

/// Whether this is the name of a temporary file.
fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(TEMPORARY)
        .is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric))
}

/// A remark about temporary files that an earlier run left in this directory.
pub(super) fn leftovers(directory: &Directory) -> Option<String> {
    let held = directory.wait()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(held.as_fd(), c".", flags, Mode::empty()).ok()?).ok()?;
    let mut names = Vec::new();
    let mut count = 0_u64;
    for entry in entries.flatten() {
        if is_temporary(entry.file_name().to_bytes()) {
            count += 1;
            if names.len() < MOST_NAMED {
                names.push(String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned());
            }
        }
    }
    if count == 0 {
        return None;
    }
    let more = if count > MOST_NAMED as u64 { ", …" } else { "" };
    Some(format!(
        "{}: {count} temporary file{} of an interrupted or still running escp: {}{more}; remove what no \
         running escp writes to",
        crate::escape::escaped(&directory.node.path()),
        if count == 1 { "" } else { "s" },
        names.join(", ")
    ))
}
