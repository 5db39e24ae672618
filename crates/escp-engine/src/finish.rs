//! What happens to a file when its last byte is through: size, durability, report.

use crate::barrier;
use crate::files::File;
use crate::meter::Counter;
use crate::shared::Shared;
use escp_engine_api::{Direction, EngineKind, FileReport, Stage};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::{Semaphore, mpsc};

/// Barriers for small files that are under way at once: while one is, files gather for the next.
const BARRIERS: usize = 1;
/// Records' worth of files that are taken together; as many as came meanwhile, so that batches grow with the load.
const RECORDS: usize = 64;
/// Files of this size and more are made durable alone, so that small ones do not wait behind them.
const LARGE: u64 = 1 << 20;

/// Takes files that are through until the session is over, and reports them.
pub(crate) async fn finish_files(
    shared: Arc<Shared>,
    mut over: mpsc::UnboundedReceiver<Vec<Arc<File>>>,
    reports: mpsc::Sender<Vec<FileReport>>,
) {
    let threads = Arc::new(Semaphore::new(barrier::THREADS));
    let barriers = Arc::new(Semaphore::new(BARRIERS));
    let mut records = Vec::with_capacity(RECORDS);
    'session: loop {
        // `shared` itself can send files, so only the session's end of the reports says that it is over.
        let taken = tokio::select! {
            taken = over.recv_many(&mut records, RECORDS) => taken,
            () = reports.closed() => 0,
        };
        if taken == 0 {
            break;
        }
        let (waiting, done): (Vec<_>, Vec<_>) =
            records.drain(..).flatten().partition(|file| needs_disk(&shared, file));
        if !done.is_empty() {
            let reported = done.iter().map(|file| report(&shared, file)).collect();
            let_go(done);
            if reports.send(reported).await.is_err() {
                break;
            }
        }
        for group in groups(waiting) {
            // Nobody is free: what comes meanwhile waits, and makes larger batches.
            let free = if group.len() > 1 { &barriers } else { &threads };
            let Ok(permit) = Arc::clone(free).acquire_owned().await else { break 'session };
            let (shared, reports) = (Arc::clone(&shared), reports.clone());
            tokio::task::spawn_blocking(move || {
                shared.settling.fetch_add(1, Relaxed);
                settle(&shared, &group);
                let settled = group.iter().map(|file| report(&shared, file)).collect();
                shared.settling.fetch_sub(1, Relaxed);
                // The control task is gone only when the session is over.
                let _ = reports.blocking_send(settled);
                drop(permit);
            });
        }
    }
    over.close();
    while let Ok(left) = over.try_recv() {
        records.push(left);
    }
    let_go(records.into_iter().flatten().collect());
}

/// Lets go of files, which closes them here. That may wait for a file system (close(2): NFS and FUSE flush), and one
/// that hangs must not silence the session: it is done on a thread of its own, unless they live in memory.
///
/// # Panics
/// Outside a tokio runtime.
pub(crate) fn let_go(files: Vec<Arc<File>>) {
    if files.iter().any(|file| file.closing_may_wait()) {
        tokio::task::spawn_blocking(move || drop(files));
    }
}

/// What one thread takes at a time: a large file, or all small ones.
fn groups(files: Vec<Arc<File>>) -> Vec<Vec<Arc<File>>> {
    let (large, small): (Vec<_>, Vec<_>) = files.into_iter().partition(|file| file.spec().size >= LARGE);
    let small = (!small.is_empty()).then_some(small);
    large.into_iter().map(|file| vec![file]).chain(small).collect()
}

/// Whether finishing a file takes system calls that may wait. What lives in memory is never durable, and only what was
/// written block by block has to be cut to its size.
fn needs_disk(shared: &Shared, file: &File) -> bool {
    shared.options.direction == Direction::Receive
        && shared.kind != EngineKind::Dummy
        && (file.was_prepared() || (shared.options.durable && !file.spec().in_memory))
}

/// Cuts received files to their size and makes them durable.
fn settle(shared: &Shared, files: &[Arc<File>]) {
    for file in files.iter().filter(|file| file.was_prepared() && !file.is_failed()) {
        // The last block of an O_DIRECT file is padded, and a file may end in a hole.
        if let Some(descriptor) = file.descriptor()
            && let Err(error) = rustix::fs::ftruncate(descriptor, file.spec().size)
        {
            file.fail_late(Stage::Truncate, &error.into());
        }
    }
    let lasts = |file: &&Arc<File>| shared.options.durable && !file.spec().in_memory && !file.is_failed();
    let files: Vec<&File> = files.iter().filter(lasts).map(Arc::as_ref).collect();
    for (file, synced) in files.iter().zip(barrier::sync(&files)) {
        // Never again after an error: the kernel reports a lost page once, and says OK the next time.
        if let Err(error) = synced {
            shared.meter.add(Counter::ErrorsDisk, 1);
            file.fail_late(Stage::Sync, &error);
        }
    }
}

fn report(shared: &Shared, file: &File) -> FileReport {
    let report = file.report(shared.options.checksum);
    let counter = match (&report.outcome, shared.options.direction) {
        (Err(_), _) => Counter::FilesFailed,
        (Ok(_), Direction::Send) => Counter::FilesSent,
        (Ok(_), Direction::Receive) => Counter::FilesReceived,
    };
    shared.meter.add(counter, 1);
    shared.files.remove(report.number, report.outcome.is_err());
    report
}
