//! Sockets by plain calls that hold up the thread; MSG_WAITALL as in [`super::uring`].

use escp_buf::Buf;
use rustix::net::{RecvFlags, SendFlags};
use std::io;
use std::net::TcpStream;
use std::ops::Range;

pub(crate) fn receive(socket: &TcpStream, mut buf: Buf, range: Range<usize>) -> (io::Result<usize>, Buf) {
    let result = rustix::net::recv(socket, &mut buf.bytes_mut()[range], RecvFlags::WAITALL);
    (result.map(|(count, _)| count).map_err(io::Error::from), buf)
}

pub(crate) fn send(socket: &TcpStream, buf: Buf, range: Range<usize>) -> (io::Result<usize>, Buf) {
    let result = rustix::net::send(socket, &buf.bytes()[range], SendFlags::NOSIGNAL);
    (result.map_err(io::Error::from), buf)
}
