//! What escp says: first packets, records, messages, control frames, and the state machines of a session.
//!
//! No I/O, no clock, no randomness, no keys: bytes and events in, bytes and decisions out.
//! `docs/PROTOCOL.md` describes the same in prose, enough for a second implementation.

#![forbid(unsafe_code)]

pub mod agent;
pub mod block;
pub mod control;
pub mod conversation;
pub mod first_packet;
pub mod message;
pub mod numbered;
pub mod record;
pub mod stream;

/// The version of the protocol this crate speaks.
pub const VERSION: u16 = 2;

/// Which end of the control channel speaks: roles of the key schedule. Independent of who dials and of who
/// sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The end that started ssh.
    Near,
    /// The end that ssh started.
    Far,
}

/// A peer said something that the protocol does not allow. Always the peer's fault (or an attacker's).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Fewer bytes than the structure needs, or more.
    #[error("{what} has {got} bytes where {need} are needed")]
    Length {
        /// What was decoded.
        what: &'static str,
        /// Bytes present.
        got: usize,
        /// Bytes needed.
        need: usize,
    },
    /// A count or size beyond the protocol's bound.
    #[error("{what} of {got} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The value received.
        got: u64,
        /// The bound.
        limit: u64,
    },
    /// A value that has no meaning.
    #[error("unknown {what} {value}")]
    Unknown {
        /// What it is.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A count that the peer said differs from what it did.
    #[error("{what}: the peer said {said}, {came} came")]
    Count {
        /// What was counted.
        what: &'static str,
        /// The peer's number.
        said: u64,
        /// What came.
        came: u64,
    },
    /// Bytes that do not decode.
    #[error("malformed {0}")]
    Malformed(&'static str),
    /// The peer's version range does not meet ours.
    #[error("peer speaks escp protocol {peer}, this is {ours}")]
    Version {
        /// What the peer speaks.
        peer: String,
        /// What we speak.
        ours: u16,
    },
    /// The control channel began with text where a hello was due: a login shell, a forced command or a
    /// missing program spoke. Not an attack; the user has to change what prints it.
    #[error("text came where escp was due to speak: \"{excerpt}\"")]
    ForeignText {
        /// Its first line, at most 160 bytes, escaped to printable ASCII.
        excerpt: String,
    },
    /// The bytes ended where more had to come. A cut connection is never taken for an end.
    #[error("connection closed before the end ({0})")]
    ClosedEarly(&'static str),
    /// Something that may not come now.
    #[error("{what} in state {state}")]
    IllegalState {
        /// What came.
        what: &'static str,
        /// The state it came in.
        state: &'static str,
    },
}
