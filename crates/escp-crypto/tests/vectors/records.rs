//! One sealed record of each kind, and records on both sides of each change of epoch.

use super::{hex, samples, schedule};
use crc_fast::CrcAlgorithm;
use escp_crypto::{Flow, ListDigest, Opener, RECORDS_PER_EPOCH, Sealer};
use escp_proto::agent::AgentMessage;
use escp_proto::block::{self, BlockHeader};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind};
use serde_json::{Value, json};

/// A record before it is sealed.
struct Record {
    name: &'static str,
    kind: Kind,
    payload: Vec<u8>,
    meaning: Value,
}

fn check(bytes: &[u8]) -> u64 {
    crc_fast::checksum(CrcAlgorithm::Crc64Nvme, bytes)
}

fn metadata(name: &'static str, message: &Message, meaning: Value) -> Record {
    Record { name, kind: Kind::Metadata, payload: message.encode().unwrap(), meaning }
}

fn engine(name: &'static str, message: EngineMessage, meaning: Value) -> Record {
    metadata(name, &Message::Engine(message), meaning)
}

fn agent(name: &'static str, message: &AgentMessage) -> Record {
    metadata(name, &Message::Agent(message.encode().unwrap()), json!({ "agent": message }))
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap()
}

fn file(name: &'static str, header: BlockHeader, data: &[u8], plain: &[u8]) -> Record {
    let meaning = json!({
        "file": header.file,
        "offset": header.offset,
        "plain_len": header.plain_len,
        "flags": header.flags,
        "check": header.check,
        "plain": hex(plain),
    });
    Record { name, kind: Kind::File, payload: [&header.encode()[..], data].concat(), meaning }
}

/// The sender's stream 0 of an upload.
fn control_of_sender(records_before_close: u64) -> Vec<Record> {
    let conversation = samples::conversation();
    let offer = conversation.iter().find(|(name, ..)| *name == "offer").unwrap();
    let numbers = AgentMessage::Ready((1..=300).collect());
    let mut list = ListDigest::default();
    list.add(1, 5, check(b"hello"));
    list.add(7, 0, check(b""));
    let (files, list_hash) = (list.files(), list.hash());
    let records = vec![
        agent("agent message", &offer.2),
        agent("agent message, zstd", &numbers),
        engine("keepalive", EngineMessage::Keepalive, json!("keepalive")),
        engine(
            "end",
            EngineMessage::End { files, list_hash },
            json!({ "end": {
                "files": files,
                "list_hash": hex(&list_hash),
                "list": [[1, 5, check(b"hello")], [7, 0, check(b"")]],
            }}),
        ),
        engine(
            "close",
            EngineMessage::Close { records: records_before_close },
            json!({ "close": { "records": records_before_close } }),
        ),
    ];
    assert_eq!(records.len() as u64, records_before_close + 1);
    records
}

/// The receiver's stream 0, given up.
fn control_of_receiver() -> Vec<Record> {
    let reason = "der Platz reicht nicht: größer".to_owned();
    vec![
        engine(
            "acknowledgement",
            EngineMessage::Ack { stream: 1, records: 1 << 37 },
            json!({ "ack": { "stream": 1, "records": 1_u64 << 37 } }),
        ),
        engine(
            "abort",
            EngineMessage::Abort { status: 4, reason: reason.clone() },
            json!({ "abort": { "status": 4, "reason": reason } }),
        ),
    ]
}

/// A data stream with a block of each kind.
fn data() -> Vec<Record> {
    let text = b"escp moves files. ".repeat(30);
    let frame = zstd::bulk::compress(&text, 3).unwrap();
    let plain = BlockHeader { file: 7, offset: 0, plain_len: 5, flags: 0, check: check(b"hello") };
    let zstd = BlockHeader {
        offset: 1 << 20,
        plain_len: length(&text),
        flags: block::ZSTD,
        check: check(&text),
        ..plain
    };
    let hole = BlockHeader { offset: 1 << 40, plain_len: 0, flags: block::HOLE, check: 1 << 33, ..plain };
    let small = |file, data: &[u8]| {
        BlockHeader { file, offset: 0, plain_len: length(data), flags: 0, check: check(data) }.encode()
    };
    let files = [&small(8, b"abc")[..], &small(9, &text), b"abc", &text].concat();
    let packed =
        BlockHeader { file: 2, offset: 0, plain_len: length(&files), flags: block::PACKED, check: 0 };
    let shrunk = zstd::bulk::compress(&files, 3).unwrap();
    let packed_zstd = BlockHeader { flags: block::PACKED | block::ZSTD, ..packed };
    vec![
        file("file block", plain, b"hello", b"hello"),
        file("file block, zstd", zstd, &frame, &text),
        file("hole", hole, b"", b""),
        file("packed files", packed, &files, &files),
        file("packed files, zstd", packed_zstd, &shrunk, &files),
        engine("close", EngineMessage::Close { records: 5 }, json!({ "close": { "records": 5 } })),
    ]
}

/// Seals records; those before the first of `keep`, and between them, are sealed but not kept.
fn stream(number: u16, flow: Flow, records: impl Iterator<Item = Record>, keep: fn(u64) -> bool) -> Value {
    let context = schedule::context(number);
    let mut sealer = Sealer::new(schedule::master().stream_secret(&context, flow)).unwrap();
    let mut opener = Opener::new(schedule::master().stream_secret(&context, flow)).unwrap();
    let mut kept = Vec::new();
    for record in records {
        let next = sealer.next_sequence().unwrap();
        let sequence = next.number();
        let iv = Iv { kind: record.kind, length: length(&record.payload), sequence }.encode().unwrap();
        let mut body = record.payload.clone();
        let tag = sealer.seal(next, iv, &mut body).unwrap();
        body.extend_from_slice(&tag);
        let sealed = [&iv.to_be_bytes()[..], &body].concat();
        assert_eq!(opener.open(sequence, iv, &mut body).unwrap(), record.payload);
        if keep(sequence) {
            kept.push(json!({
                "name": record.name,
                "sequence": sequence,
                "iv": hex(&iv.to_be_bytes()),
                "payload": hex(&record.payload),
                "sealed": hex(&sealed),
                "meaning": record.meaning,
            }));
        }
    }
    json!({
        "stream": number,
        "flow": schedule::flow_name(flow),
        "nonce": hex(&context.nonce),
        "answer_nonce": hex(&context.answer_nonce),
        "records": kept,
    })
}

/// `records.json`.
pub(crate) fn vectors() -> Value {
    let keepalives = (0..=2 * RECORDS_PER_EPOCH)
        .map(|_| engine("keepalive", EngineMessage::Keepalive, json!("keepalive")));
    let edge = |sequence: u64| [0, RECORDS_PER_EPOCH - 1].contains(&(sequence % RECORDS_PER_EPOCH));
    json!({
        "session": hex(&schedule::SESSION),
        "master": hex(schedule::master().expose()),
        "streams": [
            stream(0, Flow::NearToFar, control_of_sender(4).into_iter(), |_| true),
            stream(0, Flow::FarToNear, control_of_receiver().into_iter(), |_| true),
            stream(1, Flow::NearToFar, data().into_iter(), |_| true),
            stream(2, Flow::FarToNear, keepalives, edge),
        ],
    })
}
