//! One operation on this thread's ring, with what it uses.
//!
//! tokio-uring has no single-completion operations on registered buffers and foreign descriptors; its
//! one-shot interface takes any. An operation owns its buffer and keeps its file or socket alive, and
//! nothing here ever drops one that is in flight except when the whole thread ends, and then the
//! runtime keeps it until the kernel is done.

use escp_buf::Buf;
use io_uring::{cqueue, squeue};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
pub(crate) use tokio_uring::Runtime;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// What must outlive an operation: held, never looked at.
pub(crate) enum Keep {
    File(#[expect(dead_code, reason = "held")] Arc<crate::files::File>),
    Socket(#[expect(dead_code, reason = "held")] Rc<std::net::TcpStream>),
}

pub(crate) struct Held {
    buf: Buf,
    _keep: Keep,
}

pub(crate) struct Output;

impl OneshotOutputTransform for Output {
    type Output = (io::Result<usize>, Buf);
    type StoredData = Held;

    fn transform_oneshot_output(self, held: Held, entry: cqueue::Entry) -> Self::Output {
        let result = match entry.result() {
            #[expect(clippy::cast_sign_loss, reason = "not negative in this arm")]
            count @ 0.. => Ok(count as usize),
            errno => Err(io::Error::from_raw_os_error(-errno)),
        };
        (result, held.buf)
    }
}

/// An operation in flight; its output is the kernel's result and the buffer.
pub(crate) struct RingOp(InFlightOneshot<Held, Output>);

impl RingOp {
    /// Submits `entry`, which must use only `buf` and the descriptor in `keep`.
    pub(crate) fn submit(entry: squeue::Entry, buf: Buf, keep: Keep) -> Self {
        Self(UnsubmittedOneshot::new(Held { buf, _keep: keep }, Output, entry).submit())
    }
}

impl Future for RingOp {
    type Output = (io::Result<usize>, Buf);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}

/// Whether this process may use io_uring at all.
///
/// # Errors
/// What io_uring_setup(2) says: ENOSYS, EPERM (sysctl kernel.io_uring_disabled, seccomp), ENOMEM.
pub(crate) fn probe() -> io::Result<()> {
    io_uring::IoUring::new(4).map(drop)
}

/// A runtime for a data thread.
///
/// # Errors
/// Those of io_uring_setup(2).
pub(crate) fn runtime() -> io::Result<Runtime> {
    let mut ring = tokio_uring::uring_builder();
    // Completions wait for the next system call of the one thread that submits, instead of interrupting it.
    // (DEFER_TASKRUN would suit even better and hangs tokio-uring 0.5, which waits by epoll.)
    ring.setup_coop_taskrun().setup_single_issuer();
    let mut builder = tokio_uring::builder();
    builder.entries(256).uring_builder(&ring);
    Runtime::new(&builder)
}
