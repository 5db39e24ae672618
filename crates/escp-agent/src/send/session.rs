//! The sending side of a conversation.

use super::Source;
use super::crew::{Crew, Done};
use super::open::{Offered, OpenedFile, Original};
use crate::check;
use crate::escape::{escaped, foreign_text};
use crate::exchange::{Exchange, MAX_FOREIGN, Role, Step, observe, refused};
use crate::limits;
use crate::link::{Link, Observer, SessionError, TransferOptions};
use crate::path::PathNode;
use crate::tally::{FailedFile, Tally};
use escp_crypto::ListDigest;
use escp_engine_api::{Command, Event, Extent, FileCheck, FileReport, FileSpec, MAX_BATCH, Summary};
use escp_proto::agent::{
    AgentMessage, Entry, EntryFailure, EntryKind, EntryResult, FileDigest, ROOT, Scanned, SourceFailure,
    messages,
};
use escp_proto::numbered::{self, Numbered};
use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// Extents of one command: 512 of them stay far below what one packet to a daemon may hold.
const EXTENTS_PER_COMMAND: usize = 512;
/// How often the other side hears how far the walk is.
const SCAN_EVERY: Duration = Duration::from_millis(200);

/// Something offered and not done with.
enum Sent {
    File(Box<SentFile>),
    Directory(Arc<PathNode>),
    End(Arc<PathNode>),
}

struct SentFile {
    node: Arc<PathNode>,
    spec: FileSpec,
    extents: Vec<Extent>,
    file: Option<Arc<OwnedFd>>,
    /// To be looked at again, once it was read.
    original: Option<Original>,
    engine: AtEngine,
    /// Its check value, once it was read and had not changed.
    check: Option<FileCheck>,
    /// Why what was read is not good.
    fault: Option<String>,
    /// The receiver is done with it.
    done: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum AtEngine {
    NotYet,
    Added,
    Reported,
}

struct Sender<'a> {
    exchange: Exchange<'a>,
    crew: Crew,
    answers: UnboundedReceiver<Done>,
    options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &'a str,
    tally: Tally,
    list: ListDigest,
    entries: Numbered<Sent>,
    /// Numbers of open directories by their number in the walk.
    directories: HashMap<u64, u64>,
    /// Batches that came before their turn.
    early: BTreeMap<u64, Vec<Offered>>,
    next_batch: u64,
    /// How many batches there are, once the walk is over.
    batches: Option<u64>,
    offered: u64,
    /// Found and not offered, because they failed.
    failed: u64,
    /// Offered and through.
    finished: u64,
    credit: u64,
    window: u64,
    scanned: Scanned,
    /// When the other side was last told; it hears of the first files before it is offered them.
    scan_said: Option<Instant>,
    no_more: bool,
    /// Files offered that the engine has not got, and that may still have to be sent.
    waiting: u64,
    /// The engine knows that no more comes.
    all_scheduled: bool,
}

/// Sends `sources`: from after Request until both engines agreed on the end. Where the answer to the request is still due,
/// what credit there is is used meanwhile.
///
/// `peer_host` is the name of the other host in messages to the user; empty when unknown.
///
/// # Errors
/// A [`SessionError`] when the session was lost or the peer broke the protocol. Failures of single files
/// are in the tally instead.
pub async fn send_files(
    link: &mut Link,
    sources: Vec<Source>,
    options: TransferOptions,
    observer: Arc<dyn Observer>,
    peer_host: &str,
) -> Result<Tally, SessionError> {
    let window = limits::entries_under_way(link.round_trip);
    let (crew, answers) = Crew::start(sources, options).map_err(|error| SessionError {
        status: 4,
        text: format!("no thread can be started here: {error}"),
    })?;
    let mut sender = Sender {
        exchange: Exchange::new(link, Role::Sender)?,
        crew,
        answers,
        options,
        observer,
        peer_host,
        tally: Tally::default(),
        list: ListDigest::default(),
        entries: numbered::with_room(window),
        directories: HashMap::new(),
        early: BTreeMap::new(),
        next_batch: 0,
        batches: None,
        offered: 0,
        failed: 0,
        finished: 0,
        credit: 0,
        window,
        scanned: Scanned { files: 0, bytes: 0, complete: false },
        scan_said: None,
        no_more: false,
        waiting: 0,
        all_scheduled: false,
    };
    loop {
        match sender.exchange.step(&mut sender.answers).await? {
            Step::Message(AgentMessage::Refuse(refusal)) => {
                return Err(sender.exchange.leave(refused(peer_host, &refusal)).await);
            }
            Step::Message(message) => sender.hear(message)?,
            Step::Event(Event::Files(reports)) => sender.reported(reports)?,
            Step::Event(event) => {
                observe(event, options.dummy, sender.tally.files, sender.observer.as_ref());
            }
            Step::Work(done) => sender.worked(done)?,
            Step::Ended => return Ok(std::mem::take(&mut sender.tally)),
        }
        sender.advance()?;
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        let entries = std::mem::take(&mut self.entries);
        let early = std::mem::take(&mut self.early);
        let answers = std::mem::replace(&mut self.answers, unbounded_channel().1);
        self.crew.release((entries, early, answers));
        // The crew is dropped next, and waits unless a file system hangs.
    }
}

impl Sender<'_> {
    /// What follows from the state as it is now.
    fn advance(&mut self) -> Result<(), SessionError> {
        // What fails here is outside the credit, and said to a peer that may not listen before its answer.
        let by_credit = if self.exchange.is_accepted() { self.credit + self.failed } else { self.credit };
        let by_descriptors = self.finished + self.failed + self.window;
        self.crew.allow(by_credit.min(by_descriptors));
        if self.batches == Some(self.next_batch) && !self.no_more && self.exchange.is_accepted() {
            self.no_more = true;
            self.scanned.complete = true;
            self.say_scanned()?;
            self.exchange.say(&AgentMessage::NoMore)?;
        }
        if self.no_more && self.waiting == 0 && !self.all_scheduled {
            self.all_scheduled = true;
            self.exchange.command(Command::Scheduled);
        }
        let through = self.no_more && self.entries.is_empty() && self.exchange.conversation.is_complete();
        if through && !self.exchange.has_finished() {
            let summary = Summary { files: self.list.files(), list_hash: self.list.hash() };
            self.exchange.finish(summary);
        }
        Ok(())
    }

    fn hear(&mut self, message: AgentMessage) -> Result<(), SessionError> {
        match message {
            AgentMessage::Credit { entries } => self.credit = entries,
            AgentMessage::Ready(numbers) => self.ready(&numbers),
            AgentMessage::Rejected(failures) => {
                failures.into_iter().for_each(|failure| self.failed_there(failure));
            }
            AgentMessage::Done(results) => results.into_iter().for_each(|result| self.done(result)),
            // The conversation lets a receiver say nothing else, but that it accepts.
            _ => {}
        }
        Ok(())
    }

    fn worked(&mut self, done: Done) -> Result<(), SessionError> {
        match done {
            Done::Walked { batches } => self.batches = Some(batches),
            Done::Opened { batch, offered } => {
                self.early.insert(batch, offered);
                while let Some(offered) = self.early.remove(&self.next_batch) {
                    self.next_batch += 1;
                    self.offer(offered)?;
                }
            }
            Done::Rechecked(files) => self.rechecked(files)?,
        }
        Ok(())
    }

    /// Numbers what was opened and offers it.
    fn offer(&mut self, batch: Vec<Offered>) -> Result<(), SessionError> {
        let mut entries = Vec::with_capacity(batch.len());
        for offered in batch {
            match offered {
                Offered::Failed { path, text } => {
                    self.failed += 1;
                    let failure = SourceFailure { path: path.clone(), text: text.clone() };
                    self.exchange.say(&AgentMessage::SourceFailed(failure))?;
                    self.fail(FailedFile { host: String::new(), path, text, integrity: false });
                }
                Offered::File(opened) => entries.push(self.offer_file(*opened)),
                Offered::Directory { name, node, parent, id, attributes } => {
                    self.offered += 1;
                    let parent = self.number_of(parent);
                    self.directories.insert(id, self.offered);
                    self.entries.insert(self.offered, Sent::Directory(node));
                    let kind = EntryKind::Directory { attributes };
                    entries.push(Entry { number: self.offered, parent, name, kind });
                }
                Offered::End { id, node } => {
                    self.offered += 1;
                    let parent = self.directories.remove(&id).unwrap_or(ROOT);
                    self.entries.insert(self.offered, Sent::End(node));
                    let kind = EntryKind::DirectoryEnd;
                    entries.push(Entry { number: self.offered, parent, name: Vec::new(), kind });
                }
            }
        }
        if self.scanned.files > 0 && self.scan_said.is_none_or(|said| said.elapsed() >= SCAN_EVERY) {
            self.say_scanned()?;
        }
        messages(entries).try_for_each(|message| self.exchange.say(&message))
    }

    fn number_of(&self, directory: u64) -> u64 {
        self.directories.get(&directory).copied().unwrap_or(ROOT)
    }

    fn offer_file(&mut self, opened: OpenedFile) -> Entry {
        self.offered += 1;
        let number = self.offered;
        self.scanned.files += 1;
        self.scanned.bytes = self.scanned.bytes.saturating_add(opened.spec.size);
        let mut extents = opened.extents;
        extents.iter_mut().for_each(|extent| extent.file = number);
        let sent = SentFile {
            node: opened.node,
            spec: FileSpec { number, ..opened.spec },
            extents,
            file: opened.file,
            original: opened.original,
            engine: AtEngine::NotYet,
            check: None,
            fault: None,
            done: false,
        };
        self.entries.insert(number, Sent::File(Box::new(sent)));
        self.waiting += 1;
        Entry { number, parent: self.number_of(opened.parent), name: opened.name, kind: opened.kind }
    }

    fn say_scanned(&mut self) -> Result<(), SessionError> {
        self.scan_said = Some(Instant::now());
        self.observer.scanned(self.scanned.files, self.scanned.bytes, self.scanned.complete);
        self.exchange.say(&AgentMessage::Scanned(self.scanned))
    }

    /// The receiver opened these: hand them to the engine, in the receiver's order.
    fn ready(&mut self, numbers: &[u64]) {
        for numbers in numbers.chunks(MAX_BATCH) {
            let mut files = Vec::with_capacity(numbers.len());
            let mut extents = Vec::with_capacity(numbers.len());
            for number in numbers {
                if let Some(Sent::File(sent)) = self.entries.get_mut(number) {
                    sent.engine = AtEngine::Added;
                    self.waiting -= 1;
                    files.push((sent.spec, sent.file.take()));
                    extents.append(&mut sent.extents);
                }
            }
            self.exchange.command(Command::AddFiles(files));
            for extents in extents.chunks(EXTENTS_PER_COMMAND) {
                self.exchange.command(Command::Schedule(extents.to_vec()));
            }
        }
    }

    /// The engine read these, or could not.
    fn reported(&mut self, reports: Vec<FileReport>) -> Result<(), SessionError> {
        let mut read = Vec::new();
        let mut digests = Vec::new();
        for FileReport { number, outcome } in reports {
            let Some(Sent::File(sent)) = self.entries.get_mut(&number) else { continue };
            sent.engine = AtEngine::Reported;
            if sent.done {
                self.remove(number);
                continue;
            }
            match (outcome, sent.original.take()) {
                // Its descriptor goes along: closing may wait for a file system, and this task must not.
                (Ok(check), Some(original)) => read.push((number, check, original)),
                (Ok(check), None) => {
                    sent.check = Some(check);
                    digests.push(FileDigest { number, outcome: Ok(check::to_wire(check)) });
                }
                (Err(error), _) => digests.push(sent.disown(error.to_string())),
            }
        }
        if !read.is_empty() {
            self.crew.recheck(read);
        }
        messages(digests).try_for_each(|message| self.exchange.say(&message))
    }

    /// These were looked at again.
    fn rechecked(&mut self, files: Vec<(u64, FileCheck, Result<(), String>)>) -> Result<(), SessionError> {
        let mut digests = Vec::with_capacity(files.len());
        for (number, check, outcome) in files {
            let Some(Sent::File(sent)) = self.entries.get_mut(&number) else { continue };
            digests.push(match outcome {
                Ok(()) => {
                    sent.check = Some(check);
                    FileDigest { number, outcome: Ok(check::to_wire(check)) }
                }
                Err(text) => sent.disown(text),
            });
        }
        messages(digests).try_for_each(|message| self.exchange.say(&message))
    }

    /// The receiver is done with an entry.
    fn done(&mut self, result: EntryResult) {
        let word = match result.outcome {
            Ok(word) => word,
            Err(failure) => return self.failed_there(failure),
        };
        let theirs = check::from_wire(word, self.options.checksum);
        match self.entries.get(&result.number) {
            Some(Sent::Directory(_)) => self.tally.directories += 1,
            Some(Sent::File(sent)) if !self.options.checksum || sent.check == Some(theirs) => {
                self.tally.files += 1;
                self.tally.bytes = self.tally.bytes.saturating_add(sent.spec.size);
                self.list.add(result.number, sent.spec.size, word);
                self.observer.published(&|| sent.node.path());
            }
            Some(Sent::File(sent)) => {
                let ours = sent.check.unwrap_or(FileCheck::Off);
                let text = format!(
                    "was altered on the way: its check value is {ours} here and {theirs} at the other side"
                );
                let path = sent.node.path();
                self.fail(FailedFile { host: String::new(), path, text, integrity: true });
            }
            Some(Sent::End(_)) | None => {}
        }
        self.through(result.number);
    }

    /// An entry failed at the receiver, or was disowned here before.
    fn failed_there(&mut self, failure: EntryFailure) {
        let Some(sent) = self.entries.get(&failure.number) else { return };
        let (node, own) = match sent {
            Sent::File(sent) => (&sent.node, sent.fault.clone()),
            Sent::Directory(node) | Sent::End(node) => (node, None),
        };
        let path = node.path();
        if failure.text.is_empty() && own.is_none() {
            // One of many below a directory that was named.
            self.tally.failed += 1;
        } else {
            let theirs = foreign_text(&failure.text, MAX_FOREIGN);
            let text = own.unwrap_or(match self.peer_host {
                "" => theirs,
                host => format!("{host}:{theirs}"),
            });
            self.fail(FailedFile { host: String::new(), path, text, integrity: failure.integrity });
        }
        self.through(failure.number);
    }

    /// The receiver has no more to say about this entry.
    fn through(&mut self, number: u64) {
        if let Some(Sent::File(sent)) = self.entries.get_mut(&number)
            && sent.engine == AtEngine::Added
        {
            sent.done = true;
            self.exchange.command(Command::DropFiles(vec![number]));
            return;
        }
        self.remove(number);
    }

    fn remove(&mut self, number: u64) {
        let Some(sent) = self.entries.remove(&number) else { return };
        self.finished += 1;
        if matches!(sent, Sent::File(sent) if sent.engine == AtEngine::NotYet) {
            self.waiting -= 1;
        }
    }

    fn fail(&mut self, failure: FailedFile) {
        self.observer.failed(&failure);
        self.tally.fail(failure);
    }
}

impl SentFile {
    /// What was read must not be published.
    fn disown(&mut self, text: String) -> FileDigest {
        let said = format!("{}: {text}", escaped(&self.node.path()));
        self.fault = Some(text);
        FileDigest { number: self.spec.number, outcome: Err(said) }
    }
}
