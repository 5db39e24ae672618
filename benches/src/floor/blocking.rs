//! The floor's loop by blocking calls: one block at a time.

use super::End;
use super::record::{Opening, Sealing, record};
use crate::bare::{read_whole, write_whole};
use escp_buf::{BODY, Buf};
use escp_testkit::{Checked, Trouble};
use rustix::net::RecvFlags;
use std::io::Write;
use std::net::TcpStream;

/// Sends one stream's blocks.
pub(super) fn send(end: End) -> Checked {
    let mut buf = slot(&end)?;
    let mut sealing = Sealing::new(end.secret())?;
    if end.file.is_none() {
        end.fill(&mut buf);
    }
    for (offset, length) in end.blocks() {
        let bytes = buf.bytes_mut();
        if let Some(file) = &end.file {
            read_whole(file, &mut bytes[BODY..], length, offset)?;
        }
        sealing.seal(bytes, offset, length)?;
        send_whole(&end.socket, &buf, length)?;
    }
    Ok(())
}

/// Receives one stream's blocks.
pub(super) fn receive(end: End) -> Checked {
    let mut buf = slot(&end)?;
    let mut opening = Opening::new(end.secret(), end.block)?;
    for (offset, length) in end.blocks() {
        buf = receive_whole(&end.socket, buf, length)?;
        let bytes = buf.bytes_mut();
        opening.open(bytes, offset, length)?;
        if let Some(file) = &end.file {
            write_whole(file, &bytes[BODY..], length, offset)?;
        }
    }
    Ok(())
}

fn slot(end: &End) -> Checked<Buf> {
    end.pool(1)?.take().ok_or_else(|| Trouble::new("an empty pool"))
}

pub(super) fn send_whole(mut socket: &TcpStream, buf: &Buf, length: usize) -> Checked {
    Ok(socket.write_all(&buf.bytes()[record(length)])?)
}

/// Its length is known, so one call waits for all of it.
pub(super) fn receive_whole(socket: &TcpStream, mut buf: Buf, length: usize) -> Checked<Buf> {
    let range = record(length);
    if receive_some(socket, &mut buf.bytes_mut()[range.clone()])? < range.len() {
        return Err(closed_early());
    }
    Ok(buf)
}

/// Waits for as many bytes as there is room for. There are fewer only where the connection was closed behind them.
pub(super) fn receive_some(socket: &TcpStream, into: &mut [u8]) -> Checked<usize> {
    let mut got = 0;
    while got < into.len() {
        match rustix::net::recv(socket, &mut into[got..], RecvFlags::WAITALL) {
            Ok((0, _)) => break,
            Ok((count, _)) => got += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(got)
}

pub(super) fn closed_early() -> Trouble {
    Trouble::new("the connection closed early")
}
