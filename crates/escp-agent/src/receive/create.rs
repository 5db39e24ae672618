//! Opening a place for a file's bytes: a temporary file beside its final name, or the file itself.

use super::directory::{Directory, Held};
use super::space::{Room, Space, why_not_made};
use crate::link::TransferOptions;
use crate::reason::why;
use crate::storage::{self, DIRECT_FROM, Memory};
use escp_engine_api::FileSpec;
use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Stat, StatxFlags, accessat, fcntl_setfl, fstat, ftruncate,
    openat, statat, statx, unlinkat,
};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// How temporary names start; eight random characters follow.
pub(super) const TEMPORARY: &[u8] = b".escp-";
/// Random characters of a temporary name.
const RANDOM: usize = 8;
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

/// A name that is removed when this is dropped, unless it was kept.
#[derive(Debug)]
pub(super) struct Temporary {
    parent: Arc<Directory>,
    pub(super) name: Vec<u8>,
    kept: bool,
}

impl Temporary {
    fn new(parent: &Arc<Directory>, name: Vec<u8>) -> Self {
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

/// Makes room for a file. An empty error: its directory failed, which was said once.
pub(super) fn make(
    wanted: Wanted,
    options: &TransferOptions,
    space: &Space,
    memory: &Memory,
    batch: &mut Batch,
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
            let (file, name) =
                create_temporary(held, &mut batch.names).map_err(|error| why_not_made(error, held))?;
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

fn create_temporary(held: &Held, names: &mut Names) -> Result<(OwnedFd, Vec<u8>), Errno> {
    for _ in 0..TRIES {
        let name = names.next()?;
        match create(held, &name) {
            Ok(file) => return Ok((file, name)),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno::EXIST)
}

/// What the files of one batch share, so that it is asked for once: a look at the free space, and random bytes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    room: Room,
    names: Names,
}

/// Temporary names from the kernel's random bytes.
#[derive(Debug, Default)]
struct Names {
    /// Not used yet.
    random: Vec<u8>,
}

impl Names {
    fn next(&mut self) -> Result<Vec<u8>, Errno> {
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
pub(super) fn is_temporary(name: &[u8]) -> bool {
    name.strip_prefix(TEMPORARY)
        .is_some_and(|rest| rest.len() == RANDOM && rest.iter().all(u8::is_ascii_alphanumeric))
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
