//! The walk over the sources: lazy, depth first, by directory descriptors, so that no path is ever too
//! long and memory does not grow with the number of files.

use super::Source;
use super::gate::Gate;
use crate::path::{PathNode, base_name};
use crate::reason::why;
use escp_proto::agent::{Attributes, MAX_NAME, Timestamp};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat, fstat, openat, statat};
use rustix::io::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Things found that are handed on together.
const BATCH: usize = 128;
/// How long a thing found waits for company.
const PATIENCE: Duration = Duration::from_millis(5);
/// Bytes of directory entries read at once.
const SCRATCH: usize = 32 * 1024;

/// Something the walk met, in the order in which it is to be offered.
#[derive(Debug)]
pub(super) enum Found {
    /// A file to open.
    File {
        /// Directory it lies in; `None` for the working directory.
        directory: Option<Arc<OwnedFd>>,
        /// Its path from there.
        path: Vec<u8>,
        /// The name it is offered under.
        name: Vec<u8>,
        /// For messages.
        node: Arc<PathNode>,
        /// The directory it is offered in: a number of this walk, 0 for the top.
        parent: u64,
    },
    /// Bytes that a dummy engine makes up.
    Dummy { name: Vec<u8>, size: u64 },
    Directory {
        name: Vec<u8>,
        node: Arc<PathNode>,
        parent: u64,
        /// A number of this walk, from 1.
        id: u64,
        attributes: Attributes,
    },
    /// The last child of directory `id` was found.
    End { id: u64, node: Arc<PathNode> },
    /// Something that cannot be sent.
    Failed { path: Vec<u8>, text: String },
}

/// What the walk needs.
pub(super) struct Walk<'a> {
    pub(super) recursive: bool,
    pub(super) deepest: usize,
    pub(super) gate: &'a Gate,
    /// Takes what was found, in order.
    pub(super) give: &'a mut dyn FnMut(Vec<Found>),
}

/// A directory being read.
struct Frame {
    fd: Arc<OwnedFd>,
    node: Arc<PathNode>,
    id: u64,
    /// Device and inode, to notice loops of symbolic links.
    key: (u64, u64),
    /// Read from the directory and not looked at yet.
    pending: Vec<(Vec<u8>, FileType)>,
    exhausted: bool,
}

/// The walk was told to end.
struct Stopped;

struct Walker<'a> {
    walk: Walk<'a>,
    stack: Vec<Frame>,
    batch: Vec<Found>,
    batch_began: Instant,
    found: u64,
    allowed: u64,
    directories: u64,
    scratch: Vec<MaybeUninit<u8>>,
}

/// Walks over `sources` until everything was found or the gate is closed.
pub(super) fn walk(sources: Vec<Source>, walk: Walk<'_>) {
    let mut walker = Walker {
        walk,
        stack: Vec::new(),
        batch: Vec::new(),
        batch_began: Instant::now(),
        found: 0,
        allowed: 0,
        directories: 0,
        scratch: vec![MaybeUninit::uninit(); SCRATCH],
    };
    for source in sources {
        if walker.source(source).is_err() {
            return;
        }
    }
    walker.hand_over();
}

impl Walker<'_> {
    fn source(&mut self, source: Source) -> Result<(), Stopped> {
        let path = match source {
            Source::Missing { path, text } => return self.add(Found::Failed { path, text }),
            Source::Dummy { name, .. } if name.len() > MAX_NAME => return self.fail(name, name_too_long()),
            Source::Dummy { name, size } => return self.add(Found::Dummy { name, size }),
            Source::Path(path) => path,
        };
        let stat = match statat(CWD, path.as_slice(), AtFlags::empty()) {
            Ok(stat) => stat,
            Err(error) => return self.fail(path, why(error)),
        };
        let name = base_name(&path).to_vec();
        match FileType::from_raw_mode(stat.st_mode) {
            _ if name.len() > MAX_NAME => self.fail(path, name_too_long()),
            FileType::RegularFile => {
                let node = PathNode::root(path.clone());
                self.add(Found::File { directory: None, path, name, node, parent: 0 })
            }
            FileType::Directory if self.walk.recursive => {
                let node = PathNode::root(path.clone());
                self.enter(None, &path, name, node, 0)?;
                self.descend()
            }
            FileType::Directory => self.fail(path, "is a directory; -r sends directories".into()),
            _ => self.fail(path, NOT_REGULAR.into()),
        }
    }

    /// Works off the stack of directories.
    fn descend(&mut self) -> Result<(), Stopped> {
        while let Some(frame) = self.stack.last_mut() {
            if let Some((name, kind)) = frame.pending.pop() {
                self.child(name, kind)?;
            } else if frame.exhausted {
                let (id, node) = (frame.id, Arc::clone(&frame.node));
                self.stack.pop();
                self.add(Found::End { id, node })?;
            } else if let Err(error) = fill(frame, &mut self.scratch) {
                frame.exhausted = true;
                let path = frame.node.path();
                self.fail(path, format!("cannot be read to its end: {}", why(error)))?;
            }
        }
        Ok(())
    }

    /// Looks at one entry of the directory on top of the stack.
    fn child(&mut self, name: Vec<u8>, kind: FileType) -> Result<(), Stopped> {
        let Some(frame) = self.stack.last() else { return Ok(()) };
        let (directory, parent) = (Arc::clone(&frame.fd), frame.id);
        let node = PathNode::child(&frame.node, &name);
        let kind = match kind {
            // Symbolic links met in the tree are followed, as scp -r does.
            FileType::Symlink | FileType::Unknown => match followed_type(directory.as_fd(), &name) {
                Ok(kind) => kind,
                Err(error) => return self.fail(node.path(), why(error)),
            },
            kind => kind,
        };
        match kind {
            _ if name.len() > MAX_NAME => self.fail(node.path(), name_too_long()),
            FileType::RegularFile => {
                let path = name.clone();
                self.add(Found::File { directory: Some(directory), path, name, node, parent })
            }
            FileType::Directory => {
                let path = name.clone();
                self.enter(Some(&directory), &path, name, node, parent)
            }
            _ => self.fail(node.path(), NOT_REGULAR.into()),
        }
    }

    /// Opens a directory and puts it on the stack.
    fn enter(
        &mut self,
        directory: Option<&Arc<OwnedFd>>,
        path: &[u8],
        name: Vec<u8>,
        node: Arc<PathNode>,
        parent: u64,
    ) -> Result<(), Stopped> {
        if self.stack.len() >= self.walk.deepest {
            let text = format!("is too deep: this host allows {} open directories", self.walk.deepest);
            return self.fail(node.path(), text);
        }
        let at = directory.map_or(CWD, |fd| fd.as_fd());
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened = openat(at, path, flags, Mode::empty()).and_then(|fd| Ok((fstat(&fd)?, fd)));
        let (stat, fd) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.fail(node.path(), why(error)),
        };
        let key = (stat.st_dev, stat.st_ino);
        if self.stack.iter().any(|frame| frame.key == key) {
            let text = "is a loop of symbolic links: it leads back into a directory above it; skipped";
            return self.fail(node.path(), text.into());
        }
        self.directories += 1;
        let id = self.directories;
        let attributes = attributes_of(&stat);
        self.add(Found::Directory { name, node: Arc::clone(&node), parent, id, attributes })?;
        let fd = Arc::new(fd);
        self.stack.push(Frame { fd, node, id, key, pending: Vec::new(), exhausted: false });
        Ok(())
    }

    fn fail(&mut self, path: Vec<u8>, text: String) -> Result<(), Stopped> {
        self.add(Found::Failed { path, text })
    }

    /// Adds something found to the batch, waiting for the receiver where it must.
    fn add(&mut self, found: Found) -> Result<(), Stopped> {
        if self.found >= self.allowed {
            self.allowed = self.walk.gate.allowed().ok_or(Stopped)?;
            if self.found >= self.allowed {
                // Nobody waits for what is in hand here.
                self.hand_over();
                self.allowed = self.walk.gate.wait_beyond(self.found).ok_or(Stopped)?;
            }
        }
        self.found += 1;
        if self.batch.is_empty() {
            self.batch_began = Instant::now();
        }
        self.batch.push(found);
        if self.batch.len() >= BATCH || self.batch_began.elapsed() > PATIENCE {
            self.hand_over();
        }
        Ok(())
    }

    fn hand_over(&mut self) {
        if !self.batch.is_empty() {
            (self.walk.give)(std::mem::take(&mut self.batch));
        }
    }
}

/// What a thing that is neither file nor directory is refused with, in scp's words.
pub(super) const NOT_REGULAR: &str = "is not a regular file";

/// The reason for a name that few file systems could give a file, and that no offer can carry; NTFS and FAT, which count
/// characters, have such names.
fn name_too_long() -> String {
    format!("{}: a name may have {MAX_NAME} bytes", why(Errno::NAMETOOLONG))
}

/// Reads the next entries of a directory; none left: `exhausted`.
fn fill(frame: &mut Frame, scratch: &mut [MaybeUninit<u8>]) -> Result<(), Errno> {
    let mut entries = RawDir::new(&frame.fd, scratch);
    loop {
        match entries.next() {
            None => frame.exhausted = true,
            Some(Err(Errno::INTR)) => continue,
            Some(Err(error)) => return Err(error),
            Some(Ok(entry)) => {
                let name = entry.file_name().to_bytes();
                if !matches!(name, b"." | b"..") {
                    frame.pending.push((name.to_vec(), entry.file_type()));
                }
            }
        }
        // The position in the directory lies in the descriptor: the next call goes on from there.
        if frame.exhausted || entries.is_buffer_empty() {
            frame.pending.reverse();
            return Ok(());
        }
    }
}

fn followed_type(directory: BorrowedFd<'_>, name: &[u8]) -> Result<FileType, Errno> {
    statat(directory, name, AtFlags::empty()).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

/// Mode and times as they are offered.
pub(super) fn attributes_of(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        mtime: timestamp(stat.st_mtime, stat.st_mtime_nsec.into()),
        atime: timestamp(stat.st_atime, stat.st_atime_nsec.into()),
    }
}

pub(super) fn timestamp(seconds: i64, nanoseconds: i128) -> Timestamp {
    // The kernel keeps nanoseconds below a second; a file system that does not is taken at the second.
    let nanoseconds = u32::try_from(nanoseconds).ok().filter(|&n| n < 1_000_000_000).unwrap_or(0);
    Timestamp { seconds, nanoseconds }
}
