//! TUN devices (Documentation/networking/tuntap.rst of the kernel): packets of a network interface, read and
//! written by a program. For the tests' network, behind the feature `tun`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// Bytes of the `virtio_net_hdr` (linux/virtio_net.h) in front of each packet that is read and written.
pub const PACKET_HEADER: usize = 10;

/// Makes the TUN interface `name` in this thread's network namespace, with checksum and segmentation offload:
/// packets carry a `virtio_net_hdr` of [`PACKET_HEADER`] bytes and are up to 64 KiB long, whatever the MTU.
/// The descriptor does not block; the interface goes when it is closed. It needs CAP_NET_ADMIN.
///
/// # Errors
/// `InvalidInput` when the name does not fit; those of open(2) on `/dev/net/tun` and of its ioctls.
pub fn open(name: &str) -> io::Result<OwnedFd> {
    let mut options = std::fs::OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let device: OwnedFd = options.open("/dev/net/tun")?.into();
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: libc::c_short::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?,
        },
    };
    // One byte is left for the NUL.
    let room = request.ifr_name.get_mut(..name.len()).filter(|room| room.len() < libc::IFNAMSIZ);
    let room = room.ok_or(io::ErrorKind::InvalidInput)?;
    for (to, from) in room.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which lives past the call.
    let made = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if made != 0 {
        return Err(io::Error::last_os_error());
    }
    let offload = libc::c_ulong::from(libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6);
    // SAFETY: TUNSETOFFLOAD takes its flags as a number and touches no memory of ours.
    let offloads = unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
    if offloads == 0 { Ok(device) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::open;

    #[test]
    fn names_that_do_not_fit_are_refused() {
        // Where there is no TUN, or no right to it, opening fails first.
        assert!(open(&"x".repeat(16)).is_err());
    }
}
