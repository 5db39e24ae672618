//! A session whose engines are connected: what sending and receiving agents work with.

use escp_engine_api::EngineHandle;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::watch;

/// A connected session.
#[derive(Debug)]
pub struct Link {
    /// This side's engine, after [`escp_engine_api::Event::Connected`].
    pub engine: EngineHandle,
    /// The round trip between the hosts; zero where it is not known.
    pub round_trip: Duration,
    /// Set to a sentence when the control channel hangs up or the other side gives up over it: data must
    /// stop at once.
    pub hang_up: watch::Receiver<Option<HangUp>>,
    /// What the peer's agent has said already, in its order.
    pub(crate) heard: VecDeque<Vec<u8>>,
    /// The credit that this side has given already.
    pub(crate) credit: Option<u64>,
    /// The request was answered.
    pub(crate) answered: bool,
}

impl Link {
    /// A session of two agents that have said Request and Accept, and nothing else.
    #[must_use]
    pub fn new(engine: EngineHandle, round_trip: Duration, hang_up: watch::Receiver<Option<HangUp>>) -> Self {
        Self { engine, round_trip, hang_up, heard: VecDeque::new(), credit: None, answered: true }
    }
}

/// Why the control channel is no longer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HangUp {
    /// Exit status this calls for.
    pub status: u8,
    /// One sentence for the user.
    pub text: String,
}

/// How to move files; what a request's flags mean to both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferOptions {
    /// `-r`.
    pub recursive: bool,
    /// `-p`.
    pub preserve: bool,
    /// `--inplace`.
    pub inplace: bool,
    /// Make files and names durable; off with `--no-fsync`.
    pub durable: bool,
    /// Try O_DIRECT; off with `--nodirect`.
    pub direct: bool,
    /// Compare check values before publishing; off with `--nochecksum`.
    pub checksum: bool,
    /// No files: `--ioengine dummy`.
    pub dummy: bool,
    /// Plain bytes of a full block.
    pub block_size: u32,
}

impl Default for TransferOptions {
    /// Files without their directories, durable and checked, in blocks of 2 MiB.
    fn default() -> Self {
        Self {
            recursive: false,
            preserve: false,
            inplace: false,
            durable: true,
            direct: true,
            checksum: true,
            dummy: false,
            block_size: 2 << 20,
        }
    }
}

/// Why a session could not be carried to its agreed end. Failures of single files are in the
/// [`crate::tally::Tally`] instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct SessionError {
    /// Exit status (3, 4 or 5; 1 when the target cannot be used at all).
    pub status: u8,
    /// One sentence for the user.
    pub text: String,
}

/// What a session tells whoever shows it to a person. Called from the session's task: must not block.
pub trait Observer: Send + Sync {
    /// The walk has found so much; `complete` once it is over.
    fn scanned(&self, files: u64, bytes: u64, complete: bool);
    /// Bytes of file data moved so far, and files done.
    fn moved(&self, bytes: u64, files: u64);
    /// A file was published; `path` tells which (as the user would write it, raw bytes) to whoever wants to know.
    fn published(&self, path: &dyn Fn() -> Vec<u8>);
    /// A file failed; it is also in the tally.
    fn failed(&self, failure: &crate::tally::FailedFile);
    /// Nothing was heard from the peer for so long; `stage` says where this side waits.
    fn silent(&self, seconds: u32, stage: &str);
    /// A remark for `-v`.
    fn note(&self, text: &str);
    /// A remark that every user should see.
    fn remark(&self, text: &str) {
        self.note(text);
    }
}
