//! The way of a block through a data thread. `send` and `receive` mirror each other:
//!
//! ```text
//! send:     read    → check → (compress) → seal  → send
//! receive:  receive → open  → (expand)   → check → write
//! ```

mod compress;
mod receive;
mod send;
mod write;

pub(crate) use receive::receive_lane;
pub(crate) use send::send_lane;

use crate::disk::{Disk, DiskOp};
use crate::files::File;
use crate::net::{Socket, Wait};
use crate::shared::{LaneState, Shared};
use escp_buf::{BODY, Buf, Pool};
use escp_crypto::CryptoError;
use escp_engine_api::Fault;
use escp_proto::ProtocolError;
use escp_proto::block::HEADER_LEN;
use escp_proto::record::IV_LEN;
use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Where a record's IV starts in a slot: its payload (block header, data) follows, with the data at [`BODY`].
pub(crate) const RECORD: usize = BODY - HEADER_LEN - IV_LEN;
/// Where a record's payload starts in a slot.
pub(crate) const PAYLOAD: usize = RECORD + IV_LEN;
/// Slots a stream may hold beside the blocks in flight to or from disk: the record on the network, a
/// compressed or expanded copy, and one between stages. The pool of a thread has depth + this for each of its
/// streams, so no stream ever waits for another's slots.
pub(crate) const SLOTS_BESIDE_DEPTH: usize = 3;
/// Blocks after which a thread registers the slots it used with its ring. Pinning 64 MiB costs 40 to 60 ms,
/// which a transfer of a few blocks would never earn back. Where the kernel refuses (the limit of locked memory, or what
/// a finished process is still charged for), it is asked again at four times as many, and so on.
const REGISTER_AT: [u64; 5] = [1 << 6, 1 << 8, 1 << 10, 1 << 12, 1 << 14];

/// A data lane on its thread.
pub(crate) struct Lane {
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Arc<LaneState>,
    pub(crate) socket: Socket,
    pub(crate) disk: Disk,
    pub(crate) pool: Pool,
    /// No other lane ever runs on this thread.
    pub(crate) alone: bool,
    /// The last record's data was read or written by plain calls: files in memory, small ones, no files at all.
    pub(crate) plain: Cell<bool>,
    /// Blocks of files that went through this lane; small files that share a record do not count.
    pub(crate) blocks: Cell<u64>,
}

/// Why a lane ended before its agreed end.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct LaneError {
    pub(crate) fault: Fault,
    pub(crate) text: String,
}

impl LaneError {
    pub(crate) fn lost(text: impl Into<String>) -> Self {
        Self { fault: Fault::Lost, text: text.into() }
    }

    pub(crate) fn integrity(text: impl Into<String>) -> Self {
        Self { fault: Fault::Integrity, text: text.into() }
    }

    pub(crate) fn network(what: &str, error: &io::Error) -> Self {
        Self::lost(format!("the connection was lost while {what}: {}", crate::files::describe(error)))
    }

    pub(crate) fn closed() -> Self {
        Self::lost("the connection closed before the end")
    }
}

impl From<ProtocolError> for LaneError {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::ClosedEarly(_) => Self::closed(),
            _ => Self::integrity(format!("the peer broke the protocol: {error}")),
        }
    }
}

impl From<CryptoError> for LaneError {
    fn from(error: CryptoError) -> Self {
        match error {
            CryptoError::Exhausted => Self { fault: Fault::Local, text: error.to_string() },
            _ => Self::integrity(format!("data was altered on the network: {error}")),
        }
    }
}

impl Lane {
    /// As [`Disk::read`].
    fn read(&self, file: &Arc<File>, buf: Buf, range: Range<usize>, offset: u64) -> DiskOp {
        let fixed = buf.registered().is_some();
        self.note(fixed, self.disk.read(file, buf, range, offset))
    }

    /// As [`Disk::write`].
    fn write(&self, file: &Arc<File>, buf: Buf, range: Range<usize>, offset: u64) -> DiskOp {
        let fixed = buf.registered().is_some();
        self.note(fixed, self.disk.write(file, buf, range, offset))
    }

    /// Notes how an operation is done.
    fn note(&self, fixed: bool, op: DiskOp) -> DiskOp {
        let by_ring = matches!(op, DiskOp::Ring(_));
        self.plain.set(!by_ring);
        if fixed && by_ring {
            self.state.fixed.fetch_add(1, Relaxed);
        }
        op
    }

    /// Who waits for the socket: the thread, where it serves this lane alone and plain calls move the lane's data, so that
    /// nothing of the ring is waited for.
    fn wait(&self) -> Wait {
        if self.alone && self.plain.get() { Wait::Thread } else { Wait::Task }
    }

    /// Registers the pool's slots once the lane has moved enough to earn it back. A refusal (the limit of
    /// locked memory) only means that the kernel pins pages per operation.
    ///
    /// Only blocks earn it: small files never meet the ring, and pinning would fill every slot they use to its end.
    fn register_when_worth_it(&self) {
        self.blocks.update(|blocks| blocks + 1);
        let blocks = self.blocks.get();
        let due = blocks == REGISTER_AT[0] || (REGISTER_AT.contains(&blocks) && !self.pool.is_registered());
        if due
            && matches!(self.socket, Socket::Uring(_))
            && let Err(error) = self.pool.register()
        {
            tracing::debug!(%error, "buffers stay unregistered");
        }
    }
}

/// The length O_DIRECT transfers for `length` bytes.
fn padded(length: usize, alignment: usize) -> usize {
    length.next_multiple_of(alignment.max(1))
}

/// EINVAL from an O_DIRECT transfer means that this file system wants other alignments, or none of it.
fn refuses_direct(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}
