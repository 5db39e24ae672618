//! The floor's loop by io_uring: several blocks in flight on the disk, one record after another on the socket.
//!
//! A thread that waits for its socket in a blocking call leaves the disk at work, and saves the ring's and the runtime's
//! share of waiting, but asks for the next block only after it. On a disk that takes less CPU time and more time.
//!
//! As in the engine, an operation owns its slot and keeps its file or socket alive until it is complete.

use super::record::{Opening, Sealing, padded, record};
use super::{End, blocking};
use crate::bare::{read_whole, write_whole};
use escp_buf::{BODY, Buf, Pool};
use escp_testkit::{Checked, Trouble};
use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};
use rustix::net::{RecvFlags, SendFlags};
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// Whether this process may use io_uring at all.
pub(crate) fn is_allowed() -> bool {
    runtime().is_ok()
}

/// Sends one stream's blocks.
pub(super) fn send(end: End) -> Checked {
    runtime()?.block_on(send_all(end))
}

/// Receives one stream's blocks.
pub(super) fn receive(end: End) -> Checked {
    runtime()?.block_on(receive_all(end))
}

/// As the engine's.
fn runtime() -> io::Result<tokio_uring::Runtime> {
    let mut ring = tokio_uring::uring_builder();
    ring.setup_coop_taskrun().setup_single_issuer();
    let mut builder = tokio_uring::builder();
    builder.entries(256).uring_builder(&ring);
    tokio_uring::Runtime::new(&builder)
}

/// A transfer of the disk under way: of `length` bytes at `offset`.
struct Transfer {
    offset: u64,
    length: usize,
    op: Op,
}

async fn send_all(end: End) -> Checked {
    let pool = slots(&end)?;
    let mut sealing = Sealing::new(end.secret())?;
    let mut blocks = end.blocks();
    let Some(file) = &end.file else {
        end.fill(&mut taken(&pool)?);
        for (offset, length) in blocks {
            let mut buf = taken(&pool)?;
            sealing.seal(buf.bytes_mut(), offset, length)?;
            send_whole(&end.socket, buf, length).await?;
        }
        return Ok(());
    };
    let mut reads = VecDeque::new();
    loop {
        while let Some(buf) = pool.take() {
            let Some((offset, length)) = blocks.next() else { break };
            reads.push_back(Transfer { offset, length, op: read(file, buf, offset, length) });
        }
        let Some(oldest) = reads.pop_front() else { return Ok(()) };
        let Transfer { offset, length, op } = oldest;
        let (got, mut buf) = op.await?;
        if got < length {
            read_whole(file, &mut buf.bytes_mut()[BODY + got..], length - got, offset + got as u64)?;
        }
        sealing.seal(buf.bytes_mut(), offset, length)?;
        if end.plain_socket {
            blocking::send_whole(&end.socket, &buf, length)?;
        } else {
            send_whole(&end.socket, buf, length).await?;
        }
    }
}

async fn receive_all(end: End) -> Checked {
    let pool = slots(&end)?;
    let mut opening = Opening::new(end.secret(), end.block)?;
    let mut writes = VecDeque::new();
    for (offset, length) in end.blocks() {
        let buf = match pool.take() {
            Some(buf) => buf,
            None => {
                written(&end, writes.pop_front()).await?;
                taken(&pool)?
            }
        };
        let mut buf = if end.plain_socket {
            blocking::receive_whole(&end.socket, buf, length)?
        } else {
            receive_whole(&end.socket, buf, length).await?
        };
        opening.open(buf.bytes_mut(), offset, length)?;
        if let Some(file) = &end.file {
            writes.push_back(Transfer { offset, length, op: write(file, buf, offset, length) });
        }
    }
    while !writes.is_empty() {
        written(&end, writes.pop_front()).await?;
    }
    Ok(())
}

/// Waits for the end of a write, and frees its slot.
async fn written(end: &End, oldest: Option<Transfer>) -> Checked {
    let (Some(Transfer { offset, length, op }), Some(file)) = (oldest, &end.file) else { return Ok(()) };
    let (put, buf) = op.await?;
    if put < length {
        write_whole(file, &buf.bytes()[BODY + put..], length - put, offset + put as u64)?;
    }
    Ok(())
}

/// The slots of a stream, registered with this thread's ring where the limit of locked memory allows it.
fn slots(end: &End) -> Checked<Pool> {
    let count = if end.file.is_some() { end.depth } else { 1 };
    let pool = end.pool(count)?;
    // What was never handed out is not registered.
    drop(std::iter::from_fn(|| pool.take()).collect::<Vec<_>>());
    let _ = pool.register();
    Ok(pool)
}

fn taken(pool: &Pool) -> Checked<Buf> {
    pool.take().ok_or_else(|| Trouble::new("an empty pool"))
}

fn read(file: &Arc<File>, mut buf: Buf, offset: u64, length: usize) -> Op {
    let (address, bytes) = buf.window(BODY..BODY + padded(length));
    let fd = Fd(file.as_raw_fd());
    let entry = match buf.registered() {
        Some(index) => opcode::ReadFixed::new(fd, address, bytes, index).offset(offset).build(),
        None => opcode::Read::new(fd, address, bytes).offset(offset).build(),
    };
    Op::submit(entry, buf, Keep::File(Arc::clone(file)))
}

fn write(file: &Arc<File>, mut buf: Buf, offset: u64, length: usize) -> Op {
    let (address, bytes) = buf.window(BODY..BODY + padded(length));
    let fd = Fd(file.as_raw_fd());
    let entry = match buf.registered() {
        Some(index) => opcode::WriteFixed::new(fd, address, bytes, index).offset(offset).build(),
        None => opcode::Write::new(fd, address, bytes).offset(offset).build(),
    };
    Op::submit(entry, buf, Keep::File(Arc::clone(file)))
}

async fn send_whole(socket: &Arc<TcpStream>, mut buf: Buf, length: usize) -> Checked {
    let mut range = record(length);
    // The kernel goes on with a short transfer by itself: one completion a record.
    let flags = (RecvFlags::WAITALL.bits() | SendFlags::NOSIGNAL.bits()).cast_signed();
    while !range.is_empty() {
        let (address, bytes) = buf.window(range.clone());
        let entry = opcode::Send::new(Fd(socket.as_raw_fd()), address, bytes).flags(flags).build();
        let (sent, back) = Op::submit(entry, buf, Keep::Socket(Arc::clone(socket))).await?;
        (range.start, buf) = (range.start + sent, back);
    }
    Ok(())
}

async fn receive_whole(socket: &Arc<TcpStream>, mut buf: Buf, length: usize) -> Checked<Buf> {
    let mut range = record(length);
    let flags = RecvFlags::WAITALL.bits().cast_signed();
    while !range.is_empty() {
        let (address, bytes) = buf.window(range.clone());
        let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), address, bytes).flags(flags).build();
        let (got, back) = Op::submit(entry, buf, Keep::Socket(Arc::clone(socket))).await?;
        if got == 0 {
            return Err(Trouble::new("the connection closed early"));
        }
        (range.start, buf) = (range.start + got, back);
    }
    Ok(buf)
}

/// An operation on this thread's ring; its output is how many bytes it moved, and the slot.
struct Op(InFlightOneshot<Held, Output>);

/// What must outlive an operation: held, never looked at.
enum Keep {
    File(#[expect(dead_code, reason = "held")] Arc<File>),
    Socket(#[expect(dead_code, reason = "held")] Arc<TcpStream>),
}

struct Held {
    buf: Buf,
    _keep: Keep,
}

struct Output;

impl OneshotOutputTransform for Output {
    type Output = io::Result<(usize, Buf)>;
    type StoredData = Held;

    fn transform_oneshot_output(self, held: Held, entry: cqueue::Entry) -> Self::Output {
        match usize::try_from(entry.result()) {
            Ok(count) => Ok((count, held.buf)),
            Err(_) => Err(io::Error::from_raw_os_error(-entry.result())),
        }
    }
}

impl Op {
    /// Submits `entry`, which uses nothing but `buf` and the descriptor in `keep`.
    fn submit(entry: squeue::Entry, buf: Buf, keep: Keep) -> Self {
        Self(UnsubmittedOneshot::new(Held { buf, _keep: keep }, Output, entry).submit())
    }
}

impl Future for Op {
    type Output = io::Result<(usize, Buf)>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context)
    }
}
