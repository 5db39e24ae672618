//! Two engines in memory that keep the engine interface, so that whole conversations run over real file
//! systems without a network: what the agents do is real, only the way between the descriptors is short.

use escp_agent::link::{HangUp, Link, Observer, SessionError, TransferOptions};
use escp_agent::tally::{FailedFile, Tally};
use escp_agent::{Source, Target, receive_files, send_files};
use escp_engine_api::{
    Command, EngineHandle, EnginePort, Event, Extent, ExtentKind, Failure, Fault, FileCheck, FileError,
    FileReport, FileSpec, Stage, Summary, engine_pair,
};
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// What goes wrong on the way, and when.
#[derive(Default)]
pub(crate) struct Faults {
    /// The receiving engine computes another check value for this file.
    pub corrupt: Option<u64>,
    /// The receiving engine fails to write this file, with this errno.
    pub write_fails: Option<(u64, i32)>,
    /// Called before the sending engine reads an extent of a file (its number).
    pub before_read: Option<Box<dyn FnMut(u64) + Send>>,
    /// Called before the receiving engine reports a file written.
    pub before_report: Option<Box<dyn FnMut(u64) + Send>>,
    /// The engines fail after so many files.
    pub lost_after: Option<u64>,
}

enum Wire {
    Message(Vec<u8>),
    Data { file: u64, offset: u64, bytes: Vec<u8> },
    Whole { file: u64 },
    Finish(Summary),
    Abort(String),
    Lost,
}

struct Taken {
    spec: FileSpec,
    file: Option<Arc<OwnedFd>>,
    left: u64,
    check: u64,
}

/// One end: a task that owns the descriptors given to it.
struct Engine {
    to_peer: mpsc::UnboundedSender<Wire>,
    from_peer: mpsc::UnboundedReceiver<Wire>,
    files: HashMap<u64, Taken>,
    faults: Faults,
    events: std::collections::VecDeque<Event>,
    /// The agent said that no more extents come.
    scheduled: bool,
    own_end: Option<Summary>,
    peer_end: Option<Summary>,
    whole: u64,
    /// Bytes of data extents sent or written.
    moved: Arc<Mutex<u64>>,
}

/// Connects two engines; the first sends.
pub(crate) fn engines(sending: Faults, receiving: Faults) -> (EngineHandle, EngineHandle, Arc<Mutex<u64>>) {
    let (to_receiver, from_sender) = mpsc::unbounded_channel();
    let (to_sender, from_receiver) = mpsc::unbounded_channel();
    let (near, near_port) = engine_pair();
    let (far, far_port) = engine_pair();
    let moved = Arc::new(Mutex::new(0));
    let start = |port: EnginePort, to_peer, from_peer, faults| {
        let engine = Engine {
            to_peer,
            from_peer,
            files: HashMap::new(),
            faults,
            events: std::collections::VecDeque::new(),
            scheduled: false,
            own_end: None,
            peer_end: None,
            whole: 0,
            moved: Arc::clone(&moved),
        };
        tokio::spawn(engine.run(port));
    };
    start(near_port, to_receiver, from_receiver, sending);
    start(far_port, to_sender, from_sender, receiving);
    (near, far, moved)
}

impl Engine {
    async fn run(mut self, port: EnginePort) {
        let EnginePort { mut commands, events } = port;
        loop {
            let last = matches!(self.events.back(), Some(Event::Ended { .. } | Event::Failed(_)));
            if last {
                while let Some(event) = self.events.pop_front() {
                    if events.send(event).await.is_err() {
                        return;
                    }
                }
                return;
            }
            tokio::select! {
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => {
                        let _ = self.to_peer.send(Wire::Lost);
                        return;
                    }
                },
                room = events.reserve(), if !self.events.is_empty() => {
                    let Ok(room) = room else { return };
                    room.send(self.events.pop_front().unwrap());
                }
                wire = self.from_peer.recv() => self.wire(wire.unwrap_or(Wire::Lost)),
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::AddFiles(files) => {
                assert!(!files.is_empty() && files.len() <= escp_engine_api::MAX_BATCH);
                for (spec, file) in files {
                    self.add(spec, file);
                }
            }
            Command::Schedule(extents) => {
                assert!(!self.scheduled, "more is to be sent after the last");
                extents.into_iter().for_each(|extent| self.read(extent));
            }
            Command::Scheduled => self.scheduled = true,
            Command::DropFiles(numbers) => {
                for number in numbers {
                    if self.files.remove(&number).is_some() {
                        self.fail(number, Stage::Dropped, 0, "given up");
                    }
                }
            }
            Command::Message(bytes) => {
                assert!(bytes.len() <= escp_engine_api::MAX_MESSAGE);
                let _ = self.to_peer.send(Wire::Message(bytes));
            }
            Command::Finish(summary) => {
                assert!(self.files.is_empty(), "finished with {} files under way", self.files.len());
                self.own_end = Some(summary);
                let _ = self.to_peer.send(Wire::Finish(summary));
                self.agree();
            }
            Command::Abort { reason } => {
                let _ = self.to_peer.send(Wire::Abort(reason.clone()));
                self.end(Fault::Local, &reason);
            }
            Command::Open(_) | Command::AddLane(_) => panic!("not by these agents"),
        }
    }

    fn add(&mut self, spec: FileSpec, file: Option<Arc<OwnedFd>>) {
        let taken = Taken { spec, file, left: spec.size, check: spec.number };
        assert!(self.files.insert(spec.number, taken).is_none(), "number used twice");
        // An empty file needs no extent; the receiver hears of it by the sender's `Whole`.
        if spec.size == 0 && self.faults.sends() {
            self.sent_whole(spec.number);
        }
    }

    fn read(&mut self, extent: Extent) {
        if let Some(hook) = &mut self.faults.before_read {
            hook(extent.file);
        }
        let Some(taken) = self.files.get_mut(&extent.file) else { return };
        assert!(extent.length > 0 && extent.offset + extent.length <= taken.spec.size);
        let mut at = extent.offset;
        let end = extent.offset + extent.length;
        while at < end && extent.kind == ExtentKind::Data {
            let mut bytes = vec![0; usize::try_from((end - at).min(1 << 20)).unwrap()];
            // The descriptor may be O_DIRECT, which this does not keep to: read through another one.
            if let Some(file) = &taken.file
                && let Err(error) = plain(file).read_exact_at(&mut bytes, at)
            {
                self.files.remove(&extent.file);
                let text = format!("the file ended early: {error}");
                return self.fail(extent.file, Stage::Read, error.raw_os_error().unwrap_or(0), &text);
            }
            *self.moved.lock().unwrap() += bytes.len() as u64;
            taken.check ^= check(at, &bytes);
            let offset = at;
            at += bytes.len() as u64;
            let _ = self.to_peer.send(Wire::Data { file: extent.file, offset, bytes });
        }
        taken.left -= extent.length;
        if taken.left == 0 {
            self.sent_whole(extent.file);
        }
    }

    fn sent_whole(&mut self, number: u64) {
        let taken = self.files.remove(&number).unwrap();
        let _ = self.to_peer.send(Wire::Whole { file: number });
        self.report(number, Ok(FileCheck::Crc64(taken.check)));
    }

    fn wire(&mut self, wire: Wire) {
        match wire {
            Wire::Message(bytes) => self.events.push_back(Event::Message(bytes)),
            Wire::Data { file, offset, bytes } => {
                let Some(taken) = self.files.get_mut(&file) else { return };
                taken.check ^= check(offset, &bytes);
                let written = match (&taken.file, self.faults.write_fails) {
                    (_, Some((number, errno))) if number == file => {
                        Err(std::io::Error::from_raw_os_error(errno))
                    }
                    (Some(open), _) => plain(open).write_all_at(&bytes, offset),
                    (None, _) => Ok(()),
                };
                if let Err(error) = written {
                    self.files.remove(&file);
                    self.fail(file, Stage::Write, error.raw_os_error().unwrap_or(0), &error.to_string());
                }
            }
            Wire::Whole { file } => {
                if let Some(hook) = &mut self.faults.before_report {
                    hook(file);
                }
                let Some(taken) = self.files.remove(&file) else { return };
                if let Some(open) = &taken.file {
                    rustix::fs::ftruncate(open, taken.spec.size).unwrap();
                }
                let corrupt = u64::from(self.faults.corrupt == Some(file));
                self.report(file, Ok(FileCheck::Crc64(taken.check ^ corrupt)));
            }
            Wire::Finish(summary) => {
                self.peer_end = Some(summary);
                self.agree();
            }
            Wire::Abort(reason) => self.end(Fault::PeerAborted, &reason),
            Wire::Lost => self.end(Fault::Lost, "the connection closed before the end"),
        }
    }

    fn agree(&mut self) {
        if let (Some(own), Some(peer)) = (self.own_end, self.peer_end) {
            if own == peer {
                self.events.push_back(Event::Ended { files: own.files, counters: Default::default() });
            } else {
                self.end(Fault::Integrity, "the two sides moved different files");
            }
        }
    }

    fn report(&mut self, number: u64, outcome: Result<FileCheck, FileError>) {
        self.events.push_back(Event::Files(vec![FileReport { number, outcome }]));
        self.whole += 1;
        if self.faults.lost_after == Some(self.whole) {
            let _ = self.to_peer.send(Wire::Lost);
            self.end(Fault::Lost, "the connection closed before the end");
        }
    }

    fn fail(&mut self, number: u64, stage: Stage, errno: i32, text: &str) {
        self.report(number, Err(FileError { stage, errno, text: text.to_owned() }));
    }

    fn end(&mut self, fault: Fault, text: &str) {
        self.events.push_back(Event::Failed(Failure { fault, text: text.to_owned() }));
    }
}

impl Faults {
    /// Marks the sending engine; every sending engine gets a hook.
    fn sends(&self) -> bool {
        self.before_read.is_some()
    }
}

/// The same file, opened again without O_DIRECT.
fn plain(file: &OwnedFd) -> File {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = rustix::fs::fcntl_getfl(file).unwrap();
    let writes = flags.contains(rustix::fs::OFlags::WRONLY);
    File::options().read(!writes).write(writes).open(path).unwrap()
}

fn check(offset: u64, bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(offset);
    hasher.write(bytes);
    hasher.finish()
}

/// What an agent told its user.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub published: Vec<Vec<u8>>,
    pub failed: Vec<FailedFile>,
    pub notes: Vec<String>,
    pub scanned: (u64, u64, bool),
}

#[derive(Debug, Default)]
pub(crate) struct Recorder(pub Mutex<Seen>);

impl Observer for Recorder {
    fn scanned(&self, files: u64, bytes: u64, complete: bool) {
        self.0.lock().unwrap().scanned = (files, bytes, complete);
    }
    fn moved(&self, _bytes: u64, _files: u64) {}
    fn published(&self, path: &dyn Fn() -> Vec<u8>) {
        self.0.lock().unwrap().published.push(path());
    }
    fn failed(&self, failure: &FailedFile) {
        self.0.lock().unwrap().failed.push(failure.clone());
    }
    fn silent(&self, _seconds: u32, _stage: &str) {}
    fn note(&self, text: &str) {
        self.0.lock().unwrap().notes.push(text.to_owned());
    }
}

pub(crate) use escp_agent::link::TransferOptions as Options;

/// Usual options: a recursive, durable copy.
pub(crate) fn options() -> TransferOptions {
    TransferOptions { recursive: true, block_size: 1 << 20, ..TransferOptions::default() }
}

/// How a whole conversation went.
pub(crate) struct Outcome {
    pub sent: Result<Tally, SessionError>,
    pub received: Result<Tally, SessionError>,
    pub sender: Arc<Recorder>,
    pub receiver: Arc<Recorder>,
    /// Bytes that travelled.
    pub moved: u64,
}

impl Outcome {
    /// Both tallies, where both sides came to the agreed end.
    pub(crate) fn tallies(&self) -> (Tally, Tally) {
        (self.sent.clone().expect("sender"), self.received.clone().expect("receiver"))
    }

    /// Everything arrived.
    pub(crate) fn all_good(&self) {
        let (sent, received) = self.tallies();
        assert_eq!((sent.failed, &sent.kept), (0, &Vec::new()));
        assert_eq!((received.failed, &received.kept), (0, &Vec::new()));
        assert_eq!(
            (sent.files, sent.bytes, sent.directories),
            (received.files, received.bytes, received.directories)
        );
    }

    /// What the receiving side says failed: path and text.
    pub(crate) fn failures(&self) -> Vec<(String, String)> {
        let seen = self.receiver.0.lock().unwrap();
        seen.failed.iter().map(|f| (f.path.escape_ascii().to_string(), f.text.clone())).collect()
    }
}

pub(crate) fn link(engine: EngineHandle) -> (Link, watch::Sender<Option<HangUp>>) {
    let (raise, hang_up) = watch::channel(None);
    (Link::new(engine, Duration::ZERO, hang_up), raise)
}

/// Runs a conversation with faults on either side.
pub(crate) async fn converse(
    sources: Vec<Source>,
    target: Target,
    options: TransferOptions,
    mut sending: Faults,
    receiving: Faults,
) -> Outcome {
    let hook = sending.before_read.take();
    sending.before_read = Some(hook.unwrap_or_else(|| Box::new(|_| {})));
    let (near, far, moved) = engines(sending, receiving);
    let (mut near, _near_up) = link(near);
    let (mut far, _far_up) = link(far);
    let (sender, receiver) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
    let both = async {
        let (to, from) = (Arc::clone(&sender), Arc::clone(&receiver));
        tokio::join!(
            async {
                let sent = send_files(&mut near, sources, options, to, "far").await;
                drop(near);
                sent
            },
            async {
                let received = receive_files(&mut far, target, options, from, "near").await;
                drop(far);
                received
            },
        )
    };
    let (sent, received) =
        tokio::time::timeout(Duration::from_secs(120), both).await.expect("the conversation hangs");
    let moved = *moved.lock().unwrap();
    Outcome { sent, received, sender, receiver, moved }
}

/// A path as a source.
pub(crate) fn source(path: impl AsRef<std::path::Path>) -> Source {
    Source::Path(bytes(path).to_vec())
}

pub(crate) fn bytes(path: impl AsRef<std::path::Path>) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_ref().as_os_str().as_bytes().to_vec()
}

/// The target at this path, as the far side of an upload resolves it.
pub(crate) fn target(path: impl AsRef<std::path::Path>) -> Target {
    Target::resolve(&bytes(path), false, 0, true).expect("target")
}

/// An upload of paths without faults.
pub(crate) async fn upload(
    sources: &[&std::path::Path],
    to: &std::path::Path,
    options: TransferOptions,
) -> Outcome {
    let sources = sources.iter().map(source).collect();
    converse(sources, target(to), options, Faults::default(), Faults::default()).await
}

/// Names that start like temporary files, anywhere below `root`.
pub(crate) fn leftovers(root: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![root.to_path_buf()];
    while let Some(directory) = stack.pop() {
        for entry in std::fs::read_dir(&directory).unwrap().flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b".escp-") {
                found.push(entry.path());
            }
            if entry.file_type().unwrap().is_dir() {
                stack.push(entry.path());
            }
        }
    }
    found
}
