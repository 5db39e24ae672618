//! The files of a session, and how far each is.

use crate::check::{Fold, FoldError, crc_of_zeros};
use escp_engine_api::{FileCheck, FileError, FileReport, FileSpec, Stage};
use escp_proto::numbered::Numbered;
use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Numbers of failed files a receiver remembers, since blocks of them may still be on their way.
const MAX_DROPPED: usize = 1 << 20;

/// One file of a session.
#[derive(Debug)]
pub(crate) struct File {
    spec: FileSpec,
    descriptor: Option<Arc<OwnedFd>>,
    /// O_DIRECT is (still) set on the descriptor.
    direct: AtomicBool,
    failed: AtomicBool,
    /// Locked once per block: the hand-over of a block to its file.
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    fold: Fold,
    /// Bytes through: sent, or written.
    through: u64,
    /// Operations begun and not ended.
    in_flight: u32,
    error: Option<FileError>,
    /// Handed on as complete or failed; happens once.
    over: bool,
    prepared: bool,
}

impl File {
    pub(crate) fn new(spec: FileSpec, descriptor: Option<Arc<OwnedFd>>) -> Self {
        Self {
            direct: AtomicBool::new(spec.direct_alignment != 0 && descriptor.is_some()),
            spec,
            descriptor,
            failed: AtomicBool::new(false),
            progress: Mutex::default(),
        }
    }

    pub(crate) fn spec(&self) -> &FileSpec {
        &self.spec
    }

    /// The descriptor; `None` for a dummy.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.descriptor.as_deref().map(AsFd::as_fd)
    }

    /// Whether closing it may wait for a file system.
    pub(crate) fn closing_may_wait(&self) -> bool {
        self.descriptor.is_some() && !self.spec.in_memory
    }

    /// The alignment that offsets, lengths and addresses must have now: 1 when the file is not O_DIRECT.
    pub(crate) fn alignment(&self) -> usize {
        if self.direct.load(Relaxed) { self.spec.direct_alignment as usize } else { 1 }
    }

    /// Falls back to buffered I/O. Returns whether it was O_DIRECT until now.
    ///
    /// Operations in flight keep the mode they were issued in; those issued from now on are buffered, and
    /// the kernel keeps the two coherent for ranges that do not overlap, which blocks of a file never do.
    pub(crate) fn clear_direct(&self) -> io::Result<bool> {
        let Some(descriptor) = self.descriptor() else { return Ok(false) };
        if !self.direct.swap(false, Relaxed) {
            return Ok(false);
        }
        escp_sys::passed::clear_direct(descriptor)?;
        Ok(true)
    }

    pub(crate) fn is_failed(&self) -> bool {
        self.failed.load(Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `prepare` once, before the first write.
    pub(crate) fn prepare_once(
        &self,
        prepare: impl FnOnce() -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut progress = self.lock();
        if progress.prepared {
            return Ok(());
        }
        progress.prepared = true;
        prepare()
    }

    /// Whether it was written block by block (and not whole, as small files are).
    pub(crate) fn was_prepared(&self) -> bool {
        self.lock().prepared
    }

    /// Notes an operation on this file.
    pub(crate) fn begin(&self) {
        self.lock().in_flight += 1;
    }

    /// Folds a range's check value in, and makes sure no byte counts twice.
    pub(crate) fn claim(&self, offset: u64, length: u64, check: u64) -> Result<(), FoldError> {
        self.lock().fold.add(offset, length, check)
    }

    /// As [`File::claim`] for a hole.
    pub(crate) fn claim_hole(&self, offset: u64, length: u64) -> Result<(), FoldError> {
        self.claim(offset, length, crc_of_zeros(length))
    }

    /// Ends an operation that `begin` noted; `through` bytes are sent or written. Returns true, once, when
    /// the file is through or has failed and nothing is in flight: hand it on.
    #[must_use]
    pub(crate) fn end(&self, through: u64) -> bool {
        let mut progress = self.lock();
        progress.in_flight = progress.in_flight.saturating_sub(1);
        progress.through += through;
        self.settle(&mut progress)
    }

    /// Fails the file; the first reason stays. Does not end an operation.
    pub(crate) fn fail(&self, stage: Stage, errno: i32, text: String) {
        let mut progress = self.lock();
        if progress.error.is_none() && !progress.over {
            progress.error = Some(FileError { stage, errno, text });
            self.failed.store(true, Relaxed);
        }
    }

    /// As [`File::end`] when there may be nothing to end: an empty file, or one that is given up.
    #[must_use]
    pub(crate) fn settle_now(&self) -> bool {
        self.settle(&mut self.lock())
    }

    fn settle(&self, progress: &mut Progress) -> bool {
        let through = progress.error.is_some() || progress.through == self.spec.size;
        let over = through && progress.in_flight == 0 && !progress.over;
        progress.over |= over;
        over
    }

    /// Fails the file with a kernel error.
    pub(crate) fn fail_os(&self, stage: Stage, error: &io::Error) {
        self.fail(stage, error.raw_os_error().unwrap_or(0), describe(error));
    }

    /// Fails a file that was handed on as complete: making it durable may still go wrong.
    pub(crate) fn fail_late(&self, stage: Stage, error: &io::Error) {
        let text = describe(error);
        self.lock().error = Some(FileError { stage, errno: error.raw_os_error().unwrap_or(0), text });
        self.failed.store(true, Relaxed);
    }

    /// The report on a file that was handed on.
    pub(crate) fn report(&self, checksum: bool) -> FileReport {
        let progress = self.lock();
        let check = if checksum { FileCheck::Crc64(progress.fold.value()) } else { FileCheck::Off };
        FileReport { number: self.spec.number, outcome: progress.error.clone().map_or(Ok(check), Err) }
    }
}

/// The kernel's words, without Rust's "(os error N)".
pub(crate) fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Every file the agent added and that is not reported yet.
#[derive(Debug, Default)]
pub(crate) struct FileTable {
    inner: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    files: Numbered<Arc<File>>,
    dropped: HashSet<u64>,
}

/// What a number from the peer stands for.
#[derive(Debug)]
pub(crate) enum Known {
    File(Arc<File>),
    /// Failed here before; the peer may not know yet.
    Dropped,
    Unknown,
}

impl FileTable {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a file; false when its number is taken.
    pub(crate) fn add(&self, file: &Arc<File>) -> bool {
        let mut table = self.lock();
        let number = file.spec.number;
        if table.dropped.contains(&number) || table.files.contains_key(&number) {
            return false;
        }
        table.files.insert(number, Arc::clone(file));
        true
    }

    pub(crate) fn find(&self, number: u64) -> Known {
        let table = self.lock();
        match table.files.get(&number) {
            Some(file) => Known::File(Arc::clone(file)),
            None if table.dropped.contains(&number) => Known::Dropped,
            None => Known::Unknown,
        }
    }

    /// Forgets a file that is reported; a failed one is remembered by number.
    pub(crate) fn remove(&self, number: u64, failed: bool) {
        let mut table = self.lock();
        table.files.remove(&number);
        if failed && table.dropped.len() < MAX_DROPPED {
            table.dropped.insert(number);
        }
    }

    /// Whether any file is under way.
    pub(crate) fn any(&self) -> bool {
        !self.lock().files.is_empty()
    }

    /// Takes all files out, at the end.
    pub(crate) fn take_all(&self) -> Vec<Arc<File>> {
        self.lock().files.drain().map(|(_, file)| file).collect()
    }
}
