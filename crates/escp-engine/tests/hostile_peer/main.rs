//! A receiving engine and a sender that knows the secret but not the rules; and strangers that know neither.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod stage;

use escp_crypto::RECORDS_PER_EPOCH;
use escp_engine_api::{Event, Fault};
use escp_proto::block::{BlockHeader, HOLE, PACKED, ZSTD};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind};
use stage::{BLOCK, GREATEST, SIZE, Stream, first_packet, next, plain, stage};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Duration;

/// Wire 1: any bit of IV, ciphertext or tag.
#[tokio::test]
async fn flipped_bits_never_reach_a_file() {
    for bit in [3, 8 * 3, 8 * 7 + 7, 8 * 8, 8 * 60, 8 * 100_000, usize::MAX] {
        let mut stage = stage().await;
        let data = vec![0x55; 150_000];
        let mut record = stage.data.block(plain(0, &data), &data);
        let bit = bit.min(record.len() * 8 - 1);
        record[bit / 8] ^= 1 << (bit % 8);
        stage.data.send(&record);
        let _ = stage.data.socket.shutdown(Shutdown::Write);
        let (failure, written) = stage.failure().await;
        // A longer length waits for bytes that never come; everything else is seen at once.
        assert!(matches!(failure.fault, Fault::Integrity | Fault::Lost), "bit {bit}: {failure}");
        assert_eq!(written, 0, "bit {bit}");
    }
}

/// Wire 2: replayed, dropped, swapped, spliced in from another stream.
#[tokio::test]
async fn records_out_of_their_place_are_refused() {
    for case in ["replayed", "dropped", "spliced"] {
        let mut stage = stage().await;
        let zeros = vec![0; 5000];
        let first = stage.data.block(plain(0, &zeros), &zeros);
        let data = vec![1; 5000];
        let second = stage.data.block(plain(5000, &data), &data);
        match case {
            "replayed" => stage.data.send(&[first.clone(), first].concat()),
            "dropped" => stage.data.send(&second),
            _ => {
                let foreign = stage.control.say(EngineMessage::Keepalive);
                stage.data.send(&foreign);
            }
        }
        stage.expect(Fault::Integrity, "altered on the network").await;
    }
}

/// Wire 3: a recorded connection played again is refused; the session lives.
#[tokio::test]
async fn a_replayed_connection_is_refused_and_the_session_lives() {
    let mut stage = stage().await;
    let zeros = vec![0; 5000];
    let record = stage.data.block(plain(0, &zeros), &zeros);
    stage.data.send(&record);
    stage.shuts_out(stage.data.recorded.clone()).await;
    stage.completes_from(5000).await;
}

/// Wire 6: a second claim to a stream is refused, however well it is proven; the first goes on.
#[tokio::test]
async fn a_second_claim_to_a_stream_is_refused_and_the_first_goes_on() {
    let mut stage = stage().await;
    let zeros = vec![0; 5000];
    let record = stage.data.block(plain(0, &zeros), &zeros);
    stage.data.send(&record);
    for stream in [0, 1] {
        stage.shuts_out(first_packet(stream, [0x77 + u8::try_from(stream).unwrap(); 16]).to_vec()).await;
    }
    stage.completes_from(5000).await;
}

/// Wire 4: closed after a whole record, or inside one.
#[tokio::test]
async fn a_cut_connection_is_never_an_end() {
    for cut in [0, 1, 7, 8, 30, 4000] {
        let mut stage = stage().await;
        let zeros = vec![0; 5000];
        let record = stage.data.block(plain(0, &zeros), &zeros);
        stage.data.send(&record);
        let next = stage.data.block(plain(5000, &zeros), &zeros);
        stage.data.send(&next[..cut]);
        stage.data.socket.shutdown(Shutdown::Both).unwrap();
        stage.expect(Fault::Lost, "closed before the end").await;
    }
}

/// Wire 4, on stream 0.
#[tokio::test]
async fn a_cut_control_stream_is_never_an_end() {
    let stage = stage().await;
    stage.control.socket.shutdown(Shutdown::Both).unwrap();
    stage.expect(Fault::Lost, "closed before the end").await;
}

/// Wire 1, on stream 0. Whoever sent what cannot be understood is told so, sealed: a cut would look like an accident.
#[tokio::test]
async fn an_altered_control_record_is_answered_with_the_reason() {
    let mut stage = stage().await;
    let mut record = stage.control.say(EngineMessage::Keepalive);
    *record.last_mut().unwrap() ^= 1;
    stage.control.send(&record);
    let Stream { mut socket, mut opener, .. } = stage.control;
    let said = tokio::task::spawn_blocking(move || {
        // `stage` has read the IV of its "ready" already.
        let iv = Iv { kind: Kind::Metadata, length: 6, sequence: 0 }.encode().unwrap();
        let mut bytes = iv.to_be_bytes().to_vec();
        socket.read_to_end(&mut bytes).unwrap();
        let mut said = Vec::new();
        while let Some((word, rest)) = bytes.split_first_chunk::<8>() {
            let word = u64::from_be_bytes(*word);
            let iv = Iv::decode(word, 0).unwrap();
            let (sealed, rest) = rest.split_at(iv.length as usize + 16);
            let mut sealed = sealed.to_vec();
            said.push(Message::decode(opener.open(iv.sequence, word, &mut sealed).unwrap()).unwrap());
            bytes = rest.to_vec();
        }
        said
    });
    let said = tokio::time::timeout(Duration::from_secs(20), said).await.unwrap().unwrap();
    let abort = said.last().unwrap();
    assert!(matches!(abort, Message::Engine(EngineMessage::Abort { status: 5, .. })), "{said:?}");
}

/// The peak of this process's memory in KiB since [`forget_peak`].
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn forget_peak() {
    // proc_pid_clear_refs(5)
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// Wire 7: the greatest length.
#[tokio::test]
async fn the_greatest_length_is_taken() {
    let mut stage = stage().await;
    let zeros = vec![0; BLOCK as usize];
    let record = stage.data.block(plain(0, &zeros), &zeros);
    let iv = Iv::decode(u64::from_be_bytes(*record.first_chunk().unwrap()), GREATEST as usize).unwrap();
    assert_eq!(iv.length, GREATEST);
    stage.data.send(&record);
    stage.completes_from(BLOCK.into()).await;
}

/// Wire 7: lengths of nothing, one more than may be, and all bits, each followed by as much.
#[tokio::test]
async fn lengths_are_bounded_before_anything_is_taken() {
    for length in [0, GREATEST + 1, (1 << 24) - 1] {
        let mut stage = stage().await;
        let iv = Iv { kind: Kind::File, length, sequence: 0 }.encode().unwrap();
        let mut socket = stage.data.socket.try_clone().unwrap();
        forget_peak();
        let before = peak_kib();
        stage.data.send(&iv.to_be_bytes());
        let more = tokio::task::spawn_blocking(move || {
            let piece = [0; 1 << 16];
            // The engine hangs up: that is what this is about.
            while socket.write_all(&piece).is_ok() {}
        });
        stage.expect(Fault::Integrity, "record payload").await;
        more.await.unwrap();
        let taken = peak_kib().saturating_sub(before);
        assert!(taken < 8 * 1024, "{taken} KiB were taken for a length of {length}");
    }
}

/// Wire 8: kinds and messages nobody knows.
#[tokio::test]
async fn unknown_kinds_and_messages_end_the_session() {
    let mut first = stage().await;
    first.data.send(&(3_u64 << 62 | 32 << 38).to_be_bytes());
    first.expect(Fault::Integrity, "unknown record kind").await;
    let mut second = stage().await;
    let record = second.control.record(Kind::Metadata, &[0x3f, 1, 2, 3]);
    second.control.send(&record);
    second.expect(Fault::Integrity, "unknown message type").await;
    let mut third = stage().await;
    let data = [0; 100];
    let record = third.data.block(BlockHeader { flags: 64, ..plain(0, &data) }, &data);
    third.data.send(&record);
    third.expect(Fault::Integrity, "unknown block flags").await;
}

/// Wire 9: blocks of unknown files, beyond the size, at an offset that overflows, or twice.
#[tokio::test]
async fn blocks_that_cannot_be_end_the_session() {
    let data = vec![1; 1000];
    let cases = [
        (BlockHeader { file: 2, ..plain(0, &data) }, "not open"),
        (plain(SIZE - 999, &data), "which has"),
        (plain(u64::MAX - 999, &data), "block range"),
        (
            BlockHeader { offset: 0, flags: HOLE, plain_len: 0, check: SIZE + 1, ..plain(0, &data) },
            "which has",
        ),
    ];
    for (header, words) in cases {
        let mut stage = stage().await;
        let data: &[u8] = if header.flags == HOLE { &[] } else { &data };
        let record = stage.data.block(header, data);
        stage.data.send(&record);
        stage.expect(Fault::Integrity, words).await;
    }
    let mut stage = stage().await;
    let zeros = vec![0; 1000];
    for _ in 0..2 {
        let record = stage.data.block(plain(0, &zeros), &zeros);
        stage.data.send(&record);
    }
    stage.expect(Fault::Integrity, "came twice").await;
}

/// Wire 13: compressed blocks that expand beyond, or below, what they declare; and that are none.
#[tokio::test]
async fn compressed_blocks_expand_to_what_they_declare_or_not_at_all() {
    let bomb = zstd::bulk::compress(&vec![1; 64 << 20], 1).unwrap();
    let honest = zstd::bulk::compress(&vec![1; 50_000], 1).unwrap();
    for (data, declared) in [(&bomb, BLOCK), (&honest, 49_999), (&honest, 50_001), (&vec![0xff; 100], 1000)] {
        let mut stage = stage().await;
        let header = BlockHeader { plain_len: declared, flags: ZSTD, ..plain(0, &[0]) };
        let record = stage.data.block(header, data);
        stage.data.send(&record);
        stage.expect(Fault::Integrity, "").await;
    }
}

/// Packed records that lie about what they hold.
#[tokio::test]
async fn packed_records_hold_what_they_say() {
    let inner = |file: u64, length: u32| {
        BlockHeader { file, offset: 0, plain_len: length, flags: 0, check: 0 }.encode()
    };
    let cases = [
        (1, [&inner(1, 10)[..], &[1; 10]].concat()),
        (2, [&inner(1, 10)[..], &[1; 10]].concat()),
        (1, [&inner(1, 11)[..], &[1; 10]].concat()),
        (1, [&inner(9, 10)[..], &[1; 10]].concat()),
    ];
    for (count, data) in cases {
        let mut stage = stage().await;
        let plain_len = u32::try_from(data.len()).unwrap();
        let header = BlockHeader { file: count, offset: 0, plain_len, flags: PACKED, check: 0 };
        let record = stage.data.block(header, &data);
        stage.data.send(&record);
        stage.expect(Fault::Integrity, "the peer broke the protocol").await;
    }
}

/// A check value that does not match fails the file alone, with its own stage.
#[tokio::test]
async fn a_wrong_check_value_fails_the_file_alone() {
    let mut stage = stage().await;
    let data = vec![1; 1000];
    let record = stage.data.block(BlockHeader { check: 1, ..plain(0, &data) }, &data);
    stage.data.send(&record);
    loop {
        match next(&mut stage.engine).await {
            Some(Event::Files(files)) => {
                let error = files[0].outcome.clone().unwrap_err();
                assert_eq!(error.stage, escp_engine_api::Stage::Verify, "{error}");
                break;
            }
            Some(Event::Failed(failure)) => panic!("{failure}"),
            _ => {}
        }
    }
}

/// A close must carry the count of what came.
#[tokio::test]
async fn a_close_that_hides_a_record_is_refused() {
    let mut stage = stage().await;
    let close = stage.data.say(EngineMessage::Close { records: 1 });
    stage.data.send(&close);
    stage.expect(Fault::Integrity, "").await;
}

/// A receiver does not take acknowledgements from a sender.
#[tokio::test]
async fn acknowledgements_come_from_receivers_only() {
    let mut stage = stage().await;
    let ack = stage.control.say(EngineMessage::Ack { stream: 1, records: 0 });
    stage.control.send(&ack);
    stage.expect(Fault::Integrity, "").await;
}

/// Keys change inside a stream, and nobody notices.
#[tokio::test]
async fn a_stream_lives_through_an_epoch() {
    let mut stage = stage().await;
    for _ in 0..RECORDS_PER_EPOCH + 2 {
        let keepalive = stage.data.say(EngineMessage::Keepalive);
        stage.data.send(&keepalive);
    }
    let data = vec![1; 1000];
    let record = stage.data.block(BlockHeader { check: 1, ..plain(0, &data) }, &data);
    stage.data.send(&record);
    loop {
        match next(&mut stage.engine).await {
            Some(Event::Files(_)) => break,
            Some(Event::Failed(failure)) => panic!("{failure}"),
            _ => {}
        }
    }
}
