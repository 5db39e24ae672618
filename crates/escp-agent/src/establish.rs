//! Opening this host's engine and waiting for what it and the peer's agent say first; alike on both ends.

use crate::control::hung_up;
use crate::exchange::unless_altered;
use crate::limits;
use crate::link::{HangUp, Link, Observer, SessionError};
use crate::status;
use escp_engine_api::{Command, EngineHandle, Event, Failure, JobOptions, Opened};
use escp_proto::agent::{AgentMessage, MAX_SOURCES, MAX_SOURCES_BYTES};
use std::collections::VecDeque;
use std::io;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Time for an engine to open: mapping memory, registering, binding ports.
const OPEN_DEADLINE: Duration = Duration::from_secs(30);
/// Time for a file system to say what lies at a path; an automounter may need some of it.
const LOOK_DEADLINE: Duration = Duration::from_secs(60);
/// Time for an engine to end after it was told to.
const ABORT_DEADLINE: Duration = Duration::from_secs(2);

/// Most bytes of messages before all lanes are up: a request may be as long as its sources and what they are packed in.
const MAX_EARLY: usize = 2 * MAX_SOURCES_BYTES;

/// An engine whose job is open and whose lanes are not all up.
#[derive(Debug)]
pub(crate) struct Opening {
    /// The engine.
    pub(crate) engine: EngineHandle,
    /// Messages of the peer's agent that overtook the news that all lanes are up.
    early: VecDeque<Vec<u8>>,
    /// Their bytes.
    early_bytes: usize,
    /// What the peer may offer before it hears more, once it was said.
    credit: Option<u64>,
    /// Known once all lanes are up.
    round_trip: Duration,
}

/// Bytes from the kernel's generator.
pub(crate) fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty())?;
    }
    Ok(bytes)
}

/// What a hello tells of this machine: a mark of its boot id (random(4)), or zeros where that cannot be read.
pub(crate) fn machine(session: &[u8; 16]) -> [u8; 16] {
    let boot_id = std::fs::read("/proc/sys/kernel/random/boot_id");
    boot_id.map_or([0; 16], |boot_id| escp_crypto::machine_mark(&boot_id, session))
}

/// Looks at a file system on a thread of its own, so that a hung mount holds up neither a hang-up nor the deadline.
/// A look that hangs ends with the process.
pub(crate) async fn look<T: Send + 'static>(
    stop: &mut watch::Receiver<Option<HangUp>>,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SessionError> {
    let refused = |text| Err(SessionError { status: status::SOME_FAILED, text });
    tokio::select! {
        biased;
        error = hung_up(stop) => Err(error),
        seen = timeout(LOOK_DEADLINE, tokio::task::spawn_blocking(look)) => match seen {
            Ok(Ok(seen)) => Ok(seen),
            Ok(Err(error)) => refused(format!("looking at the file system broke down: {error}")),
            Err(_) => refused(format!(
                "the file system does not answer: nothing within {} s (a hung mount?)",
                LOOK_DEADLINE.as_secs()
            )),
        },
    }
}

/// Starts or connects to an engine and opens the job on it.
pub(crate) async fn open_reported<E>(
    engine: E,
    options: JobOptions,
) -> Result<(Opening, Opened), SessionError>
where
    E: AsyncFnOnce() -> Result<EngineHandle, SessionError>,
{
    let opened = timeout(OPEN_DEADLINE, async {
        let mut opening = Opening::of(engine().await?);
        opening.command(Command::Open(Box::new(options))).await?;
        loop {
            match opening.event().await? {
                Event::Opened(opened) => return Ok((opening, opened)),
                Event::Note(note) | Event::Remark(note) => tracing::debug!("{note}"),
                _ => {}
            }
        }
    });
    opened.await.unwrap_or_else(|_| {
        let text = format!("the engine of this host did not start within {} s", OPEN_DEADLINE.as_secs());
        Err(SessionError { status: status::CONNECT, text })
    })
}

/// As [`open_reported`]; what the engine says about itself goes to `observer`.
pub(crate) async fn open<E>(
    engine: E,
    options: JobOptions,
    observer: &dyn Observer,
) -> Result<Opening, SessionError>
where
    E: AsyncFnOnce() -> Result<EngineHandle, SessionError>,
{
    let (opening, opened) = open_reported(engine, options).await?;
    remarks(&opened).iter().for_each(|remark| observer.note(remark));
    Ok(opening)
}

/// What an opened engine has to say about itself, for `-v`.
pub(crate) fn remarks(opened: &Opened) -> Vec<String> {
    let place = if opened.daemon { "in escpd" } else { "embedded" };
    let kind = match &opened.kind_reason {
        Some(reason) => format!("{} engine {place}: {reason}", opened.kind),
        None => format!("{} engine {place}", opened.kind),
    };
    std::iter::once(kind).chain(opened.port_note.clone()).collect()
}

fn engine_gone() -> SessionError {
    SessionError { status: status::LOST, text: "the engine of this host ended without a word".into() }
}

fn violation(what: &str) -> SessionError {
    SessionError { status: status::INTEGRITY, text: format!("the other side broke the protocol: {what}") }
}

fn failed(failure: Failure) -> SessionError {
    SessionError { status: status::of_fault(failure.fault, false), text: failure.text }
}

impl Opening {
    /// An engine of which nothing was heard.
    pub(crate) fn of(engine: EngineHandle) -> Self {
        Self { engine, early: VecDeque::new(), early_bytes: 0, credit: None, round_trip: Duration::ZERO }
    }

    /// Gives the engine a command.
    pub(crate) async fn command(&mut self, command: Command) -> Result<(), SessionError> {
        match self.engine.commands.send(command).await {
            Ok(()) => Ok(()),
            // The reason lies in the events.
            Err(_) => loop {
                self.event().await?;
            },
        }
    }

    /// The engine's next event; a failure is an error.
    async fn event(&mut self) -> Result<Event, SessionError> {
        match self.engine.events.recv().await {
            None => Err(engine_gone()),
            Some(Event::Failed(failure)) => Err(failed(failure)),
            Some(event) => Ok(event),
        }
    }

    /// The session, once both agents have agreed on it, or this one has asked and its answer is due.
    pub(crate) fn into_link(self, hang_up: watch::Receiver<Option<HangUp>>, answered: bool) -> Link {
        let (heard, credit) = (self.early, self.credit);
        Link { engine: self.engine, round_trip: self.round_trip, hang_up, heard, credit, answered }
    }

    /// Says how much this side takes at first, as its receiver, before it is asked: it is then known to the sender when
    /// the sender has something to offer.
    pub(crate) async fn give_credit(&mut self) -> Result<(), SessionError> {
        let entries = limits::entries_under_way(self.round_trip);
        self.credit = Some(entries);
        self.say(&AgentMessage::Credit { entries }).await
    }

    /// Says something to the peer's agent.
    pub(crate) async fn say(&mut self, message: &AgentMessage) -> Result<(), SessionError> {
        let bytes = message.encode().map_err(|error| SessionError {
            status: status::INTEGRITY,
            text: format!("something that cannot be said: {error}"),
        })?;
        self.command(Command::Message(bytes)).await
    }

    /// The round trip between the hosts; zero before all lanes are up, and where it is not known.
    pub(crate) fn round_trip(&self) -> Duration {
        self.round_trip
    }

    /// Waits until every lane is up.
    pub(crate) async fn connected(&mut self, observer: &dyn Observer) -> Result<(), SessionError> {
        loop {
            match self.event().await? {
                Event::Connected { round_trip } => {
                    self.round_trip = round_trip;
                    return Ok(());
                }
                Event::Note(note) | Event::Remark(note) => observer.note(&note),
                // The peer may see its lanes up, and speak, a moment before this side does.
                Event::Message(bytes) => {
                    self.early_bytes += bytes.len();
                    self.early.push_back(bytes);
                    if self.early_bytes > MAX_EARLY || self.early.len() > MAX_SOURCES {
                        return Err(violation("it speaks out of turn"));
                    }
                }
                _ => {}
            }
        }
    }

    /// Waits for the next message of the peer's agent.
    pub(crate) async fn message(&mut self, observer: &dyn Observer) -> Result<AgentMessage, SessionError> {
        let decode =
            |bytes: &[u8]| AgentMessage::decode(bytes).map_err(|error| violation(&error.to_string()));
        if let Some(bytes) = self.early.pop_front() {
            return decode(&bytes);
        }
        loop {
            match self.event().await? {
                Event::Message(bytes) => return decode(&bytes),
                Event::Silent { seconds, stage } => observer.silent(seconds, &stage.to_string()),
                Event::Note(note) | Event::Remark(note) => observer.note(&note),
                _ => {}
            }
        }
    }

    /// Ends the session, lets the peer's engine know why, and returns the reason, or [what the engine
    /// found](unless_altered).
    pub(crate) async fn abort(mut self, why: SessionError) -> SessionError {
        let mut found = None;
        let told = async {
            let reason = why.text.clone();
            // An engine that is gone has left its last words.
            let _ = self.engine.commands.send(Command::Abort { reason }).await;
            while let Some(event) = self.engine.events.recv().await {
                match event {
                    Event::Failed(failure) => {
                        found = Some(failure);
                        break;
                    }
                    Event::Ended { .. } => break,
                    _ => {}
                }
            }
        };
        if timeout(ABORT_DEADLINE, told).await.is_err() {
            tracing::debug!("the engine did not end in time");
        }
        unless_altered(why, found)
    }
}
