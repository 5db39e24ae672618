//! The congestion control of TCP connections (TCP_CONGESTION, tcp(7)), chosen before one can leave a trace.
//!
//! A congestion control that paces, such as bbr, marks a socket as paced when the connection comes to be, and the kernel
//! never takes the mark back: whatever is chosen later goes on by timer (`sk_pacing_status`: bbr_init of
//! net/ipv4/tcp_bbr.c, tcp_pacing_check of net/ipv4/tcp_output.c). Inside one machine those timers hold streams up and
//! cost a third of a core. So the choice is made on the socket before it connects, and on the one that listens,
//! whose connections inherit it.

use rustix::net::sockopt::{set_tcp_congestion, tcp_congestion};
use rustix::net::{AddressFamily, SocketType, socket};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;

/// What every kernel has, lets everybody choose and never paces.
pub const UNPACED: &str = "reno";

/// Prepares a socket that is to be connected to `to`: with `asked`, if somebody asked; unpaced, if the way does not leave
/// this machine. A kernel that refuses leaves the socket as it was.
pub fn before_connecting(socket: impl AsFd, to: IpAddr, asked: Option<&str>) {
    if let Some(name) = asked.or_else(|| is_here(to).then_some(UNPACED)) {
        let _ = set_tcp_congestion(socket, name);
    }
}

/// Prepares a listening socket: its connections are unpaced until [`set`] or [`leave_to_the_host`] says otherwise. A
/// kernel that refuses leaves the socket as it was.
pub fn before_accepting(listener: impl AsFd) {
    let _ = set_tcp_congestion(listener, UNPACED);
}

/// Gives a connection the congestion control that is asked for.
///
/// # Errors
/// Those of setsockopt(2): ENOENT where the kernel does not have it, EPERM where it keeps it for root.
pub fn set(socket: impl AsFd, name: &str) -> io::Result<()> {
    Ok(set_tcp_congestion(socket, name)?)
}

/// Gives a connection of a listener that was prepared the host's own congestion control
/// (net.ipv4.tcp_congestion_control). One that got another by its route (congctl, ip-route(8)) keeps it.
///
/// # Errors
/// Those of socket(2), getsockopt(2) and setsockopt(2).
pub fn leave_to_the_host(socket: impl AsFd) -> io::Result<()> {
    let own = tcp_congestion(socket_of_nobody()?)?;
    if own != UNPACED && tcp_congestion(&socket)? == UNPACED {
        set_tcp_congestion(&socket, &own)?;
    }
    Ok(())
}

/// One that nobody chose anything for.
fn socket_of_nobody() -> io::Result<std::os::fd::OwnedFd> {
    socket(AddressFamily::INET, SocketType::STREAM, None)
        .or_else(|_| socket(AddressFamily::INET6, SocketType::STREAM, None))
        .map_err(io::Error::from)
}

/// Whether an address is one of this machine's own: the kernel would send from it to itself.
fn is_here(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket chooses a route and sends nothing. The port (discard, RFC 863) does not matter.
    let from = UdpSocket::bind((any, 0)).and_then(|probe| {
        probe.connect(SocketAddr::new(address, 9))?;
        probe.local_addr()
    });
    from.is_ok_and(|from| from.ip() == address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn name(socket: impl AsFd) -> String {
        tcp_congestion(socket).unwrap()
    }

    fn fresh() -> std::os::fd::OwnedFd {
        socket_of_nobody().unwrap()
    }

    #[test]
    fn ways_inside_the_machine_are_unpaced_from_the_start() {
        for (here, asked, expected) in [
            ("127.0.0.1", None, UNPACED.to_owned()),
            ("127.0.0.1", Some("cubic"), {
                let cubic = fresh();
                let _ = set_tcp_congestion(&cubic, "cubic");
                name(cubic)
            }),
            // A network for documentation (RFC 5737): not this machine, routed or not.
            ("192.0.2.1", None, name(fresh())),
        ] {
            let socket = fresh();
            before_connecting(&socket, here.parse().unwrap(), asked);
            assert_eq!(name(socket), expected, "{here} {asked:?}");
        }
    }

    #[test]
    fn an_accepted_connection_is_unpaced_until_it_is_left_to_the_host() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        before_accepting(&listener);
        let _near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        assert_eq!(name(&accepted), UNPACED);
        leave_to_the_host(&accepted).unwrap();
        assert_eq!(name(&accepted), name(fresh()));
        assert!(set(&accepted, "nosuch").is_err());
    }
}
