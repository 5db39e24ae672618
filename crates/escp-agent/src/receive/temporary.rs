//! Temporary names: how they are chosen, that none is left behind, and what others left.

use super::directory::{Directory, Held};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, Stat, openat, statat, unlinkat};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
#[derive(Debug)]
pub(super) struct Names<'a> {
    own: &'a OwnNames,
    /// Not used yet.
    random: Vec<u8>,
}

impl<'a> Names<'a> {
    /// Names that are noted in `own`.
    pub(super) fn new(own: &'a OwnNames) -> Self {
        Self { own, random: Vec::new() }
    }

    /// A name for the directory `parent`.
    pub(super) fn next(&mut self, parent: &Arc<Directory>) -> Result<Vec<u8>, Errno> {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        if self.random.len() < RANDOM {
            // As many as come whole (getrandom(2)).
            self.random.resize(256, 0);
            let got = getrandom(self.random.as_mut_slice(), GetRandomFlags::empty())?;
            self.random.truncate(got);
        }
        let own = self.random.split_off(self.random.len().saturating_sub(RANDOM));
        let letters = own.iter().filter_map(|byte| ALPHABET.get(usize::from(byte % 32)));
        let name: Vec<u8> = TEMPORARY.iter().chain(letters).copied().collect();
        // Before there is such a file: whoever looks the directory through may meet it at once.
        self.own.note(parent, &name);
        Ok(name)
    }
}

/// Whether this is the name of a temporary file.
fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(TEMPORARY)
        .is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric))
}

/// Temporary names that this session chose while its target is looked through for those of others: both go on at the
/// same time.
#[derive(Debug)]
pub(super) struct OwnNames {
    target: Option<Arc<Directory>>,
    /// `None` when nobody looks any more.
    chosen: Mutex<Option<HashSet<Vec<u8>>>>,
}

impl OwnNames {
    /// For a session whose target, if it is a directory, will be looked through.
    pub(super) fn new(target: Option<&Arc<Directory>>) -> Self {
        Self { target: target.cloned(), chosen: Mutex::new(target.map(|_| HashSet::new())) }
    }

    fn lock(&self) -> MutexGuard<'_, Option<HashSet<Vec<u8>>>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, parent: &Arc<Directory>, name: &[u8]) {
        // Nobody looks for leftovers anywhere but in the target itself.
        if self.target.as_ref().is_some_and(|target| Arc::ptr_eq(target, parent))
            && let Some(chosen) = self.lock().as_mut()
        {
            chosen.insert(name.to_vec());
        }
    }

    fn holds(&self, name: &[u8]) -> bool {
        self.lock().as_ref().is_some_and(|chosen| chosen.contains(name))
    }
}

/// A remark about temporary files in this directory that are not this session's: an earlier run left them.
pub(super) fn leftovers(directory: &Directory, own: &OwnNames) -> Option<String> {
    let found = foreign(directory, own);
    *own.lock() = None;
    found
}

fn foreign(directory: &Directory, own: &OwnNames) -> Option<String> {
    let held = directory.wait()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(held.as_fd(), c".", flags, Mode::empty()).ok()?).ok()?;
    let mut names = Vec::new();
    let mut count = 0_u64;
    for entry in entries.flatten() {
        let name = entry.file_name().to_bytes();
        if !is_temporary(name) || own.holds(name) {
            continue;
        }
        count += 1;
        if names.len() < MOST_NAMED {
            names.push(String::from_utf8_lossy(name).into_owned());
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::PathNode;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_sessions_own_names_are_no_leftovers() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().as_os_str().as_bytes();
        let directory = Directory::open_named(path, PathNode::root(path.to_vec())).unwrap();
        let own = OwnNames::new(Some(&directory));
        let name = Names::new(&own).next(&directory).unwrap();
        std::fs::write(root.path().join(std::str::from_utf8(&name).unwrap()), b"").unwrap();
        std::fs::write(root.path().join(".escp-leftover"), b"").unwrap();
        std::fs::write(root.path().join(".escp-mine"), b"not of eight characters").unwrap();
        let remark = leftovers(&directory, &own).unwrap();
        assert!(remark.contains(": 1 temporary file of an interrupted"), "{remark}");
        assert!(remark.contains(".escp-leftover;"), "{remark}");
        std::fs::remove_file(root.path().join(".escp-leftover")).unwrap();
        let own = OwnNames::new(Some(&directory));
        own.note(&directory, &name);
        assert_eq!(leftovers(&directory, &own), None);
    }
}
