//! The floor: our own primitives in a minimal loop, without any protocol around them.
//!
//! ```text
//! sender:    (read) → check → seal → send
//! receiver:  receive → open → check → (write to a new file)
//! ```
//!
//! One thread for each end of each stream, over loopback TCP, by blocking calls or by io_uring. The two ends are two
//! processes, as they are in every copy between two hosts: where both share a machine, it switches between their address
//! spaces. Block `n` belongs to stream `n` modulo the number of streams, so nothing has to be agreed or handed out.
//! What a transfer costs beyond the better of the two is the price of being a program. Many small files have a loop of
//! their own (`files`).

mod blocking;
mod ends;
mod files;
mod pack;
mod part;
mod record;
mod uring;

use crate::bare::{create, open, publish};
use ends::Receiver;
use escp_buf::{BODY, Buf, Pool};
use escp_crypto::{Flow, MasterSecret, StreamContext, StreamSecret};
use escp_testkit::tree::Noise;
use escp_testkit::{Checked, Trouble};
use std::fs::File;
use std::net::{IpAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
pub(crate) use uring::is_allowed as uring_is_allowed;

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
    #[arg(long, default_value = "1G", value_parser = escp_config::parse_size)]
    size: u64,
    /// Bytes of the sockets' buffers. Without: as escp does on one machine, small if each core has a stream, else the
    /// kernel's own.
    #[arg(long)]
    buffer: Option<usize>,
    /// File to read, or directory with --files; without it nothing is read or written.
    #[arg(long, requires = "to")]
    from: Option<PathBuf>,
    /// File or directory to make; it must not exist.
    #[arg(long, requires = "from")]
    to: Option<PathBuf>,
    /// O_DIRECT at both ends, space allocated beforehand, durable at the end.
    #[arg(long)]
    direct: bool,
    /// A directory of small files, many to a record.
    #[arg(long, requires = "from", conflicts_with_all = ["direct", "uring"])]
    files: bool,
    /// What is in a file is on the disk before it gets its name, and all names at the end.
    #[arg(long, value_enum, requires = "files")]
    durable: Option<Durable>,
    /// By io_uring instead of blocking calls.
    #[arg(long)]
    uring: bool,
    /// Sockets by blocking calls even so.
    #[arg(long, requires_all = ["uring", "from"])]
    plain_sockets: bool,
    /// Blocks of each stream in flight on the disk at either end, by io_uring.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..))]
    depth: u16,
    /// Address where the receiving end is to be reached.
    #[arg(long, default_value = "127.0.0.1")]
    address: IpAddr,
    /// Be the receiving end, which the sending one starts.
    #[arg(long, hide = true)]
    receive: bool,
    /// Command line that runs the receiving end on another host, such as `ssh far`: its words follow these.
    #[arg(last = true)]
    through: Vec<String>,
}

/// How small files come to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Durable {
    /// Each by itself, several at a time, as escp does it
    Each,
    /// By one barrier for all of them
    Barrier,
}

/// One end of one stream.
struct End {
    stream: u16,
    streams: u16,
    block: u32,
    size: u64,
    file: Option<Arc<File>>,
    socket: Arc<TcpStream>,
    depth: u16,
    plain_socket: bool,
}

/// What a thread does with its end of a stream.
trait Work: Fn(End) -> Checked + Clone + Send + 'static {}

impl<F: Fn(End) -> Checked + Clone + Send + 'static> Work for F {}

/// Moves everything.
pub(crate) fn run(args: &FloorArgs) -> Checked {
    if args.receive { receive_all(args) } else { send_all(args) }
}

/// The sending end, which starts the receiving one and ends after it.
fn send_all(args: &FloorArgs) -> Checked {
    if args.files {
        return files::send_all(args);
    }
    let source = args.from.as_ref().map(|from| open(from, args.direct)).transpose()?.map(Arc::new);
    args.to_receiver(source.as_ref(), if args.uring { uring::send } else { blocking::send })
}

/// The receiving end.
fn receive_all(args: &FloorArgs) -> Checked {
    ends::end_with_the_sender()?;
    if args.files {
        return files::receive_all(args);
    }
    let size = args.bytes()?;
    let space = if args.direct { size } else { 0 };
    let target = args.to.as_ref().map(|to| create(to, space, args.direct)).transpose()?.map(Arc::new);
    let sockets = ends::accept(args.address, args.streams())?;
    let receive = if args.uring { uring::receive } else { blocking::receive };
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
        let file = self.from.as_ref().filter(|_| !self.files);
        Ok(file.map_or(Ok(self.size), |from| from.metadata().map(|meta| meta.len()))?)
    }

    /// Starts the receiving end, and does the sending one's work with each stream.
    fn to_receiver(&self, file: Option<&Arc<File>>, work: impl Work) -> Checked {
        let (receiver, address) = Receiver::start(&self.through)?;
        let sockets = match ends::connect(address, self.streams()) {
            Ok(sockets) => sockets,
            Err(trouble) => return receiver.give_up(&trouble),
        };
        receiver.end(self.each_stream(sockets, file, work))
    }

    /// Does one end's work with each stream, on a thread of its own, and waits for all of them.
    fn each_stream(&self, sockets: Vec<TcpStream>, file: Option<&Arc<File>>, work: impl Work) -> Checked {
        let size = self.bytes()?;
        let mut threads = Vec::new();
        for (stream, socket) in (0..).zip(sockets) {
            fit(&socket, self)?;
            let end = End {
                stream,
                streams: self.streams(),
                block: self.block,
                size,
                file: file.cloned(),
                socket: Arc::new(socket),
                depth: self.depth,
                plain_socket: self.plain_sockets,
            };
            let work = work.clone();
            threads.push(std::thread::spawn(move || work(end)));
        }
        let ended = |thread: JoinHandle<Checked>| {
            thread.join().map_err(|_| Trouble::new("a thread of the floor panicked"))?
        };
        let ended: Vec<Checked> = threads.into_iter().map(ended).collect();
        ended.into_iter().collect()
    }
}

/// Makes a connection fit for one machine, if it does not leave this one.
fn fit(socket: &TcpStream, args: &FloorArgs) -> Checked {
    if socket.peer_addr()?.ip() != socket.local_addr()?.ip() {
        return Ok(());
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let small = (usize::from(args.streams) >= cores).then_some(128 << 10);
    let options = socket2::SockRef::from(socket);
    if let Some(buffer) = args.buffer.or(small) {
        options.set_send_buffer_size(buffer)?;
        options.set_recv_buffer_size(buffer)?;
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

    /// Slots for the calling thread, which come to be where it runs.
    fn pool(&self, slots: u16) -> Checked<Pool> {
        let pool = Pool::new(usize::from(slots), self.block as usize)?;
        pool.prefer_huge_pages();
        Ok(pool)
    }

    /// What is sent where there is no file to read.
    fn fill(&self, buf: &mut Buf) {
        let block = self.block as usize;
        Noise::new(u64::from(self.stream)).fill(&mut buf.bytes_mut()[BODY..BODY + block]);
    }

    fn secret(&self) -> StreamSecret {
        let context =
            StreamContext { session: [1; 16], stream: self.stream, nonce: [2; 16], answer_nonce: [3; 16] };
        MasterSecret::from_bytes([4; 32]).stream_secret(&context, Flow::NearToFar)
    }
}
