//! The receiving side of a conversation.

use super::crew::{Discarded, Done, Job, MadeEntry};
use super::entries::Entries;
use super::publish::{Complete, Full};
use super::target::Target;
use crate::check;
use crate::escape::{escaped, foreign_text};
use crate::exchange::{Exchange, MAX_FOREIGN, Role, Step, observe};
use crate::limits;
use crate::link::{Link, Observer, SessionError, TransferOptions};
use crate::path::PathNode;
use crate::pool::Pool;
use crate::tally::{FailedFile, Tally};
use escp_crypto::ListDigest;
use escp_engine_api::{
    Command, Event, FileCheck, FileError, FileReport, FileSpec, MAX_BATCH, Stage, Summary,
};
use escp_proto::agent::{AgentMessage, EntryFailure, EntryResult, FileDigest, messages};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Files published in one go at most: each batch costs one fsync per directory.
const PUBLISH_TOGETHER: usize = 512;
/// Publishing jobs under way at once: while they wait for the disk, the next batch grows.
const PUBLISHING: usize = 2;

pub(super) struct Receiver<'a> {
    pub(super) exchange: Exchange<'a>,
    pub(super) pool: Pool<Job>,
    answers: UnboundedReceiver<Done>,
    pub(super) target: Target,
    pub(super) options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &'a str,
    pub(super) tally: Tally,
    list: ListDigest,
    pub(super) entries: Entries,
    complete: Vec<Complete>,
    publishing: usize,
    full: Vec<Full>,
    discarded: Vec<Discarded>,
    results: Vec<EntryResult>,
    rejected: Vec<EntryFailure>,
    /// Entries answered for good.
    answered: u64,
    credit: u64,
    window: u64,
    no_more: bool,
    /// The peer broke the protocol in a way that only this side can see.
    pub(super) violation: Option<String>,
}

/// Receives into `target`: from after Request and Accept until both engines agreed on the end.
///
/// `peer_host` is the name of the other host in messages to the user; empty when unknown. However this
/// ends, and also when it is dropped, temporary files of files that were not published are removed before it
/// returns, unless a file system answers nothing any more.
///
/// # Errors
/// A [`SessionError`] when the session was lost or the peer broke the protocol. Failures of single files
/// are in the tally instead.
pub async fn receive_files(
    link: &mut Link,
    target: Target,
    options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &str,
) -> Result<Tally, SessionError> {
    let window = link.credit.unwrap_or_else(|| limits::entries_under_way(link.round_trip));
    let credit = link.credit.unwrap_or_default();
    let (pool, answers) = super::crew::start(options, target.directory()).map_err(|error| SessionError {
        status: 4,
        text: format!("no thread can be started here: {error}"),
    })?;
    let mut receiver = Receiver {
        exchange: Exchange::new(link, Role::Receiver)?,
        pool,
        answers,
        target,
        options,
        observer,
        peer_host,
        tally: Tally::default(),
        list: ListDigest::default(),
        entries: Entries::with_room(window),
        complete: Vec::new(),
        publishing: 0,
        full: Vec::new(),
        discarded: Vec::new(),
        results: Vec::new(),
        rejected: Vec::new(),
        answered: 0,
        credit,
        window,
        no_more: false,
        violation: None,
    };
    receiver.advance()?;
    loop {
        match receiver.exchange.step(&mut receiver.answers).await? {
            Step::Message(message) => receiver.hear(message),
            Step::Event(Event::Files(reports)) => {
                reports.into_iter().for_each(|report| receiver.reported(report));
            }
            Step::Event(event) => {
                observe(event, options.dummy, receiver.tally.files, receiver.observer.as_ref());
            }
            Step::Work(done) => receiver.worked(done)?,
            Step::Ended => return Ok(std::mem::take(&mut receiver.tally)),
        }
        if let Some(what) = receiver.violation.take() {
            return Err(receiver.exchange.violation(&what).await);
        }
        receiver.advance()?;
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.pool.stop();
        let mut made = self.entries.abandon();
        made.extend(self.complete.drain(..).map(|file| file.made));
        made.extend(self.discarded.drain(..).filter_map(|file| file.made).map(|made| *made));
        let answers = std::mem::replace(&mut self.answers, unbounded_channel().1);
        self.pool.give(Job::Abandon(made, answers));
        // The pool is dropped next, and waits.
    }
}

impl Receiver<'_> {
    /// What follows from the state as it is now: answers, jobs, credit, the end.
    fn advance(&mut self) -> Result<(), SessionError> {
        if !self.full.is_empty() {
            self.pool.give(Job::Finish(std::mem::take(&mut self.full)));
        }
        if !self.discarded.is_empty() {
            self.pool.give(Job::Discard(std::mem::take(&mut self.discarded)));
        }
        while !self.complete.is_empty() && self.publishing < PUBLISHING {
            let count = self.complete.len().min(PUBLISH_TOGETHER);
            self.publishing += 1;
            self.pool.give(Job::Publish(self.complete.drain(..count).collect()));
        }
        let rejected = std::mem::take(&mut self.rejected);
        messages(rejected).try_for_each(|message| self.exchange.say(&message))?;
        let results = std::mem::take(&mut self.results);
        messages(results).try_for_each(|message| self.exchange.say(&message))?;
        let credit = self.answered + self.window;
        if !self.no_more && credit - self.credit >= (self.window / 4).max(1) {
            self.credit = credit;
            self.exchange.say(&AgentMessage::Credit { entries: credit })?;
        }
        let through = self.no_more && self.entries.is_empty() && self.exchange.conversation.is_complete();
        if through && !self.exchange.has_finished() {
            let summary = Summary { files: self.list.files(), list_hash: self.list.hash() };
            self.exchange.finish(summary);
        }
        Ok(())
    }

    fn hear(&mut self, message: AgentMessage) {
        match message {
            AgentMessage::Offer(entries) => self.offered(entries),
            AgentMessage::Digests(digests) => digests.into_iter().for_each(|digest| self.digest(digest)),
            AgentMessage::Scanned(scan) => self.observer.scanned(scan.files, scan.bytes, scan.complete),
            AgentMessage::SourceFailed(failure) => self.fail(FailedFile {
                host: self.peer_host.to_owned(),
                path: failure.path,
                text: foreign_text(&failure.text, MAX_FOREIGN),
                integrity: false,
            }),
            AgentMessage::NoMore => self.no_more = true,
            // The conversation lets a sender say nothing else.
            _ => {}
        }
    }

    fn worked(&mut self, done: Done) -> Result<(), SessionError> {
        match done {
            Done::Made(made) => self.made(made),
            Done::Published(files) => {
                self.publishing = self.publishing.saturating_sub(1);
                files.into_iter().for_each(|(number, outcome)| self.published(number, outcome));
            }
            Done::Finished(directories) => {
                directories.into_iter().for_each(|(number, outcome)| self.finished(number, outcome));
            }
            Done::Discarded(files) => {
                for (number, text, integrity) in files {
                    self.settle(number, Err((text, integrity)));
                }
            }
            Done::Remark(text) => self.observer.remark(&text),
        }
        Ok(())
    }

    /// Gives open files to the engine and says that their blocks may come.
    pub(super) fn open(&mut self, mut files: Vec<(FileSpec, Option<Arc<OwnedFd>>)>) {
        while !files.is_empty() {
            let rest = files.split_off(files.len().min(MAX_BATCH));
            let numbers: Vec<u64> = files.iter().map(|(spec, _)| spec.number).collect();
            numbers.iter().for_each(|&number| self.entries.added(number));
            self.exchange.command(Command::AddFiles(files));
            if let Err(error) = self.exchange.say(&AgentMessage::Ready(numbers)) {
                self.violation = Some(error.text);
            }
            files = rest;
        }
    }

    fn made(&mut self, made: Vec<MadeEntry>) {
        let mut files = Vec::with_capacity(made.len());
        for (number, outcome) in made {
            match outcome {
                Ok(Some(made)) => {
                    files.push((made.spec, Some(Arc::clone(&made.file))));
                    if let Some(file) = self.entries.file(number) {
                        file.made = Some(made);
                    }
                }
                Ok(None) => {
                    self.tally.directories += 1;
                    self.answer(number, Ok(0));
                    self.directory_made(number);
                }
                Err(text) => {
                    let Some(node) = self.entries.fail_directory_or_file(number) else { continue };
                    self.reject(number, &node, text);
                    self.forget(number);
                    self.directory_made(number);
                }
            }
        }
        self.open(files);
    }

    fn directory_made(&mut self, number: u64) {
        self.entries.directory_made(number);
        self.finish_if_full(number);
    }

    /// The engine wrote a file, or could not.
    fn reported(&mut self, report: FileReport) {
        let FileReport { number, outcome } = report;
        let Some(file) = self.entries.file(number) else { return };
        file.reported = true;
        if file.answered {
            self.forget(number);
            return;
        }
        match outcome {
            Ok(check) => {
                file.check = Some(check);
                self.complete_if_verified(number);
            }
            Err(error) => {
                let integrity = error.stage == Stage::Verify;
                self.give_up(number, error, integrity);
            }
        }
    }

    /// The sender read a file, or disowns what it read.
    fn digest(&mut self, digest: FileDigest) {
        let FileDigest { number, outcome } = digest;
        // It may have failed here while this was on its way.
        let Some(file) = self.entries.file(number) else { return };
        if file.failing || file.answered {
            return;
        }
        match outcome {
            Ok(word) => {
                file.digest = Some(check::from_wire(word, self.options.checksum));
                self.complete_if_verified(number);
            }
            Err(text) => {
                let text = foreign_text(&text, MAX_FOREIGN);
                let text = match self.peer_host {
                    "" => text,
                    host => format!("{host}:{text}"),
                };
                self.give_up(number, FileError { stage: Stage::Dropped, errno: 0, text }, false);
            }
        }
    }

    /// Publishes a file once both sides have read it whole and agree.
    fn complete_if_verified(&mut self, number: u64) {
        let (checksum, dummy) = (self.options.checksum, self.options.dummy);
        let Some(file) = self.entries.file(number) else { return };
        let (Some(check), Some(digest)) = (file.check, file.digest) else { return };
        if file.failing {
            return;
        }
        if checksum && check != digest {
            let text = format!(
                "was altered on the way: its check value is {digest} at the other side and {check} here"
            );
            self.give_up(number, FileError { stage: Stage::Verify, errno: 0, text }, true);
            return;
        }
        let attributes = file.attributes;
        match file.made.take() {
            Some(made) => self.complete.push(Complete { number, made: *made, attributes, check }),
            None if dummy => self.settle(number, Ok(check)),
            None => {}
        }
    }

    /// A file that was opened fails: its temporary file goes first, then the sender hears of it.
    fn give_up(&mut self, number: u64, error: FileError, integrity: bool) {
        let Some(file) = self.entries.file(number) else { return };
        if file.failing {
            return;
        }
        file.failing = true;
        if !file.reported {
            self.exchange.command(Command::DropFiles(vec![number]));
        }
        let text = match error.stage {
            Stage::Dropped | Stage::Verify => error.text.clone(),
            _ => error.to_string(),
        };
        let made = file.made.take();
        self.discarded.push(Discarded { number, made, text, errno: error.errno, integrity });
    }

    fn published(&mut self, number: u64, outcome: Result<FileCheck, String>) {
        self.settle(number, outcome.map_err(|text| (text, false)));
    }

    /// The last word about a file.
    fn settle(&mut self, number: u64, outcome: Result<FileCheck, (String, bool)>) {
        let Some(file) = self.entries.file(number) else { return };
        file.answered = true;
        let (size, reported, node) = (file.size, file.reported, Arc::clone(&file.node));
        match outcome {
            Ok(check) => {
                self.tally.files += 1;
                self.tally.bytes = self.tally.bytes.saturating_add(size);
                let word = check::to_wire(check);
                self.list.add(number, size, word);
                self.observer.published(&|| node.path());
                self.answer(number, Ok(word));
            }
            Err((text, integrity)) => {
                let failure = self.failure(number, &node, text, integrity);
                self.answer(number, Err(failure));
            }
        }
        if reported {
            self.forget(number);
        }
    }

    /// Forgets a file that the engine and the sender both know to be done with.
    fn forget(&mut self, number: u64) {
        if let Some(parent) = self.entries.remove_file(number) {
            self.finish_if_full(parent);
        }
    }

    /// Finishes a directory that has its last child.
    pub(super) fn finish_if_full(&mut self, number: u64) {
        let Some(state) = self.entries.take_full(number) else { return };
        if state.failed {
            self.end_of(number, Ok(()));
            return;
        }
        self.full.push(Full {
            number,
            directory: Arc::clone(&state.directory),
            parent: Arc::clone(&state.place),
            attributes: state.attributes,
        });
    }

    fn finished(&mut self, number: u64, outcome: Result<(), String>) {
        self.end_of(number, outcome);
    }

    fn end_of(&mut self, number: u64, outcome: Result<(), String>) {
        let Some((state, end)) = self.entries.remove_directory(number) else { return };
        let outcome = outcome.map(|()| 0).map_err(|text| {
            let node = Arc::clone(&state.directory.node);
            self.failure(end, &node, text, false)
        });
        self.answer(end, outcome);
        self.finish_if_full(state.parent);
    }

    pub(super) fn answer(&mut self, number: u64, outcome: Result<u64, EntryFailure>) {
        self.answered += 1;
        self.results.push(EntryResult { number, outcome });
    }

    pub(super) fn reject(&mut self, number: u64, node: &PathNode, text: String) {
        self.answered += 1;
        let failure = self.failure(number, node, text, false);
        self.rejected.push(failure);
    }

    /// Counts a failure, and puts it into words for the other side. An empty text is one of many below a
    /// directory that was named: it is counted only.
    fn failure(&mut self, number: u64, node: &PathNode, text: String, integrity: bool) -> EntryFailure {
        if text.is_empty() {
            self.tally.failed += 1;
            return EntryFailure { number, text, integrity };
        }
        let path = node.path();
        let said = format!("{}: {text}", escaped(&path));
        self.fail(FailedFile { host: String::new(), path, text, integrity });
        EntryFailure { number, text: said, integrity }
    }

    fn fail(&mut self, failure: FailedFile) {
        self.observer.failed(&failure);
        self.tally.fail(failure);
    }
}
