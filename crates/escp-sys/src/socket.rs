//! TCP sockets of the data plane.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// What the kernel knows about the way of a connection that sends (TCP_INFO, tcp(7); linux/tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Smoothed round-trip time.
    pub round_trip: Duration,
    /// Shortest round-trip time of the last minutes: the way without what queues on it.
    pub shortest_round_trip: Duration,
    /// Time for which there was something to send or to be acknowledged, since the start.
    pub busy: Duration,
    /// The part of it in which the peer's receive window held the connection back.
    pub window_limited: Duration,
    /// The part of it in which the size of this side's send buffer did.
    pub buffer_limited: Duration,
    /// Bytes on their way and not acknowledged, to the segment.
    pub in_flight: u64,
    /// Bytes that the peer's receive window has room for.
    pub window: u64,
}

/// Reads [`Way`].
///
/// # Errors
/// Those of getsockopt(2); `Unsupported` from a kernel that does not tell all of it, before Linux 5.4.
pub fn way(socket: impl AsFd) -> io::Result<Way> {
    let (info, length) = info(socket)?;
    if length < size_of::<RawInfo>() {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Way {
        round_trip: Duration::from_micros(info.rtt.into()),
        shortest_round_trip: Duration::from_micros(info.min_rtt.into()),
        busy: Duration::from_micros(info.busy_time),
        window_limited: Duration::from_micros(info.rwnd_limited),
        buffer_limited: Duration::from_micros(info.sndbuf_limited),
        in_flight: u64::from(info.snd_mss) * u64::from(info.unacked),
        window: info.snd_wnd.into(),
    })
}

/// How long ago the kernel last received a sign of the peer's kernel on a connection, to the millisecond: data, or
/// an acknowledgement (`tcpi_last_data_recv`, `tcpi_last_ack_recv`, tcp(7)). Where TCP sends keepalive probes, their
/// answers count, so this is the age of the way and says nothing about the peer's process.
///
/// # Errors
/// Those of getsockopt(2).
pub fn since_last_sign(socket: impl AsFd) -> io::Result<Duration> {
    let (info, _) = info(socket)?;
    Ok(Duration::from_millis(info.last_data_recv.min(info.last_ack_recv).into()))
}

/// Bytes of a connection that arrived: here, or at the peer as far as it acknowledged them (`tcpi_bytes_received`,
/// `tcpi_bytes_acked` of linux/tcp.h).
///
/// # Errors
/// Those of getsockopt(2).
pub fn bytes_moved(socket: impl AsFd) -> io::Result<u64> {
    let (info, _) = info(socket)?;
    Ok(info.bytes_acked.saturating_add(info.bytes_received))
}

/// For how long, in all, a connection had data that was not sent or not acknowledged (`tcpi_busy_time` of
/// linux/tcp.h), to the microsecond; at a resolution of the kernel's tick.
///
/// # Errors
/// Those of getsockopt(2); `Unsupported` on a kernel that does not tell.
pub fn sending_time(socket: impl AsFd) -> io::Result<Duration> {
    let (info, length) = info(socket)?;
    if length < offset_of!(RawInfo, rwnd_limited) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    Ok(Duration::from_micros(info.busy_time))
}

/// The start of `struct tcp_info` of linux/tcp.h, which only ever grows at its end; what is of no interest has
/// no names. libc's has not all of it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    flags: u64,
    timeouts: [u32; 2],
    snd_mss: u32,
    rcv_mss: u32,
    unacked: u32,
    segments: [u32; 6],
    last_data_recv: u32,
    last_ack_recv: u32,
    sizes: [u32; 2],
    rtt: u32,
    windows: [u32; 8],
    pacing: [u64; 2],
    bytes_acked: u64,
    bytes_received: u64,
    counts: [u32; 3],
    min_rtt: u32,
    data_segments: [u32; 2],
    delivery_rate: u64,
    busy_time: u64,
    rwnd_limited: u64,
    sndbuf_limited: u64,
    delivered: [u32; 2],
    bytes_sent: [u64; 2],
    disorder: [u32; 3],
    snd_wnd: u32,
}

/// What the kernel tells, and how many bytes of it.
fn info(socket: impl AsFd) -> io::Result<(RawInfo, usize)> {
    let mut raw = RawInfo::default();
    let mut length = libc::socklen_t::try_from(size_of::<RawInfo>()).unwrap_or(0);
    // SAFETY: the pointers are to live locals, `length` is the size of the one the kernel writes to, and that
    // consists of integers.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut raw).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((raw, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    #[test]
    fn the_layout_is_that_of_the_kernel() {
        // Counted from linux/tcp.h.
        assert_eq!(offset_of!(RawInfo, last_data_recv), offset_of!(libc::tcp_info, tcpi_last_data_recv));
        assert_eq!(offset_of!(RawInfo, last_ack_recv), offset_of!(libc::tcp_info, tcpi_last_ack_recv));
        assert_eq!(offset_of!(RawInfo, snd_mss), offset_of!(libc::tcp_info, tcpi_snd_mss));
        assert_eq!(offset_of!(RawInfo, unacked), offset_of!(libc::tcp_info, tcpi_unacked));
        assert_eq!(offset_of!(RawInfo, rtt), offset_of!(libc::tcp_info, tcpi_rtt));
        assert_eq!(offset_of!(RawInfo, bytes_acked), 120);
        assert_eq!(offset_of!(RawInfo, min_rtt), 148);
        assert_eq!(offset_of!(RawInfo, busy_time), 168);
        assert_eq!(offset_of!(RawInfo, snd_wnd), 228);
        assert_eq!(size_of::<RawInfo>(), 232);
    }

    #[test]
    fn a_connection_is_busy_while_its_peer_does_not_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let start = Instant::now();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        let before = sending_time(&near).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let busy = sending_time(&near).unwrap() - before;
        // To a tick of the kernel, 10 ms at most.
        assert!(
            busy >= Duration::from_millis(285)
                && before + busy <= start.elapsed() + Duration::from_millis(20),
            "{busy:?}"
        );
        far.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        while far.read(&mut [0; 65536]).is_ok_and(|count| count > 0) {}
        let quiet = (0..50).any(|_| {
            let before = sending_time(&near).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            sending_time(&near).unwrap() == before
        });
        assert!(quiet, "busy with nothing to send");
    }

    #[test]
    fn a_receiver_that_does_not_read_limits_the_sender() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        near.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        while near.write_all(&[0; 1 << 16]).is_ok() {}
        std::thread::sleep(Duration::from_millis(300));
        let way = way(&near).unwrap();
        assert!(way.window_limited >= Duration::from_millis(200), "{way:?}");
        assert!(way.busy >= way.window_limited && way.round_trip < Duration::from_secs(1), "{way:?}");
        drop(far);
    }

    #[test]
    fn data_and_acknowledgements_are_signs() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let before = since_last_sign(&far).unwrap();
        assert!(before >= Duration::from_millis(250), "{before:?}");
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        assert_eq!(bytes_moved(&far).unwrap(), 1);
        assert!(since_last_sign(&far).unwrap() < before, "{before:?}");
        std::thread::sleep(Duration::from_millis(300));
        // The other process does nothing about it; its kernel answers.
        far.write_all(b"y").unwrap();
        let answered = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            since_last_sign(&far).unwrap() < Duration::from_millis(250)
        });
        assert!(answered, "{:?}", since_last_sign(&far));
    }
}
