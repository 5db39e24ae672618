//! Properties of every codec: what is encoded decodes to itself, what decodes re-encodes to itself, and
//! arbitrary bytes are an error, never a panic.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail where it stands")]

mod strategies;

use escp_proto::agent::{
    AgentMessage, Batch, Entry, EntryKind, EntryResult, MAX_ITEMS, MAX_MESSAGE, MAX_NAME, MAX_PATH, MAX_TEXT,
    Refusal, SourceFailure, messages,
};
use escp_proto::block::{self, BlockHeader};
use escp_proto::control::{
    ControlMessage, FrameReader, HELLO_LEN, Hello, Job, LENGTH_LEN, MAX_FRAME, Streams,
};
use escp_proto::first_packet::{Answer, FirstPacket};
use escp_proto::message::{COMPRESS_OVER, MAX_BODY_LEN, Message};
use escp_proto::record::{Iv, MAX_METADATA_LEN};
use escp_proto::{ProtocolError, VERSION};
use proptest::collection::vec;
use proptest::prelude::*;

const BLOCK: u32 = 1 << 20;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ivs_come_back(iv in strategies::iv()) {
        let bits = iv.encode().unwrap();
        prop_assert_eq!(Iv::decode(bits, (1 << 24) - 1), Ok(iv));
    }

    #[test]
    fn any_iv_is_bounded_or_refused(bits: u64, max in 1_usize..1 << 24) {
        if let Ok(iv) = Iv::decode(bits, max) {
            prop_assert!(iv.length > 0 && iv.length as usize <= max.max(MAX_METADATA_LEN));
            prop_assert_eq!(iv.encode(), Ok(bits));
        }
    }

    #[test]
    fn block_headers_come_back((header, data_len) in strategies::block_header(BLOCK)) {
        prop_assert_eq!(BlockHeader::decode(&header.encode(), data_len, BLOCK), Ok(header));
        for wrong in [data_len.wrapping_sub(1), data_len + BLOCK as usize] {
            prop_assert!(BlockHeader::decode(&header.encode(), wrong, BLOCK).is_err()
                || header.flags & block::ZSTD != 0 && wrong > 0 && wrong < BLOCK as usize);
        }
    }

    #[test]
    fn any_block_header_is_bounded_or_refused(bytes in vec(any::<u8>(), 0..80), flags in 0_u32..16, len: u16) {
        let mut bytes = bytes;
        if let Some(field) = bytes.get_mut(20..24) {
            field.copy_from_slice(&flags.to_be_bytes());
        }
        if let Ok(header) = BlockHeader::decode(&bytes, len.into(), BLOCK) {
            prop_assert!(header.plain_len <= BLOCK);
            let range = if header.flags == block::HOLE { header.check } else { header.plain_len.into() };
            prop_assert!(header.offset.checked_add(range).is_some());
            prop_assert_eq!(&header.encode()[..], &bytes[..block::HEADER_LEN]);
        }
    }

    #[test]
    fn packed_files_come_back(files in vec((1_u64.., any::<u64>(), vec(any::<u8>(), 1..100)), 1..40)) {
        let packed = strategies::packed(&files);
        let found = block::unpack(files.len() as u64, &packed).unwrap();
        prop_assert_eq!(found.len(), files.len());
        for (found, (number, check, data)) in found.iter().zip(&files) {
            prop_assert_eq!((found.file, found.check), (*number, *check));
            prop_assert_eq!(&packed[found.start..found.start + found.length], &data[..]);
        }
        prop_assert!(block::unpack(files.len() as u64, &packed[..packed.len() - 1]).is_err());
        prop_assert!(block::unpack(files.len() as u64 + 1, &packed).is_err());
    }

    #[test]
    fn any_packed_data_is_refused_or_covered(count in 0_u64..1030, bytes in vec(any::<u8>(), 0..2000)) {
        if let Ok(files) = block::unpack(count, &bytes) {
            let total: usize = files.iter().map(|file| file.length).sum();
            prop_assert_eq!(total + files.len() * block::HEADER_LEN, bytes.len());
        }
    }

    #[test]
    fn first_packets_come_back(stream: u16, session: [u8; 16], nonce: [u8; 16], proof: [u8; 16]) {
        let packet = FirstPacket { stream, session, nonce, proof };
        prop_assert_eq!(FirstPacket::decode(&packet.encode()), Ok(packet));
        let answer = Answer { nonce, proof };
        prop_assert_eq!(Answer::decode(&answer.encode()), answer);
    }

    #[test]
    fn any_first_packet_is_refused_or_the_same(bytes: [[u8; 32]; 2], good in any::<bool>()) {
        let mut packet = [0; 64];
        packet.copy_from_slice(bytes.as_flattened());
        if good {
            packet[..4].copy_from_slice(b"ESCP");
            packet[4..6].copy_from_slice(&VERSION.to_be_bytes());
            packet[56..].fill(0);
        }
        let decoded = FirstPacket::decode(&packet);
        prop_assert!(!good || decoded.is_ok());
        if let Ok(decoded) = decoded {
            prop_assert_eq!(decoded.encode(), packet);
        }
    }

    #[test]
    fn messages_come_back(message in strategies::message()) {
        let payload = message.encode().unwrap();
        prop_assert!(payload.len() <= MAX_METADATA_LEN);
        prop_assert_eq!(Message::decode(&payload), Ok(message));
    }

    #[test]
    fn long_messages_are_compressed_where_it_pays(byte: u8, length in 0..MAX_BODY_LEN) {
        let message = Message::Agent(vec![byte; length]);
        let payload = message.encode().unwrap();
        prop_assert!(payload.len() <= COMPRESS_OVER + 1);
        prop_assert_eq!(payload[0] & 0x80 != 0, length > COMPRESS_OVER);
        prop_assert_eq!(Message::decode(&payload), Ok(message));
    }

    #[test]
    fn any_payload_is_refused_or_bounded(kind: u8, bytes in vec(any::<u8>(), 0..300)) {
        let payload = [&[kind][..], &bytes].concat();
        if let Ok(message) = Message::decode(&payload) {
            prop_assert_eq!(message.encode().map(|again| Message::decode(&again)), Ok(Ok(message)));
        }
    }

    #[test]
    fn agent_messages_come_back(message in strategies::agent_message()) {
        let bytes = message.encode().unwrap();
        prop_assert_eq!(AgentMessage::decode(&bytes), Ok(message));
        prop_assert!(AgentMessage::decode(&bytes[..bytes.len() - 1]).is_err(), "cut");
        prop_assert!(AgentMessage::decode(&[&bytes[..], &[0]].concat()).is_err(), "bytes after its end");
    }

    #[test]
    fn any_agent_message_is_refused_or_the_same(kind in 0_u8..13, bytes in vec(any::<u8>(), 0..200)) {
        let bytes = [&[kind][..], &bytes].concat();
        if let Ok(message) = AgentMessage::decode(&bytes) {
            prop_assert_eq!(AgentMessage::decode(&message.encode().unwrap()), Ok(message));
        }
    }

    #[test]
    fn a_changed_agent_message_is_refused_or_within_bounds(
        message in strategies::agent_message(), at: prop::sample::Index, byte: u8,
    ) {
        let mut bytes = message.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(message) = AgentMessage::decode(&bytes) {
            prop_assert!(message.encode().is_ok(), "what passes on the way in passes on the way out");
        }
    }

    #[test]
    fn control_messages_come_back(message in strategies::control_message()) {
        let frame = message.encode_frame().unwrap();
        prop_assert_eq!(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize, frame.len() - 4);
        prop_assert_eq!(ControlMessage::decode(&frame[LENGTH_LEN..]), Ok(message));
    }

    #[test]
    fn any_control_message_is_refused_or_the_same(kind in 0_u8..5, bytes in vec(any::<u8>(), 0..200)) {
        let bytes = [&[kind][..], &bytes].concat();
        if let Ok(message) = ControlMessage::decode(&bytes) {
            prop_assert_eq!(ControlMessage::decode(&message.encode_frame().unwrap()[LENGTH_LEN..]), Ok(message));
        }
    }

    #[test]
    fn hellos_come_back(hello in strategies::hello(), later in vec(any::<u8>(), 0..20)) {
        let frame = hello.encode_frame();
        let body = &frame[LENGTH_LEN..];
        prop_assert_eq!(Hello::decode_body(body), Ok(hello.clone()));
        prop_assert_eq!(Hello::frame_of(body), Ok(frame.clone()));
        prop_assert_eq!(Hello::decode_body(&[body, &later].concat()), Ok(hello.clone()));
        // Without the whole machine it is one that does not tell; without what every version has it is none.
        let untold = Hello { machine: [0; 16], ..hello };
        prop_assert!(!untold.shares_machine_with(&untold));
        prop_assert_eq!(Hello::decode_body(&body[..body.len() - 1]), Ok(untold.clone()));
        prop_assert_eq!(Hello::decode_body(&body[..HELLO_LEN]), Ok(untold));
        prop_assert!(Hello::decode_body(&body[..HELLO_LEN - 1]).is_err());
    }

    #[test]
    fn frames_come_back_however_they_are_cut(
        hello in strategies::hello(), bodies in vec(vec(any::<u8>(), 1..300), 0..6), piece in 1_usize..400,
    ) {
        let mut stream = hello.encode_frame();
        for body in &bodies {
            stream.extend_from_slice(&u32::try_from(body.len()).unwrap().to_be_bytes());
            stream.extend_from_slice(body);
        }
        let mut reader = FrameReader::new();
        let mut found = Vec::new();
        for part in stream.chunks(piece) {
            reader.push(part);
            while let Some(frame) = reader.next().unwrap() {
                found.push(frame);
            }
        }
        prop_assert_eq!(reader.finish(), Ok(()));
        prop_assert_eq!(&found[0], &hello.encode_frame()[LENGTH_LEN..]);
        prop_assert_eq!(&found[1..], &bodies[..]);
    }

    #[test]
    fn any_bytes_are_frames_or_an_error_that_stays(bytes in vec(any::<u8>(), 1..200)) {
        let mut reader = FrameReader::new();
        reader.push(&bytes);
        let mut outcome = reader.next();
        while let Ok(Some(_)) = outcome {
            outcome = reader.next();
        }
        let end = reader.finish();
        if let Err(error) = outcome {
            prop_assert_eq!(end, Err(error.clone()));
            reader.push(&[0; 100]);
            prop_assert_eq!(reader.next(), Err(error));
        }
    }

    #[test]
    fn lists_are_split_in_order_into_few_messages(entries in vec(strategies::entry(), 0..1500)) {
        let parts: Vec<AgentMessage> = messages(entries.clone()).collect();
        let mut joined: Vec<Entry> = Vec::new();
        let mut sizes = Vec::new();
        for part in parts {
            sizes.push(part.encode().unwrap().len());
            let AgentMessage::Offer(part) = part else { panic!("not an offer") };
            prop_assert!(!part.is_empty() && part.len() <= MAX_ITEMS);
            joined.extend(part);
        }
        // Two neighbours would not have fitted one message.
        let fewest = entries.len().div_ceil(MAX_ITEMS).max(sizes.iter().sum::<usize>().div_ceil(MAX_MESSAGE));
        prop_assert!(sizes.len() <= 2 * fewest, "{} messages where {fewest} might do", sizes.len());
        prop_assert_eq!(joined, entries);
    }
}

fn too_large<T: std::fmt::Debug>(outcome: Result<T, ProtocolError>) -> bool {
    matches!(outcome, Err(ProtocolError::TooLarge { .. }))
}

fn raw(message: &AgentMessage) -> Vec<u8> {
    postcard::to_stdvec(message).unwrap()
}

#[test]
fn names_that_reach_elsewhere_are_refused_both_ways() {
    let long = vec![b'n'; MAX_NAME];
    let good: [&[u8]; 6] = [b"a", b"...", b" ", b"\xff\xfe", b"-rf", &long];
    let bad: [&[u8]; 9] = [b"", b".", b"..", b"/", b"a/b", b"../x", b"a/", b"/a", b"a\0b"];
    let offer = |name: &[u8]| AgentMessage::Offer(vec![strategies::file_named(name)]);
    for name in good {
        assert_eq!(AgentMessage::decode(&raw(&offer(name))), Ok(offer(name)));
    }
    for name in bad {
        assert!(AgentMessage::decode(&raw(&offer(name))).is_err(), "{}", name.escape_ascii());
        assert!(offer(name).encode().is_err(), "{}", name.escape_ascii());
    }
    assert!(too_large(AgentMessage::decode(&raw(&offer(&[b'n'; MAX_NAME + 1])))));
}

#[test]
fn every_bound_of_an_entry_is_checked() {
    let change = |change: fn(&mut Entry)| {
        let mut entry = strategies::file_named(b"f");
        change(&mut entry);
        AgentMessage::decode(&raw(&AgentMessage::Offer(vec![entry])))
    };
    let attributes = |entry: &mut Entry, mode, nanoseconds| {
        if let EntryKind::File { attributes, .. } = &mut entry.kind {
            attributes.mode = mode;
            attributes.mtime.nanoseconds = nanoseconds;
        }
    };
    assert!(change(|_| ()).is_ok());
    assert!(change(|entry| entry.number = 0).is_err());
    assert!(change(|entry| entry.parent = entry.number).is_err());
    assert!(change(|entry| entry.kind = EntryKind::DirectoryEnd).is_err(), "with a name");
    assert!(
        change(|entry| {
            entry.name.clear();
            entry.kind = EntryKind::DirectoryEnd;
        })
        .is_err(),
        "of the target"
    );
    let mut entry = strategies::file_named(b"f");
    attributes(&mut entry, 0o10000, 0);
    assert!(too_large(AgentMessage::decode(&raw(&AgentMessage::Offer(vec![entry.clone()])))));
    attributes(&mut entry, 0o7777, 1_000_000_000);
    assert!(too_large(AgentMessage::decode(&raw(&AgentMessage::Offer(vec![entry.clone()])))));
    attributes(&mut entry, 0o7777, 999_999_999);
    assert!(AgentMessage::decode(&raw(&AgentMessage::Offer(vec![entry]))).is_ok());
}

#[test]
fn counts_and_sizes_are_bounded() {
    let numbers = |count: u64| AgentMessage::decode(&raw(&AgentMessage::Ready((1..=count).collect())));
    assert!(numbers(MAX_ITEMS as u64).is_ok());
    assert!(too_large(numbers(MAX_ITEMS as u64 + 1)));
    assert!(too_large(AgentMessage::decode(&[0; MAX_MESSAGE + 1])));
    assert!(AgentMessage::decode(&raw(&AgentMessage::Ready(vec![0]))).is_err());
    assert!(too_large(ControlMessage::decode(&[0; MAX_FRAME + 1])));
    let refusal = |status| AgentMessage::Refuse(Refusal { status, text: String::new() });
    assert!(AgentMessage::decode(&raw(&refusal(0))).is_err(), "a refusal is never a success");
    // A list that claims 2^63 items.
    let claim = [7, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01];
    assert!(AgentMessage::decode(&claim).is_err());
}

#[test]
fn a_job_has_streams_for_either_case_and_blocks_in_flight_on_each() {
    let decodes =
        |job| ControlMessage::decode(&postcard::to_stdvec(&ControlMessage::Job(job)).unwrap()).is_ok();
    let good = [(1, 2), (256, 64)].map(|streams| (streams, true));
    let bad = [(0, 2), (257, 2), (1, 1), (1, 65)].map(|streams| (streams, false));
    for ((count, depth), due) in good.into_iter().chain(bad) {
        let streams = Streams { count, depth };
        assert_eq!(decodes(Job { streams, ..strategies::plain_job() }), due, "{streams:?}");
        let streams_on_one_machine = streams;
        assert_eq!(decodes(Job { streams_on_one_machine, ..strategies::plain_job() }), due, "{streams:?}");
    }
}

#[test]
fn a_result_is_about_its_own_entry() {
    let failure = strategies::failure_of(2);
    let result = |number| AgentMessage::Done(vec![EntryResult { number, outcome: Err(failure.clone()) }]);
    assert!(AgentMessage::decode(&raw(&result(2))).is_ok());
    assert!(AgentMessage::decode(&raw(&result(3))).is_err());
}

#[test]
fn texts_for_people_are_cut_between_characters_not_refused() {
    let text = "é".repeat(MAX_TEXT);
    let path = vec![b'p'; MAX_PATH + 1];
    let sent = AgentMessage::SourceFailed(SourceFailure { path, text: format!("x{text}") });
    assert!(too_large(AgentMessage::decode(&raw(&sent))));
    let got = AgentMessage::decode(&sent.encode().unwrap()).unwrap();
    let AgentMessage::SourceFailed(got) = got else { panic!("{got:?}") };
    assert_eq!((got.path.len(), got.text.len()), (MAX_PATH, MAX_TEXT - 1));
    let mut batch = Batch::new();
    let mut failure = strategies::failure_of(1);
    failure.text = text;
    assert_eq!(batch.push(failure), None);
    assert!(batch.take().is_some_and(|message| message.encode().is_ok()));
}

#[test]
fn a_frame_that_claims_four_gigabytes_is_refused_at_its_fourth_byte() {
    let mut reader = FrameReader::new();
    reader.push(&strategies::plain_hello().encode_frame());
    assert!(reader.next().unwrap().is_some());
    reader.push(&[0xff, 0xff, 0xff]);
    assert_eq!(reader.next(), Ok(None));
    reader.push(&[0xff]);
    assert!(too_large(reader.next()));
    let mut first = FrameReader::new();
    first.push(&[0xff; 4]);
    assert!(too_large(first.next()));
}

#[test]
fn a_login_shells_text_is_told_from_a_hello() {
    let cases: [(&[u8], &str); 8] = [
        (b"ok\n\0\0\0\x44escp-ctl", "ok"),
        (b"\n\0\0\0\x44escp-ctl", ""),
        (b"W\n\xff\xff", "W"),
        (b"Welcome to host!\nmore", "Welcome to host!"),
        (b"\r\n\x1b[1mbold\x1b[0m \xc3\xa9\r\n", "\\x1b[1mbold\\x1b[0m \\xc3\\xa9"),
        (b"no newline\x00\x00\x00\x44escp-ctl", "no newline"),
        (b"cut short", "cut short"),
        (&[b'y'; 4000], &"y".repeat(160)),
    ];
    for (text, excerpt) in cases {
        for piece in [1, text.len()] {
            let mut reader = FrameReader::new();
            let mut outcome = Ok(None);
            for part in text.chunks(piece) {
                reader.push(part);
                outcome = reader.next();
                if outcome.is_err() {
                    break;
                }
            }
            let error = outcome.err().or_else(|| reader.finish().err());
            assert_eq!(error, Some(ProtocolError::ForeignText { excerpt: excerpt.to_owned() }));
        }
    }
}

#[test]
fn a_channel_that_ends_early_is_not_at_its_end() {
    let closed = Err(ProtocolError::ClosedEarly("control channel"));
    assert_eq!(FrameReader::new().finish(), closed, "before the hello");
    let frame = strategies::plain_hello().encode_frame();
    for end in 1..frame.len() {
        let mut reader = FrameReader::new();
        reader.push(&frame[..end]);
        assert_eq!(reader.next(), Ok(None));
        assert_eq!(reader.finish(), closed, "after {end} bytes");
    }
}
