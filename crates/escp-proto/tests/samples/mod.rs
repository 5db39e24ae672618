//! Well-formed bytes of each kind, all different in length and value where that can show a mistake.

use escp_proto::VERSION;
use escp_proto::agent::{
    Accept, AgentMessage, Attributes, Entry, EntryFailure, EntryKind, EntryResult, FileDigest, ROOT, Refusal,
    Request, Scanned, SourceFailure, Timestamp, Transfer,
};
use escp_proto::block::{self, BlockHeader};
use escp_proto::control::{ControlFailure, ControlMessage, Hello, Job, Listening, Streams};
use escp_proto::first_packet::{Answer, FirstPacket};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind};
use std::net::IpAddr;

/// Bytes under a name.
pub(crate) type Named = (String, Vec<u8>);

fn named(name: &str, bytes: Vec<u8>) -> Named {
    (name.to_owned(), bytes)
}

fn file_record(header: BlockHeader, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(block::HEADER_LEN + data.len()).unwrap();
    let iv = Iv { kind: Kind::File, length, sequence: 5 }.encode().unwrap();
    [&iv.to_be_bytes(), &header.encode()[..], data].concat()
}

/// IV, header and data of each kind of file record.
pub(crate) fn records() -> Vec<Named> {
    let plain = BlockHeader { file: 7, offset: 1 << 20, plain_len: 5, flags: 0, check: 0xaabb };
    let zstd = BlockHeader { plain_len: 100, flags: block::ZSTD, ..plain };
    let hole = BlockHeader { plain_len: 0, flags: block::HOLE, check: 1 << 40, ..plain };
    let small = |file, plain_len| BlockHeader { file, offset: 0, plain_len, flags: 0, check: 1 }.encode();
    let packed_data = [&small(8, 3)[..], &small(9, 4), b"abcdefg"].concat();
    let plain_len = u32::try_from(packed_data.len()).unwrap();
    let packed = BlockHeader { file: 2, offset: 0, plain_len, flags: block::PACKED, check: 0 };
    vec![
        named("plain", file_record(plain, b"hello")),
        named("zstd", file_record(zstd, b"any bytes")),
        named("hole", file_record(hole, b"")),
        named("packed", file_record(packed, &packed_data)),
    ]
}

/// Header and data of file records whose data can be expanded, and of some that declare another length.
pub(crate) fn blocks() -> Vec<Named> {
    let text = b"compressed and expanded again; ".repeat(40);
    let small = |file, plain_len| BlockHeader { file, offset: 0, plain_len, flags: 0, check: 1 }.encode();
    let files = [&small(8, 600)[..], &small(9, 640), &text].concat();
    let payload = |file, flags, plain: &[u8], declared: usize| {
        let plain_len = u32::try_from(declared).unwrap();
        let header = BlockHeader { file, offset: 0, plain_len, flags: flags | block::ZSTD, check: 0 };
        [&header.encode()[..], &zstd::bulk::compress(plain, 1).unwrap()].concat()
    };
    vec![
        named("zstd", payload(7, 0, &text, text.len())),
        named("zstd-less", payload(7, 0, &text, text.len() + 1)),
        named("zstd-more", payload(7, 0, &text, text.len() - 1)),
        named("zstd-packed", payload(2, block::PACKED, &files, files.len())),
    ]
}

/// Payloads of metadata records.
pub(crate) fn messages() -> Vec<Named> {
    let engine = |message| Message::Engine(message).encode().unwrap();
    vec![
        named("ack", engine(EngineMessage::Ack { stream: 3, records: 1 << 33 })),
        named("keepalive", engine(EngineMessage::Keepalive)),
        named("close", engine(EngineMessage::Close { records: 77 })),
        named(
            "end",
            engine(EngineMessage::End { files: 12, list_hash: *b"thirty-two different-ish bytes!!" }),
        ),
        named("abort", engine(EngineMessage::Abort { status: 4, reason: "no space".to_owned() })),
        named("agent", Message::Agent(b"opaque".to_vec()).encode().unwrap()),
        named("agent-zstd", Message::Agent(b"opaque and long; ".repeat(40)).encode().unwrap()),
    ]
}

fn attributes() -> Attributes {
    Attributes {
        mode: 0o4755,
        mtime: Timestamp { seconds: 1_700_000_000, nanoseconds: 999_999_999 },
        atime: Timestamp { seconds: -1, nanoseconds: 0 },
    }
}

fn entry(number: u64, parent: u64, name: &[u8], kind: EntryKind) -> Entry {
    Entry { number, parent, name: name.to_vec(), kind }
}

fn failure(number: u64) -> EntryFailure {
    EntryFailure { number, text: "No space left on device".to_owned(), integrity: false }
}

fn request(transfer: Transfer) -> AgentMessage {
    AgentMessage::Request(Request {
        transfer,
        recursive: true,
        preserve: false,
        inplace: false,
        durable: true,
        direct: true,
        checksum: true,
        dummy: false,
    })
}

/// A tree of one directory with two files.
fn tree() -> AgentMessage {
    let file = |size, sparse| EntryKind::File { size, sparse, attributes: attributes() };
    AgentMessage::Offer(vec![
        entry(1, ROOT, b"dir", EntryKind::Directory { attributes: attributes() }),
        entry(2, 1, b"\xff\n name", file(1 << 40, true)),
        entry(3, 1, b"-rf", file(0, false)),
        entry(4, 1, b"", EntryKind::DirectoryEnd),
    ])
}

/// One agent message of each kind, in the order of a session in which the near side sends, with who says it
/// (0 near, 1 far).
pub(crate) fn conversation() -> Vec<(&'static str, u8, AgentMessage)> {
    let upload = Transfer::Upload { target: b"to/here".to_vec(), directory_required: true };
    let good = |number, check| FileDigest { number, outcome: Ok(check) };
    let done = |number, outcome| EntryResult { number, outcome };
    vec![
        ("request-upload", 0, request(upload)),
        ("accept", 1, AgentMessage::Accept(Accept { sources: 0 })),
        ("credit", 1, AgentMessage::Credit { entries: 4096 }),
        ("offer", 0, tree()),
        ("scanned", 0, AgentMessage::Scanned(Scanned { files: 2, bytes: 1 << 40, complete: true })),
        (
            "source-failed",
            0,
            AgentMessage::SourceFailed(SourceFailure { path: b"a/\xfe".to_vec(), text: "gone".to_owned() }),
        ),
        ("ready", 1, AgentMessage::Ready(vec![2])),
        ("rejected", 1, AgentMessage::Rejected(vec![failure(3)])),
        ("no-more", 0, AgentMessage::NoMore),
        ("digests", 0, AgentMessage::Digests(vec![good(2, u64::MAX)])),
        ("done", 1, AgentMessage::Done(vec![done(1, Ok(0)), done(2, Err(failure(2))), done(4, Ok(0))])),
    ]
}

/// Encoded agent messages of each kind.
pub(crate) fn agent_messages() -> Vec<Named> {
    let mut out: Vec<Named> =
        conversation().into_iter().map(|(name, _, message)| named(name, message.encode().unwrap())).collect();
    let download = Transfer::Download { sources: vec![b"*.txt".to_vec(), Vec::new()] };
    let refusal = Refusal { status: 1, text: "no such directory".to_owned() };
    let disowned = FileDigest { number: 9, outcome: Err("it changed while it was read".to_owned()) };
    out.extend([
        named(
            "sources",
            AgentMessage::Sources(vec![b"a".to_vec(), b"~/\xff[!b]".to_vec()]).encode().unwrap(),
        ),
        named("request-download", request(download).encode().unwrap()),
        named("refuse", AgentMessage::Refuse(refusal).encode().unwrap()),
        named("digests-disowned", AgentMessage::Digests(vec![disowned]).encode().unwrap()),
    ]);
    out
}

/// A whole conversation, framed as the fuzz target takes it.
pub(crate) fn conversations() -> Vec<Named> {
    let framed = |(_, from, message): (&str, u8, AgentMessage)| {
        let body = message.encode().unwrap();
        let head = u16::try_from(body.len()).unwrap() | u16::from(from) << 15;
        [&head.to_be_bytes()[..], &body].concat()
    };
    vec![named("upload", conversation().into_iter().flat_map(framed).collect())]
}

/// A hello.
pub(crate) fn hello(random: u8) -> Hello {
    Hello {
        lowest: VERSION,
        highest: VERSION,
        features: 0,
        session: [0x5e; 16],
        random: [random; 32],
        machine: [0x3a; 16],
    }
}

/// A job.
pub(crate) fn job() -> Job {
    Job {
        far_sends: true,
        engine: "uring".to_owned(),
        streams: Streams { count: 8, depth: 4 },
        streams_on_one_machine: Streams { count: 2, depth: 16 },
        block_size: 1 << 20,
        compress: Some(-3),
        checksum: true,
        durable: true,
        rate_limit: Some(10_000_000_000),
        congestion: Some("bbr".to_owned()),
        ports: Some((1232, 1242)),
        verbose: 1,
    }
}

/// The far side's answer to a job.
pub(crate) fn listening() -> Listening {
    Listening {
        addresses: vec![IpAddr::from([192, 0, 2, 1]), IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 1])],
        ports: vec![1232, 1233],
        engine: "posix".to_owned(),
        daemon: true,
        notes: vec!["io_uring is refused here: EPERM".to_owned()],
    }
}

/// Whole control channels, as the fuzz target takes them: first the size of a piece.
pub(crate) fn control_channels() -> Vec<Named> {
    let frame = |message: ControlMessage| message.encode_frame().unwrap();
    let failed = || frame(ControlMessage::Failed(ControlFailure { status: 3, text: "no port".to_owned() }));
    let heard =
        |piece: u8, frames: &[Vec<u8>]| [vec![piece], hello(1).encode_frame(), frames.concat()].concat();
    vec![
        named("near-to-far", heard(3, &[frame(ControlMessage::Job(job())), frame(ControlMessage::Bye)])),
        named("far-to-near", heard(70, &[frame(ControlMessage::Listening(listening()))])),
        named("far-fails", heard(255, &[failed()])),
        // Once judged by the bytes that happened to lie behind it.
        named("empty-first-frame", b"\x01\0\0\0\0?e\0\0\0\0?".to_vec()),
        named("banner", [&[9][..], b"Welcome to \x1b[1mhost\x1b[0m!\n", &hello(1).encode_frame()].concat()),
    ]
}

/// First packets and an answer.
pub(crate) fn first_packets() -> Vec<Named> {
    let packet = FirstPacket { stream: 258, session: [1; 16], nonce: [2; 16], proof: [3; 16] };
    vec![
        named("packet", packet.encode().to_vec()),
        named("answer", Answer { nonce: [4; 16], proof: [5; 16] }.encode().to_vec()),
    ]
}
