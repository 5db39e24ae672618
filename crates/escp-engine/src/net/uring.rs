//! Sockets by the thread's ring.
//!
//! MSG_WAITALL lets the kernel go on with a short transfer by itself: one completion per record, not one per
//! segment. Only bytes of a record that is known to come are ever waited for.

use crate::uring::{Keep, RingOp};
use escp_buf::Buf;
use io_uring::{opcode, types::Fd};
use std::io;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::rc::Rc;

/// Receives what is there now, without waiting: 0 when nothing is, or when the ring has to tell why.
pub(crate) fn receive_at_once(socket: &TcpStream, into: &mut [u8]) -> usize {
    rustix::net::recv(socket, into, rustix::net::RecvFlags::DONTWAIT).map_or(0, |(count, _)| count)
}

pub(crate) async fn receive(
    socket: &Rc<TcpStream>,
    mut buf: Buf,
    range: Range<usize>,
) -> (io::Result<usize>, Buf) {
    let (address, length) = buf.window(range);
    let entry = opcode::Recv::new(Fd(socket.as_raw_fd()), address, length).flags(libc::MSG_WAITALL).build();
    RingOp::submit(entry, buf, Keep::Socket(Rc::clone(socket))).await
}

pub(crate) async fn send(
    socket: &Rc<TcpStream>,
    mut buf: Buf,
    range: Range<usize>,
) -> (io::Result<usize>, Buf) {
    let (address, length) = buf.window(range);
    let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
    let entry = opcode::Send::new(Fd(socket.as_raw_fd()), address, length).flags(flags).build();
    RingOp::submit(entry, buf, Keep::Socket(Rc::clone(socket))).await
}
