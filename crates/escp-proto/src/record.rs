//! The frame of every record: `IV 8 | payload | tag 16`.
//!
//! The IV travels in the clear and is authenticated: kind (2 bits), payload length (24 bits, without the
//! tag), sequence number (38 bits), as one big-endian u64.

use crate::ProtocolError;

/// Bytes of an IV.
pub const IV_LEN: usize = 8;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Largest payload of a metadata record, in bytes. It bounds what a control record can make a receiver
/// allocate; agent messages are at most 56 KiB.
pub const MAX_METADATA_LEN: usize = 64 * 1024;

const LENGTH_BITS: u32 = 24;
const SEQUENCE_BITS: u32 = 38;

/// What a record carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An engine or agent message.
    Metadata,
    /// Blocks of files.
    File,
}

/// A record's IV, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iv {
    /// What the record carries.
    pub kind: Kind,
    /// Payload bytes, without the tag; less than 2^24.
    pub length: u32,
    /// The record's number in its stream and direction; less than 2^38.
    pub sequence: u64,
}

impl Iv {
    /// The IV as it travels and enters the nonce.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] when the length or sequence does not fit its field.
    pub fn encode(self) -> Result<u64, ProtocolError> {
        if self.length >= 1 << LENGTH_BITS {
            return Err(ProtocolError::TooLarge {
                what: "payload",
                got: self.length.into(),
                limit: (1 << LENGTH_BITS) - 1,
            });
        }
        if self.sequence >= 1 << SEQUENCE_BITS {
            return Err(ProtocolError::TooLarge {
                what: "sequence number",
                got: self.sequence,
                limit: (1 << SEQUENCE_BITS) - 1,
            });
        }
        let kind: u64 = match self.kind {
            Kind::Metadata => 0,
            Kind::File => 1,
        };
        Ok((kind << 62) | (u64::from(self.length) << SEQUENCE_BITS) | self.sequence)
    }

    /// Takes an IV apart and bounds its length: an empty payload means nothing, and one longer than
    /// `max_file_len` (of a file record) or [`MAX_METADATA_LEN`] is refused before any buffer is taken.
    ///
    /// # Errors
    /// [`ProtocolError::Unknown`] kind, [`ProtocolError::TooLarge`] or [`ProtocolError::Length`].
    pub fn decode(iv: u64, max_file_len: usize) -> Result<Self, ProtocolError> {
        let (kind, limit) = match iv >> 62 {
            0 => (Kind::Metadata, MAX_METADATA_LEN),
            1 => (Kind::File, max_file_len),
            value => return Err(ProtocolError::Unknown { what: "record kind", value }),
        };
        let length = ((iv >> SEQUENCE_BITS) & ((1 << LENGTH_BITS) - 1)) as u32;
        if length == 0 {
            return Err(ProtocolError::Length { what: "record payload", got: 0, need: 1 });
        }
        if length as usize > limit {
            return Err(ProtocolError::TooLarge {
                what: "record payload",
                got: length.into(),
                limit: limit as u64,
            });
        }
        Ok(Self { kind, length, sequence: iv & ((1 << SEQUENCE_BITS) - 1) })
    }
}
