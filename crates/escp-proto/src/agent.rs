//! What agents say to each other, inside sealed metadata records that engines pass through unread.
//!
//! One [`AgentMessage`] per record, encoded with postcard 1 (its wire format is a published
//! specification: varint integers, length-prefixed sequences). A *sender* has the files, a *receiver* wants
//! them; either may be the near agent.
//!
//! ```text
//! near                                   far
//!   Sources ------------------------------>       of a download, more than fit into the request; in order
//!   Request ------------------------------>
//!   <--------------------------- Accept | Refuse
//! sender                              receiver
//!   <------------------------------- Credit        entries the sender may offer, in total so far
//!   Offer(entries) ------------------------>       within the credit; parents before children
//!   <----------------- Ready | Rejected           receiver opened a temporary file, or could not
//!   (engines move the ready files' blocks)
//!   Digests ------------------------------->      source re-checked after reading
//!   <---------------------------------- Done      verified and published, or failed
//!   NoMore -------------------------------->      after the last entry was offered
//! ```
//!
//! Which message may come when, and about which entry, is in [`crate::conversation`]; lists of any length
//! become messages with [`messages`] or [`Batch`].

mod batch;
mod bounds;
mod sources;

pub use batch::{Batch, Listed, messages};
pub use sources::{MAX_SOURCES, MAX_SOURCES_BYTES, SourceList};

use crate::ProtocolError;
use serde::{Deserialize, Serialize};

/// Largest encoded agent message, in bytes.
pub const MAX_MESSAGE: usize = 56 * 1024;
/// Longest name of one path component, in bytes (`NAME_MAX`, limits.h).
pub const MAX_NAME: usize = 255;
/// Most entries, numbers or results of one message.
pub const MAX_ITEMS: usize = 512;
/// Longest path or pattern in a [`Request`], in bytes (`PATH_MAX`, limits.h).
pub const MAX_PATH: usize = 4096;
/// Longest text of an error, in bytes.
pub const MAX_TEXT: usize = 2048;
/// The number of the target itself, the parent of the first level of entries.
pub const ROOT: u64 = 0;

/// A message from one agent to the other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AgentMessage {
    /// Near to far, once and before anything is answered: what the user asked for.
    Request(Request),
    /// Far to near: the request stands.
    Accept(Accept),
    /// Far to near: the request cannot be served at all.
    Refuse(Refusal),
    /// Sender: these entries are next. Numbers rise by one from 1.
    Offer(Vec<Entry>),
    /// Sender: what the walk has found so far.
    Scanned(Scanned),
    /// Sender: a source that could not even be offered.
    SourceFailed(SourceFailure),
    /// Receiver: the total number of entries that may have been offered.
    Credit {
        /// Cumulative; never falls.
        entries: u64,
    },
    /// Receiver: these files are open and their blocks may come, in the order in which the receiver added
    /// them to its engine.
    Ready(Vec<u64>),
    /// Receiver: these entries cannot be taken, and are done with.
    Rejected(Vec<EntryFailure>),
    /// Sender: these files are read, and this is what they were.
    Digests(Vec<FileDigest>),
    /// Receiver: these entries are published (and durable), or failed, and are done with.
    Done(Vec<EntryResult>),
    /// Sender: the last entry has been offered.
    NoMore,
    /// Near to far, before the request: sources of a download that do not fit into its own list.
    Sources(Vec<Vec<u8>>),
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Which way, and from or to where on the far host.
    pub transfer: Transfer,
    /// `-r`: directories may be moved.
    pub recursive: bool,
    /// `-p`: times and modes.
    pub preserve: bool,
    /// Write existing targets in place.
    pub inplace: bool,
    /// Make files durable before they count.
    pub durable: bool,
    /// Try O_DIRECT.
    pub direct: bool,
    /// Compare check values before publishing.
    pub checksum: bool,
    /// No files: the sender makes bytes up and the receiver drops them.
    pub dummy: bool,
}

/// The far side of a [`Request`]. Paths are bytes, as the user typed them after the colon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transfer {
    /// The far agent receives.
    Upload {
        /// Target path; empty means the home directory.
        target: Vec<u8>,
        /// The target must be an existing directory: several sources.
        directory_required: bool,
    },
    /// The far agent sends.
    Download {
        /// Paths or glob patterns, behind those of [`AgentMessage::Sources`] before; the far agent expands them without a
        /// shell.
        sources: Vec<Vec<u8>>,
    },
}

/// The far agent's yes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accept {
    /// Download: top-level sources after expansion; more than one needs a directory. Upload: 0.
    pub sources: u32,
}

/// The far agent's no.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Exit status for the near side.
    pub status: u8,
    /// One sentence.
    pub text: String,
}

/// One thing to make on the receiving side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Numbers all entries of a session from 1.
    pub number: u64,
    /// The directory entry this one lies in, or [`ROOT`].
    pub parent: u64,
    /// One path component. Below [`ROOT`] it is the source's base name, which the receiver uses unless the
    /// user named the target itself; empty there for a directory without a base name (`.`, `..`, `/`),
    /// whose children go into the target itself. Empty for a [`EntryKind::DirectoryEnd`].
    pub name: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
}

/// What an [`Entry`] is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Its size in bytes when it was opened.
        size: u64,
        /// It occupies fewer blocks than its size needs.
        sparse: bool,
        /// Mode and times.
        attributes: Attributes,
    },
    /// A directory; its children follow, then a [`EntryKind::DirectoryEnd`].
    Directory {
        /// Mode and times, applied after its last child.
        attributes: Attributes,
    },
    /// The last child of directory `parent` has been offered. Counts against the credit like any entry, and
    /// is answered by `Done` when the directory is finished.
    DirectoryEnd,
}

/// Mode and times of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// Permission bits, 07777 at most.
    pub mode: u32,
    /// Modification time.
    pub mtime: Timestamp,
    /// Access time.
    pub atime: Timestamp,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timestamp {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// What the walk has found so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scanned {
    /// Files found.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The walk is over: these are totals.
    pub complete: bool,
}

/// A source that could not be offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFailure {
    /// The path as the user would write it, bytes.
    pub path: Vec<u8>,
    /// What and why.
    pub text: String,
}

/// An entry that failed on the receiving side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryFailure {
    /// The entry.
    pub number: u64,
    /// What and why; host and path are added by the side that prints it.
    pub text: String,
    /// Data was altered on the way: exit status 5, not 1.
    pub integrity: bool,
}

/// What the sender read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    /// The entry.
    pub number: u64,
    /// CRC-64/NVME of the whole file, or why what was read must not be published.
    pub outcome: Result<u64, String>,
}

/// How an entry ended on the receiving side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryResult {
    /// The entry.
    pub number: u64,
    /// The receiver's own CRC-64/NVME of the file (0 for a directory), or why it failed.
    pub outcome: Result<u64, EntryFailure>,
}

impl AgentMessage {
    /// The message's bytes. Texts for people ([`MAX_TEXT`]) and the path of a [`SourceFailure`]
    /// ([`MAX_PATH`]) are cut when they are too long; everything else beyond its bound is an error, because
    /// the peer would refuse it.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] over [`MAX_MESSAGE`] or another bound of this module (use [`messages`] or
    /// [`Batch`] for lists), [`ProtocolError::Malformed`] for a value the peer would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, ProtocolError> {
        let clipped = self.clipped();
        let message = clipped.as_ref().unwrap_or(self);
        message.check()?;
        let bytes =
            postcard::to_stdvec(message).map_err(|_| ProtocolError::Malformed("agent message to encode"))?;
        bounds::at_most("agent message", bytes.len(), MAX_MESSAGE)?;
        Ok(bytes)
    }

    /// Reads one message and checks every bound of this module. Memory is bounded by a small multiple of
    /// [`MAX_MESSAGE`] whatever the bytes claim.
    ///
    /// # Errors
    /// [`ProtocolError::TooLarge`] for a size or count beyond its bound, [`ProtocolError::Malformed`] for
    /// anything else that is not exactly one well-formed message.
    pub fn decode(bytes: &[u8]) -> Result<Self, ProtocolError> {
        bounds::at_most("agent message", bytes.len(), MAX_MESSAGE)?;
        let (message, rest) = postcard::take_from_bytes::<Self>(bytes)
            .map_err(|_| ProtocolError::Malformed("agent message"))?;
        if !rest.is_empty() {
            return Err(ProtocolError::Malformed("agent message: bytes after its end"));
        }
        message.check()?;
        Ok(message)
    }
}
