//! The course of a conversation as a whole.
//!
//! ```text
//! phase      may be said by     what                                     leads to
//! Silence    near               sources                                  Silence
//!            near               request                                  Asked
//!            far as receiver    credit                                   Silence
//! Asked      far                accept                                   Offering
//!            far                refuse                                   Refused
//!            receiver           credit                                   Asked
//!            near as sender     offer, scanned, source failed            Asked
//! Offering   sender             offer, scanned, source failed, digests   Offering
//!            sender             no more                                  Settling
//!            receiver           credit, ready, rejected, done            Offering
//! Settling   sender             scanned, digests                         Settling
//!            receiver           credit, ready, rejected, done            Settling
//! Refused    near as receiver   credit                                   Refused   (they cross the
//!            near as sender     offer, scanned, source failed            Refused    refusal)
//! ```
//!
//! What a receiver takes at first it says as soon as it can be heard, and a near sender does not wait for the answer to its
//! request: so neither costs a round trip.

use crate::Side;
use crate::agent::AgentMessage;

/// How far a conversation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The request is due.
    Silence,
    /// The answer to the request is due.
    Asked,
    /// Entries are offered and worked off.
    Offering,
    /// All entries were offered; they are worked off.
    Settling,
    /// The request was refused.
    Refused,
}

impl Phase {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Silence => "a conversation before its request",
            Self::Asked => "a conversation before the answer",
            Self::Offering => "a conversation",
            Self::Settling => "a conversation after its last offer",
            Self::Refused => "a refused conversation",
        }
    }
}

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Speaker {
    /// Which end of the control channel it is.
    pub side: Side,
    /// It sends files; otherwise it receives them.
    pub sends: bool,
}

/// What is said: the input of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// [`AgentMessage::Request`].
    Request,
    /// [`AgentMessage::Accept`].
    Accept,
    /// [`AgentMessage::Refuse`].
    Refuse,
    /// [`AgentMessage::Offer`].
    Offer,
    /// [`AgentMessage::Scanned`].
    Scanned,
    /// [`AgentMessage::SourceFailed`].
    SourceFailed,
    /// [`AgentMessage::Credit`].
    Credit,
    /// [`AgentMessage::Ready`].
    Ready,
    /// [`AgentMessage::Rejected`].
    Rejected,
    /// [`AgentMessage::Digests`].
    Digests,
    /// [`AgentMessage::Done`].
    Done,
    /// [`AgentMessage::NoMore`].
    NoMore,
    /// [`AgentMessage::Sources`].
    Sources,
}

impl Input {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Request => "a request",
            Self::Accept => "an acceptance",
            Self::Refuse => "a refusal",
            Self::Offer => "an offer",
            Self::Scanned => "a scan report",
            Self::SourceFailed => "a source failure",
            Self::Credit => "a credit",
            Self::Ready => "a ready file",
            Self::Rejected => "a rejection",
            Self::Digests => "digests",
            Self::Done => "results",
            Self::NoMore => "the end of offers",
            Self::Sources => "sources",
        }
    }
}

impl From<&AgentMessage> for Input {
    fn from(message: &AgentMessage) -> Self {
        match message {
            AgentMessage::Request(_) => Self::Request,
            AgentMessage::Accept(_) => Self::Accept,
            AgentMessage::Refuse(_) => Self::Refuse,
            AgentMessage::Offer(_) => Self::Offer,
            AgentMessage::Scanned(_) => Self::Scanned,
            AgentMessage::SourceFailed(_) => Self::SourceFailed,
            AgentMessage::Credit { .. } => Self::Credit,
            AgentMessage::Ready(_) => Self::Ready,
            AgentMessage::Rejected(_) => Self::Rejected,
            AgentMessage::Digests(_) => Self::Digests,
            AgentMessage::Done(_) => Self::Done,
            AgentMessage::NoMore => Self::NoMore,
            AgentMessage::Sources(_) => Self::Sources,
        }
    }
}

/// The table: the phase after `speaker` said `input`, or `None` where that may not be said. A speaker of
/// the request counts as what the request makes of it; before the request nobody counts as sender.
#[must_use]
pub fn next_phase(phase: Phase, speaker: Speaker, input: Input) -> Option<Phase> {
    use Input::{
        Accept, Credit, Digests, Done, NoMore, Offer, Ready, Refuse, Rejected, Request, Scanned,
        SourceFailed, Sources,
    };
    let near = speaker.side == Side::Near;
    Some(match (phase, input, speaker.sends) {
        (Phase::Silence, Sources, _) if near => Phase::Silence,
        (Phase::Silence, Request, _) if near => Phase::Asked,
        (Phase::Asked, Accept, _) if !near => Phase::Offering,
        (Phase::Asked, Refuse, _) if !near => Phase::Refused,
        (Phase::Silence, Credit, false) if !near => phase,
        (Phase::Asked, Credit, false) => phase,
        (Phase::Refused, Credit, false) if near => phase,
        (Phase::Asked | Phase::Refused, Offer | Scanned | SourceFailed, true) if near => phase,
        (Phase::Offering, NoMore, true) => Phase::Settling,
        (Phase::Offering, Offer | SourceFailed, true) => phase,
        (Phase::Offering | Phase::Settling, Scanned | Digests, true) => phase,
        (Phase::Offering | Phase::Settling, Credit | Ready | Rejected | Done, false) => phase,
        _ => return None,
    })
}
