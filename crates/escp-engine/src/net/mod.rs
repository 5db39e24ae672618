//! Sending and receiving ranges of buffers on a connected socket.

mod blocking;
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

/// Ranges up to this many bytes are first asked for by a plain call. On a busy stream the next record's IV is
/// there already, and a trip through the ring for 8 bytes costs as much as one for a megabyte.
const AT_ONCE: usize = 64;

/// Who waits until an operation on a socket is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// The task; others on its thread go on.
    Task,
    /// The thread, in one system call: for who is alone on it and has nothing else under way. Each time that a
    /// full or empty socket buffer is waited for, the way through ring and runtime costs several microseconds
    /// more. Shutting the socket down ends the wait.
    Thread,
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

    /// For how long, in all, data was on its way or waiting here.
    ///
    /// # Errors
    /// See [`escp_sys::socket::sending_time`].
    pub(crate) fn sending_time(&self) -> io::Result<std::time::Duration> {
        match self {
            Self::Uring(socket) => escp_sys::socket::sending_time(socket.as_ref()),
            Self::Posix(socket) => escp_sys::socket::sending_time(socket.as_ref()),
        }
    }

    /// Receives exactly `range`, or as much as comes before the peer closes.
    pub(crate) async fn receive(
        &self,
        mut buf: Buf,
        range: Range<usize>,
        wait: Wait,
    ) -> (io::Result<Received>, Buf) {
        let mut at = range.start;
        if let Self::Uring(socket) = self
            && wait == Wait::Task
            && range.len() <= AT_ONCE
        {
            // Nothing there, or any error: the ring waits for it, or meets it again and reports it.
            at += uring::receive_at_once(socket, &mut buf.bytes_mut()[range.clone()]);
        }
        while at < range.end {
            let (result, returned) = match self {
                Self::Uring(socket) if wait == Wait::Thread => blocking::receive(socket, buf, at..range.end),
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
    pub(crate) async fn send(&self, mut buf: Buf, range: Range<usize>, wait: Wait) -> (io::Result<()>, Buf) {
        let mut at = range.start;
        while at < range.end {
            let (result, returned) = match self {
                Self::Uring(socket) if wait == Wait::Thread => blocking::send(socket, buf, at..range.end),
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
