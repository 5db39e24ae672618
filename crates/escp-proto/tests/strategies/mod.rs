//! Arbitrary well-formed values of everything that is encoded.

use escp_proto::agent::{
    Accept, AgentMessage, Attributes, Entry, EntryFailure, EntryKind, EntryResult, FileDigest, MAX_NAME,
    Refusal, Request, Scanned, SourceFailure, Timestamp, Transfer,
};
use escp_proto::block::{self, BlockHeader};
use escp_proto::control::{
    BLOCK_UNIT, ControlFailure, ControlMessage, Hello, Job, Listening, MAX_BLOCK_SIZE, MAX_DEPTH,
    MAX_STREAMS, MIN_BLOCK_SIZE, MIN_DEPTH, Streams,
};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind, MAX_METADATA_LEN};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// An IV of any kind, length and number.
pub(crate) fn iv() -> impl Strategy<Value = Iv> {
    let metadata = (1..=u32::try_from(MAX_METADATA_LEN).unwrap()).prop_map(|length| (Kind::Metadata, length));
    let file = (1_u32..1 << 24).prop_map(|length| (Kind::File, length));
    (prop_oneof![metadata, file], 0_u64..1 << 38).prop_map(|((kind, length), sequence)| Iv {
        kind,
        length,
        sequence,
    })
}

/// A block header of any kind, with the length of the data that follows it.
pub(crate) fn block_header(block: u32) -> impl Strategy<Value = (BlockHeader, usize)> {
    let range = || (any::<u64>(), 0..u64::MAX - u64::from(block), any::<u64>());
    let plain = (range(), 1..=block).prop_map(|((file, offset, check), plain_len)| {
        (BlockHeader { file, offset, plain_len, flags: 0, check }, plain_len as usize)
    });
    let zstd = (range(), 2..=block, any::<prop::sample::Index>()).prop_map(
        |((file, offset, check), plain_len, data)| {
            let data_len = 1 + data.index(plain_len as usize - 1);
            (BlockHeader { file, offset, plain_len, flags: block::ZSTD, check }, data_len)
        },
    );
    let hole = (any::<u64>(), 0_u64..1 << 62, 1_u64..1 << 62).prop_map(|(file, offset, check)| {
        (BlockHeader { file, offset, plain_len: 0, flags: block::HOLE, check }, 0)
    });
    let packed =
        (1..=block::MAX_PACKED_FILES, 2..=block, any::<bool>()).prop_map(|(file, plain_len, zstd)| {
            let flags = if zstd { block::PACKED | block::ZSTD } else { block::PACKED };
            let data_len = plain_len as usize - usize::from(zstd);
            (BlockHeader { file, offset: 0, plain_len, flags, check: 0 }, data_len)
        });
    prop_oneof![plain, zstd, hole, packed]
}

/// The data of a packed record of these files: number, check value, bytes.
pub(crate) fn packed(files: &[(u64, u64, Vec<u8>)]) -> Vec<u8> {
    let headers = files.iter().flat_map(|(file, check, data)| {
        let plain_len = u32::try_from(data.len()).unwrap();
        BlockHeader { file: *file, offset: 0, plain_len, flags: 0, check: *check }.encode()
    });
    let data = files.iter().flat_map(|(_, _, data)| data.iter().copied());
    headers.collect::<Vec<u8>>().into_iter().chain(data).collect()
}

/// A metadata message.
pub(crate) fn message() -> impl Strategy<Value = Message> {
    let engine = prop_oneof![
        (any::<u16>(), any::<u64>()).prop_map(|(stream, records)| EngineMessage::Ack { stream, records }),
        Just(EngineMessage::Keepalive),
        any::<u64>().prop_map(|records| EngineMessage::Close { records }),
        any::<(u64, [u8; 32])>().prop_map(|(files, list_hash)| EngineMessage::End { files, list_hash }),
        (any::<u8>(), "\\PC{0,200}").prop_map(|(status, reason)| EngineMessage::Abort { status, reason }),
    ];
    prop_oneof![
        engine.prop_map(Message::Engine),
        vec(any::<u8>(), 0..4000).prop_map(Message::Agent),
        vec(0_u8..3, 0..4000).prop_map(Message::Agent),
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 1..=MAX_NAME).prop_map(|mut name| {
        name.iter_mut().filter(|byte| matches!(**byte, 0 | b'/')).for_each(|byte| *byte = b'_');
        if matches!(&name[..], b"." | b"..") { vec![b'x'] } else { name }
    })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let time = || {
        (any::<i64>(), 0_u32..1_000_000_000)
            .prop_map(|(seconds, nanoseconds)| Timestamp { seconds, nanoseconds })
    };
    (0_u32..=0o7777, time(), time()).prop_map(|(mode, mtime, atime)| Attributes { mode, mtime, atime })
}

/// An entry of any kind.
pub(crate) fn entry() -> impl Strategy<Value = Entry> {
    let file = (name(), any::<u64>(), any::<bool>(), attributes())
        .prop_map(|(name, size, sparse, attributes)| (name, EntryKind::File { size, sparse, attributes }));
    let directory =
        (name(), attributes()).prop_map(|(name, attributes)| (name, EntryKind::Directory { attributes }));
    let end = Just((Vec::new(), EntryKind::DirectoryEnd));
    (2_u64.., any::<prop::sample::Index>(), prop_oneof![file, directory, end]).prop_map(
        |(number, parent, (name, kind))| {
            let parent = 1 + parent.index(usize::try_from(number - 1).unwrap_or(usize::MAX)) as u64;
            Entry { number, parent, name, kind }
        },
    )
}

/// A file of this name.
pub(crate) fn file_named(name: &[u8]) -> Entry {
    let time = Timestamp { seconds: 0, nanoseconds: 0 };
    let attributes = Attributes { mode: 0o644, mtime: time, atime: time };
    let kind = EntryKind::File { size: 1, sparse: false, attributes };
    Entry { number: 1, parent: 0, name: name.to_vec(), kind }
}

/// A failure of this entry.
pub(crate) fn failure_of(number: u64) -> EntryFailure {
    EntryFailure { number, text: "no".to_owned(), integrity: false }
}

fn failure() -> impl Strategy<Value = EntryFailure> {
    (1_u64.., "\\PC{0,100}", any::<bool>()).prop_map(|(number, text, integrity)| EntryFailure {
        number,
        text,
        integrity,
    })
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    vec(1_u8.., 0..300)
}

fn request() -> impl Strategy<Value = Request> {
    let upload = (path(), any::<bool>())
        .prop_map(|(target, directory_required)| Transfer::Upload { target, directory_required });
    let download = vec(path(), 1..10).prop_map(|sources| Transfer::Download { sources });
    (prop_oneof![upload, download], any::<[bool; 7]>()).prop_map(|(transfer, flags)| Request {
        transfer,
        recursive: flags[0],
        preserve: flags[1],
        inplace: flags[2],
        durable: flags[3],
        direct: flags[4],
        checksum: flags[5],
        dummy: flags[6],
    })
}

/// An agent message of any kind.
pub(crate) fn agent_message() -> impl Strategy<Value = AgentMessage> {
    let digest = prop_oneof![any::<u64>().prop_map(Ok), "\\PC{0,60}".prop_map(Err)];
    let result = prop_oneof![
        (1_u64.., any::<u64>()).prop_map(|(number, check)| EntryResult { number, outcome: Ok(check) }),
        failure().prop_map(|failure| EntryResult { number: failure.number, outcome: Err(failure) }),
    ];
    prop_oneof![
        request().prop_map(AgentMessage::Request),
        any::<u32>().prop_map(|sources| AgentMessage::Accept(Accept { sources })),
        (1_u8.., "\\PC{0,60}").prop_map(|(status, text)| AgentMessage::Refuse(Refusal { status, text })),
        vec(entry(), 0..60).prop_map(AgentMessage::Offer),
        any::<(u64, u64, bool)>().prop_map(|(files, bytes, complete)| {
            AgentMessage::Scanned(Scanned { files, bytes, complete })
        }),
        (path(), "\\PC{0,60}")
            .prop_map(|(path, text)| AgentMessage::SourceFailed(SourceFailure { path, text })),
        any::<u64>().prop_map(|entries| AgentMessage::Credit { entries }),
        vec(1_u64.., 0..=512).prop_map(AgentMessage::Ready),
        vec(failure(), 0..20).prop_map(AgentMessage::Rejected),
        vec((1_u64.., digest), 0..20).prop_map(|digests| {
            let digest = |(number, outcome)| FileDigest { number, outcome };
            AgentMessage::Digests(digests.into_iter().map(digest).collect())
        }),
        vec(result, 0..20).prop_map(AgentMessage::Done),
        Just(AgentMessage::NoMore),
        vec(path(), 1..60).prop_map(AgentMessage::Sources),
    ]
}

/// A hello of any version range.
pub(crate) fn hello() -> impl Strategy<Value = Hello> {
    any::<(u16, u16, u64, [u8; 16], [u8; 32], [u8; 16])>().prop_map(
        |(a, b, features, session, random, machine)| Hello {
            lowest: a.min(b),
            highest: a.max(b),
            features,
            session,
            random,
            machine,
        },
    )
}

/// A hello as it is.
pub(crate) fn plain_hello() -> Hello {
    Hello { lowest: 2, highest: 2, features: 0, session: [1; 16], random: [2; 32], machine: [3; 16] }
}

/// A job as it is.
pub(crate) fn plain_job() -> Job {
    let streams = Streams { count: 8, depth: 4 };
    Job {
        far_sends: false,
        engine: "uring".to_owned(),
        streams,
        streams_on_one_machine: streams,
        block_size: MIN_BLOCK_SIZE,
        compress: None,
        checksum: true,
        durable: true,
        rate_limit: None,
        congestion: None,
        ports: None,
        verbose: 0,
    }
}

fn streams() -> impl Strategy<Value = Streams> {
    (1..=MAX_STREAMS, MIN_DEPTH..=MAX_DEPTH).prop_map(|(count, depth)| Streams { count, depth })
}

fn job() -> impl Strategy<Value = Job> {
    let sizes = (
        streams(),
        MIN_BLOCK_SIZE / BLOCK_UNIT..=MAX_BLOCK_SIZE / BLOCK_UNIT,
        streams(),
        option::of(-100..=22_i32),
        option::of(1_u64..),
        option::of(any::<(u16, u16)>()),
        option::of("[a-z0-9_-]{1,15}"),
    );
    (any::<[bool; 3]>(), "[a-z]{0,32}", sizes, 0_u8..=4).prop_map(|(flags, engine, sizes, verbose)| Job {
        far_sends: flags[0],
        engine,
        streams: sizes.0,
        streams_on_one_machine: sizes.2,
        block_size: sizes.1 * BLOCK_UNIT,
        compress: sizes.3,
        checksum: flags[1],
        durable: flags[2],
        rate_limit: sizes.4,
        congestion: sizes.6,
        ports: sizes.5.map(|(a, b)| (a.min(b), a.max(b))),
        verbose,
    })
}

/// A control message of any kind.
pub(crate) fn control_message() -> impl Strategy<Value = ControlMessage> {
    let listening = (
        vec(any::<std::net::IpAddr>(), 0..=16),
        vec(1_u16.., 1..=256),
        "[a-z]{0,32}",
        any::<bool>(),
        vec("\\PC{0,60}", 0..=16),
    )
        .prop_map(|(addresses, ports, engine, daemon, notes)| {
            ControlMessage::Listening(Listening { addresses, ports, engine, daemon, notes })
        });
    prop_oneof![
        job().prop_map(ControlMessage::Job),
        listening,
        (1_u8.., "\\PC{0,200}")
            .prop_map(|(status, text)| ControlMessage::Failed(ControlFailure { status, text })),
        Just(ControlMessage::Bye),
    ]
}
