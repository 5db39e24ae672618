//! AF_UNIX SOCK_SEQPACKET: whole packets, in order, with descriptors attached (unix(7)).
//!
//! Every socket made here is non-blocking and closed on exec.

use rustix::io::{IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// Most descriptors of one packet (`SCM_MAX_FD`, unix(7)).
pub const MAX_DESCRIPTORS: usize = 253;

const CONTROL_SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// A packet that arrived.
#[derive(Debug)]
pub struct Packet {
    /// Bytes of the caller's buffer that it filled; 0 is the end of the connection.
    pub length: usize,
    /// The descriptors that came with it, closed on exec.
    pub descriptors: Vec<OwnedFd>,
}

/// The process at the other end when the connection was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its process id; it may have ended since.
    pub pid: i32,
}

/// A connected pair.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?)
}

/// Listens at `path`, which must not exist, for whoever the permission bits `mode` let through.
///
/// # Errors
/// Those of socket(2), bind(2), chmod(2) and listen(2).
pub fn listen(path: &Path, mode: u32, backlog: i32) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before listen(2), so no moment sees other permissions than these.
    rustix::fs::chmod(path, rustix::fs::Mode::from_raw_mode(mode))?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}

/// Accepts a connection.
///
/// # Errors
/// `WouldBlock` when none waits; those of accept(2).
pub fn accept(listener: impl AsFd) -> io::Result<OwnedFd> {
    Ok(rustix::net::accept_with(listener, FLAGS)?)
}

/// Connects to the listener at `path`.
///
/// # Errors
/// `WouldBlock` when its queue is full; those of connect(2).
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Whether a descriptor is a listening AF_UNIX SOCK_SEQPACKET socket.
///
/// # Errors
/// Those of getsockopt(2), `ENOTSOCK` among them.
pub fn is_listener(socket: impl AsFd) -> io::Result<bool> {
    use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
    let socket = socket.as_fd();
    Ok(socket_domain(socket)? == AddressFamily::UNIX
        && socket_type(socket)? == SocketType::SEQPACKET
        && socket_acceptconn(socket)?)
}

/// Sends one packet, whole or not at all. The descriptors stay open here.
///
/// # Errors
/// `InvalidInput` for an empty packet, which would look like an end, or more than [`MAX_DESCRIPTORS`];
/// `WouldBlock` when the other end has not read enough; `ETOOMANYREFS` when this user has more descriptors
/// under way than its limit of open files; those of sendmsg(2).
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.is_empty() || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one packet.
///
/// # Errors
/// `WouldBlock` when none waits; `InvalidData` when it does not fit `buffer`, or when descriptors were lost
/// on the way (`MSG_CTRUNC`: this process has as many as it may): what did arrive of them is closed. Those
/// of recvmsg(2).
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(invalid("a descriptor was lost on its way: this process has as many open as it may"));
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(invalid("a packet is larger than any may be"));
    }
    Ok(Packet { length: received.bytes, descriptors })
}

/// Who is at the other end of a connection.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer {
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
        pid: credentials.pid.as_raw_nonzero().get(),
    })
}

fn invalid(text: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    fn memory() -> OwnedFd {
        rustix::fs::memfd_create("packet", rustix::fs::MemfdFlags::CLOEXEC).unwrap()
    }

    #[test]
    fn packets_keep_their_borders_and_their_descriptors() {
        let (left, right) = pair().unwrap();
        let files: Vec<_> = (0..MAX_DESCRIPTORS).map(|_| memory()).collect();
        let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        send(&left, b"first", &borrowed).unwrap();
        send(&left, b"second", &[]).unwrap();
        let mut buffer = [0; 16];
        let first = receive(&right, &mut buffer).unwrap();
        assert_eq!((&buffer[..first.length], first.descriptors.len()), (&b"first"[..], MAX_DESCRIPTORS));
        for descriptor in &first.descriptors {
            let flags = rustix::io::fcntl_getfd(descriptor).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let second = receive(&right, &mut buffer).unwrap();
        assert_eq!((&buffer[..second.length], second.descriptors.len()), (&b"second"[..], 0));
        assert_eq!(receive(&right, &mut buffer).unwrap_err().kind(), ErrorKind::WouldBlock);
        drop(left);
        assert_eq!(receive(&right, &mut buffer).unwrap().length, 0);
    }

    #[test]
    fn refuses_to_send_what_cannot_arrive() {
        let (left, _right) = pair().unwrap();
        let file = memory();
        let many = vec![file.as_fd(); MAX_DESCRIPTORS + 1];
        assert_eq!(send(&left, b"x", &many).unwrap_err().kind(), ErrorKind::InvalidInput);
        assert_eq!(send(&left, b"", &[]).unwrap_err().kind(), ErrorKind::InvalidInput);
    }

    #[test]
    fn a_packet_that_does_not_fit_is_an_error_and_its_descriptors_are_closed() {
        let (left, right) = pair().unwrap();
        let (probe, passed) = rustix::pipe::pipe().unwrap();
        send(&left, &[7; 100], &[passed.as_fd()]).unwrap();
        drop(passed);
        assert_eq!(receive(&right, &mut [0; 99]).unwrap_err().kind(), ErrorKind::InvalidData);
        // The last writer is gone: the pipe ends instead of waiting.
        assert_eq!(rustix::io::read(&probe, &mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_full_socket_refuses_whole_packets() {
        let (left, right) = pair().unwrap();
        let mut sent = 0;
        while send(&left, &[sent; 60_000], &[]).is_ok() {
            sent += 1;
        }
        assert!(sent >= 2);
        let mut buffer = vec![0; 65_536];
        for number in 0..sent {
            assert_eq!(receive(&right, &mut buffer).unwrap().length, 60_000);
            assert_eq!(buffer[..60_000], [number; 60_000][..]);
        }
    }

    #[test]
    fn listens_with_the_permissions_asked_for_and_knows_its_peer() {
        let directory = std::env::temp_dir().join(format!("escp-seqpacket-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join("s");
        let listener = listen(&path, 0o622, 8).unwrap();
        assert_eq!(rustix::fs::stat(&path).unwrap().st_mode & 0o777, 0o622);
        assert!(is_listener(&listener).unwrap());
        assert_eq!(accept(&listener).unwrap_err().kind(), ErrorKind::WouldBlock);
        let client = connect(&path).unwrap();
        assert!(!is_listener(&client).unwrap());
        let server = accept(&listener).unwrap();
        let seen = peer(&server).unwrap();
        assert_eq!(seen.uid, rustix::process::geteuid().as_raw());
        assert_eq!(seen.pid, i32::try_from(std::process::id()).unwrap());
        drop(listener);
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::ConnectionRefused);
        std::fs::remove_dir_all(&directory).unwrap();
        assert_eq!(connect(&path).unwrap_err().kind(), ErrorKind::NotFound);
    }
}
