//! The bounds of an [`AgentMessage`], checked on the way out and on the way in.

use super::{
    AgentMessage, Attributes, Entry, EntryFailure, EntryKind, EntryResult, FileDigest, MAX_ITEMS, MAX_NAME,
    MAX_PATH, MAX_TEXT, ROOT, Refusal, Request, SourceFailure, Timestamp, Transfer,
};
use crate::ProtocolError;

/// Most permission bits of a mode.
const MAX_MODE: u32 = 0o7777;
/// Nanoseconds of a second.
const NANOSECONDS: u32 = 1_000_000_000;

/// Refuses a size or count beyond its bound.
pub(super) fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), ProtocolError> {
    if got <= limit {
        Ok(())
    } else {
        Err(ProtocolError::TooLarge { what, got: got as u64, limit: limit as u64 })
    }
}

fn items<T>(
    what: &'static str,
    list: &[T],
    check: impl Fn(&T) -> Result<(), ProtocolError>,
) -> Result<(), ProtocolError> {
    at_most(what, list.len(), MAX_ITEMS)?;
    list.iter().try_for_each(check)
}

fn text(text: &str) -> Result<(), ProtocolError> {
    at_most("text", text.len(), MAX_TEXT)
}

fn path(path: &[u8]) -> Result<(), ProtocolError> {
    at_most("path", path.len(), MAX_PATH)?;
    if path.contains(&0) { Err(ProtocolError::Malformed("path")) } else { Ok(()) }
}

fn sources(list: &[Vec<u8>]) -> Result<(), ProtocolError> {
    items("requested sources", list, |source| path(source))
}

fn number(number: u64) -> Result<(), ProtocolError> {
    if number == 0 { Err(ProtocolError::Malformed("entry number 0")) } else { Ok(()) }
}

fn name(name: &[u8]) -> Result<(), ProtocolError> {
    at_most("name", name.len(), MAX_NAME)?;
    let refused = matches!(name, b"" | b"." | b"..") || name.iter().any(|byte| matches!(byte, 0 | b'/'));
    if refused { Err(ProtocolError::Malformed("name of an entry")) } else { Ok(()) }
}

impl AgentMessage {
    /// Checks every bound.
    pub(super) fn check(&self) -> Result<(), ProtocolError> {
        match self {
            Self::Request(request) => request.check(),
            Self::Refuse(refusal) => refusal.check(),
            Self::Sources(list) if list.is_empty() => {
                Err(ProtocolError::Malformed("a list of sources without one"))
            }
            Self::Sources(list) => sources(list),
            Self::Offer(entries) => items("offered entries", entries, Entry::check),
            Self::SourceFailed(failure) => failure.check(),
            Self::Ready(numbers) => items("ready files", numbers, |&n| number(n)),
            Self::Rejected(failures) => items("rejected entries", failures, EntryFailure::check),
            Self::Digests(digests) => items("digests", digests, FileDigest::check),
            Self::Done(results) => items("results", results, EntryResult::check),
            Self::Accept(_) | Self::Scanned(_) | Self::Credit { .. } | Self::NoMore => Ok(()),
        }
    }

    /// A copy with its texts cut to their bounds; `None` when there is nothing to cut.
    pub(super) fn clipped(&self) -> Option<Self> {
        let long = |text: &String| text.len() > MAX_TEXT;
        let needed = match self {
            Self::Refuse(refusal) => long(&refusal.text),
            Self::SourceFailed(failure) => failure.path.len() > MAX_PATH || long(&failure.text),
            Self::Rejected(failures) => failures.iter().any(|failure| long(&failure.text)),
            Self::Digests(digests) => digests.iter().any(|d| d.outcome.as_ref().is_err_and(long)),
            Self::Done(results) => {
                results.iter().any(|result| result.outcome.as_ref().is_err_and(|f| long(&f.text)))
            }
            _ => false,
        };
        needed.then(|| {
            let mut copy = self.clone();
            copy.clip();
            copy
        })
    }

    fn clip(&mut self) {
        match self {
            Self::Refuse(refusal) => clip_text(&mut refusal.text),
            Self::SourceFailed(failure) => {
                failure.path.truncate(MAX_PATH);
                clip_text(&mut failure.text);
            }
            Self::Rejected(failures) => failures.iter_mut().for_each(|f| clip_text(&mut f.text)),
            Self::Digests(digests) => {
                digests.iter_mut().filter_map(|d| d.outcome.as_mut().err()).for_each(clip_text);
            }
            Self::Done(results) => results
                .iter_mut()
                .filter_map(|result| result.outcome.as_mut().err())
                .for_each(|failure| clip_text(&mut failure.text)),
            _ => {}
        }
    }
}

/// Cuts a text to [`MAX_TEXT`] bytes, between characters.
pub(super) fn clip_text(text: &mut String) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

impl Request {
    fn check(&self) -> Result<(), ProtocolError> {
        match &self.transfer {
            Transfer::Upload { target, .. } => path(target),
            Transfer::Download { sources } if sources.is_empty() => {
                Err(ProtocolError::Malformed("request without a source"))
            }
            Transfer::Download { sources: list } => sources(list),
        }
    }
}

impl Refusal {
    /// A refusal with the status of success would let a user believe that everything is there.
    fn check(&self) -> Result<(), ProtocolError> {
        if self.status == 0 {
            return Err(ProtocolError::Malformed("refusal with status 0"));
        }
        text(&self.text)
    }
}

impl Entry {
    fn check(&self) -> Result<(), ProtocolError> {
        number(self.number)?;
        if self.parent >= self.number {
            return Err(ProtocolError::Malformed("entry offered before its parent"));
        }
        match &self.kind {
            // Source `.` or `/`: the target itself.
            EntryKind::Directory { attributes } if self.parent == ROOT && self.name.is_empty() => {
                attributes.check()
            }
            EntryKind::File { attributes, .. } | EntryKind::Directory { attributes } => {
                name(&self.name)?;
                attributes.check()
            }
            EntryKind::DirectoryEnd if !self.name.is_empty() => {
                Err(ProtocolError::Malformed("end of a directory with a name"))
            }
            EntryKind::DirectoryEnd => number(self.parent),
        }
    }
}

impl Attributes {
    fn check(&self) -> Result<(), ProtocolError> {
        if self.mode > MAX_MODE {
            return Err(ProtocolError::TooLarge {
                what: "mode",
                got: self.mode.into(),
                limit: MAX_MODE.into(),
            });
        }
        self.mtime.check()?;
        self.atime.check()
    }
}

impl Timestamp {
    fn check(&self) -> Result<(), ProtocolError> {
        if self.nanoseconds >= NANOSECONDS {
            return Err(ProtocolError::TooLarge {
                what: "nanoseconds",
                got: self.nanoseconds.into(),
                limit: (NANOSECONDS - 1).into(),
            });
        }
        Ok(())
    }
}

impl SourceFailure {
    fn check(&self) -> Result<(), ProtocolError> {
        path(&self.path)?;
        text(&self.text)
    }
}

impl EntryFailure {
    fn check(&self) -> Result<(), ProtocolError> {
        number(self.number)?;
        text(&self.text)
    }
}

impl FileDigest {
    fn check(&self) -> Result<(), ProtocolError> {
        number(self.number)?;
        self.outcome.as_ref().err().map_or(Ok(()), |why| text(why))
    }
}

impl EntryResult {
    fn check(&self) -> Result<(), ProtocolError> {
        number(self.number)?;
        match &self.outcome {
            Ok(_) => Ok(()),
            Err(failure) if failure.number != self.number => {
                Err(ProtocolError::Malformed("result of one entry about another"))
            }
            Err(failure) => failure.check(),
        }
    }
}
