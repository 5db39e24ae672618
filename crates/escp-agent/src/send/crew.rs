//! The threads that walk, open and look again.

use super::Source;
use super::gate::Gate;
use super::open::{Offered, Original, open, recheck};
use super::walk::{Found, Walk, walk};
use crate::limits;
use crate::link::TransferOptions;
use crate::pool::{Pool, Pulse, Thread};
use crate::storage::Memory;
use escp_engine_api::FileCheck;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the threads are given.
enum Job {
    /// Open these; `batch` counts from 0.
    Open { batch: u64, found: Vec<Found> },
    /// These were read, with these check values.
    Recheck(Vec<(u64, FileCheck, Original)>),
    /// Drop this, which closes files.
    Release(Box<dyn Send>),
}

/// What the threads answer.
#[derive(Debug)]
pub(super) enum Done {
    /// In any order: `batch` says which these were.
    Opened { batch: u64, offered: Vec<Offered> },
    /// The walk is over; it gave so many batches.
    Walked { batches: u64 },
    /// Number, check value, and whether the file is still what it was.
    Rechecked(Vec<(u64, FileCheck, Result<(), String>)>),
}

/// The threads of a sending session. Dropping it ends them.
pub(super) struct Crew {
    gate: Arc<Gate>,
    walker: Option<Thread>,
    pool: Pool<Job>,
}

impl Crew {
    /// Starts the walk, held back by [`Crew::allow`], and the threads that open what it finds.
    pub(super) fn start(
        sources: Vec<Source>,
        options: TransferOptions,
    ) -> std::io::Result<(Self, UnboundedReceiver<Done>)> {
        let (answer, answers) = unbounded_channel();
        let memory = Memory::default();
        let opened = answer.clone();
        let pool = Pool::start("escp-open", move |job, pulse: &Pulse| {
            do_job(job, options.direct, &memory, &opened, pulse);
        })?;
        let gate = Arc::new(Gate::default());
        let held = Arc::clone(&gate);
        let giver = pool.giver();
        let deepest = limits::deepest_tree();
        let walker = Thread::start("escp-walk", move || {
            let mut batches = 0;
            let mut give = |found| {
                giver.give(Job::Open { batch: batches, found });
                batches += 1;
            };
            walk(sources, Walk { recursive: options.recursive, deepest, gate: &held, give: &mut give });
            let _ = answer.send(Done::Walked { batches });
        })?;
        Ok((Self { gate, walker: Some(walker), pool }, answers))
    }

    /// Lets the walk find `total` things since its start.
    pub(super) fn allow(&self, total: u64) {
        self.gate.allow(total);
    }

    /// Has files looked at again that were read with these check values, and closed.
    pub(super) fn recheck(&self, files: Vec<(u64, FileCheck, Original)>) {
        self.pool.give(Job::Recheck(files));
    }

    /// Drops what holds open files, on a thread that may wait for a file system as it does.
    pub(super) fn release(&self, files: impl Send + 'static) {
        self.pool.give(Job::Release(Box::new(files)));
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.gate.close();
        if let Some(walker) = self.walker.take() {
            // Only a hung mount keeps it longer, and then nothing here waits for it.
            walker.join_while(&Pulse::default());
        }
    }
}

fn do_job(job: Job, direct: bool, memory: &Memory, answer: &UnboundedSender<Done>, pulse: &Pulse) {
    let done = match job {
        Job::Open { batch, found } => {
            let mut offered = Vec::with_capacity(found.len());
            for found in found {
                if pulse.is_stopped() {
                    return;
                }
                offered.push(open(found, direct, memory));
                pulse.beat();
            }
            Done::Opened { batch, offered }
        }
        Job::Release(files) => return drop(files),
        Job::Recheck(_) if pulse.is_stopped() => return,
        Job::Recheck(files) => Done::Rechecked(
            files.into_iter().map(|(number, check, original)| (number, check, recheck(&original))).collect(),
        ),
    };
    // Nobody listens only when the session is over.
    let _ = answer.send(done);
}
