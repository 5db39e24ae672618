//! Opening a place for a file's bytes: a temporary file beside its final name, or the file itself.

use super::directory::{Directory, Held};
use super::space::{Room, Space, why_not_made};
use super::temporary::{Names, OwnNames, Temporary};
use crate::link::TransferOptions;
use crate::reason::why;
use crate::storage::{self, DIRECT_FROM, Memory};
use escp_engine_api::FileSpec;
use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, accessat, fcntl_setfl, fstat, ftruncate,
    openat, statat, statx,
};
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Names tried before giving up; 40 random bits do not collide by chance.
const TRIES: usize = 16;

/// A file to make room for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) number: u64,
    pub(super) parent: Arc<Directory>,
    pub(super) name: Vec<u8>,
    pub(super) size: u64,
    pub(super) sparse: bool,
    /// The user typed this very path, so a link there may be followed.
    pub(super) user_named: bool,
}

/// A file that is open for writing.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) spec: FileSpec,
    /// The engine has it too.
    pub(super) file: Arc<OwnedFd>,
    pub(super) parent: Arc<Directory>,
    /// The final name.
    pub(super) name: Vec<u8>,
    pub(super) place: PlacedAt,
    /// Mode of the file that has the final name already.
    pub(super) old_mode: Option<u32>,
}

/// Under which name a file is written.
#[derive(Debug)]
pub(super) enum PlacedAt {
    /// A temporary name, to be renamed.
    Temporary(Temporary),
    /// The final name, made by this session: removed again if the file fails.
    New(Temporary),
    /// The final name of a file that was there before.
    Existing,
}

/// Makes room for a file. An empty error: its directory failed, which was said once.
pub(super) fn make(
    wanted: Wanted,
    options: &TransferOptions,
    space: &Space,
    memory: &Memory,
    batch: &mut Batch<'_>,
) -> Result<Made, String> {
    let parent = Arc::clone(&wanted.parent);
    let Some(held) = parent.wait() else { return Err(String::new()) };
    // A directory that this session made holds nothing else than what this session puts there.
    let fresh = held.created && !options.inplace;
    let existing = if fresh { None } else { existing(held, &wanted, options.inplace)? };
    if !wanted.sparse && wanted.size > 0 {
        // In place, the old content is dropped before the new one comes.
        let freed = existing
            .as_ref()
            .filter(|_| options.inplace)
            .map_or(0, |stat| u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512));
        space.check(held, wanted.size, freed, &mut batch.room).map_err(|shortage| shortage.text())?;
    }
    let (file, place) = match (&existing, options.inplace) {
        (Some(_), true) => (open_existing(held, &wanted)?, PlacedAt::Existing),
        (None, true) => {
            let file = create(held, &wanted.name).map_err(|error| why_not_made(error, held))?;
            (file, PlacedAt::New(Temporary::new(&wanted.parent, wanted.name.clone())))
        }
        (_, false) => {
            let (file, name) = create_temporary(&wanted.parent, held, &mut batch.names)
                .map_err(|error| why_not_made(error, held))?;
            (file, PlacedAt::Temporary(Temporary::new(&wanted.parent, name)))
        }
    };
    let spec = spec(&wanted, held, &file, options.direct, memory).map_err(why)?;
    let file = Arc::new(file);
    space.promise(wanted.number, held, wanted.size, &file);
    Ok(Made {
        spec,
        file,
        parent: wanted.parent,
        name: wanted.name,
        place,
        old_mode: existing.map(|stat| stat.st_mode & 0o777),
    })
}

/// What has the final name already, if that may be replaced or written.
fn existing(held: &Held, wanted: &Wanted, inplace: bool) -> Result<Option<Stat>, String> {
    let name = wanted.name.as_slice();
    let follow = inplace && wanted.user_named;
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = match statat(held.as_fd(), name, flags) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(why(error)),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink if inplace => {
            return Err("is a symbolic link, and links below the target are not followed".into());
        }
        // The link itself will be replaced.
        FileType::Symlink => return Ok(None),
        FileType::Directory => return Err("is a directory".into()),
        _ => return Err("exists and is not a regular file".into()),
    }
    // Renaming over it would need no right to the file itself; scp does, and so does this.
    accessat(held.as_fd(), name, Access::WRITE_OK, AtFlags::empty()).map_err(why)?;
    Ok(Some(stat))
}

fn open_existing(held: &Held, wanted: &Wanted) -> Result<OwnedFd, String> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let flags = if wanted.user_named { flags } else { flags | OFlags::NOFOLLOW };
    let file = openat(held.as_fd(), wanted.name.as_slice(), flags, Mode::empty()).map_err(why)?;
    let stat = fstat(&file).map_err(why)?;
    // NONBLOCK only kept a FIFO from being waited for; io_uring would take it for a wish.
    fcntl_setfl(&file, OFlags::empty()).map_err(why)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err("exists and is not a regular file".into());
    }
    // Holes of the new content must not show the old one.
    ftruncate(&file, 0).map_err(why)?;
    Ok(file)
}

fn create(held: &Held, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(held.as_fd(), name, flags, Mode::RUSR | Mode::WUSR)
}

fn create_temporary(
    parent: &Arc<Directory>,
    held: &Held,
    names: &mut Names<'_>,
) -> Result<(OwnedFd, Vec<u8>), Errno> {
    for _ in 0..TRIES {
        let name = names.next(parent)?;
        match create(held, &name) {
            Ok(file) => return Ok((file, name)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

/// What the files of one batch share, so that it is asked for once: a look at the free space, and random bytes.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    room: Room,
    names: Names<'a>,
}

impl<'a> Batch<'a> {
    /// A batch of a session whose temporary names are noted in `own`.
    pub(super) fn new(own: &'a OwnNames) -> Self {
        Self { room: Room::default(), names: Names::new(own) }
    }
}

fn spec(
    wanted: &Wanted,
    held: &Held,
    file: &OwnedFd,
    direct: bool,
    memory: &Memory,
) -> Result<FileSpec, Errno> {
    let in_memory = memory.holds(file.as_fd(), held.device);
    let mut direct_alignment = 0;
    if direct && !in_memory && wanted.size >= DIRECT_FROM {
        let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::TYPE | StatxFlags::DIOALIGN)?;
        direct_alignment = storage::set_direct(file.as_fd(), true, &stat)?;
    }
    let (number, size, sparse) = (wanted.number, wanted.size, wanted.sparse);
    Ok(FileSpec { number, size, direct_alignment, in_memory, sparse })
}
