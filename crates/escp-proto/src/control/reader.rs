//! Frames out of a stream of bytes, however they are cut.

use super::{HELLO_LEN, LENGTH_LEN, MAGIC, MAX_FRAME, MAX_HELLO};
use crate::ProtocolError;

/// Most bytes of foreign text that are shown, and waited for.
const EXCERPT: usize = 160;

/// Splits what the control channel brings into frame bodies.
///
/// Push what was read, then call [`FrameReader::next`] until it has nothing more; memory then stays within
/// one frame and one push. At the end of the channel ask [`FrameReader::finish`]. After an error the
/// reader keeps nothing, and repeats the error.
///
/// The first frame has to be a hello. Where it is text instead, as a login shell prints it, the error is
/// [`ProtocolError::ForeignText`].
#[derive(Debug, Default)]
pub struct FrameReader {
    buffer: Vec<u8>,
    greeted: bool,
    failed: Option<ProtocolError>,
}

impl FrameReader {
    /// A reader at the start of a control channel.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes that were read. After an error they are dropped.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole frame's body; `None` when more bytes have to come.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] as soon as a frame claims more than [`MAX_FRAME`];
    /// [`ProtocolError::ForeignText`] or [`ProtocolError::Malformed`] as soon as the first frame cannot be
    /// a hello any more.
    #[expect(clippy::should_implement_trait, reason = "there may be more after None")]
    pub fn next(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        match self.split() {
            Ok(frame) => Ok(frame),
            Err(error) => Err(self.fail(error)),
        }
    }

    /// Says whether the channel may end here.
    ///
    /// # Errors
    /// [`ProtocolError::ClosedEarly`] before the first frame or inside one, [`ProtocolError::ForeignText`]
    /// for a text that ended before its first line did.
    pub fn finish(&mut self) -> Result<(), ProtocolError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.greeted && self.buffer.is_empty() {
            return Ok(());
        }
        let error = match implausible_hello(&self.buffer) {
            Some(why) if !self.greeted => why.error(&self.buffer),
            _ => ProtocolError::ClosedEarly("control channel"),
        };
        Err(self.fail(error))
    }

    fn fail(&mut self, error: ProtocolError) -> ProtocolError {
        self.buffer = Vec::new();
        self.failed = Some(error.clone());
        error
    }

    fn split(&mut self) -> Result<Option<Vec<u8>>, ProtocolError> {
        if !self.greeted
            && let Some(why) = implausible_hello(&self.buffer)
        {
            // Wait for the whole first line: it says what has to be changed.
            let waiting = why == Implausible::Text && excerpt_end(&self.buffer).is_none();
            return if waiting { Ok(None) } else { Err(why.error(&self.buffer)) };
        }
        let Some((length, rest)) = self.buffer.split_first_chunk::<LENGTH_LEN>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Err(ProtocolError::TooLarge {
                what: "control frame",
                got: length as u64,
                limit: MAX_FRAME as u64,
            });
        }
        if length == 0 {
            return Err(ProtocolError::Malformed("empty control frame"));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let body = body.to_vec();
        self.buffer.drain(..LENGTH_LEN + length);
        self.greeted = true;
        Ok(Some(body))
    }
}

/// What the bytes are that cannot begin a hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Implausible {
    /// Something for people.
    Text,
    /// A frame of impossible size.
    Size(u64),
    /// Neither.
    Other,
}

impl Implausible {
    fn error(self, bytes: &[u8]) -> ProtocolError {
        match self {
            Self::Text => ProtocolError::ForeignText { excerpt: excerpt(bytes) },
            Self::Size(got) => ProtocolError::TooLarge { what: "hello", got, limit: MAX_HELLO as u64 },
            Self::Other => ProtocolError::Malformed("hello"),
        }
    }
}

/// Why the bytes cannot be the beginning of a hello frame; `None` while they can. Whatever is found stays so
/// when more bytes come.
fn implausible_hello(bytes: &[u8]) -> Option<Implausible> {
    // A hello is far shorter than 16 MiB, so its frame begins with a zero byte, which text never does.
    let shown = excerpt_end(bytes).unwrap_or(bytes.len()).min(LENGTH_LEN);
    if shown > 0 && bytes[..shown].iter().copied().all(is_text) {
        return Some(Implausible::Text);
    }
    let (length, body) = bytes.split_first_chunk::<LENGTH_LEN>()?;
    let length = u32::from_be_bytes(*length);
    if length as usize > MAX_HELLO {
        return Some(Implausible::Size(length.into()));
    }
    let shown = body.len().min(MAGIC.len());
    let wrong = (length as usize) < HELLO_LEN || body[..shown] != MAGIC[..shown];
    wrong.then_some(Implausible::Other)
}

/// Occurs in text that a terminal shows: no NUL, no byte that UTF-8 never has.
fn is_text(byte: u8) -> bool {
    matches!(byte, 0x07..=0x0d | 0x1b | 0x20..=0x7e | 0x80..=0xf7)
}

/// Where the first line that says something ends, within the first [`EXCERPT`] bytes; `None` when more bytes
/// may belong to it.
fn excerpt_end(bytes: &[u8]) -> Option<usize> {
    let shown = &bytes[..bytes.len().min(EXCERPT)];
    let start = shown.iter().position(|byte| !byte.is_ascii_whitespace()).unwrap_or(shown.len());
    match shown[start..].iter().position(|byte| matches!(byte, b'\n' | b'\r' | 0)) {
        Some(length) => Some(start + length),
        None if shown.len() == EXCERPT => Some(EXCERPT),
        None => None,
    }
}

fn excerpt(bytes: &[u8]) -> String {
    let line = &bytes[..excerpt_end(bytes).unwrap_or(bytes.len())];
    let mut text = line.trim_ascii().escape_ascii().to_string();
    text.truncate(EXCERPT);
    text
}
