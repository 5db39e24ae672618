//! What happens to a file when its last byte is through: size, durability, report.

use crate::files::File;
use crate::meter::Counter;
use crate::shared::Shared;
use escp_engine_api::{Direction, EngineKind, FileReport, Stage};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// Threads that make files durable at once. Each waits for the disk nearly all the time, and the file
/// system commits what they wait for together.
const SYNC_THREADS: usize = 8;
/// Files one of them takes at a time; as many as came meanwhile, so that batches grow with the load.
const SYNC_BATCH: usize = 64;
/// Files of this size and more are made durable alone, so that small ones do not wait behind them.
const LARGE: u64 = 1 << 20;

/// Takes files that are through until the session is over, and reports them.
pub(crate) async fn finish_files(
    shared: Arc<Shared>,
    mut over: mpsc::UnboundedReceiver<Arc<File>>,
    reports: mpsc::Sender<Vec<FileReport>>,
) {
    let threads = Arc::new(Semaphore::new(SYNC_THREADS));
    let mut batch = Vec::with_capacity(SYNC_BATCH);
    loop {
        // First a thread, then the files: all that come while none is free make one batch.
        let Ok(permit) = Arc::clone(&threads).acquire_owned().await else { return };
        // `shared` itself can send files, so only the session's end of the reports says that it is over.
        let taken = tokio::select! {
            taken = over.recv_many(&mut batch, SYNC_BATCH) => taken,
            () = reports.closed() => 0,
        };
        if taken == 0 {
            return;
        }
        if !needs_disk(&shared) {
            let done = batch.drain(..).map(|file| report(&shared, &file)).collect();
            if reports.send(done).await.is_err() {
                return;
            }
            continue;
        }
        let (large, small): (Vec<_>, Vec<_>) = batch.drain(..).partition(|file| file.spec().size >= LARGE);
        let mut groups: Vec<Vec<Arc<File>>> = large.into_iter().map(|file| vec![file]).collect();
        if !small.is_empty() {
            groups.push(small);
        }
        let mut permit = Some(permit);
        for group in groups {
            let permit = match permit.take() {
                Some(permit) => permit,
                None => match Arc::clone(&threads).acquire_owned().await {
                    Ok(permit) => permit,
                    Err(_) => return,
                },
            };
            let (shared, reports) = (Arc::clone(&shared), reports.clone());
            tokio::task::spawn_blocking(move || {
                let done = group
                    .into_iter()
                    .map(|file| {
                        settle(&shared, &file);
                        report(&shared, &file)
                    })
                    .collect();
                // The control task is gone only when the session is over.
                let _ = reports.blocking_send(done);
                drop(permit);
            });
        }
    }
}

/// Whether finishing a file takes system calls that may wait.
fn needs_disk(shared: &Shared) -> bool {
    shared.options.direction == Direction::Receive && shared.kind != EngineKind::Dummy
}

/// Cuts a received file to its size and makes it durable.
fn settle(shared: &Shared, file: &File) {
    let Some(descriptor) = file.descriptor() else { return };
    if file.is_failed() {
        return;
    }
    // The last block of an O_DIRECT file is padded, and a file may end in a hole.
    if file.was_prepared()
        && let Err(error) = rustix::fs::ftruncate(descriptor, file.spec().size)
    {
        file.fail_late(Stage::Truncate, &error.into());
        return;
    }
    if shared.options.durable {
        // Never again after an error: the kernel reports a lost page once, and says OK the next time.
        if let Err(error) = rustix::fs::fdatasync(descriptor) {
            shared.meter.add(Counter::ErrorsDisk, 1);
            file.fail_late(Stage::Sync, &error.into());
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
