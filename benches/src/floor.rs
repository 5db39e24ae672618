//! The floor: our own primitives in a minimal loop, without any protocol around them.
//!
//! ```text
//! sender:    (read) → check → seal → send
//! receiver:  receive → open → check → (write to a new file)
//! ```
//!
//! Blocking calls, one thread for each end of each stream, over loopback TCP. The two ends are two processes, as they
//! are in every copy between two hosts: where both share a machine, it switches between their address spaces. Block `n`
//! belongs to stream `n` modulo the number of streams, so nothing has to be agreed or handed out. What a transfer
//! costs beyond this is the price of being a program.

mod ends;

use crate::bare::{create, open, publish, read_whole, write_whole};
use crc_fast::{CrcAlgorithm, checksum};
use ends::Receiver;
use escp_buf::{BODY, Buf, Pool};
use escp_crypto::{Flow, MasterSecret, Opener, Sealer, StreamContext, StreamSecret};
use escp_proto::block::{BlockHeader, HEADER_LEN};
use escp_proto::record::{IV_LEN, Iv, Kind, TAG_LEN};
use escp_testkit::tree::Noise;
use escp_testkit::{Checked, Trouble};
use rustix::net::RecvFlags;
use std::fs::File;
use std::io::Write;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;

/// What to move, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FloorArgs {
    /// TCP connections, each with a thread at either end.
    #[arg(long, default_value_t = 1)]
    streams: u16,
    /// Bytes of a block.
    #[arg(long, default_value_t = 2 << 20)]
    block: u32,
    /// Bytes to move where there is no file to read.
    #[arg(long, default_value = "1G", value_parser = crate::args::size)]
    size: u64,
    /// Bytes of the sockets' buffers. Without: as escp does on one machine, small if each core has a stream, else the
    /// kernel's own, and without pacing.
    #[arg(long)]
    buffer: Option<usize>,
    /// File to read; without it nothing is read or written.
    #[arg(long, requires = "to")]
    from: Option<PathBuf>,
    /// File to write; it must not exist.
    #[arg(long, requires = "from")]
    to: Option<PathBuf>,
    /// O_DIRECT at both ends, space allocated beforehand, durable at the end.
    #[arg(long)]
    direct: bool,
    /// Be the receiving end, which the sending one starts.
    #[arg(long, hide = true)]
    receive: bool,
}

const RECORD: usize = BODY - HEADER_LEN - IV_LEN;
const PAYLOAD: usize = RECORD + IV_LEN;

/// One end of one stream.
struct End {
    stream: u16,
    streams: u16,
    block: u32,
    size: u64,
    file: Option<Arc<File>>,
    socket: TcpStream,
    buf: Buf,
}

/// Moves everything.
pub(crate) fn run(args: &FloorArgs) -> Checked {
    if args.receive { receive_all(args) } else { send_all(args) }
}

/// The sending end, which starts the receiving one and ends after it.
fn send_all(args: &FloorArgs) -> Checked {
    let source = args.from.as_ref().map(|from| open(from, args.direct)).transpose()?.map(Arc::new);
    let (receiver, address) = Receiver::start()?;
    let sockets = match ends::connect(address, args.streams()) {
        Ok(sockets) => sockets,
        Err(trouble) => return receiver.give_up(&trouble),
    };
    receiver.end(args.each_stream(sockets, source.as_ref(), send))
}

/// The receiving end.
fn receive_all(args: &FloorArgs) -> Checked {
    ends::end_with_the_sender()?;
    let size = args.bytes()?;
    let space = if args.direct { size } else { 0 };
    let target = args.to.as_ref().map(|to| create(to, space, args.direct)).transpose()?.map(Arc::new);
    let sockets = ends::accept(args.streams())?;
    args.each_stream(sockets, target.as_ref(), receive)?;
    match (&target, &args.to) {
        (Some(file), Some(path)) => publish(file, path, size, args.direct),
        _ => Ok(()),
    }
}

impl FloorArgs {
    fn streams(&self) -> u16 {
        self.streams.max(1)
    }

    /// How many there are to move.
    fn bytes(&self) -> Checked<u64> {
        Ok(self.from.as_ref().map_or(Ok(self.size), |from| from.metadata().map(|meta| meta.len()))?)
    }

    /// Does one end's work with each stream, on a thread of its own.
    fn each_stream(
        &self,
        sockets: Vec<TcpStream>,
        file: Option<&Arc<File>>,
        work: fn(End) -> Checked,
    ) -> Checked {
        let size = self.bytes()?;
        let mut threads = Vec::new();
        for (stream, socket) in (0..).zip(sockets) {
            fit(&socket, self)?;
            let (streams, block, file) = (self.streams(), self.block, file.cloned());
            threads.push(std::thread::spawn(move || -> Checked {
                // The pool belongs to its thread; made there, its memory is near it.
                let pool = Pool::new(1, block as usize)?;
                pool.prefer_huge_pages();
                let buf = pool.take().ok_or_else(|| Trouble::new("an empty pool"))?;
                work(End { stream, streams, block, size, file, socket, buf })
            }));
        }
        threads.into_iter().try_for_each(|thread| {
            thread.join().map_err(|_| Trouble::new("a thread of the floor panicked"))?
        })
    }
}

/// Makes a connection fit for one machine.
fn fit(socket: &TcpStream, args: &FloorArgs) -> Checked {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let small = (usize::from(args.streams) >= cores).then_some(128 << 10);
    let options = socket2::SockRef::from(socket);
    match args.buffer.or(small) {
        Some(buffer) => {
            options.set_send_buffer_size(buffer)?;
            options.set_recv_buffer_size(buffer)?;
        }
        None => options.set_tcp_congestion(b"reno")?,
    }
    Ok(())
}

impl End {
    /// This stream's blocks: offset and length.
    fn blocks(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let (block, size) = (u64::from(self.block), self.size);
        (u64::from(self.stream)..size.div_ceil(block)).step_by(usize::from(self.streams)).map(move |number| {
            let offset = number * block;
            #[expect(clippy::cast_possible_truncation, reason = "at most the block size, a u32")]
            let length = (size - offset).min(block) as usize;
            (offset, length)
        })
    }

    fn secret(&self) -> StreamSecret {
        let context =
            StreamContext { session: [1; 16], stream: self.stream, nonce: [2; 16], answer_nonce: [3; 16] };
        MasterSecret::from_bytes([4; 32]).stream_secret(&context, Flow::NearToFar)
    }
}

fn send(mut end: End) -> Checked {
    let mut sealer = Sealer::new(end.secret())?;
    if end.file.is_none() {
        let block = end.block as usize;
        Noise::new(u64::from(end.stream)).fill(&mut end.buf.bytes_mut()[BODY..BODY + block]);
    }
    for (offset, length) in end.blocks() {
        let bytes = end.buf.bytes_mut();
        if let Some(file) = &end.file {
            read_whole(file, &mut bytes[BODY..], length, offset)?;
        }
        let check = checksum(CrcAlgorithm::Crc64Nvme, &bytes[BODY..BODY + length]);
        let plain_len = u32::try_from(length)?;
        let header = BlockHeader { file: 1, offset, plain_len, flags: 0, check }.encode();
        bytes[PAYLOAD..BODY].copy_from_slice(&header);
        let sequence = sealer.next_sequence()?;
        let payload = u32::try_from(HEADER_LEN + length)?;
        let iv = Iv { kind: Kind::File, length: payload, sequence: sequence.number() }.encode()?;
        let tag = sealer.seal(sequence, iv, &mut bytes[PAYLOAD..BODY + length])?;
        bytes[RECORD..PAYLOAD].copy_from_slice(&iv.to_be_bytes());
        bytes[BODY + length..BODY + length + TAG_LEN].copy_from_slice(&tag);
        end.socket.write_all(&bytes[RECORD..BODY + length + TAG_LEN])?;
    }
    Ok(())
}

fn receive(mut end: End) -> Checked {
    let mut opener = Opener::new(end.secret())?;
    for (offset, length) in end.blocks() {
        let bytes = end.buf.bytes_mut();
        receive_whole(&end.socket, &mut bytes[RECORD..BODY + length + TAG_LEN])?;
        let iv = u64::from_be_bytes(std::array::from_fn(|i| bytes[RECORD + i]));
        let sequence = Iv::decode(iv, HEADER_LEN + length)?.sequence;
        opener.open(sequence, iv, &mut bytes[PAYLOAD..BODY + length + TAG_LEN])?;
        let header = BlockHeader::decode(&bytes[PAYLOAD..BODY + length], length, end.block)?;
        let check = checksum(CrcAlgorithm::Crc64Nvme, &bytes[BODY..BODY + length]);
        if header.check != check || header.offset != offset {
            return Err(Trouble::new(format!("the block at {offset} arrived altered")));
        }
        if let Some(file) = &end.file {
            // Behind the data lies the tag, which padding must not carry along.
            let padded = length.next_multiple_of(4096);
            bytes[BODY + length..BODY + padded].fill(0);
            write_whole(file, &bytes[BODY..], length, offset)?;
        }
    }
    Ok(())
}

/// Its length is known, so one call waits for all of it.
fn receive_whole(socket: &TcpStream, into: &mut [u8]) -> Checked {
    let mut got = 0;
    while got < into.len() {
        match rustix::net::recv(socket, &mut into[got..], RecvFlags::WAITALL) {
            Ok((0, _)) => return Err(Trouble::new("the connection closed early")),
            Ok((count, _)) => got += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
