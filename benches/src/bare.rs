//! What the machine does without any network: a bare copier, and a bare maker of many small files.

use crate::listing::Listing;
use escp_testkit::{Checked, Trouble};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Transfers of O_DIRECT files start at and have a length of a multiple of this.
pub(crate) const ALIGNMENT: usize = 4096;
/// Bytes of a block of the copier.
const BLOCK: usize = 2 << 20;
/// Files of a tree are copied with O_DIRECT from this size on: below, the page cache costs less.
const DIRECT: u64 = 1 << 20;

/// Opens a source.
pub(crate) fn open(path: &Path, direct: bool) -> Checked<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | direct_flag(direct);
    Ok(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| named(path, e))?.into())
}

/// Makes a target under a temporary name, with space for `size` bytes unless that is 0.
pub(crate) fn create(path: &Path, size: u64, direct: bool) -> Checked<File> {
    if path.exists() {
        return Err(Trouble::new(format!("{} exists", path.display())));
    }
    let path = temporary(path);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | direct_flag(direct);
    let file: File =
        rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(|e| named(&path, e))?.into();
    if size > 0 {
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size.next_multiple_of(ALIGNMENT as u64))?;
    }
    Ok(file)
}

/// Gives a target its length and its name; what it holds is on the disk before, if `durable`.
pub(crate) fn publish(file: &File, path: &Path, size: u64, durable: bool) -> Checked {
    file.set_len(size)?;
    if durable {
        file.sync_data()?;
    }
    std::fs::rename(temporary(path), path)?;
    if durable && let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// Reads `length` bytes, or, of an O_DIRECT file, as many as that takes.
pub(crate) fn read_whole(file: &File, into: &mut [u8], length: usize, offset: u64) -> Checked {
    let mut got = 0;
    while got < length {
        let want = length.next_multiple_of(ALIGNMENT) - got;
        match file.read_at(&mut into[got..got + want], offset + got as u64) {
            Ok(0) => return Err(Trouble::new("the file became shorter")),
            Ok(count) => got += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Writes `length` bytes and the padding behind them; [`publish`] cuts it off.
pub(crate) fn write_whole(file: &File, from: &[u8], length: usize, offset: u64) -> Checked {
    Ok(file.write_all_at(&from[..length.next_multiple_of(ALIGNMENT)], offset)?)
}

fn direct_flag(direct: bool) -> OFlags {
    if direct { OFlags::DIRECT } else { OFlags::empty() }
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

fn named(path: &Path, error: rustix::io::Errno) -> Trouble {
    Trouble::new(format!("{}: {error}", path.display()))
}

/// A copy on one disk with O_DIRECT, durable at the end: what the disk gives when nothing else is asked.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CopyArgs {
    /// File to read, or a directory of files and directories.
    from: PathBuf,
    /// File or directory to make; it must not exist.
    to: PathBuf,
    /// Threads, and so blocks in flight.
    #[arg(long, default_value_t = 8)]
    threads: usize,
}

/// Copies.
pub(crate) fn copy(args: &CopyArgs) -> Checked {
    if args.from.is_dir() { copy_tree(args) } else { copy_blocks(args) }
}

/// Copies a file: its blocks are dealt to the threads.
fn copy_blocks(args: &CopyArgs) -> Checked {
    let source = open(&args.from, true)?;
    let size = source.metadata()?.len();
    let target = create(&args.to, size, true)?;
    let next = AtomicU64::new(0);
    on_threads(args.threads, &|| {
        let mut buf = block()?;
        let body = &mut buf.bytes_mut()[escp_buf::BODY..];
        loop {
            let offset = next.fetch_add(BLOCK as u64, Ordering::Relaxed);
            if offset >= size {
                return Ok(());
            }
            let length = length(size, offset);
            read_whole(&source, body, length, offset)?;
            write_whole(&target, body, length, offset)?;
        }
    })?;
    publish(&target, &args.to, size, true)
}

/// Copies a tree: its files are dealt to the threads, and made durable by one barrier.
fn copy_tree(args: &CopyArgs) -> Checked {
    let tree = Tree::mirror(&args.from, &args.to)?;
    let next = AtomicUsize::new(0);
    on_threads(args.threads, &|| {
        let mut buf = block()?;
        let body = &mut buf.bytes_mut()[escp_buf::BODY..];
        while let Some(pair) = tree.files.get(next.fetch_add(1, Ordering::Relaxed)) {
            copy_file(pair, body)?;
        }
        Ok(())
    })?;
    tree.publish_durably(args.threads)
}

/// Copies a file to a temporary name, with O_DIRECT where that pays.
fn copy_file((from, to): &Pair, body: &mut [u8]) -> Checked {
    let size = from.metadata()?.len();
    let direct = size >= DIRECT;
    let source = open(from, direct)?;
    let target = create(to, if direct { size } else { 0 }, direct)?;
    for offset in (0..size).step_by(BLOCK) {
        let length = length(size, offset);
        read_whole(&source, body, length, offset)?;
        if direct {
            write_whole(&target, body, length, offset)?;
        } else {
            target.write_all_at(&body[..length], offset)?;
        }
    }
    if direct {
        target.set_len(size)?;
    }
    Ok(())
}

/// Bytes of the block at `offset`.
fn length(size: u64, offset: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "at most the block size")]
    let length = (size - offset).min(BLOCK as u64) as usize;
    length
}

/// Memory for a block, of the thread that asks.
fn block() -> Checked<escp_buf::Buf> {
    let pool = escp_buf::Pool::new(1, BLOCK)?;
    pool.prefer_huge_pages();
    pool.take().ok_or_else(|| Trouble::new("an empty pool"))
}

/// Copies of the files of a tree: create under a temporary name, write, one barrier, rename.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CreateArgs {
    /// Directory to read, with directories of files in it.
    from: PathBuf,
    /// Directory to make; it must not exist.
    to: PathBuf,
    /// Threads that work on different files.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Everything is on the disk before the first rename, and the renames are at the end.
    #[arg(long)]
    durable: bool,
}

/// Makes the files.
pub(crate) fn create_tree(args: &CreateArgs) -> Checked {
    let tree = Tree::mirror(&args.from, &args.to)?;
    tree.each(args.threads, &|(from, to)| {
        let bytes = std::fs::read(from)?;
        let part = temporary(to);
        let file = File::create_new(&part)?;
        file.write_all_at(&bytes, 0)?;
        if !args.durable {
            std::fs::rename(&part, to)?;
        }
        Ok(())
    })?;
    if args.durable { tree.publish_durably(args.threads) } else { Ok(()) }
}

/// A file to read, and one to make.
type Pair = (PathBuf, PathBuf);

/// A tree to make, whose directories are there.
struct Tree {
    top: PathBuf,
    /// All of them, the top included.
    directories: Vec<PathBuf>,
    files: Vec<Pair>,
}

impl Tree {
    /// Makes the directories of `from` in `to`.
    fn mirror(from: &Path, to: &Path) -> Checked<Self> {
        let listing = Listing::of(from)?;
        let directories: Vec<_> = listing.directories.iter().map(|inner| to.join(inner)).collect();
        directories.iter().try_for_each(std::fs::create_dir)?;
        let pair = |inner: PathBuf| (from.join(&inner), to.join(&inner));
        let files = listing.files.iter().map(|file| pair(listing.path(file))).collect();
        Ok(Self { top: to.to_owned(), directories, files })
    }

    /// Gives all files their names, with everything on the disk before and after.
    fn publish_durably(&self, threads: usize) -> Checked {
        rustix::fs::syncfs(File::open(&self.top)?)?;
        self.each(threads, &|(_, to)| Ok(std::fs::rename(temporary(to), to)?))?;
        self.directories.iter().try_for_each(|directory| Ok(File::open(directory)?.sync_all()?))
    }

    /// Does something with every file, neighbours on the same thread.
    fn each(&self, threads: usize, work: &(dyn Fn(&Pair) -> Checked + Sync)) -> Checked {
        let step = self.files.len().div_ceil(threads.max(1)).max(1);
        let next = AtomicUsize::new(0);
        on_threads(threads, &|| {
            let first = next.fetch_add(step, Ordering::Relaxed);
            self.files.iter().skip(first).take(step).try_for_each(work)
        })
    }
}

/// Does the same on so many threads.
pub(crate) fn on_threads(count: usize, work: &(dyn Fn() -> Checked + Sync)) -> Checked {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..count.max(1)).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| Trouble::new("a thread that copies panicked"))?
        })
    })
}
