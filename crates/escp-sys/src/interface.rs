//! Network interfaces of this host.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd};

/// Most interfaces that are looked at.
const MOST: usize = 256;
/// Where the kernel lists IPv6 addresses (`/proc/net/if_inet6`).
const IPV6: &str = "/proc/net/if_inet6";

/// The name of the interface that has `address`; `None` when none has. Needs no netlink socket, which a
/// service may be denied. `socket` is any socket.
///
/// # Errors
/// Those of ioctl(2) with SIOCGIFCONF (netdevice(7)), or of reading `/proc/net/if_inet6`.
pub fn with_address(socket: impl AsFd, address: IpAddr) -> io::Result<Option<String>> {
    match address.to_canonical() {
        IpAddr::V4(address) => {
            Ok(ipv4(socket)?.into_iter().find(|(_, own)| *own == address).map(|(name, _)| name))
        }
        IpAddr::V6(address) => {
            let wanted: String = address.octets().iter().map(|byte| format!("{byte:02x}")).collect();
            let list = std::fs::read_to_string(IPV6)?;
            Ok(list.lines().find_map(|line| {
                let mut words = line.split_whitespace();
                (words.next() == Some(wanted.as_str()))
                    .then(|| words.next_back().map(str::to_owned))
                    .flatten()
            }))
        }
    }
}

/// `struct ifconf` of linux/if.h.
#[repr(C)]
struct Request {
    length: libc::c_int,
    entries: *mut libc::ifreq,
}

/// Interfaces with an IPv4 address, at most [`MOST`].
fn ipv4(socket: impl AsFd) -> io::Result<Vec<(String, Ipv4Addr)>> {
    // SAFETY: an ifreq consists of integers and of a union of them, for which all zeros is a value.
    let mut entries: Vec<libc::ifreq> = (0..MOST).map(|_| unsafe { std::mem::zeroed() }).collect();
    let room = MOST * size_of::<libc::ifreq>();
    let mut request =
        Request { length: libc::c_int::try_from(room).unwrap_or(0), entries: entries.as_mut_ptr() };
    // SAFETY: the kernel writes at most `length` bytes to `entries`, which has as many, and the length used to
    // `request`; both live past the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCGIFCONF as _, &raw mut request) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let filled = usize::try_from(request.length).unwrap_or(0) / size_of::<libc::ifreq>();
    let named = entries.iter().take(filled).filter_map(|entry| {
        // SAFETY: the kernel ends each name with a NUL inside its field; a field without one was zeroed.
        let name = unsafe { CStr::from_ptr(entry.ifr_name.as_ptr()) };
        // SAFETY: SIOCGIFCONF fills in the address; sockaddr and sockaddr_in are integers of the same size.
        let address = unsafe { entry.ifr_ifru.ifru_addr };
        let [_, _, a, b, c, d, ..] = address.sa_data.map(|byte| byte.to_ne_bytes()[0]);
        let inet = i32::from(address.sa_family) == libc::AF_INET;
        inet.then(|| (name.to_string_lossy().into_owned(), Ipv4Addr::new(a, b, c, d)))
    });
    Ok(named.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv6Addr, TcpListener};

    #[test]
    fn the_loopback_interface_is_found_by_its_addresses() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let of = |address: &str| with_address(&socket, address.parse().unwrap()).unwrap();
        assert_eq!(of("127.0.0.1").as_deref(), Some("lo"));
        assert_eq!(of("::ffff:127.0.0.1").as_deref(), Some("lo"));
        assert_eq!(of("192.0.2.1"), None);
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
            assert_eq!(of("::1").as_deref(), Some("lo"));
            assert_eq!(of("2001:db8::1"), None);
        }
    }
}
