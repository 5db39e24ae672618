//! What may come on the control channel, as a table.
//!
//! ```text
//! heard by   state      may come        leads to
//! both       Greeting   hello           Terms
//! near       Terms      listening       Running
//! far        Terms      job             Running
//! far        Running    bye             Over
//! both       Terms      failed          Over
//! both       Running    failed          Over
//! near       Over       failed          Over       (it may cross a bye)
//! both       Over       end of file     Over
//! ```
//!
//! Nothing else may come. An end of file in another state is a hang-up: data stops at once.

use super::ControlMessage;
use crate::{ProtocolError, Side};

#[cfg(test)]
#[path = "dialogue_tests.rs"]
mod tests;

/// How far a control channel is, seen by one side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The peer's hello is due.
    Greeting,
    /// Near: the far engine's addresses are due. Far: the job is due.
    Terms,
    /// Engines have what they need; the channel stays open for liveness.
    Running,
    /// Nothing is due any more; the channel may close.
    Over,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            Self::Greeting => "a control channel before its hello",
            Self::Terms => "a control channel before its terms",
            Self::Running => "a running control channel",
            Self::Over => "a control channel that is over",
        }
    }
}

/// What came: the input of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    /// The peer's hello.
    Hello,
    /// [`ControlMessage::Job`].
    Job,
    /// [`ControlMessage::Listening`].
    Listening,
    /// [`ControlMessage::Failed`].
    Failed,
    /// [`ControlMessage::Bye`].
    Bye,
    /// The channel's end of file.
    Eof,
}

impl Input {
    /// What to call it in an error.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hello => "a hello",
            Self::Job => "a job",
            Self::Listening => "addresses",
            Self::Failed => "a failure",
            Self::Bye => "a bye",
            Self::Eof => "end of file",
        }
    }
}

impl From<&ControlMessage> for Input {
    fn from(message: &ControlMessage) -> Self {
        match message {
            ControlMessage::Job(_) => Self::Job,
            ControlMessage::Listening(_) => Self::Listening,
            ControlMessage::Failed(_) => Self::Failed,
            ControlMessage::Bye => Self::Bye,
        }
    }
}

/// The table: the state after `input` was heard by `side`, or `None` where it may not come.
#[must_use]
pub fn next(side: Side, state: State, input: Input) -> Option<State> {
    Some(match (state, input, side) {
        (State::Greeting, Input::Hello, _) => State::Terms,
        (State::Terms, Input::Listening, Side::Near) | (State::Terms, Input::Job, Side::Far) => {
            State::Running
        }
        (State::Terms | State::Running, Input::Failed, _) => State::Over,
        (State::Running, Input::Bye, Side::Far) => State::Over,
        (State::Over, Input::Failed, Side::Near) => State::Over,
        (State::Over, Input::Eof, _) => State::Over,
        _ => return None,
    })
}

/// One side's view of what the other says.
#[derive(Debug, Clone)]
pub struct Dialogue {
    side: Side,
    state: State,
}

impl Dialogue {
    /// A channel on which nothing was heard yet, by `side`.
    #[must_use]
    pub fn new(side: Side) -> Self {
        Self { side, state: State::Greeting }
    }

    /// Takes what was heard, in order: `Input::from(&message)`, [`Input::Hello`] or [`Input::Eof`].
    ///
    /// # Errors
    /// [`ProtocolError::ClosedEarly`] for an end of file that is a hang-up (exit status 4; before the
    /// hello 3), [`ProtocolError::IllegalState`] for what may not come now (exit status 5).
    pub fn on(&mut self, input: Input) -> Result<State, ProtocolError> {
        match next(self.side, self.state, input) {
            Some(state) => {
                self.state = state;
                Ok(state)
            }
            None if input == Input::Eof => Err(ProtocolError::ClosedEarly(self.state.name())),
            None => Err(ProtocolError::IllegalState { what: input.name(), state: self.state.name() }),
        }
    }

    /// This side has said `Bye` or `Failed`: the peer may hang up.
    pub fn said_last_word(&mut self) {
        self.state = State::Over;
    }

    /// How far the channel is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }
}
