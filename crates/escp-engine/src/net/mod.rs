//! Sending and receiving ranges of buffers on a connected socket.

mod posix;
mod uring;

use escp_buf::Buf;
use std::io;
use std::ops::Range;
use std::rc::Rc;

/// A lane's socket, as this thread reaches it.
#[derive(Debug, Clone)]
pub(crate) enum Socket {
    /// Operations on the thread's ring.
    Uring(Rc<std::net::TcpStream>),
    /// Readiness by epoll.
    Posix(Rc<tokio::net::TcpStream>),
}

/// How a receive ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// Everything came.
    All,
    /// The peer closed after so many bytes of it.
    Eof(usize),
}

impl Socket {
    /// Takes a connected socket over, for a thread with a ring or without.
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    pub(crate) fn new(socket: std::net::TcpStream, ring: bool) -> io::Result<Self> {
        // io_uring answers EAGAIN on a non-blocking socket instead of waiting.
        socket.set_nonblocking(!ring)?;
        Ok(if ring {
            Self::Uring(Rc::new(socket))
        } else {
            Self::Posix(Rc::new(tokio::net::TcpStream::from_std(socket)?))
        })
    }

    /// Receives exactly `range`, or as much as comes before the peer closes.
    pub(crate) async fn receive(&self, mut buf: Buf, range: Range<usize>) -> (io::Result<Received>, Buf) {
        let mut at = range.start;
        while at < range.end {
            let (result, returned) = match self {
                Self::Uring(socket) => uring::receive(socket, buf, at..range.end).await,
                Self::Posix(socket) => posix::receive(socket, buf, at..range.end).await,
            };
            buf = returned;
            match result {
                Ok(0) => return (Ok(Received::Eof(at - range.start)), buf),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(Received::All), buf)
    }

    /// Sends all of `range`.
    pub(crate) async fn send(&self, mut buf: Buf, range: Range<usize>) -> (io::Result<()>, Buf) {
        let mut at = range.start;
        while at < range.end {
            let (result, returned) = match self {
                Self::Uring(socket) => uring::send(socket, buf, at..range.end).await,
                Self::Posix(socket) => posix::send(socket, buf, at..range.end).await,
            };
            buf = returned;
            match result {
                Ok(0) => return (Err(io::ErrorKind::WriteZero.into()), buf),
                Ok(count) => at += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }
}
