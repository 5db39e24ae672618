//! Who may say which [`AgentMessage`] when, as two tables and the entries between them.
//!
//! Both agents keep one [`Conversation`] and give it every message, their own before it is sent and the
//! peer's before anything is done with it. So a peer cannot offer beyond its credit, finish what was never
//! offered, or have a file published that its sender disowned; and an agent's own mistake shows at home.
//!
//! The first table is [`next_phase`]: the course of the conversation as a whole. The second is
//! [`next_entry`]: the course of one entry. Memory is bounded by [`MAX_OUTSTANDING`] entries and
//! [`MAX_OPEN_DIRECTORIES`] directories, however many files a session has.

mod entries;
mod phase;

pub use entries::{Answer, EntryState, next_entry};
pub use phase::{Input, Phase, Speaker, next_phase};

use crate::agent::{AgentMessage, Transfer};
use crate::{ProtocolError, Side};
use entries::Entries;

#[cfg(test)]
#[path = "conversation_tests.rs"]
mod tests;

/// Most entries that may be offered and not done with: the furthest a receiver may raise its credit.
pub const MAX_OUTSTANDING: u64 = 65_536;
/// Most directories that may be open at once. A sender walks depth first, so this is a depth.
pub const MAX_OPEN_DIRECTORIES: usize = 65_536;

/// The conversation of two agents, as either of them keeps it.
#[derive(Debug, Clone)]
pub struct Conversation {
    phase: Phase,
    sender: Option<Side>,
    entries: Entries,
}

impl Default for Conversation {
    fn default() -> Self {
        Self::new()
    }
}

impl Conversation {
    /// Nothing was said yet.
    #[must_use]
    pub fn new() -> Self {
        Self { phase: Phase::Silence, sender: None, entries: Entries::default() }
    }

    /// Takes a message of `from`, in the order in which that side said it.
    ///
    /// # Errors
    /// [`ProtocolError::IllegalState`] for what may not be said by that side, now or about that entry;
    /// [`ProtocolError::Count`] for an entry number out of turn; [`ProtocolError::TooLarge`] for an offer
    /// beyond the credit, a credit beyond [`MAX_OUTSTANDING`], or too many open directories. All of them
    /// end the session (exit status 5 when the peer said it).
    pub fn on(&mut self, from: Side, message: &AgentMessage) -> Result<(), ProtocolError> {
        let input = Input::from(message);
        let sender = match message {
            AgentMessage::Request(request) => Some(match request.transfer {
                Transfer::Upload { .. } => Side::Near,
                Transfer::Download { .. } => Side::Far,
            }),
            _ => self.sender,
        };
        let speaker = Speaker { side: from, sends: sender == Some(from) };
        let phase = next_phase(self.phase, speaker, input)
            // A credit said before the request came from the far side, which gives itself none.
            .filter(|_| input != Input::Request || sender == Some(Side::Near) || self.credit_left() == 0)
            .ok_or(ProtocolError::IllegalState { what: input.name(), state: self.phase.name() })?;
        self.entries.on(message)?;
        self.phase = phase;
        self.sender = sender;
        Ok(())
    }

    /// How far the conversation is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// The state of an entry; `None` before it is offered and once it is done with.
    #[must_use]
    pub fn entry(&self, number: u64) -> Option<EntryState> {
        self.entries.state(number)
    }

    /// Entries offered and not done with.
    #[must_use]
    pub fn outstanding(&self) -> u64 {
        self.entries.outstanding()
    }

    /// The number of the last entry that was offered.
    #[must_use]
    pub fn offered(&self) -> u64 {
        self.entries.offered()
    }

    /// Entries that may still be offered before the receiver raises its credit.
    #[must_use]
    pub fn credit_left(&self) -> u64 {
        self.entries.credit_left()
    }

    /// The highest credit that the receiver may give now.
    #[must_use]
    pub fn highest_credit(&self) -> u64 {
        self.entries.highest_credit()
    }

    /// The sender has said that nothing more comes, and every entry is done with: the time for both agents
    /// to finish.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Settling && self.entries.outstanding() == 0
    }
}
