//! Directories of the receiving side, held by descriptor: nothing below the target is ever reached by a
//! path, so nothing planted there leads anywhere else.

use super::space::why_not_made;
use crate::path::{PathNode, split_last};
use crate::reason::why;
use escp_proto::agent::{Attributes, Timestamp};
use rustix::fs::{
    CWD, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fchmod, fstat, fsync, futimens, mkdirat,
    openat, openat2, syncfs,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// From so many directories of one batch on, one syncfs replaces an fsync of each.
const SYNCFS_FROM: usize = 8;
/// Mode bits of a directory that are taken from its source, as scp does.
const DIRECTORY_MODE: u32 = 0o1777;

/// A directory that is open, or will be, or could not be made.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) node: Arc<PathNode>,
    held: OnceLock<Option<Held>>,
    turn: Mutex<()>,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Held {
    fd: OwnedFd,
    pub(super) device: u64,
    /// This session made it.
    pub(super) created: bool,
}

impl Held {
    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// A directory that a [`Promise`] will open.
    pub(super) fn promised(node: Arc<PathNode>) -> Arc<Self> {
        Arc::new(Self { node, held: OnceLock::new(), turn: Mutex::default() })
    }

    /// The directory at a path that the user named; links in it are followed.
    pub(super) fn open_named(path: &[u8], node: Arc<PathNode>) -> Result<Arc<Self>, Errno> {
        let held =
            hold(openat(CWD, path, OPEN, Mode::empty()), |flags| openat(CWD, path, flags, Mode::empty()))?;
        Ok(Arc::new(Self { node, held: OnceLock::from(Some(held)), turn: Mutex::default() }))
    }

    /// Makes the directory at a path that the user named, durably where asked.
    pub(super) fn make_named(path: &[u8], durable: bool) -> Result<(), Errno> {
        mkdirat(CWD, path, Mode::from_raw_mode(0o777))?;
        if !durable {
            return Ok(());
        }
        let parent = match split_last(path).0 {
            b"" => b".",
            parent => parent,
        };
        sync_one(&hold(openat(CWD, parent, OPEN, Mode::empty()), |flags| {
            openat(CWD, parent, flags, Mode::empty())
        })?)
    }

    /// The open directory, once that is settled; `None` when it could not be made.
    pub(super) fn wait(&self) -> Option<&Held> {
        self.held.wait().as_ref()
    }

    /// This thread's turn to make or change many names here. The kernel has one lock per directory for that, and
    /// threads that want it at the same time spin (with two of them, 5 % of all CPU time of small files in memory).
    /// Not to be held while another directory is waited for.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The duty to open a directory. Dropped without having done it, the directory counts as failed, so that
/// nobody waits for it.
#[derive(Debug)]
pub(super) struct Promise(pub(super) Arc<Directory>);

impl Promise {
    /// Makes or finds `name` in `parent`. A link is never followed.
    pub(super) fn make(self, parent: &Held, name: &[u8]) -> Result<(), String> {
        // Nobody else gets in before it is complete.
        let created = match mkdirat(parent.as_fd(), name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(why_not_made(error, parent)),
        };
        let open = |flags| {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
            openat2(parent.as_fd(), name, flags, Mode::empty(), resolve)
        };
        let mut held = hold(open(OPEN), open).map_err(|error| match error {
            Errno::LOOP => "is a symbolic link, and links below the target are not followed".into(),
            Errno::NOTDIR => "exists and is not a directory".into(),
            Errno::NOSYS => "cannot be opened safely: this needs Linux 5.6 or later (openat2)".into(),
            error => why(error),
        })?;
        held.created = created;
        let _ = self.0.held.set(Some(held));
        Ok(())
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // Already set: the directory was opened.
        let _ = self.0.held.set(None);
    }
}

const OPEN: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Takes an opened directory; one that may be written to but not read is opened a second time as a path.
fn hold(
    opened: Result<OwnedFd, Errno>,
    again: impl Fn(OFlags) -> Result<OwnedFd, Errno>,
) -> Result<Held, Errno> {
    let fd = match opened {
        Err(Errno::ACCESS) => again(OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC)?,
        opened => opened?,
    };
    let stat = fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    Ok(Held { device: stat.st_dev, fd, created: false })
}

/// Gives a directory its mode and times, after its last child.
pub(super) fn finish(held: &Held, attributes: &Attributes, preserve: bool, umask: u32) -> Result<(), String> {
    if held.created || preserve {
        // A directory inherits the set-group-ID bit from the one it was made in; it keeps it.
        let inherited = fstat(held.as_fd()).map_or(0, |stat| stat.st_mode & 0o2000);
        let wanted = attributes.mode & DIRECTORY_MODE;
        let wanted = if preserve { wanted } else { wanted & !umask };
        fchmod(held.as_fd(), Mode::from_raw_mode(wanted | inherited))
            .map_err(|error| format!("its mode cannot be set: {}", why(error)))?;
    }
    if preserve {
        futimens(held.as_fd(), &times(attributes))
            .map_err(|error| format!("its times cannot be set: {}", why(error)))?;
    }
    Ok(())
}

/// Access and modification time as the kernel takes them.
pub(super) fn times(attributes: &Attributes) -> Timestamps {
    let timespec = |time: &Timestamp| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: timespec(&attributes.atime), last_modification: timespec(&attributes.mtime) }
}

/// Makes what was named in directories durable, each directory once.
#[derive(Debug, Default)]
pub(super) struct Sync {
    directories: HashMap<*const Held, Result<(), Errno>>,
}

impl Sync {
    /// Syncs these directories. Ask [`Sync::of`] for the outcome.
    pub(super) fn run<'a>(directories: impl Iterator<Item = &'a Held>) -> Self {
        let mut distinct: HashMap<*const Held, &Held> = HashMap::new();
        for held in directories {
            distinct.insert(std::ptr::from_ref(held), held);
        }
        let many = distinct.len() >= SYNCFS_FROM;
        let mut devices: HashMap<u64, Result<(), Errno>> = HashMap::new();
        let directories = distinct
            .into_iter()
            .map(|(key, held)| {
                let whole = || sync_device(held);
                let done =
                    if many { *devices.entry(held.device).or_insert_with(whole) } else { sync_one(held) };
                (key, done)
            })
            .collect();
        Self { directories }
    }

    /// Whether names in this directory are durable.
    pub(super) fn of(&self, held: &Held) -> Result<(), String> {
        match self.directories.get(&std::ptr::from_ref(held)) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(error)) => {
                Err(format!("arrived, but its name may not outlive a crash: the directory: {}", why(*error)))
            }
        }
    }
}

fn sync_one(held: &Held) -> Result<(), Errno> {
    match fsync(held.as_fd()) {
        // EBADF: opened as a path, because it may not be read. EINVAL: a file system that cannot.
        Err(Errno::BADF) => sync_device(held),
        Err(Errno::INVAL) => Ok(()),
        done => done,
    }
}

fn sync_device(held: &Held) -> Result<(), Errno> {
    match syncfs(held.as_fd()) {
        Err(Errno::BADF) => {
            // A path cannot be synced, but what it lies on can, if anything there may be read.
            rustix::fs::sync();
            Ok(())
        }
        done => done,
    }
}
