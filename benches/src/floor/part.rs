//! The receiving end's files, from a temporary name to their own.

use crate::bare::on_threads;
use escp_testkit::{Checked, Trouble};
use rustix::fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Threads that wait for the disk, as many as a receiving agent has.
const CREW: usize = 8;
/// Files of one turn of them; so many turns may wait. Their descriptors are open meanwhile.
const TURN: usize = 16;

/// The directory that is made.
pub(super) struct Target {
    path: PathBuf,
    top: OwnedFd,
    /// Directories in it, relative to it.
    made: Mutex<BTreeSet<PathBuf>>,
}

impl Target {
    pub(super) fn make(path: PathBuf) -> Checked<Self> {
        std::fs::create_dir(&path).map_err(|error| Trouble::new(format!("{}: {error}", path.display())))?;
        let top = File::open(&path)?.into();
        Ok(Self { path, top, made: Mutex::default() })
    }

    /// Opens a directory below it, whose name leads nowhere else; makes it where it is not there, with all above it.
    pub(super) fn directory(&self, name: &[u8]) -> Checked<OwnedFd> {
        let mut held = self.top.try_clone()?;
        let mut path = PathBuf::new();
        for part in name.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            match mkdirat(&held, part, Mode::from_raw_mode(0o777)) {
                // Another stream has met it.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            held = openat(&held, part, flags, Mode::empty())?;
            path.push(OsStr::from_bytes(part));
            self.made.lock().unwrap_or_else(PoisonError::into_inner).insert(path.clone());
        }
        Ok(held)
    }

    /// The barrier: makes durable what is in all files.
    pub(super) fn sync_contents(&self) -> Checked {
        Ok(rustix::fs::syncfs(&self.top)?)
    }

    /// Makes all names durable.
    pub(super) fn sync_names(&self) -> Checked {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let above = ["..", "."].map(PathBuf::from);
        made.iter().chain(&above).try_for_each(|name| Ok(File::open(self.path.join(name))?.sync_all()?))
    }
}

/// Temporary names, no two alike.
pub(super) struct Names {
    stem: String,
    last: u64,
}

impl Names {
    pub(super) fn new() -> Checked<Self> {
        let mut random = [0; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        Ok(Self { stem: format!(".floor-{:016x}", u64::from_ne_bytes(random)), last: 0 })
    }

    pub(super) fn next(&mut self) -> String {
        self.last += 1;
        format!("{}-{}", self.stem, self.last)
    }
}

/// A file under a temporary name, which goes with this value.
pub(super) struct Part {
    directory: Arc<OwnedFd>,
    /// Open as long as there is something to do with it.
    file: Option<File>,
    temporary: String,
    name: Vec<u8>,
    published: bool,
}

impl Part {
    /// Makes it whole.
    pub(super) fn make(
        directory: &Arc<OwnedFd>,
        temporary: String,
        name: &[u8],
        mode: u32,
        data: &[u8],
    ) -> Checked<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file: File = openat(directory, &temporary, flags, Mode::RUSR | Mode::WUSR)?.into();
        let directory = Arc::clone(directory);
        let mut part = Self { directory, file: None, temporary, name: name.to_owned(), published: false };
        file.write_all_at(data, 0)?;
        fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
        part.file = Some(file);
        Ok(part)
    }

    /// Makes durable what is in it.
    fn sync(&self) -> Checked {
        Ok(self.file.as_ref().map_or(Ok(()), File::sync_data)?)
    }

    /// Gives it its name.
    fn publish(mut self) -> Checked {
        renameat(&self.directory, &self.temporary, &self.directory, self.name.as_slice())?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.published {
            // Whatever made it useless is told already.
            let _ = unlinkat(&self.directory, &self.temporary, AtFlags::empty());
        }
    }
}

/// Files that wait for the barrier, stream by stream; closed, since they may be many.
pub(super) type Written = Arc<Mutex<Vec<Vec<Part>>>>;

/// How files get their names.
pub(super) enum Through {
    /// As they come.
    AtOnce,
    /// By the crew, turn by turn.
    Crew(SyncSender<Vec<Part>>, Vec<Part>),
    /// Behind the barrier.
    Barrier(Written, Vec<Part>),
}

impl Through {
    pub(super) fn publish(&mut self, mut part: Part) -> Checked {
        match self {
            Self::AtOnce => return part.publish(),
            Self::Crew(crew, turn) => {
                turn.push(part);
                if turn.len() == TURN {
                    return hand_on(crew, turn);
                }
            }
            Self::Barrier(_, mine) => {
                part.file = None;
                mine.push(part);
            }
        }
        Ok(())
    }

    /// Hands on what it still has.
    pub(super) fn end(mut self) -> Checked {
        match &mut self {
            Self::AtOnce => {}
            Self::Crew(crew, turn) => hand_on(crew, turn)?,
            Self::Barrier(all, mine) => {
                all.lock().unwrap_or_else(PoisonError::into_inner).push(std::mem::take(mine));
            }
        }
        Ok(())
    }
}

/// Gives all files their names.
pub(super) fn publish(written: &Written, threads: usize) -> Checked {
    on_threads(threads, &|| {
        let next = || written.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(parts) = next() {
            parts.into_iter().try_for_each(Part::publish)?;
        }
        Ok(())
    })
}

fn hand_on(crew: &SyncSender<Vec<Part>>, turn: &mut Vec<Part>) -> Checked {
    crew.send(std::mem::take(turn)).map_err(|_| Trouble::new("nobody is left who waits for the disk"))
}

/// Threads that make files durable and give them their names.
pub(super) struct Crew(Vec<JoinHandle<Checked>>);

impl Crew {
    /// They work until all that lead to them are gone.
    pub(super) fn start() -> (Self, SyncSender<Vec<Part>>) {
        let (sender, turns) = sync_channel(CREW);
        let turns = Arc::new(Mutex::new(turns));
        let work = || {
            let turns = Arc::clone(&turns);
            std::thread::spawn(move || sync(&turns))
        };
        (Self((0..CREW).map(|_| work()).collect()), sender)
    }

    /// Waits for their last work.
    pub(super) fn end(self) -> Checked {
        let ended = |thread: JoinHandle<Checked>| {
            thread.join().map_err(|_| Trouble::new("a thread that waits for the disk panicked"))?
        };
        let ended: Vec<Checked> = self.0.into_iter().map(ended).collect();
        ended.into_iter().collect()
    }
}

fn sync(turns: &Mutex<Receiver<Vec<Part>>>) -> Checked {
    loop {
        let turn = turns.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(turn) = turn else { return Ok(()) };
        for part in turn {
            part.sync()?;
            part.publish()?;
        }
    }
}
