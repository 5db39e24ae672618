//! What a decoder allocates is bounded by the protocol, not by what the bytes claim.
//!
//! One test, alone in its process: the allocator counts for the whole process.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

#[path = "samples/mod.rs"]
#[allow(dead_code)]
mod samples;

use escp_proto::agent::{AgentMessage, MAX_MESSAGE};
use escp_proto::block;
use escp_proto::control::{ControlMessage, FrameReader, MAX_FRAME};
use escp_proto::message::{MAX_BODY_LEN, Message};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::hint::black_box;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Everything that is allocated while `body` runs, freed again or not, in bytes.
fn allocated(body: impl FnOnce()) -> usize {
    let region = Region::new(ALLOCATOR);
    body();
    region.change().bytes_allocated
}

/// The encoded bytes with every run of up to ten of them replaced by a varint of 2^63.
fn with_claims(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let claim = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    (0..=bytes.len()).map(move |at| [&bytes[..at], &claim, &bytes[bytes.len().min(at + 1)..]].concat())
}

#[test]
fn claims_allocate_nothing_and_the_largest_inputs_a_small_multiple() {
    let limit = 24 * MAX_MESSAGE;
    for (name, bytes) in samples::agent_messages() {
        for claim in with_claims(&bytes) {
            let used = allocated(|| drop(black_box(AgentMessage::decode(&claim))));
            assert!(used <= 4096, "{name}: {used} bytes for {} of input", claim.len());
        }
    }
    // As many items as fit one message, and more than may be in it.
    for kind in [3_u8, 7, 8, 9, 10, 12] {
        let mut bytes = vec![kind, 0xff, 0xff, 0x03];
        bytes.resize(MAX_MESSAGE, 1);
        let used = allocated(|| drop(black_box(AgentMessage::decode(&bytes))));
        assert!(used <= limit, "kind {kind}: {used} bytes for a message of {MAX_MESSAGE}");
    }
    control_channel(limit);
    compressed_messages();
    let headers = vec![0; 64];
    let used = allocated(|| drop(black_box(block::unpack(block::MAX_PACKED_FILES, &headers))));
    assert!(used <= 64 * 1024, "{used} bytes for a packed record");
}

fn control_channel(limit: usize) {
    let frame = ControlMessage::Listening(samples::listening()).encode_frame().unwrap();
    for claim in with_claims(&frame[4..]) {
        let used = allocated(|| drop(black_box(ControlMessage::decode(&claim))));
        assert!(used <= 4096, "{used} bytes for {} of input", claim.len());
    }
    let mut notes = vec![1, 0, 0, 0, 0, 0xff, 0xff, 0x03];
    notes.resize(MAX_FRAME, 0);
    let used = allocated(|| drop(black_box(ControlMessage::decode(&notes))));
    assert!(used <= 2 * limit, "{used} bytes for a frame of {MAX_FRAME}");
    let used = allocated(|| {
        let mut reader = FrameReader::new();
        reader.push(&samples::hello(1).encode_frame());
        drop(black_box(reader.next()));
        for _ in 0..10_000 {
            reader.push(&[0xff; 64]);
            drop(black_box(reader.next()));
        }
    });
    assert!(used <= 4096, "{used} bytes for a frame that claims 4 GiB");
}

/// A body of zeros that expands 1000 times, under every claim about its length.
fn compressed_messages() {
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    for claim in [0, 1, MAX_BODY_LEN, MAX_BODY_LEN + 1, 64 << 20, u32::MAX as usize] {
        let length = u32::try_from(claim).unwrap().to_be_bytes();
        let payload = [&[0xc0][..], &length, &bomb].concat();
        let used = allocated(|| assert!(Message::decode(&payload).is_err()));
        assert!(used <= 3 * MAX_BODY_LEN, "{used} bytes for a claim of {claim}");
    }
}
