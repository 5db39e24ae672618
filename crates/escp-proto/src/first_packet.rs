//! The first packet of a stream, 64 bytes, and its answer, 32 bytes.
//!
//! ```text
//! magic 4 | version 2 | stream 2 | session id 16 | nonce 16 | proof 16 | zero 8
//! answer nonce 16 | proof 16
//! ```
//!
//! The proof is HMAC-SHA-256 under the session's route key over the first 40 bytes, cut to 16; the answer's
//! is over the whole first packet and the answer's nonce. This module knows the layout, not the keys.

use crate::{ProtocolError, VERSION};

/// Bytes of a first packet.
pub const FIRST_PACKET_LEN: usize = 64;
/// Bytes of its answer.
pub const ANSWER_LEN: usize = 32;
/// How much of the first packet its proof covers.
pub const PROVEN_LEN: usize = 40;
/// `ESCP`.
pub const MAGIC: [u8; 4] = *b"ESCP";

/// A stream's first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstPacket {
    /// Stream number; 0 carries control records.
    pub stream: u16,
    /// The session it claims to belong to.
    pub session: [u8; 16],
    /// Chosen at random by the end that dialled; counts once per session.
    pub nonce: [u8; 16],
    /// See the module's page.
    pub proof: [u8; 16],
}

impl FirstPacket {
    /// The 40 bytes the proof covers.
    #[must_use]
    pub fn proven(stream: u16, session: &[u8; 16], nonce: &[u8; 16]) -> [u8; PROVEN_LEN] {
        let mut out = [0_u8; PROVEN_LEN];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_be_bytes());
        out[6..8].copy_from_slice(&stream.to_be_bytes());
        out[8..24].copy_from_slice(session);
        out[24..40].copy_from_slice(nonce);
        out
    }

    /// The packet's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; FIRST_PACKET_LEN] {
        let mut out = [0_u8; FIRST_PACKET_LEN];
        out[..PROVEN_LEN].copy_from_slice(&Self::proven(self.stream, &self.session, &self.nonce));
        out[40..56].copy_from_slice(&self.proof);
        out
    }

    /// Reads a packet's fields. The proof is not checked here.
    ///
    /// # Errors
    /// [`ProtocolError`] when it is not a first packet of this version.
    pub fn decode(bytes: &[u8; FIRST_PACKET_LEN]) -> Result<Self, ProtocolError> {
        if bytes[0..4] != MAGIC {
            return Err(ProtocolError::Malformed("first packet"));
        }
        let version = u16::from_be_bytes([bytes[4], bytes[5]]);
        if version != VERSION {
            return Err(ProtocolError::Version { peer: version.to_string(), ours: VERSION });
        }
        if bytes[56..64] != [0; 8] {
            return Err(ProtocolError::Malformed("first packet"));
        }
        let field = |at: usize| std::array::from_fn(|i| bytes[at + i]);
        Ok(Self {
            stream: u16::from_be_bytes([bytes[6], bytes[7]]),
            session: field(8),
            nonce: field(24),
            proof: field(40),
        })
    }
}

/// The answer to a first packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Chosen at random by the end that was dialled.
    pub nonce: [u8; 16],
    /// See the module's page.
    pub proof: [u8; 16],
}

impl Answer {
    /// The answer's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut out = [0_u8; ANSWER_LEN];
        out[..16].copy_from_slice(&self.nonce);
        out[16..].copy_from_slice(&self.proof);
        out
    }

    /// Reads an answer's fields. The proof is not checked here.
    #[must_use]
    pub fn decode(bytes: &[u8; ANSWER_LEN]) -> Self {
        Self { nonce: std::array::from_fn(|i| bytes[i]), proof: std::array::from_fn(|i| bytes[16 + i]) }
    }
}
