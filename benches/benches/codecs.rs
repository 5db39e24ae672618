//! Encoding and decoding what surrounds the data: IVs, block headers, packed records, messages.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use escp_proto::agent::{AgentMessage, Attributes, Entry, EntryKind, ROOT, Timestamp};
use escp_proto::block::{BlockHeader, HEADER_LEN, unpack};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind};
use std::hint::black_box;

const BLOCK: u32 = 1 << 20;

fn headers(criterion: &mut Criterion) {
    let header = BlockHeader { file: 7, offset: 3 << 20, plain_len: BLOCK, flags: 0, check: 0x0123_4567 };
    let mut group = criterion.benchmark_group("header");
    group.bench_function("iv", |bencher| {
        bencher.iter(|| {
            let iv = Iv { kind: Kind::File, length: BLOCK, sequence: black_box(12_345) }.encode();
            iv.and_then(|iv| Iv::decode(black_box(iv), BLOCK as usize)).is_ok()
        });
    });
    group.bench_function("block", |bencher| {
        bencher.iter(|| {
            let bytes = black_box(&header).encode();
            BlockHeader::decode(black_box(&bytes), BLOCK as usize, BLOCK).is_ok()
        });
    });
    group.finish();
}

fn packed(criterion: &mut Criterion) {
    const FILES: usize = 100;
    const LENGTH: u32 = 8192;
    let mut record = Vec::new();
    for file in 0..FILES as u64 {
        let header = BlockHeader { file, offset: 0, plain_len: LENGTH, flags: 0, check: file };
        record.extend_from_slice(&header.encode());
    }
    record.resize(FILES * (HEADER_LEN + LENGTH as usize), 0);
    let mut group = criterion.benchmark_group("packed");
    group.throughput(Throughput::Elements(FILES as u64));
    group.bench_function("unpack", |bencher| {
        bencher.iter(|| unpack(FILES as u64, black_box(&record)).map(|items| items.len()).ok());
    });
    group.finish();
}

fn messages(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("message");
    let acknowledgement = Message::Engine(EngineMessage::Ack { stream: 3, records: 1 << 30 });
    group.bench_function("ack", |bencher| {
        bencher.iter(|| {
            black_box(&acknowledgement).encode().and_then(|bytes| Message::decode(black_box(&bytes))).is_ok()
        });
    });
    let time = Timestamp { seconds: 1_700_000_000, nanoseconds: 123_456_789 };
    let attributes = Attributes { mode: 0o644, mtime: time, atime: time };
    let entries: Vec<Entry> = (1..=256_u64)
        .map(|number| Entry {
            number,
            parent: ROOT,
            name: format!("measurement-{number:06}.dat").into_bytes(),
            kind: EntryKind::File { size: 8192 + number, sparse: false, attributes },
        })
        .collect();
    group.throughput(Throughput::Elements(256));
    let offer = AgentMessage::Offer(entries);
    group.bench_function("offer of 256", |bencher| {
        bencher.iter(|| {
            let sent = black_box(&offer).encode().and_then(|bytes| Message::Agent(bytes).encode());
            let came = sent.and_then(|bytes| Message::decode(black_box(&bytes)));
            matches!(came, Ok(Message::Agent(bytes)) if AgentMessage::decode(&bytes).is_ok())
        });
    });
    group.finish();
}

criterion_group!(benches, headers, packed, messages);
criterion_main!(benches);
