//! The threads that create, publish and finish.

use super::create::{Batch, Made, Wanted, make};
use super::directory::{Directory, Promise};
use super::publish::{Complete, Full, finish_all, publish, remove, with_numbers};
use super::space::Space;
use super::temporary::{OwnNames, leftovers};
use crate::link::TransferOptions;
use crate::pool::{Pool, Pulse};
use crate::storage::Memory;
use escp_engine_api::FileCheck;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// What the threads are given. Jobs start in order, which is what makes waiting for a [`Promise`] safe: it
/// is always in a job that started before.
#[derive(Debug)]
pub(super) enum Job {
    Make(Vec<Item>),
    Publish(Vec<Complete>),
    Finish(Vec<Full>),
    Discard(Vec<Discarded>),
    Leftovers(Arc<Directory>),
    /// What a session that is over has not published, and answers that nobody took.
    Abandon(Vec<Made>, UnboundedReceiver<Done>),
}

/// Something to make.
#[derive(Debug)]
pub(super) enum Item {
    File(Wanted),
    Directory { number: u64, promise: Promise, parent: Arc<Directory>, name: Vec<u8> },
}

impl Item {
    fn parent(&self) -> &Arc<Directory> {
        match self {
            Self::File(wanted) => &wanted.parent,
            Self::Directory { parent, .. } => parent,
        }
    }
}

/// A file that failed.
#[derive(Debug)]
pub(super) struct Discarded {
    pub(super) number: u64,
    /// What was made for it.
    pub(super) made: Option<Box<Made>>,
    pub(super) text: String,
    /// The kernel's error number, 0 if it was not the kernel's.
    pub(super) errno: i32,
    pub(super) integrity: bool,
}

/// Entry number, and the open file (`None` for a directory) or why there is none.
pub(super) type MadeEntry = (u64, Result<Option<Box<Made>>, String>);

/// What the threads answer.
#[derive(Debug)]
pub(super) enum Done {
    Made(Vec<MadeEntry>),
    /// Entry number, and the check value.
    Published(Vec<(u64, Result<FileCheck, String>)>),
    /// The directory's own number.
    Finished(Vec<(u64, Result<(), String>)>),
    /// Entry number, text, whether data was altered.
    Discarded(Vec<(u64, String, bool)>),
    Remark(String),
}

/// What the threads share.
struct Shared {
    options: TransferOptions,
    umask: u32,
    space: Space,
    memory: Memory,
    own: OwnNames,
}

/// Starts the threads of a receiving session, which first look through the directory `target` for what others left.
pub(super) fn start(
    options: TransferOptions,
    target: Option<&Arc<Directory>>,
) -> std::io::Result<(Pool<Job>, UnboundedReceiver<Done>)> {
    let (answer, answers) = unbounded_channel();
    let own = OwnNames::new(target);
    let shared = Shared { options, umask: umask(), space: Space::default(), memory: Memory::default(), own };
    let pool = Pool::start("escp-files", move |job, pulse: &Pulse| {
        if pulse.is_stopped() {
            abandon(job, pulse);
        } else if let Some(done) = shared.work(job, &answer, pulse) {
            // Nobody listens only when the session is over; what is not taken removes its own files.
            let _ = answer.send(done);
        }
    })?;
    if let Some(target) = target {
        pool.give(Job::Leftovers(Arc::clone(target)));
    }
    Ok((pool, answers))
}

impl Shared {
    fn work(&self, job: Job, answer: &UnboundedSender<Done>, pulse: &Pulse) -> Option<Done> {
        Some(match job {
            Job::Make(items) => Done::Made(self.make_all(items, answer, pulse)),
            Job::Publish(files) => {
                Done::Published(publish(files, &self.options, self.umask, &self.space, pulse))
            }
            Job::Finish(full) => Done::Finished(finish_all(full, &self.options, self.umask)),
            Job::Discard(failed) => {
                Done::Discarded(failed.into_iter().map(|file| self.discard(file)).collect())
            }
            Job::Leftovers(directory) => Done::Remark(leftovers(&directory, &self.own)?),
            job @ Job::Abandon(..) => {
                abandon(job, pulse);
                return None;
            }
        })
    }

    fn make_all(&self, items: Vec<Item>, answer: &UnboundedSender<Done>, pulse: &Pulse) -> Vec<MadeEntry> {
        let mut made = Vec::with_capacity(items.len());
        let mut batch = Batch::new(&self.own);
        let mut items = items.into_iter().peekable();
        let over = || pulse.is_stopped() || answer.is_closed();
        while !over()
            && let Some(parent) = items.peek().map(|item| Arc::clone(item.parent()))
        {
            let held = parent.wait();
            let turn = parent.turn();
            while let Some(item) = items.next_if(|item| Arc::ptr_eq(item.parent(), &parent)) {
                pulse.beat();
                made.push(match item {
                    Item::File(wanted) => {
                        let number = wanted.number;
                        let outcome = make(wanted, &self.options, &self.space, &self.memory, &mut batch);
                        (number, outcome.map(|made| Some(Box::new(made))))
                    }
                    Item::Directory { number, promise, name, .. } => {
                        let outcome = held.ok_or_else(String::new);
                        (number, outcome.and_then(|held| promise.make(held, &name)).map(|()| None))
                    }
                });
                if over() {
                    break;
                }
            }
            drop(turn);
        }
        made
    }

    fn discard(&self, failed: Discarded) -> (u64, String, bool) {
        let text = match &failed.made {
            Some(made) => with_numbers(&failed.text, failed.errno, made),
            None => failed.text,
        };
        self.space.release(failed.number);
        // Dropping what was made removes the temporary file.
        drop(failed.made);
        (failed.number, text, failed.integrity)
    }
}

/// Removes the temporary files of a job that will not be done. It is for this thread to do and not for the session's
/// task, which a hung mount must not hold up.
fn abandon(job: Job, pulse: &Pulse) {
    match job {
        Job::Publish(files) => remove(files.into_iter().map(|file| file.made), pulse),
        Job::Discard(files) => remove(files.into_iter().map(|file| file.made), pulse),
        Job::Abandon(made, mut answers) => {
            remove(made, pulse);
            answers.close();
            while let Ok(answer) = answers.try_recv() {
                if let Done::Made(made) = answer {
                    remove(made, pulse);
                }
            }
        }
        // Dropping it breaks its promises, so that nobody waits for directories that will not be made.
        Job::Make(_) | Job::Finish(_) | Job::Leftovers(_) => {}
    }
}

/// The process's umask, without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value.and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok()).unwrap_or(0o077)
}
