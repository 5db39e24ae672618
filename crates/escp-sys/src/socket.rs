//! TCP sockets of the data plane.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// How long ago the kernel last received data on a connection (`tcpi_last_data_recv`, tcp(7)), to the
/// millisecond.
///
/// # Errors
/// Those of getsockopt(2).
pub fn since_last_data(socket: impl AsFd) -> io::Result<Duration> {
    Ok(Duration::from_millis(info(socket)?.last_data_recv.into()))
}

/// For how long, in all, a connection had data that was not sent or not acknowledged (`tcpi_busy_time` of
/// linux/tcp.h), to the microsecond; at a resolution of the kernel's tick.
///
/// # Errors
/// Those of getsockopt(2); `Unsupported` on a kernel that does not tell.
pub fn sending_time(socket: impl AsFd) -> io::Result<Duration> {
    let info = info(socket)?;
    info.busy_time.map(Duration::from_micros).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// What is of interest in `struct tcp_info`.
struct Info {
    last_data_recv: u32,
    busy_time: Option<u64>,
}

/// The start of `struct tcp_info` of linux/tcp.h, which only ever grows at its end: 8 flags, 24 numbers of 32
/// bits, and so on. libc's has not all of it.
#[repr(C)]
#[derive(Default)]
struct RawInfo {
    flags: u64,
    before: [u32; 11],
    last_data_recv: u32,
    after: [u32; 12],
    pacing_and_bytes: [u64; 4],
    segments: [u32; 6],
    delivery_rate: u64,
    busy_time: u64,
}

fn info(socket: impl AsFd) -> io::Result<Info> {
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
    let whole = length as usize == size_of::<RawInfo>();
    Ok(Info { last_data_recv: raw.last_data_recv, busy_time: whole.then_some(raw.busy_time) })
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
        assert_eq!(std::mem::offset_of!(RawInfo, last_data_recv), 52);
        assert_eq!(std::mem::offset_of!(RawInfo, busy_time), 168);
        assert_eq!(std::mem::offset_of!(libc::tcp_info, tcpi_last_data_recv), 52);
    }

    #[test]
    fn a_connection_is_busy_while_its_peer_does_not_read() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let (idle, start) = (sending_time(&near).unwrap(), Instant::now());
        assert!(idle < Duration::from_millis(150), "{idle:?}");
        near.set_nonblocking(true).unwrap();
        while near.write(&[0; 65536]).is_ok() {}
        std::thread::sleep(Duration::from_millis(300));
        let busy = sending_time(&near).unwrap() - idle;
        // The kernel counts in ticks, of 10 ms at most.
        let most = start.elapsed() + Duration::from_millis(20);
        assert!(busy >= Duration::from_millis(250) && busy <= most, "{busy:?}");
    }

    #[test]
    fn data_resets_the_age() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        // The machine may stand still between two calls, but not every time.
        let reset = (0..20).any(|_| {
            std::thread::sleep(Duration::from_millis(100));
            let before = since_last_data(&far).unwrap();
            near.write_all(b"x").unwrap();
            far.read_exact(&mut [0]).unwrap();
            before >= Duration::from_millis(90) && since_last_data(&far).unwrap() < before
        });
        assert!(reset);
    }
}
