//! What sending and receiving have in common: the queue to the engine, the rules of the conversation, and
//! what ends it early.

use crate::escape::foreign_text;
use crate::link::{Link, Observer, SessionError};
use crate::status;
use escp_engine_api::{Command, Event, Failure, Fault, Summary};
use escp_proto::agent::{Accept, AgentMessage, Refusal, Request, Transfer};
use escp_proto::conversation::{Conversation, Phase};
use escp_proto::{ProtocolError, Side};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc;

/// Commands that may wait for room at the engine before no further work of this side is taken. Events are
/// always taken; what they can cause is bounded by the credit.
const WORK_STOPS_AT: usize = 256;
/// How long an engine is given to tell its peer why a session ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// Longest text of a peer that is shown.
pub(crate) const MAX_FOREIGN: usize = 2048;

/// What happened next.
#[derive(Debug)]
pub(crate) enum Step<W> {
    /// The peer's agent said this, and may say it now.
    Message(AgentMessage),
    /// The engine reports something that is neither a message nor an end.
    Event(Event),
    /// This side's own threads finished something.
    Work(W),
    /// Both engines agreed on the end.
    Ended,
}

enum Next<W> {
    HangUpChanged { watcher_gone: bool },
    Sent,
    Event(Option<Event>),
    Work(W),
}

/// Which role this agent plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Sender,
    Receiver,
}

impl Role {
    /// The conversation's rules depend on who sends, no longer on who is near: the sender counts as near.
    fn side(self) -> Side {
        match self {
            Self::Sender => Side::Near,
            Self::Receiver => Side::Far,
        }
    }
}

/// One session, as either agent drives it.
#[derive(Debug)]
pub(crate) struct Exchange<'a> {
    link: &'a mut Link,
    role: Role,
    outbox: VecDeque<Command>,
    /// What has been said so far, by either side.
    pub(crate) conversation: Conversation,
    /// The control channel's watch is gone: nobody will hang up any more.
    unwatched: bool,
    finished: bool,
}

impl<'a> Exchange<'a> {
    /// Starts after Request and, unless it is still due, Accept.
    pub(crate) fn new(link: &'a mut Link, role: Role) -> Result<Self, SessionError> {
        let mut conversation = Conversation::new();
        let request = Request {
            transfer: Transfer::Upload { target: Vec::new(), directory_required: false },
            recursive: true,
            preserve: true,
            inplace: false,
            durable: true,
            direct: true,
            checksum: true,
            dummy: false,
        };
        let accepted = link.answered.then_some(AgentMessage::Accept(Accept { sources: 0 }));
        let credit = link.credit.map(|entries| AgentMessage::Credit { entries });
        conversation
            .on(Side::Near, &AgentMessage::Request(request))
            .and_then(|()| {
                credit.iter().chain(&accepted).try_for_each(|said| conversation.on(Side::Far, said))
            })
            .map_err(|error| own_fault(&error))?;
        Ok(Self { link, role, outbox: VecDeque::new(), conversation, unwatched: false, finished: false })
    }

    /// Queues a command.
    pub(crate) fn command(&mut self, command: Command) {
        self.outbox.push_back(command);
    }

    /// Queues a message to the peer's agent.
    pub(crate) fn say(&mut self, message: &AgentMessage) -> Result<(), SessionError> {
        self.conversation.on(self.role.side(), message).map_err(|error| own_fault(&error))?;
        self.command(Command::Message(message.encode().map_err(|error| own_fault(&error))?));
        Ok(())
    }

    /// Queues the agreement on the end.
    pub(crate) fn finish(&mut self, summary: Summary) {
        self.finished = true;
        self.command(Command::Finish(summary));
    }

    /// Whether the request was accepted.
    pub(crate) fn is_accepted(&self) -> bool {
        self.conversation.phase() != Phase::Asked
    }

    /// Whether this side has agreed on the end.
    pub(crate) fn has_finished(&self) -> bool {
        self.finished
    }

    /// Waits for what happens next, sending queued commands meanwhile.
    pub(crate) async fn step<W>(
        &mut self,
        work: &mut mpsc::UnboundedReceiver<W>,
    ) -> Result<Step<W>, SessionError> {
        loop {
            match self.next(work).await {
                Next::HangUpChanged { watcher_gone } => {
                    if let Some(error) = self.hung_up(watcher_gone) {
                        return Err(self.leave(error).await);
                    }
                }
                Next::Sent => {}
                Next::Event(event) => {
                    if let Some(step) = self.event(event).await? {
                        return Ok(step);
                    }
                }
                Next::Work(done) => return Ok(Step::Work(done)),
            }
        }
    }

    async fn next<W>(&mut self, work: &mut mpsc::UnboundedReceiver<W>) -> Next<W> {
        let Self { link, outbox, unwatched, .. } = self;
        if let Some(bytes) = link.heard.pop_front() {
            return Next::Event(Some(Event::Message(bytes)));
        }
        let queued = !outbox.is_empty() && !link.engine.commands.is_closed();
        tokio::select! {
            biased;
            changed = link.hang_up.changed(), if !*unwatched => {
                Next::HangUpChanged { watcher_gone: changed.is_err() }
            }
            room = link.engine.commands.reserve(), if queued => {
                if let (Ok(room), Some(command)) = (room, outbox.pop_front()) {
                    room.send(command);
                }
                Next::Sent
            }
            event = link.engine.events.recv() => Next::Event(event),
            Some(done) = work.recv(), if outbox.len() < WORK_STOPS_AT => Next::Work(done),
        }
    }

    fn hung_up(&mut self, watcher_gone: bool) -> Option<SessionError> {
        let said = self.link.hang_up.borrow_and_update().clone();
        self.unwatched = watcher_gone;
        said.map(|hang_up| SessionError { status: hang_up.status, text: hang_up.text })
    }

    async fn event<W>(&mut self, event: Option<Event>) -> Result<Option<Step<W>>, SessionError> {
        match event {
            None => {
                Err(SessionError { status: status::LOST, text: "the engine is gone without a word".into() })
            }
            Some(Event::Failed(failure)) => Err(session_error(&failure)),
            Some(Event::Ended { .. }) if self.finished => Ok(Some(Step::Ended)),
            Some(Event::Ended { .. }) => Err(self.violation("the session was ended too early").await),
            Some(Event::Message(bytes)) => match self.hear(&bytes) {
                Ok(message) => Ok(Some(Step::Message(message))),
                Err(error) => Err(self.violation(&error.to_string()).await),
            },
            Some(event) => Ok(Some(Step::Event(event))),
        }
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<AgentMessage, ProtocolError> {
        let message = AgentMessage::decode(bytes)?;
        let peer = match self.role {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        };
        self.conversation.on(peer.side(), &message)?;
        Ok(message)
    }

    /// Ends the session because the peer broke the protocol.
    pub(crate) async fn violation(&mut self, what: &str) -> SessionError {
        let text = format!("the other side broke the protocol: {what}");
        self.leave(SessionError { status: status::INTEGRITY, text }).await
    }

    /// Tells the peer why the session ends, if that can be done quickly, and passes the error on, or
    /// [what the engine found](unless_altered).
    pub(crate) async fn leave(&mut self, error: SessionError) -> SessionError {
        self.outbox.clear();
        let engine = &mut self.link.engine;
        let mut found = None;
        let farewell = async {
            let abort = Command::Abort { reason: error.text.clone() };
            loop {
                tokio::select! {
                    biased;
                    room = engine.commands.reserve() => {
                        if let Ok(room) = room {
                            room.send(abort);
                        }
                        break;
                    }
                    event = engine.events.recv() => match event {
                        None => break,
                        Some(Event::Failed(failure)) => found = Some(failure),
                        Some(_) => {}
                    },
                }
            }
            while let Some(event) = engine.events.recv().await {
                if let Event::Failed(failure) = event {
                    found = Some(failure);
                }
            }
        };
        // An engine that does not end in time is ended by dropping its queues.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        unless_altered(error, found)
    }
}

/// Why a session ended: `error`, unless the engine found data altered. It told the peer's engine, and the peer may
/// have left before the own engine's word was heard here; that looks like a lost connection.
pub(crate) fn unless_altered(error: SessionError, found: Option<Failure>) -> SessionError {
    let found = found.filter(|failure| failure.fault == Fault::Integrity);
    found
        .map(|failure| session_error(&failure))
        .filter(|own| status::graver(own.status, error.status))
        .unwrap_or(error)
}

/// What the peer's refusal means to the user.
pub(crate) fn refused(host: &str, refusal: &Refusal) -> SessionError {
    SessionError { status: status::from_peer(refusal.status), text: format!("{host}: {}", refusal.text) }
}

/// Passes on what only the observer needs to know.
pub(crate) fn observe(event: Event, dummy: bool, files: u64, observer: &dyn Observer) {
    match event {
        Event::Progress(progress) => {
            let counters = progress.counters;
            let bytes = if dummy { counters.bytes_compressed } else { counters.bytes_disk };
            observer.moved(bytes, files);
        }
        Event::Silent { seconds, stage } => observer.silent(seconds, &stage.to_string()),
        Event::Note(text) => observer.note(&text),
        Event::Remark(text) => observer.remark(&text),
        // Opening and connecting are over; the rest is handled where the session is driven.
        Event::Opened(_)
        | Event::Connected { .. }
        | Event::Message(_)
        | Event::Files(_)
        | Event::Ended { .. }
        | Event::Failed(_) => {}
    }
}

fn session_error(failure: &Failure) -> SessionError {
    let status = status::of_fault(failure.fault, true);
    SessionError { status, text: foreign_text(&failure.text, MAX_FOREIGN) }
}

fn own_fault(error: &ProtocolError) -> SessionError {
    SessionError { status: status::LOST, text: format!("this side made a mistake: {error}") }
}
