//! What an agent asks of an engine.

use crate::JobOptions;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Most files of one [`Command::AddFiles`]: SCM_RIGHTS passes 253 descriptors at a time (`SCM_MAX_FD`,
/// unix(7)).
pub const MAX_BATCH: usize = 253;
/// Largest agent message, in bytes: it must fit one packet of the Unix socket, whose default buffer
/// refuses about 208 KiB, together with its frame.
pub const MAX_MESSAGE: usize = 56 * 1024;

/// A request to an engine. See the crate's page for the order in which they may come.
#[derive(Debug)]
pub enum Command {
    /// Open the job. First, and once.
    Open(Box<JobOptions>),
    /// Use this connected TCP socket as a lane.
    AddLane(Lane),
    /// Take these files; at most [`MAX_BATCH`]. A file's descriptor is `None` only for a
    /// [`crate::EngineKind::Dummy`] engine. The agent may keep it too: to look at the file, and to publish it.
    AddFiles(Vec<(FileSpec, Option<Arc<OwnedFd>>)>),
    /// Sending engine only: move these parts of files that were added. Every byte of a file must be
    /// covered exactly once before it is reported; an empty file needs no extent.
    Schedule(Vec<Extent>),
    /// Sending engine only: nothing more will be scheduled. It may close its streams once all is sent, so that
    /// their end is known when the agents agree on theirs.
    Scheduled,
    /// Give these files up; each is reported with [`crate::FileError`] stage `Dropped` unless it was
    /// reported before.
    DropFiles(Vec<u64>),
    /// Deliver this to the peer's agent, in order, as [`crate::Event::Message`]; at most [`MAX_MESSAGE`]
    /// bytes.
    Message(Vec<u8>),
    /// Both engines: nothing more will come, and this is what was moved as this agent sees it. The sending
    /// engine closes its streams; both exchange sealed ends, compare them, and report
    /// [`crate::Event::Ended`], or an integrity failure when the two agents' summaries differ.
    Finish(Summary),
    /// End the session now. The peer is told `reason` if it can be.
    Abort {
        /// One sentence for the other side's user.
        reason: String,
    },
}

/// A connected TCP socket that the agent dialled for a stream.
#[derive(Debug)]
pub struct Lane {
    /// Stream number: 0 carries control records only, 1.. carry file records. Never used twice in a
    /// session.
    pub stream: u16,
    /// The connected socket.
    pub socket: OwnedFd,
}

/// A file the agent opened for the engine.
///
/// A sending engine gets it readable, a receiving one writable; regular files only, without O_APPEND or
/// O_PATH. O_DIRECT, if the agent opened with it, is kept until the file system refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// The number both agents know the file by; never used twice in a session.
    pub number: u64,
    /// The file's size in bytes, as announced by the sender. The engine never asks the file.
    pub size: u64,
    /// Alignment in bytes of O_DIRECT offsets and lengths (`stx_dio_offset_align`, statx(2)); 0 when O_DIRECT is not
    /// wanted. A descriptor without O_DIRECT beside an alignment means that its file system refuses it.
    pub direct_alignment: u32,
    /// The file lives in memory (tmpfs, ramfs): io_uring would only hand over to a kernel thread.
    pub in_memory: bool,
    /// Receiving engine: the file has holes, so do not preallocate it.
    pub sparse: bool,
}

/// A part of a file to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The file's number.
    pub file: u64,
    /// First byte. A multiple of the block size, except after a hole.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// Data or hole.
    pub kind: ExtentKind,
}

/// What an [`Extent`] holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentKind {
    /// Bytes to read and send.
    Data,
    /// Reads as zeros; travels as a header.
    Hole,
}

/// What was moved, as one agent sees it at the end: published files only.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Files published.
    pub files: u64,
    /// `escp_crypto::ListDigest` over them: number, size and check value of each.
    pub list_hash: [u8; 32],
}
