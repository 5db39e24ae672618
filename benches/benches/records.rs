//! Sealing, opening and checking a block: what every byte goes through on each side.

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use escp_crypto::{Flow, MasterSecret, Opener, Sealer, StreamContext, StreamSecret};
use escp_proto::record::{Iv, Kind, TAG_LEN};
use escp_testkit::tree::Noise;
use std::hint::black_box;

const SIZES: [u32; 4] = [16 << 10, 256 << 10, 1 << 20, 4 << 20];

fn noise(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Noise::new(1).fill(&mut bytes);
    bytes
}

fn secret() -> StreamSecret {
    let context = StreamContext { session: [1; 16], stream: 1, nonce: [2; 16], answer_nonce: [3; 16] };
    MasterSecret::from_bytes([4; 32]).stream_secret(&context, Flow::NearToFar)
}

fn iv(length: u32, sequence: u64) -> u64 {
    Iv { kind: Kind::File, length, sequence }.encode().unwrap_or_default()
}

fn seal_one(sealer: &mut Sealer, block: &mut [u8], length: u32) -> Option<(u64, [u8; TAG_LEN])> {
    let sequence = sealer.next_sequence().ok()?;
    let iv = iv(length, sequence.number());
    Some((iv, sealer.seal(sequence, iv, block).ok()?))
}

fn seal(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seal");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size.into()));
        let mut block = noise(size as usize);
        let mut sealer = Sealer::new(secret()).ok();
        group.bench_with_input(BenchmarkId::from_parameter(size), &size, |bencher, &size| {
            bencher.iter(|| sealer.as_mut().and_then(|sealer| seal_one(sealer, black_box(&mut block), size)));
        });
    }
    group.finish();
}

fn open(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("open");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size.into()));
        let mut record = noise(size as usize);
        let sealed =
            Sealer::new(secret()).ok().and_then(|mut sealer| seal_one(&mut sealer, &mut record, size));
        let Some((iv, tag)) = sealed else { continue };
        record.extend_from_slice(&tag);
        group.bench_with_input(BenchmarkId::from_parameter(size), &record, |bencher, record| {
            // Opening destroys the record and demands the next number, so each needs its own of both.
            bencher.iter_batched_ref(
                || (Opener::new(secret()).ok(), record.clone()),
                |(opener, record)| {
                    opener.as_mut().is_some_and(|opener| opener.open(0, iv, black_box(record)).is_ok())
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

fn check(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("crc64-nvme");
    for size in SIZES {
        group.throughput(Throughput::Bytes(size.into()));
        let block = noise(size as usize);
        group.bench_with_input(BenchmarkId::from_parameter(size), &block, |bencher, block| {
            bencher.iter(|| crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, black_box(block)));
        });
    }
    group.finish();
}

criterion_group!(benches, seal, open, check);
criterion_main!(benches);
