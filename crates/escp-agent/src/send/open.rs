//! Opening what the walk found, and looking at it again once it was read.

use super::holes;
use super::walk::{Found, NOT_REGULAR, timestamp};
use crate::path::PathNode;
use crate::reason::why;
use crate::storage::{self, DIRECT_FROM, Memory};
use escp_engine_api::{Extent, ExtentKind, FileSpec};
use escp_proto::agent::{Attributes, EntryKind};
use escp_proto::block::MAX_PACKED_FILE_LEN;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, makedev, openat, statx};
use rustix::io::{Errno, pread};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// Something found, ready to be offered; or why it cannot be.
#[derive(Debug)]
pub(super) enum Offered {
    File(Box<OpenedFile>),
    Directory { name: Vec<u8>, node: Arc<PathNode>, parent: u64, id: u64, attributes: Attributes },
    End { id: u64, node: Arc<PathNode> },
    Failed { path: Vec<u8>, text: String },
}

/// A file that may be offered.
#[derive(Debug)]
pub(super) struct OpenedFile {
    pub(super) name: Vec<u8>,
    pub(super) node: Arc<PathNode>,
    pub(super) parent: u64,
    pub(super) kind: EntryKind,
    /// `number` is set when it is offered.
    pub(super) spec: FileSpec,
    /// Likewise in each extent.
    pub(super) extents: Vec<Extent>,
    /// For the engine; `None` with a dummy engine.
    pub(super) file: Option<Arc<OwnedFd>>,
    /// Kept to look at the file again.
    pub(super) original: Option<Original>,
}

/// A file as it was before it was read, and its descriptor.
#[derive(Debug)]
pub(super) struct Original {
    fd: Arc<OwnedFd>,
    identity: Identity,
}

/// What tells a file that changed from one that did not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: (u32, u32),
    inode: u64,
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    links: u32,
}

impl Identity {
    fn of(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            inode: stat.stx_ino,
            size: stat.stx_size,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            links: stat.stx_nlink,
        }
    }

    /// What changed since `self`, in words.
    fn change_to(&self, now: &Self) -> Option<String> {
        if now.size != self.size {
            Some(format!("its size went from {} to {} bytes", self.size, now.size))
        } else if now.mtime != self.mtime {
            Some("it was written to".into())
        } else if (now.device, now.inode) != (self.device, self.inode) {
            Some("it became another file".into())
        } else if now.ctime != self.ctime && now.links == self.links {
            Some("its attributes changed".into())
        } else {
            // A change of ctime that comes with one of the link count is a rename over it, an unlink or a
            // new link: the name changed, not the file.
            None
        }
    }
}

/// Opens what was found. Never fails as a whole: what cannot be opened is [`Offered::Failed`].
pub(super) fn open(found: Found, direct: bool, memory: &Memory) -> Offered {
    match found {
        Found::Directory { name, node, parent, id, attributes } => {
            Offered::Directory { name, node, parent, id, attributes }
        }
        Found::End { id, node } => Offered::End { id, node },
        Found::Failed { path, text } => Offered::Failed { path, text },
        Found::Dummy { name, size } => Offered::File(Box::new(dummy(name, size))),
        Found::File { directory, path, name, node, parent } => {
            let at = directory.as_ref().map_or(CWD, |fd| fd.as_fd());
            match open_file(at, &path, direct, memory) {
                Ok(opened) => Offered::File(Box::new(OpenedFile { name, node, parent, ..opened })),
                Err(text) => Offered::Failed { path: node.path(), text },
            }
        }
    }
}

fn open_file(at: BorrowedFd<'_>, path: &[u8], direct: bool, memory: &Memory) -> Result<OpenedFile, String> {
    // Should the file have become a FIFO, opening must not wait for a writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file = Arc::new(openat(at, path, flags, Mode::empty()).map_err(why)?);
    let stat = look(file.as_fd()).map_err(why)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Err(NOT_REGULAR.into());
    }
    if stat.stx_size == 0 && holds_data(file.as_fd()) {
        return Err(
            "says that it is empty and is not, like the files of /proc: copy it to a file first".into()
        );
    }
    let in_memory = memory.holds(file.as_fd(), makedev(stat.stx_dev_major, stat.stx_dev_minor));
    let wanted = direct && !in_memory && stat.stx_size >= DIRECT_FROM;
    // Blocks of 512 bytes, whatever the file system's own are. A file of one grain has no hole to save.
    let sparse = stat.stx_size > 4096 && stat.stx_blocks.saturating_mul(512) < stat.stx_size;
    let direct_alignment = if sparse || stat.stx_size > MAX_PACKED_FILE_LEN {
        // NONBLOCK goes in any case: on some file systems io_uring would answer EAGAIN for it.
        storage::set_direct(file.as_fd(), wanted, &stat).map_err(why)?
    } else {
        // Read by a plain call, for which a regular file's NONBLOCK means nothing.
        0
    };
    let extents =
        if sparse { holes::extents(file.as_fd(), 0, stat.stx_size) } else { one_extent(stat.stx_size) };
    let sparse = extents.iter().any(|extent| extent.kind == ExtentKind::Hole);
    let attributes = Attributes {
        mode: u32::from(stat.stx_mode) & 0o7777,
        mtime: timestamp(stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec.into()),
        atime: timestamp(stat.stx_atime.tv_sec, stat.stx_atime.tv_nsec.into()),
    };
    Ok(OpenedFile {
        name: Vec::new(),
        node: PathNode::root(Vec::new()),
        parent: 0,
        kind: EntryKind::File { size: stat.stx_size, sparse, attributes },
        spec: FileSpec { number: 0, size: stat.stx_size, direct_alignment, in_memory, sparse },
        extents,
        original: Some(Original { fd: Arc::clone(&file), identity: Identity::of(&stat) }),
        file: Some(file),
    })
}

/// Whether an empty file can be read from all the same. O_NONBLOCK is still set: nothing is waited for.
fn holds_data(file: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    matches!(pread(file, &mut byte, 0), Ok(1))
}

fn dummy(name: Vec<u8>, size: u64) -> OpenedFile {
    let now = timestamp(0, 0);
    let attributes = Attributes { mode: 0o600, mtime: now, atime: now };
    let node = PathNode::root(name.clone());
    let name = name.iter().map(|&byte| if matches!(byte, b'/' | 0) { b'_' } else { byte }).collect();
    OpenedFile {
        name,
        node,
        parent: 0,
        kind: EntryKind::File { size, sparse: false, attributes },
        spec: FileSpec { number: 0, size, direct_alignment: 0, in_memory: false, sparse: false },
        extents: one_extent(size),
        file: None,
        original: None,
    }
}

fn one_extent(size: u64) -> Vec<Extent> {
    if size == 0 {
        return Vec::new();
    }
    vec![Extent { file: 0, offset: 0, length: size, kind: ExtentKind::Data }]
}

fn look(file: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN)
}

/// Looks again at a file that was read: what was read is good only if it did not change meanwhile.
///
/// Only the open file counts. A name that leads to another file by now, or nowhere, takes nothing from
/// what was read: it is the whole file as it was.
pub(super) fn recheck(original: &Original) -> Result<(), String> {
    let now =
        look(original.fd.as_fd()).map_err(|error| format!("cannot be looked at again: {}", why(error)))?;
    match original.identity.change_to(&Identity::of(&now)) {
        None => Ok(()),
        Some(change) => Err(format!("changed while it was read: {change}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn opened(directory: &std::path::Path, name: &str) -> OpenedFile {
        let path = directory.join(name);
        open_file(CWD, path.as_os_str().as_encoded_bytes(), true, &Memory::default()).unwrap()
    }

    #[test]
    fn a_change_is_noticed_and_a_change_of_name_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        let fresh = || {
            std::fs::write(&path, b"content").unwrap();
            std::thread::sleep(std::time::Duration::from_millis(15));
            opened(directory.path(), "a").original.unwrap()
        };
        assert_eq!(recheck(&fresh()), Ok(()));

        let grown = fresh();
        std::fs::write(&path, b"more content").unwrap();
        assert!(recheck(&grown).unwrap_err().contains("7 to 12 bytes"));

        let rewritten = fresh();
        std::fs::write(&path, b"CONTENT").unwrap();
        assert!(recheck(&rewritten).unwrap_err().contains("written to"));

        let attributes = fresh();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).unwrap();
        assert!(recheck(&attributes).unwrap_err().contains("attributes"));

        let replaced = fresh();
        std::fs::write(directory.path().join("b"), b"another").unwrap();
        std::fs::rename(directory.path().join("b"), &path).unwrap();
        assert_eq!(recheck(&replaced), Ok(()));

        let removed = fresh();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(recheck(&removed), Ok(()));
    }

    #[test]
    fn a_file_that_hides_its_size_is_refused_not_sent_empty() {
        let error = open_file(CWD, b"/proc/self/status", true, &Memory::default()).unwrap_err();
        assert!(error.contains("/proc"), "{error}");
    }

    #[test]
    fn only_regular_files_open_and_a_fifo_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let error = open_file(CWD, fifo.as_os_str().as_encoded_bytes(), true, &Memory::default());
        assert_eq!(error.unwrap_err(), NOT_REGULAR);
    }
}
