//! How escp seals what it says.
//!
//! The key schedule, record protection and the proofs of a stream's first packets; AES-128-GCM, HKDF and
//! HMAC with SHA-256, all by `ring`. This crate knows no protocol: it is given IVs and bytes, and owns
//! what must never be got wrong about them: each key's counter, its epoch, and the order of records.
//!
//! `docs/PROTOCOL.md` has the schedule in prose; `tests/vectors/` has golden vectors that a second,
//! independent decoder checks.

#![forbid(unsafe_code)]

mod list;
mod machine;
mod record;
mod schedule;

pub use list::ListDigest;
pub use machine::machine_mark;
pub use record::{Opener, Sealer, Sequence};
pub use schedule::{Flow, MasterSecret, RouteKey, StreamContext, StreamSecret};

/// Bytes of an AES-GCM tag.
pub const TAG_LEN: usize = 16;
/// Records of one epoch: with records of 8 MiB, 2^15 of them are 256 GiB, below the 362 GiB at which the
/// confidentiality bound of one AES-128-GCM key reaches 2^-60.
pub const RECORDS_PER_EPOCH: u64 = 1 << 15;
/// Sequence numbers of one stream and direction: the IV gives them 38 bits.
pub const MAX_SEQUENCE: u64 = 1 << 38;

/// Why sealing or opening failed. Deliberately says nothing about the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// The tag does not match: the record was altered, or sealed under another key.
    #[error("a record failed authentication")]
    Forged,
    /// The record is authentic in form but not the next one of its stream.
    #[error("record {got} arrived where record {expected} was due")]
    OutOfOrder {
        /// The sequence number that was due.
        expected: u64,
        /// The sequence number of the record.
        got: u64,
    },
    /// The stream has used all its sequence numbers.
    #[error("the stream's sequence numbers are used up")]
    Exhausted,
    /// A proof in a stream's first packets does not match.
    #[error("wrong proof")]
    WrongProof,
}
