//! The payload of a metadata record: one message.
//!
//! ```text
//! type 1 | body                          body as it is
//! type|0x80 1 | plain length 4 | zstd    body compressed, when it is over 160 bytes and that pays
//! ```
//!
//! Types below 0x40 are between engines; 0x40 is between agents and opaque to engines.

use crate::ProtocolError;
use crate::record::MAX_METADATA_LEN;

/// Bodies longer than this are compressed where it pays.
pub const COMPRESS_OVER: usize = 160;
/// Largest plain body, in bytes.
pub const MAX_BODY_LEN: usize = MAX_METADATA_LEN - 1;
/// Longest reason in an [`EngineMessage::Abort`], in bytes.
pub const MAX_REASON_LEN: usize = 4096;

const ACK: u8 = 0x01;
const KEEPALIVE: u8 = 0x02;
const CLOSE: u8 = 0x03;
const END: u8 = 0x04;
const ABORT: u8 = 0x05;
const AGENT: u8 = 0x40;
const COMPRESSED: u8 = 0x80;

/// One message of a metadata record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// From engine to engine.
    Engine(EngineMessage),
    /// From agent to agent.
    Agent(Vec<u8>),
}

/// What engines say to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineMessage {
    /// Receiver to sender, on stream 0: all records of `stream` below `records` are written.
    Ack {
        /// Data stream.
        stream: u16,
        /// Records written, from the first on without a gap.
        records: u64,
    },
    /// I am here.
    Keepalive,
    /// The last record of a stream and direction: so many came before it.
    Close {
        /// Records of this stream and direction before this one.
        records: u64,
    },
    /// On stream 0: the session is complete as I see it.
    End {
        /// Files moved.
        files: u64,
        /// XOR over the moved files of SHA-256(number 8 ‖ size 8 ‖ check 8).
        list_hash: [u8; 32],
    },
    /// On stream 0: I give up.
    Abort {
        /// Exit status class: 3 could not, 4 lost, 5 integrity.
        status: u8,
        /// One sentence, UTF-8.
        reason: String,
    },
}

/// Encodes and decodes the messages of a stream. It keeps zstd's contexts from one message to the next, since making
/// them costs more than most messages do.
#[derive(Default)]
pub struct Codec {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    expander: Option<zstd::bulk::Decompressor<'static>>,
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

impl Message {
    /// The record payload; see [`Codec::encode`].
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] for a body over [`MAX_BODY_LEN`].
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        Codec::default().encode(self)
    }

    /// Reads a record payload; see [`Codec::decode`].
    ///
    /// # Errors
    /// [`ProtocolError`] when it is not one well-formed message.
    pub fn decode(payload: &[u8]) -> Result<Self, ProtocolError> {
        Codec::default().decode(payload)
    }

    fn from_body(kind: u8, body: &[u8]) -> Result<Self, ProtocolError> {
        if kind == AGENT {
            return Ok(Self::Agent(body.to_vec()));
        }
        EngineMessage::from_body(kind, body).map(Self::Engine)
    }
}

impl Codec {
    /// The record payload.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] for a body over [`MAX_BODY_LEN`].
    pub fn encode(&mut self, message: &Message) -> Result<Vec<u8>, ProtocolError> {
        let mut own = Vec::new();
        let (kind, body) = match message {
            Message::Agent(bytes) => (AGENT, bytes),
            Message::Engine(message) => (message.body(&mut own), &own),
        };
        if body.len() > MAX_BODY_LEN {
            return Err(ProtocolError::TooLarge {
                what: "message",
                got: body.len() as u64,
                limit: MAX_BODY_LEN as u64,
            });
        }
        Ok(self.compressed(kind, body).unwrap_or_else(|| {
            let mut out = Vec::with_capacity(1 + body.len());
            out.push(kind);
            out.extend_from_slice(body);
            out
        }))
    }

    /// Reads a record payload; output is bounded by [`MAX_BODY_LEN`] whatever the bytes claim.
    ///
    /// # Errors
    /// [`ProtocolError`] when it is not one well-formed message.
    pub fn decode(&mut self, payload: &[u8]) -> Result<Message, ProtocolError> {
        let (&kind, body) = payload.split_first().ok_or(ProtocolError::Malformed("message"))?;
        if kind & COMPRESSED == 0 {
            return Message::from_body(kind, body);
        }
        let (length, frame) = body.split_first_chunk::<4>().ok_or(ProtocolError::Malformed("message"))?;
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_BODY_LEN {
            return Err(ProtocolError::TooLarge {
                what: "expanded message",
                got: length as u64,
                limit: MAX_BODY_LEN as u64,
            });
        }
        let malformed = |_| ProtocolError::Malformed("compressed message");
        let expander = match &mut self.expander {
            Some(expander) => expander,
            none => none.insert(zstd::bulk::Decompressor::new().map_err(malformed)?),
        };
        let plain = expander.decompress(frame, length).map_err(malformed)?;
        if plain.len() != length {
            return Err(ProtocolError::Length { what: "expanded message", got: plain.len(), need: length });
        }
        Message::from_body(kind & !COMPRESSED, &plain)
    }

    /// The payload with a compressed body, if that is shorter.
    fn compressed(&mut self, kind: u8, body: &[u8]) -> Option<Vec<u8>> {
        if body.len() <= COMPRESS_OVER {
            return None;
        }
        let compressor = match &mut self.compressor {
            Some(compressor) => compressor,
            none => none.insert(zstd::bulk::Compressor::new(1).ok()?),
        };
        let frame = compressor.compress(body).ok()?;
        if frame.len() + 4 >= body.len() {
            return None;
        }
        let length = u32::try_from(body.len()).ok()?;
        let mut out = Vec::with_capacity(5 + frame.len());
        out.push(kind | COMPRESSED);
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(&frame);
        Some(out)
    }
}

impl EngineMessage {
    /// Appends the body and returns the type.
    fn body(&self, out: &mut Vec<u8>) -> u8 {
        match self {
            Self::Ack { stream, records } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(&records.to_be_bytes());
                ACK
            }
            Self::Keepalive => KEEPALIVE,
            Self::Close { records } => {
                out.extend_from_slice(&records.to_be_bytes());
                CLOSE
            }
            Self::End { files, list_hash } => {
                out.extend_from_slice(&files.to_be_bytes());
                out.extend_from_slice(list_hash);
                END
            }
            Self::Abort { status, reason } => {
                out.push(*status);
                let mut end = reason.len().min(MAX_REASON_LEN);
                while !reason.is_char_boundary(end) {
                    end -= 1;
                }
                out.extend_from_slice(&reason.as_bytes()[..end]);
                ABORT
            }
        }
    }

    fn from_body(kind: u8, body: &[u8]) -> Result<Self, ProtocolError> {
        let need = match kind {
            ACK => 10,
            KEEPALIVE => 0,
            CLOSE => 8,
            END => 40,
            ABORT => return Self::abort(body),
            value => return Err(ProtocolError::Unknown { what: "message type", value: value.into() }),
        };
        if body.len() != need {
            return Err(ProtocolError::Length { what: "message", got: body.len(), need });
        }
        let word = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| body[at + i]));
        Ok(match kind {
            ACK => Self::Ack { stream: u16::from_be_bytes([body[0], body[1]]), records: word(2) },
            KEEPALIVE => Self::Keepalive,
            CLOSE => Self::Close { records: word(0) },
            _ => Self::End { files: word(0), list_hash: std::array::from_fn(|i| body[8 + i]) },
        })
    }

    fn abort(body: &[u8]) -> Result<Self, ProtocolError> {
        let (&status, reason) = body.split_first().ok_or(ProtocolError::Malformed("abort"))?;
        if reason.len() > MAX_REASON_LEN {
            return Err(ProtocolError::TooLarge {
                what: "abort reason",
                got: reason.len() as u64,
                limit: MAX_REASON_LEN as u64,
            });
        }
        let reason = std::str::from_utf8(reason).map_err(|_| ProtocolError::Malformed("abort reason"))?;
        Ok(Self::Abort { status, reason: reason.to_owned() })
    }
}
