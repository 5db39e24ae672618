//! What may come on one stream and direction, as a table.
//!
//! Stream 0 carries control records, the others file records. Each direction of each stream is a sequence of
//! records that ends with a sealed `Close` saying how many records came before it; on stream 0 a sealed `End`
//! (or `Abort`) comes first. A connection that ends before is cut, and never taken for an end.
//!
//! ```text
//! state    may come                                                     leads to
//! Open     file (data stream, from the sender of files)                 Open
//!          agent (stream 0)                                             Open
//!          ack (stream 0, from the receiver of files)                   Open
//!          keepalive                                                    Open
//!          end (stream 0)                                               Ended
//!          abort (stream 0)                                             Aborted
//!          close (data stream)                                          Closed
//! Ended    keepalive                                                    Ended
//!          abort                                                        Aborted
//!          close                                                        Closed
//! Aborted  end of file                                                  Aborted
//! Closed   end of file                                                  Closed
//! ```
//!
//! Nothing else may come. The table says nothing about time: deadlines are the engine's.

use crate::ProtocolError;
use crate::message::{EngineMessage, Message};

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// Stream 0.
    Control,
    /// Streams from 1 on.
    Data,
}

impl StreamKind {
    /// The kind of stream `number`.
    #[must_use]
    pub fn of(number: u16) -> Self {
        if number == 0 { Self::Control } else { Self::Data }
    }
}

/// What the other end of a session does with files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// It sends them; this end receives.
    Sender,
    /// It receives them; this end sends.
    Receiver,
}

/// How far one direction of a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Records come.
    Open,
    /// The peer's `End` came; a `Close` is due.
    Ended,
    /// The peer gave up.
    Aborted,
    /// The peer's `Close` came.
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Open => "an open stream",
            Self::Ended => "a stream after its end",
            Self::Aborted => "a stream after its abort",
            Self::Closed => "a closed stream",
        }
    }
}

/// What came: the input of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// A file record.
    File,
    /// An agent message.
    Agent,
    /// `Ack`.
    Ack,
    /// `Keepalive`.
    Keepalive,
    /// `Close`.
    Close,
    /// `End`.
    End,
    /// `Abort`.
    Abort,
    /// The connection's end of file.
    Eof,
}

impl Input {
    fn name(self) -> &'static str {
        match self {
            Self::File => "a file record",
            Self::Agent => "an agent message",
            Self::Ack => "an acknowledgement",
            Self::Keepalive => "a keepalive",
            Self::Close => "a close",
            Self::End => "an end",
            Self::Abort => "an abort",
            Self::Eof => "end of file",
        }
    }
}

impl From<&Message> for Input {
    fn from(message: &Message) -> Self {
        match message {
            Message::Agent(_) => Self::Agent,
            Message::Engine(EngineMessage::Ack { .. }) => Self::Ack,
            Message::Engine(EngineMessage::Keepalive) => Self::Keepalive,
            Message::Engine(EngineMessage::Close { .. }) => Self::Close,
            Message::Engine(EngineMessage::End { .. }) => Self::End,
            Message::Engine(EngineMessage::Abort { .. }) => Self::Abort,
        }
    }
}

/// The table: the state after `input`, or `None` where it may not come.
#[must_use]
pub fn next(kind: StreamKind, peer: PeerRole, state: State, input: Input) -> Option<State> {
    use StreamKind::{Control, Data};
    Some(match (state, input, kind) {
        (State::Open, Input::File, Data) if peer == PeerRole::Sender => State::Open,
        (State::Open, Input::Agent, Control) => State::Open,
        (State::Open, Input::Ack, Control) if peer == PeerRole::Receiver => State::Open,
        (State::Open, Input::Keepalive, _) => State::Open,
        (State::Open, Input::Close, Data) => State::Closed,
        (State::Open, Input::End, Control) => State::Ended,
        (State::Open | State::Ended, Input::Abort, Control) => State::Aborted,
        (State::Ended, Input::Keepalive, Control) => State::Ended,
        (State::Ended, Input::Close, Control) => State::Closed,
        (State::Aborted, Input::Eof, _) => State::Aborted,
        (State::Closed, Input::Eof, _) => State::Closed,
        _ => return None,
    })
}

/// What came, with what the checks need to know of it.
#[derive(Debug, Clone, Copy)]
pub enum Received<'a> {
    /// An authenticated file record.
    File,
    /// An authenticated metadata record's message.
    Message(&'a Message),
    /// The connection's end of file, between two records.
    Eof,
}

/// The inbound direction of one stream.
#[derive(Debug, Clone)]
pub struct Inbound {
    kind: StreamKind,
    peer: PeerRole,
    state: State,
    records: u64,
}

impl Inbound {
    /// Stream `number`, proven and without records yet.
    #[must_use]
    pub fn new(number: u16, peer: PeerRole) -> Self {
        Self { kind: StreamKind::of(number), peer, state: State::Open, records: 0 }
    }

    /// Takes what came, in order. To be called once for each record that was authenticated, whatever it
    /// carries, because `Close` is checked against their number.
    ///
    /// # Errors
    /// [`ProtocolError::ClosedEarly`] for an end of file before `Close` (exit status 4);
    /// [`ProtocolError::IllegalState`] for what may not come now, [`ProtocolError::Malformed`] for an
    /// acknowledgement of stream 0, [`ProtocolError::Count`] for a `Close` with another number of records
    /// than came (all exit status 5).
    pub fn on(&mut self, received: Received<'_>) -> Result<State, ProtocolError> {
        let input = match received {
            Received::File => Input::File,
            Received::Message(message) => message.into(),
            Received::Eof => Input::Eof,
        };
        let Some(state) = next(self.kind, self.peer, self.state, input) else {
            return Err(match input {
                Input::Eof => ProtocolError::ClosedEarly(self.state.name()),
                _ => ProtocolError::IllegalState { what: input.name(), state: self.state.name() },
            });
        };
        if let Received::Message(Message::Engine(message)) = received {
            self.check(message)?;
        }
        if input != Input::Eof {
            self.records += 1;
        }
        self.state = state;
        Ok(state)
    }

    fn check(&self, message: &EngineMessage) -> Result<(), ProtocolError> {
        match message {
            EngineMessage::Ack { stream: 0, .. } => {
                Err(ProtocolError::Malformed("acknowledgement of stream 0"))
            }
            EngineMessage::Close { records } if *records != self.records => {
                Err(ProtocolError::Count { what: "records of a stream", said: *records, came: self.records })
            }
            _ => Ok(()),
        }
    }

    /// How far the stream is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// Records that came so far: the sequence number that is due.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records
    }

    /// Whether this end may take the connection's end for the stream's.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Aborted | State::Closed)
    }
}
