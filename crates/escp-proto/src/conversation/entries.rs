//! The course of single entries, and the numbers and directories that tie them together.
//!
//! ```text
//! state        answer                        leads to
//! File         ready                         Ready
//!              rejected, done (failed)       done with
//! Ready        digest (a value)              Digested
//!              digest (disowned)             Disowned
//!              done (failed)                 done with
//! Digested     done (published or failed)    done with
//! Disowned     done (failed)                 done with
//! Directory    rejected, done                Answered
//! Answered     -                             done with when its end is
//! End          rejected, done                done with, and its directory with it
//! ```
//!
//! A digest of an entry that is done with is ignored: it crosses the news of a failure on the other side.

use super::{MAX_OPEN_DIRECTORIES, MAX_OUTSTANDING};
use crate::ProtocolError;
use crate::agent::{AgentMessage, Entry, EntryKind, ROOT};
use crate::numbered::Numbered;
use std::collections::BTreeSet;

/// How far an entry is that is not done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryState {
    /// A file was offered.
    File,
    /// Its blocks may come.
    Ready,
    /// Its sender said what it read.
    Digested,
    /// Its sender said that what it read must not be published.
    Disowned,
    /// A directory was offered.
    Directory,
    /// A directory was made, or could not be; its end is due.
    Answered,
    /// The end of a directory was offered.
    End,
}

impl EntryState {
    fn name(self) -> &'static str {
        match self {
            Self::File => "an offered file",
            Self::Ready => "a ready file",
            Self::Digested => "a file with its digest",
            Self::Disowned => "a file that changed while it was read",
            Self::Directory => "an offered directory",
            Self::Answered => "a directory that was answered",
            Self::End => "the end of a directory",
        }
    }
}

/// What is said about an entry: the input of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The receiver opened it.
    Ready,
    /// The receiver cannot take it.
    Rejected,
    /// The sender read it.
    Digest,
    /// The sender could not read it, or it changed.
    Disowned,
    /// The receiver published it.
    Published,
    /// It failed at the receiver.
    Failed,
}

impl Answer {
    fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Rejected => "a rejection",
            Self::Digest | Self::Disowned => "a digest",
            Self::Published => "a success",
            Self::Failed => "a failure",
        }
    }
}

/// The table: the state after `answer` (`Some(None)`: done with), or `None` where it may not come.
#[must_use]
pub fn next_entry(state: EntryState, answer: Answer) -> Option<Option<EntryState>> {
    use Answer::{Digest, Disowned, Failed, Published, Ready, Rejected};
    Some(match (state, answer) {
        (EntryState::File, Ready) => Some(EntryState::Ready),
        (EntryState::Ready, Digest) => Some(EntryState::Digested),
        (EntryState::Ready, Disowned) => Some(EntryState::Disowned),
        (EntryState::Directory, Rejected | Published | Failed) => Some(EntryState::Answered),
        (EntryState::File, Rejected | Failed)
        | (EntryState::Ready | EntryState::Disowned, Failed)
        | (EntryState::Digested, Published | Failed)
        | (EntryState::End, Rejected | Published | Failed) => None,
        _ => return None,
    })
}

/// All entries that are offered and not done with.
#[derive(Debug, Clone, Default)]
pub(super) struct Entries {
    /// The last number offered.
    offered: u64,
    /// The highest number that may be offered.
    credit: u64,
    /// Entries by number; an `End` with the directory it ends.
    states: Numbered<(EntryState, u64)>,
    /// Directories that may still get children.
    open: BTreeSet<u64>,
}

impl Entries {
    pub(super) fn on(&mut self, message: &AgentMessage) -> Result<(), ProtocolError> {
        match message {
            AgentMessage::Offer(entries) => entries.iter().try_for_each(|entry| self.offer(entry)),
            AgentMessage::Credit { entries } => self.raise(*entries),
            AgentMessage::Ready(numbers) => numbers.iter().try_for_each(|&n| self.answer(n, Answer::Ready)),
            AgentMessage::Rejected(failures) => {
                failures.iter().try_for_each(|failure| self.answer(failure.number, Answer::Rejected))
            }
            AgentMessage::Digests(digests) => digests.iter().try_for_each(|digest| {
                let answer = if digest.outcome.is_ok() { Answer::Digest } else { Answer::Disowned };
                self.answer(digest.number, answer)
            }),
            AgentMessage::Done(results) => results.iter().try_for_each(|result| {
                let answer = if result.outcome.is_ok() { Answer::Published } else { Answer::Failed };
                self.answer(result.number, answer)
            }),
            AgentMessage::NoMore if !self.open.is_empty() => Err(ProtocolError::IllegalState {
                what: "the end of offers",
                state: "a conversation with an open directory",
            }),
            _ => Ok(()),
        }
    }

    pub(super) fn state(&self, number: u64) -> Option<EntryState> {
        self.states.get(&number).map(|(state, _)| *state)
    }

    pub(super) fn outstanding(&self) -> u64 {
        self.states.len() as u64
    }

    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    pub(super) fn credit_left(&self) -> u64 {
        self.credit - self.offered
    }

    pub(super) fn highest_credit(&self) -> u64 {
        (self.offered - self.outstanding()).saturating_add(MAX_OUTSTANDING)
    }

    fn raise(&mut self, credit: u64) -> Result<(), ProtocolError> {
        if credit < self.credit {
            return Err(ProtocolError::Malformed("credit that falls"));
        }
        let limit = self.highest_credit();
        if credit > limit {
            return Err(ProtocolError::TooLarge { what: "credit", got: credit, limit });
        }
        self.credit = credit;
        Ok(())
    }

    fn offer(&mut self, entry: &Entry) -> Result<(), ProtocolError> {
        if self.offered >= self.credit {
            return Err(ProtocolError::TooLarge {
                what: "offered entry",
                got: entry.number,
                limit: self.credit,
            });
        }
        if entry.number != self.offered + 1 {
            return Err(ProtocolError::Count {
                what: "entry number",
                said: entry.number,
                came: self.offered + 1,
            });
        }
        if entry.parent != ROOT && !self.open.contains(&entry.parent) {
            return Err(ProtocolError::IllegalState {
                what: "an entry",
                state: "a directory that is not open",
            });
        }
        let state = match entry.kind {
            EntryKind::File { .. } => EntryState::File,
            EntryKind::Directory { .. } => {
                if self.open.len() >= MAX_OPEN_DIRECTORIES {
                    return Err(ProtocolError::TooLarge {
                        what: "open directories",
                        got: self.open.len() as u64 + 1,
                        limit: MAX_OPEN_DIRECTORIES as u64,
                    });
                }
                self.open.insert(entry.number);
                EntryState::Directory
            }
            EntryKind::DirectoryEnd => {
                if !self.open.remove(&entry.parent) {
                    return Err(ProtocolError::IllegalState {
                        what: "the end of a directory",
                        state: "a directory that is not open",
                    });
                }
                EntryState::End
            }
        };
        self.states.insert(entry.number, (state, entry.parent));
        self.offered = entry.number;
        Ok(())
    }

    fn answer(&mut self, number: u64, answer: Answer) -> Result<(), ProtocolError> {
        let Some((state, parent)) = self.states.get(&number).copied() else {
            let late = matches!(answer, Answer::Digest | Answer::Disowned) && number <= self.offered;
            return if late {
                Ok(())
            } else {
                Err(ProtocolError::IllegalState {
                    what: answer.name(),
                    state: "an entry that is not offered",
                })
            };
        };
        match next_entry(state, answer) {
            None => Err(ProtocolError::IllegalState { what: answer.name(), state: state.name() }),
            Some(Some(next)) => {
                self.states.insert(number, (next, parent));
                Ok(())
            }
            Some(None) => {
                self.states.remove(&number);
                if state == EntryState::End {
                    self.states.remove(&parent);
                }
                Ok(())
            }
        }
    }
}
