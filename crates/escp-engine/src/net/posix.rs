//! Sockets by plain system calls and readiness.

use escp_buf::Buf;
use std::io;
use std::ops::Range;
use tokio::net::TcpStream;

pub(crate) async fn receive(
    socket: &TcpStream,
    mut buf: Buf,
    range: Range<usize>,
) -> (io::Result<usize>, Buf) {
    loop {
        if let Err(error) = socket.readable().await {
            return (Err(error), buf);
        }
        match socket.try_read(&mut buf.bytes_mut()[range.clone()]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return (result, buf),
        }
    }
}

pub(crate) async fn send(socket: &TcpStream, buf: Buf, range: Range<usize>) -> (io::Result<usize>, Buf) {
    loop {
        if let Err(error) = socket.writable().await {
            return (Err(error), buf);
        }
        match socket.try_write(&buf.bytes()[range.clone()]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return (result, buf),
        }
    }
}
