//! The bounds of a [`ControlMessage`], checked on the way out and on the way in.

use super::{
    BLOCK_UNIT, ControlFailure, ControlMessage, Job, LENGTH_LEN, Listening, MAX_BLOCK_SIZE, MAX_CONGESTION,
    MAX_DEPTH, MAX_ENGINE, MAX_FRAME, MAX_ITEMS, MAX_PORTS, MAX_STREAMS, MAX_TEXT, MAX_VERBOSE,
    MIN_BLOCK_SIZE, MIN_DEPTH, Streams,
};
use crate::ProtocolError;

/// zstd's levels: the fast ones below zero, as far as they make a difference, to the highest.
const LEVELS: std::ops::RangeInclusive<i32> = -100..=22;

/// Refuses a size or count beyond its bound.
pub(super) fn at_most(what: &'static str, got: usize, limit: usize) -> Result<(), ProtocolError> {
    if got <= limit {
        Ok(())
    } else {
        Err(ProtocolError::TooLarge { what, got: got as u64, limit: limit as u64 })
    }
}

/// Fills in the length of a frame whose body follows [`LENGTH_LEN`] placeholder bytes.
pub(super) fn with_length(mut frame: Vec<u8>) -> Result<Vec<u8>, ProtocolError> {
    let length = frame.len().saturating_sub(LENGTH_LEN);
    at_most("control frame", length, MAX_FRAME)?;
    #[expect(clippy::cast_possible_truncation, reason = "bounded by MAX_FRAME")]
    frame[..LENGTH_LEN].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(frame)
}

fn clip_text(text: &mut String) {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

fn ensure(holds: bool, what: &'static str) -> Result<(), ProtocolError> {
    if holds { Ok(()) } else { Err(ProtocolError::Malformed(what)) }
}

impl ControlMessage {
    pub(super) fn clip(&mut self) {
        match self {
            Self::Listening(listening) => {
                listening.addresses.truncate(MAX_ITEMS);
                listening.ports.truncate(MAX_PORTS);
                listening.notes.truncate(MAX_ITEMS);
                listening.notes.iter_mut().for_each(clip_text);
            }
            Self::Failed(failure) => clip_text(&mut failure.text),
            Self::Job(_) | Self::Bye => {}
        }
    }

    pub(super) fn check(&self) -> Result<(), ProtocolError> {
        match self {
            Self::Job(job) => job.check(),
            Self::Listening(listening) => listening.check(),
            Self::Failed(failure) => failure.check(),
            Self::Bye => Ok(()),
        }
    }
}

impl Job {
    fn check(&self) -> Result<(), ProtocolError> {
        at_most("engine name", self.engine.len(), MAX_ENGINE)?;
        self.streams.check()?;
        self.streams_on_one_machine.check()?;
        at_most("block size", self.block_size as usize, MAX_BLOCK_SIZE as usize)?;
        ensure(
            self.block_size >= MIN_BLOCK_SIZE && self.block_size.is_multiple_of(BLOCK_UNIT),
            "block size",
        )?;
        ensure(self.compress.is_none_or(|level| LEVELS.contains(&level)), "compression level")?;
        ensure(self.rate_limit != Some(0), "rate limit")?;
        if let Some(name) = &self.congestion {
            at_most("congestion control", name.len(), MAX_CONGESTION)?;
            let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            ensure(!name.is_empty() && name.bytes().all(plain), "congestion control")?;
        }
        ensure(self.ports.is_none_or(|(first, last)| first <= last), "port range")?;
        at_most("verbosity", self.verbose.into(), MAX_VERBOSE.into())
    }
}

impl Streams {
    fn check(self) -> Result<(), ProtocolError> {
        at_most("streams", self.count.into(), MAX_STREAMS.into())?;
        ensure(self.count > 0, "job without data streams")?;
        at_most("blocks in flight", self.depth.into(), MAX_DEPTH.into())?;
        ensure(self.depth >= MIN_DEPTH, "blocks in flight")
    }
}

impl Listening {
    fn check(&self) -> Result<(), ProtocolError> {
        at_most("addresses", self.addresses.len(), MAX_ITEMS)?;
        at_most("ports", self.ports.len(), MAX_PORTS)?;
        ensure(!self.ports.is_empty() && !self.ports.contains(&0), "ports")?;
        at_most("engine name", self.engine.len(), MAX_ENGINE)?;
        at_most("notes", self.notes.len(), MAX_ITEMS)?;
        self.notes.iter().try_for_each(|note| at_most("note", note.len(), MAX_TEXT))
    }
}

impl ControlFailure {
    /// A failure with the status of success would let a user believe that everything is there.
    fn check(&self) -> Result<(), ProtocolError> {
        ensure(self.status != 0, "failure with status 0")?;
        at_most("text", self.text.len(), MAX_TEXT)
    }
}
