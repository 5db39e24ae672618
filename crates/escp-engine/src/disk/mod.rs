//! Reading and writing files: at an offset, from or into a range of a buffer.

mod posix;
mod uring;

use crate::files::File;
use crate::uring::RingOp;
use escp_buf::Buf;
use escp_engine_api::EngineKind;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

/// How this thread reaches files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Disk {
    /// Operations on the thread's ring; plain calls for files in memory, where the ring would only hand
    /// over to a kernel thread.
    Uring,
    /// Plain calls on this thread. One thread per stream, so they hold up nobody else.
    Posix,
    /// No files: reads leave the buffer as it is, writes are dropped.
    Dummy,
}

/// An operation on a file: in flight, or done before it was asked for.
pub(crate) enum DiskOp {
    Ring(RingOp),
    Done(Option<(io::Result<usize>, Buf)>),
}

impl DiskOp {
    fn done(result: io::Result<usize>, buf: Buf) -> Self {
        Self::Done(Some((result, buf)))
    }
}

impl Future for DiskOp {
    type Output = (io::Result<usize>, Buf);

    /// # Panics
    /// When polled again after it was ready.
    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ring(op) => Pin::new(op).poll(context),
            #[expect(clippy::expect_used, reason = "the contract of Future")]
            Self::Done(output) => Poll::Ready(output.take().expect("polled after it was ready")),
        }
    }
}

impl Disk {
    pub(crate) fn of(kind: EngineKind) -> Self {
        match kind {
            EngineKind::Uring => Self::Uring,
            EngineKind::Posix => Self::Posix,
            EngineKind::Dummy => Self::Dummy,
        }
    }

    /// Starts to read into `range` of `buf` from `offset` of `file`. May read less.
    pub(crate) fn read(self, file: &Arc<File>, mut buf: Buf, range: Range<usize>, offset: u64) -> DiskOp {
        match self {
            Self::Uring if !file.spec().in_memory => DiskOp::Ring(uring::read(file, buf, range, offset)),
            Self::Uring | Self::Posix => {
                let result = posix::read(file, &mut buf.bytes_mut()[range], offset);
                DiskOp::done(result, buf)
            }
            Self::Dummy => DiskOp::done(Ok(range.len()), buf),
        }
    }

    /// Starts to write `range` of `buf` at `offset` of `file`. May write less.
    pub(crate) fn write(self, file: &Arc<File>, buf: Buf, range: Range<usize>, offset: u64) -> DiskOp {
        match self {
            Self::Uring if !file.spec().in_memory => DiskOp::Ring(uring::write(file, buf, range, offset)),
            Self::Uring | Self::Posix => {
                let result = posix::write(file, &buf.bytes()[range], offset);
                DiskOp::done(result, buf)
            }
            Self::Dummy => DiskOp::done(Ok(range.len()), buf),
        }
    }

    /// Reads a small file's data on this thread: one plain call costs less than a trip through the ring.
    pub(crate) fn read_small(self, file: &File, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Dummy => Ok(into.len()),
            Self::Uring | Self::Posix => posix::read_all(file, into),
        }
    }

    /// Writes a small file's data on this thread.
    pub(crate) fn write_small(self, file: &File, from: &[u8]) -> io::Result<()> {
        match self {
            Self::Dummy => Ok(()),
            Self::Uring | Self::Posix => posix::write_all(file, from),
        }
    }
}
