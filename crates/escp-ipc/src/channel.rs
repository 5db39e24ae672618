//! A connected SOCK_SEQPACKET socket on a tokio runtime.

use escp_sys::seqpacket::{self, Packet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;
use zeroize::{Zeroize, Zeroizing};

/// Most bytes of a frame.
pub const MAX_FRAME: usize = 65_535;

/// How long to wait for descriptors under way to arrive before giving up (`ETOOMANYREFS`).
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(30);
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);

/// Whole frames with descriptors, sent and received in order. One task may send while another receives.
#[derive(Debug)]
pub struct Channel {
    socket: AsyncFd<OwnedFd>,
}

impl Channel {
    /// Takes a connected socket of [`escp_sys::seqpacket`].
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket)? })
    }

    /// Sends one frame, waiting for room. The descriptors stay open here.
    ///
    /// # Errors
    /// `BrokenPipe` when the other end is gone; those of [`seqpacket::send`].
    pub async fn send(&self, frame: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        if frame.len() > MAX_FRAME {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a frame of more than 65535 bytes"));
        }
        let mut give_up = None;
        loop {
            let mut ready = self.socket.writable().await?;
            match ready.try_io(|socket| seqpacket::send(socket, frame, descriptors)) {
                Ok(Err(error)) if too_many_in_flight(&error) => {
                    let give_up = *give_up.get_or_insert_with(|| Instant::now() + IN_FLIGHT_TIMEOUT);
                    if Instant::now() >= give_up {
                        return Err(error);
                    }
                    // Nothing tells when the other end has taken some.
                    tokio::time::sleep(IN_FLIGHT_PAUSE).await;
                }
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Receives one frame into `buffer` and returns its descriptors; `None` when the other end hung up.
    /// Safe to cancel.
    ///
    /// # Errors
    /// Those of [`seqpacket::receive`].
    pub async fn receive(&self, buffer: &mut FrameBuffer) -> io::Result<Option<Vec<OwnedFd>>> {
        buffer.wipe();
        let mut reset = false;
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| seqpacket::receive(socket, &mut buffer.bytes)) {
                // The other end closed with something of ours unread, which the kernel says once, before
                // what it sent last.
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset && !reset => reset = true,
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Ok(Err(error)) => return Err(error),
                Ok(Ok(Packet { length: 0, .. })) => return Ok(None),
                Ok(Ok(Packet { length, descriptors })) => {
                    buffer.used = length;
                    return Ok(Some(descriptors));
                }
                Err(_would_block) => {}
            }
        }
    }
}

/// A listening SOCK_SEQPACKET socket on a tokio runtime.
#[derive(Debug)]
pub struct Listener {
    socket: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Takes a socket of [`seqpacket::listen`].
    ///
    /// # Errors
    /// Those of fcntl(2) and epoll_ctl(2).
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O enabled.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: watch(socket)? })
    }

    /// Accepts a connection. Safe to cancel.
    ///
    /// # Errors
    /// Those of accept(2).
    pub async fn accept(&self) -> io::Result<OwnedFd> {
        loop {
            let mut ready = self.socket.readable().await?;
            if let Ok(result) = ready.try_io(seqpacket::accept) {
                return result;
            }
        }
    }
}

fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | rustix::fs::OFlags::NONBLOCK)?;
    // Unsound only for values whose descriptor can change; an OwnedFd's cannot.
    #[expect(deprecated, reason = "its successor is unsafe, and this crate has none of that")]
    let socket = AsyncFd::new(socket)?;
    Ok(socket)
}

/// Room for one frame. Wiped before each use and when dropped.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Zeroizing<Vec<u8>>,
    used: usize,
}

impl FrameBuffer {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: Zeroizing::new(vec![0; MAX_FRAME]), used: 0 }
    }

    /// The frame that was received last.
    #[must_use]
    pub fn frame(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }

    /// Forgets it.
    pub fn wipe(&mut self) {
        if let Some(used) = self.bytes.get_mut(..self.used) {
            used.zeroize();
        }
        self.used = 0;
    }
}

impl Default for FrameBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// The sender has more descriptors under way, over all its sockets, than its limit of open files.
fn too_many_in_flight(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::TOOMANYREFS.raw_os_error())
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
