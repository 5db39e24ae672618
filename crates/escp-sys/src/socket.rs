//! TCP sockets of the data plane.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::Duration;

/// How long ago the kernel last received data on a connection (`tcpi_last_data_recv`, tcp(7)), to the
/// millisecond.
///
/// # Errors
/// Those of getsockopt(2).
pub fn since_last_data(socket: &TcpStream) -> io::Result<Duration> {
    // SAFETY: tcp_info is a plain C struct of integers, for which all zeros is a value.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the pointers are to live locals, and `length` is the size of the one the kernel writes to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::from_millis(info.tcpi_last_data_recv.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn data_resets_the_age() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let before = since_last_data(&far).unwrap();
        near.write_all(b"x").unwrap();
        far.read_exact(&mut [0]).unwrap();
        assert!(since_last_data(&far).unwrap() < before, "{before:?}");
    }
}
