//! The sockets the daemon listens on: its own, or those that the service manager kept for it.

use crate::notify;
use escp_config::PortRange;
use escp_sys::{process, seqpacket};
use rustix::fs::FileType;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted; the kernel lowers it to its own bound.
const BACKLOG: i32 = 4096;
/// Who may connect when nothing narrower was set up: everybody; sessions are bound to their user anyway.
const SOCKET_MODE: u32 = 0o666;

/// A socket that the daemon cannot do without.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Another daemon serves there.
    #[error("another escpd serves {}; stop it, or choose another socket with --socket", .0.display())]
    Answered(PathBuf),
    /// Something else lies there.
    #[error("{} exists and is not a socket; remove it, or choose another socket with --socket", .0.display())]
    NoSocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}: {source} (the directory must exist and belong to escpd's user)", path.display())]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All data ports are in use.
    #[error(
        "none of the TCP ports {0} is free; see who holds them with `ss -ltnp`, or choose others with --ports \
         or `ports:` in /etc/escp.conf"
    )]
    NoPort(PortRange),
    /// A data port cannot be listened on.
    #[error(
        "cannot listen on TCP port {port}: {source}; choose other ports with --ports or `ports:` in /etc/escp.conf"
    )]
    Port {
        /// The last one tried.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The address of the metrics.
    #[error(
        "cannot serve metrics on {address}: {source}; choose another address with --metrics or `metrics:` in \
         /etc/escp.conf"
    )]
    Metrics {
        /// Which.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// What the service manager passed on.
#[derive(Debug, Default)]
pub(crate) struct Passed {
    local: Option<OwnedFd>,
    ports: BTreeMap<u16, TcpListener>,
    /// Names of what is of no use.
    others: Vec<String>,
}

impl Passed {
    /// Takes what was passed to this process. They are told apart by what they are, not by their names. Before
    /// anything else is opened, which could get the number of one that is not there; so before there is a log.
    pub(crate) fn take() -> Self {
        let mut passed = Self::default();
        for (descriptor, name) in process::take_passed_descriptors() {
            if seqpacket::is_listener(&descriptor).unwrap_or(false) {
                passed.local = Some(descriptor);
            } else if let Some((port, listener)) = data_port(descriptor) {
                passed.ports.insert(port, listener);
            } else {
                passed.others.push(name);
            }
        }
        passed
    }

    /// Says in the log what was passed in vain.
    pub(crate) fn report(&self) {
        for name in &self.others {
            tracing::warn!("the service manager passed '{}', which is of no use", name.escape_debug());
        }
    }
}

/// A descriptor that is a listening TCP socket, and its port.
fn data_port(descriptor: OwnedFd) -> Option<(u16, TcpListener)> {
    let socket = Socket::from(descriptor);
    let tcp = socket.protocol().ok()? == Some(Protocol::TCP) && socket.is_listener().ok()?;
    let port = socket.local_addr().ok()?.as_socket()?.port();
    tcp.then(|| (port, socket.into()))
}

/// The Unix socket. Removes its file when dropped, if the daemon made it.
#[derive(Debug)]
pub(crate) struct LocalSocket {
    descriptor: OwnedFd,
    made: Option<(PathBuf, u64)>,
}

impl LocalSocket {
    /// The one that was passed, or a new one at `path`, in place of one that nobody answers on.
    pub(crate) fn open(passed: &mut Passed, path: &Path) -> Result<Self, ListenError> {
        if let Some(descriptor) = passed.local.take() {
            return Ok(Self { descriptor, made: None });
        }
        use io::ErrorKind::{ConnectionRefused, NotFound, WouldBlock};
        match seqpacket::connect(path).map_err(|source| (source.kind(), source)) {
            // A full queue is an answer, too.
            Ok(_) | Err((WouldBlock, _)) => return Err(ListenError::Answered(path.to_owned())),
            Err((NotFound | ConnectionRefused, _)) => {}
            Err((_, source)) => return Err(ListenError::Socket { path: path.to_owned(), source }),
        }
        if let Ok(found) = rustix::fs::lstat(path)
            && FileType::from_raw_mode(found.st_mode) != FileType::Socket
        {
            return Err(ListenError::NoSocket(path.to_owned()));
        }
        Self::make(path).map_err(|source| ListenError::Socket { path: path.to_owned(), source })
    }

    /// Where it lies, whoever made it.
    pub(crate) fn path(&self) -> PathBuf {
        let address = SockRef::from(&self.descriptor).local_addr();
        match (&self.made, address) {
            // The kernel knows it by the name that it was made under.
            (Some((path, _)), _) => path.clone(),
            (None, Ok(address)) => address.as_pathname().unwrap_or(Path::new("(no path)")).to_owned(),
            (None, Err(_)) => PathBuf::from("(unknown)"),
        }
    }

    /// Listens under a name of its own first: the rename puts it in place of a dead one in one step.
    fn make(path: &Path) -> io::Result<Self> {
        // Short: a socket's path has 107 bytes at most.
        let own = path.with_file_name(format!(".{}", std::process::id()));
        // Left behind by a daemon of the same process id that was killed right here.
        let _ = std::fs::remove_file(&own);
        let descriptor = seqpacket::listen(&own, SOCKET_MODE, BACKLOG)?;
        let inode = rustix::fs::lstat(&own)?.st_ino;
        std::fs::rename(&own, path)?;
        Ok(Self { descriptor, made: Some((path.to_owned(), inode)) })
    }
}

impl AsFd for LocalSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        if let Some((path, inode)) = &self.made
            && rustix::fs::lstat(path).is_ok_and(|found| found.st_ino == *inode)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The data ports: every port of `range` that was passed or is free, at least one. Each is given to the
/// service manager to keep over a restart.
pub(crate) fn data_ports(
    passed: &mut Passed,
    range: PortRange,
) -> Result<BTreeMap<u16, TcpListener>, ListenError> {
    let mut listeners = BTreeMap::new();
    let mut problems = Vec::new();
    for port in range.iter() {
        let kept = passed.ports.remove(&port);
        match kept.map_or_else(|| bind(port), Ok) {
            Ok(listener) => drop(listeners.insert(port, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                tracing::info!(port, "a data port is taken by another process, and left out");
            }
            Err(source) => problems.push(ListenError::Port { port, source }),
        }
    }
    for port in std::mem::take(&mut passed.ports).into_keys() {
        tracing::info!(port, "a data port is not of the range any more, and given up");
        notify::forget(&stored_name(port));
    }
    if listeners.is_empty() {
        return Err(problems.pop().unwrap_or(ListenError::NoPort(range)));
    }
    for problem in problems {
        tracing::warn!("a data port is left out: {problem}");
    }
    for (port, listener) in &listeners {
        if let Err(error) = notify::keep(&stored_name(*port), &[listener.as_fd()]) {
            tracing::debug!(port, "the service manager does not keep a data port over a restart: {error}");
        }
    }
    Ok(listeners)
}

fn stored_name(port: u16) -> String {
    format!("port-{port}")
}

/// Both address families in one socket, or IPv4 alone where the host has no IPv6.
fn bind(port: u16) -> io::Result<TcpListener> {
    match listen_on(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))) {
        Err(error) if no_ipv6(&error) => listen_on(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
        result => result,
    }
}

fn no_ipv6(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|no| error.raw_os_error() == Some(no.raw_os_error()))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Connections of a daemon that ended a moment ago do not keep its port.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The listener of the metrics.
pub(crate) fn metrics(address: SocketAddr) -> Result<TcpListener, ListenError> {
    let listen = || {
        let listener = listen_on(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    listen().map_err(|source| ListenError::Metrics { address, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A range whose ports were free a moment ago.
    fn free_range(count: u16) -> PortRange {
        loop {
            let probe = TcpListener::bind("[::]:0").unwrap();
            let first = probe.local_addr().unwrap().port();
            let Some(last) = first.checked_add(count - 1) else { continue };
            drop(probe);
            if (first..=last).all(|port| bind(port).is_ok()) {
                return PortRange { first, last };
            }
        }
    }

    #[test]
    fn takes_the_free_ports_of_a_range_and_says_when_there_is_none() {
        let range = free_range(4);
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, range.first + 1)).unwrap();
        let taken = data_ports(&mut Passed::default(), range).unwrap();
        assert_eq!(taken.keys().copied().collect::<Vec<_>>(), [range.first, range.first + 2, range.last]);
        let error = data_ports(&mut Passed::default(), range).unwrap_err();
        assert!(error.to_string().starts_with(&format!("none of the TCP ports {range} is free")), "{error}");
        drop((other, taken));
        assert_eq!(data_ports(&mut Passed::default(), range).unwrap().len(), 4);
    }

    #[test]
    fn both_address_families_reach_a_data_port() {
        let range = free_range(1);
        let _listeners = data_ports(&mut Passed::default(), range).unwrap();
        for address in
            [SocketAddr::from((Ipv4Addr::LOCALHOST, range.first)), (Ipv6Addr::LOCALHOST, range.first).into()]
        {
            std::net::TcpStream::connect(address).unwrap();
        }
    }

    #[test]
    fn a_port_that_was_passed_is_used_and_one_outside_the_range_is_dropped() {
        let range = free_range(2);
        let kept = bind(range.first).unwrap();
        let inode = rustix::fs::fstat(&kept).unwrap().st_ino;
        let outside = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = outside.local_addr().unwrap();
        let mut passed = Passed::default();
        for listener in [kept, outside] {
            let (port, listener) = data_port(listener.into()).unwrap();
            passed.ports.insert(port, listener);
        }
        let listeners = data_ports(&mut passed, range).unwrap();
        assert_eq!(rustix::fs::fstat(&listeners[&range.first]).unwrap().st_ino, inode);
        assert_eq!(listeners.len(), 2);
        assert!(std::net::TcpStream::connect(address).is_err());
        assert!(data_port(std::fs::File::open("/dev/null").unwrap().into()).is_none());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("escpd.sock");
        drop(seqpacket::listen(&path, 0o600, 1).unwrap());
        let first = LocalSocket::open(&mut Passed::default(), &path).unwrap();
        assert_eq!(rustix::fs::stat(&path).unwrap().st_mode & 0o777, 0o666);
        seqpacket::connect(&path).unwrap();
        let error = LocalSocket::open(&mut Passed::default(), &path).unwrap_err();
        assert!(matches!(error, ListenError::Answered(_)), "{error}");
        drop(first);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);

        std::fs::write(&path, "precious").unwrap();
        let error = LocalSocket::open(&mut Passed::default(), &path).unwrap_err();
        assert!(matches!(error, ListenError::NoSocket(_)), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
