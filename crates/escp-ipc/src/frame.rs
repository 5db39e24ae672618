//! Commands and events as frames.
//!
//! ```text
//! 1 | agent message, up to 56 KiB, as it is
//! 2 | postcard of CommandFrame or Event
//! ```
//!
//! Agent messages are most of the bytes, so they are not walked byte by byte. What would not fit one frame
//! travels in several.

use crate::MAX_FRAME;
use escp_engine_api::{
    Command, Event, Extent, Failure, FileReport, FileSpec, JobOptions, Lane, MAX_BATCH, MAX_MESSAGE, Summary,
};
use serde::{Deserialize, Serialize};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use zeroize::Zeroizing;

const MESSAGE: u8 = 1;
const STRUCTURED: u8 = 2;
/// Most extents or file numbers of one frame: an extent takes at most 31 bytes.
const MAX_LIST: usize = 2000;
/// Longest text of one file's failure, in bytes.
const MAX_FILE_TEXT: usize = 1024;
/// Longest other text, in bytes.
const MAX_TEXT: usize = 4096;
/// Most bytes of the reports of one frame, by a generous estimate.
const MAX_REPORTS: usize = 48 * 1024;
/// Most ports that are named.
const MAX_PORTS: usize = 4096;

/// A command as it travels: where [`Command`] has descriptors, this says how many came along.
#[derive(Debug, Serialize, Deserialize)]
pub enum CommandFrame {
    /// [`Command::Open`].
    Open(Box<JobOptions>),
    /// [`Command::AddLane`]; one descriptor.
    AddLane {
        /// The stream's number.
        stream: u16,
    },
    /// [`Command::AddFiles`]; one descriptor for each `true`.
    AddFiles(Vec<(FileSpec, bool)>),
    /// [`Command::Schedule`].
    Schedule(Vec<Extent>),
    /// [`Command::DropFiles`].
    DropFiles(Vec<u64>),
    /// [`Command::Finish`].
    Finish(Summary),
    /// [`Command::Abort`].
    Abort {
        /// One sentence.
        reason: String,
    },
    /// [`Command::Scheduled`].
    Scheduled,
    /// [`Command::Message`]; travels outside of this encoding. Last: skipping it shifts the numbers of those
    /// behind it on one side only.
    #[serde(skip)]
    Message(Vec<u8>),
}

/// Why a frame is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It does not decode.
    #[error("a frame does not decode")]
    Malformed,
    /// Its first byte is not known.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// Something in it exceeds its bound.
    #[error("{what} of {got} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How large.
        got: usize,
        /// The bound.
        limit: usize,
    },
    /// It came with the wrong number of descriptors.
    #[error("a frame came with {got} descriptors where {need} are due")]
    Descriptors {
        /// How many came.
        got: usize,
        /// How many it names.
        need: usize,
    },
}

/// A frame to send, with the descriptors that go along.
#[derive(Debug)]
pub struct Outgoing {
    /// The frame's bytes, at most [`MAX_FRAME`].
    pub frame: Frame,
    /// Its descriptors, in order.
    pub descriptors: Vec<Arc<OwnedFd>>,
}

/// A frame's bytes.
#[derive(Debug)]
pub enum Frame {
    /// Nothing in it is secret.
    Plain(Vec<u8>),
    /// A job with its secret: wiped when dropped.
    Secret(Zeroizing<Vec<u8>>),
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Plain(bytes) => bytes,
            Self::Secret(bytes) => bytes,
        }
    }
}

impl Outgoing {
    /// The descriptors, as the socket wants them.
    #[must_use]
    pub fn borrowed(&self) -> Vec<BorrowedFd<'_>> {
        self.descriptors.iter().map(AsFd::as_fd).collect()
    }
}

/// Turns a command into the frames that carry it, in order.
///
/// # Errors
/// [`FrameError::TooLarge`] for a message or job that no frame can carry.
pub fn encode_command(command: Command) -> Result<Vec<Outgoing>, FrameError> {
    let plain = |frame: &CommandFrame| Ok(vec![structured(frame, Vec::new())?]);
    match command {
        Command::Message(bytes) => Ok(vec![message(&bytes)?]),
        Command::Open(options) => Ok(vec![secret(&CommandFrame::Open(options))?]),
        Command::AddLane(Lane { stream, socket }) => {
            Ok(vec![structured(&CommandFrame::AddLane { stream }, vec![Arc::new(socket)])?])
        }
        Command::AddFiles(files) => encode_files(files),
        Command::Schedule(extents) => {
            extents.chunks(MAX_LIST).map(|part| lone(&CommandFrame::Schedule(part.to_vec()))).collect()
        }
        Command::DropFiles(files) => {
            files.chunks(MAX_LIST).map(|part| lone(&CommandFrame::DropFiles(part.to_vec()))).collect()
        }
        Command::Finish(summary) => plain(&CommandFrame::Finish(summary)),
        Command::Scheduled => plain(&CommandFrame::Scheduled),
        Command::Abort { reason } => plain(&CommandFrame::Abort { reason: cut(reason, MAX_TEXT) }),
    }
}

fn encode_files(files: Vec<(FileSpec, Option<Arc<OwnedFd>>)>) -> Result<Vec<Outgoing>, FrameError> {
    let mut frames = Vec::new();
    let mut files = files.into_iter().peekable();
    while files.peek().is_some() {
        let mut specs = Vec::new();
        let mut descriptors = Vec::new();
        for (spec, descriptor) in files.by_ref().take(MAX_BATCH) {
            specs.push((spec, descriptor.is_some()));
            descriptors.extend(descriptor);
        }
        frames.push(structured(&CommandFrame::AddFiles(specs), descriptors)?);
    }
    Ok(frames)
}

/// Turns an event into the frames that carry it, in order.
///
/// # Errors
/// [`FrameError::TooLarge`] for a message that no frame can carry.
pub fn encode_event(event: Event) -> Result<Vec<Outgoing>, FrameError> {
    let event = match event {
        Event::Message(bytes) => return Ok(vec![message(&bytes)?]),
        Event::Files(reports) => return encode_reports(reports),
        Event::Note(text) => Event::Note(cut(text, MAX_TEXT)),
        Event::Remark(text) => Event::Remark(cut(text, MAX_TEXT)),
        Event::Failed(Failure { fault, text }) => Event::Failed(Failure { fault, text: cut(text, MAX_TEXT) }),
        Event::Opened(mut opened) => {
            opened.ports.truncate(MAX_PORTS);
            opened.kind_reason = opened.kind_reason.map(|text| cut(text, MAX_TEXT));
            opened.port_note = opened.port_note.map(|text| cut(text, MAX_TEXT));
            Event::Opened(opened)
        }
        other => other,
    };
    Ok(vec![lone(&event)?])
}

fn encode_reports(reports: Vec<FileReport>) -> Result<Vec<Outgoing>, FrameError> {
    let mut frames = Vec::new();
    let mut part = Vec::new();
    let mut size = 0;
    for mut report in reports {
        let text = report.outcome.as_mut().err().map_or(0, |error| {
            error.text = cut(std::mem::take(&mut error.text), MAX_FILE_TEXT);
            error.text.len()
        });
        size += 48 + text;
        if size > MAX_REPORTS {
            frames.push(lone(&Event::Files(std::mem::take(&mut part)))?);
            size = 48 + text;
        }
        part.push(report);
    }
    if !part.is_empty() {
        frames.push(lone(&Event::Files(part))?);
    }
    Ok(frames)
}

/// Reads a command's frame that came with `descriptors` descriptors.
///
/// # Errors
/// [`FrameError`]; no memory beyond a small multiple of the frame is taken in any case.
pub fn decode_command(frame: &[u8], descriptors: usize) -> Result<CommandFrame, FrameError> {
    let decoded = match split(frame)? {
        (MESSAGE, body) => CommandFrame::Message(bounded_message(body)?),
        (_, body) => from_postcard(body)?,
    };
    let need = match &decoded {
        CommandFrame::AddLane { .. } => 1,
        CommandFrame::AddFiles(files) => {
            bound("a batch of files", files.len(), MAX_BATCH)?;
            files.iter().filter(|(_, has)| *has).count()
        }
        _ => 0,
    };
    if need == descriptors { Ok(decoded) } else { Err(FrameError::Descriptors { got: descriptors, need }) }
}

/// Reads an event's frame that came with `descriptors` descriptors.
///
/// # Errors
/// [`FrameError`]; events have no descriptors.
pub fn decode_event(frame: &[u8], descriptors: usize) -> Result<Event, FrameError> {
    if descriptors != 0 {
        return Err(FrameError::Descriptors { got: descriptors, need: 0 });
    }
    match split(frame)? {
        (MESSAGE, body) => Ok(Event::Message(bounded_message(body)?)),
        (_, body) => match from_postcard(body)? {
            Event::Message(_) => Err(FrameError::Malformed),
            event => Ok(event),
        },
    }
}

impl CommandFrame {
    /// Joins a decoded frame with the descriptors that came with it.
    ///
    /// # Errors
    /// [`FrameError::Descriptors`] when it was decoded for another number of them.
    pub fn with_descriptors(self, descriptors: Vec<OwnedFd>) -> Result<Command, FrameError> {
        let got = descriptors.len();
        let mut descriptors = descriptors.into_iter();
        let wrong = |need| FrameError::Descriptors { got, need };
        let command = match self {
            Self::Open(options) => Command::Open(options),
            Self::AddLane { stream } => {
                Command::AddLane(Lane { stream, socket: descriptors.next().ok_or(wrong(1))? })
            }
            Self::AddFiles(files) => {
                let need = files.iter().filter(|(_, has)| *has).count();
                if need > got {
                    return Err(wrong(need));
                }
                let join = |(spec, has)| (spec, if has { descriptors.next().map(Arc::new) } else { None });
                Command::AddFiles(files.into_iter().map(join).collect())
            }
            Self::Schedule(extents) => Command::Schedule(extents),
            Self::DropFiles(files) => Command::DropFiles(files),
            Self::Message(bytes) => Command::Message(bytes),
            Self::Finish(summary) => Command::Finish(summary),
            Self::Scheduled => Command::Scheduled,
            Self::Abort { reason } => Command::Abort { reason },
        };
        if descriptors.next().is_some() {
            return Err(wrong(0));
        }
        Ok(command)
    }
}

fn lone<T: Serialize>(value: &T) -> Result<Outgoing, FrameError> {
    structured(value, Vec::new())
}

fn structured<T: Serialize>(value: &T, descriptors: Vec<Arc<OwnedFd>>) -> Result<Outgoing, FrameError> {
    let frame = postcard::to_extend(value, vec![STRUCTURED]).map_err(|_| FrameError::Malformed)?;
    if frame.len() > MAX_FRAME {
        let (what, got) = ("a frame that needs", frame.len());
        return Err(FrameError::TooLarge { what, got, limit: MAX_FRAME });
    }
    Ok(Outgoing { frame: Frame::Plain(frame), descriptors })
}

fn secret<T: Serialize>(value: &T) -> Result<Outgoing, FrameError> {
    // Room for all of it at once: growing would leave copies of a secret behind.
    let mut frame = Zeroizing::new(vec![0; MAX_FRAME]);
    let too_large =
        FrameError::TooLarge { what: "a frame that needs", got: frame.len() + 1, limit: frame.len() };
    let (kind, body) = frame.split_first_mut().ok_or(FrameError::Malformed)?;
    *kind = STRUCTURED;
    let length = 1 + postcard::to_slice(value, body).map_err(|_| too_large)?.len();
    frame.truncate(length);
    Ok(Outgoing { frame: Frame::Secret(frame), descriptors: Vec::new() })
}

fn message(bytes: &[u8]) -> Result<Outgoing, FrameError> {
    bound("a message", bytes.len(), MAX_MESSAGE)?;
    let mut frame = Vec::with_capacity(1 + bytes.len());
    frame.push(MESSAGE);
    frame.extend_from_slice(bytes);
    Ok(Outgoing { frame: Frame::Plain(frame), descriptors: Vec::new() })
}

fn split(frame: &[u8]) -> Result<(u8, &[u8]), FrameError> {
    bound("a frame", frame.len(), MAX_FRAME)?;
    match frame.split_first() {
        Some((kind @ (&MESSAGE | &STRUCTURED), body)) => Ok((*kind, body)),
        Some((kind, _)) => Err(FrameError::Kind(*kind)),
        None => Err(FrameError::Malformed),
    }
}

fn bounded_message(body: &[u8]) -> Result<Vec<u8>, FrameError> {
    bound("a message", body.len(), MAX_MESSAGE)?;
    Ok(body.to_vec())
}

pub(crate) fn from_postcard<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(body) {
        Ok((value, [])) => Ok(value),
        _ => Err(FrameError::Malformed),
    }
}

pub(crate) fn bound(what: &'static str, got: usize, limit: usize) -> Result<(), FrameError> {
    if got > limit { Err(FrameError::TooLarge { what, got, limit }) } else { Ok(()) }
}

/// Cuts a text at a character's border, at `limit` bytes or a little before.
pub(crate) fn cut(mut text: String, limit: usize) -> String {
    let end = (0..=limit.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    text.truncate(end);
    text
}

#[cfg(test)]
#[path = "frame_tests.rs"]
mod tests;
