//! Targets for the decoders and state machines of escp-proto.

use escp_proto::agent::{AgentMessage, MAX_MESSAGE};
use escp_proto::block::{self, BlockHeader, Expander};
use escp_proto::control::dialogue::{Dialogue, Input};
use escp_proto::control::{ControlMessage, FrameReader, Hello, MAX_FRAME};
use escp_proto::conversation::{Conversation, MAX_OUTSTANDING};
use escp_proto::first_packet::{ANSWER_LEN, Answer, FIRST_PACKET_LEN, FirstPacket};
use escp_proto::message::{MAX_BODY_LEN, Message};
use escp_proto::record::{Iv, MAX_METADATA_LEN};
use escp_proto::stream::{Inbound, PeerRole, Received};
use escp_proto::{ProtocolError, Side};

/// A target: its name, which is also the name of its seeds' directory, and its body.
pub type Target = (&'static str, fn(&[u8]));

/// Every target of this module.
pub const TARGETS: [Target; 7] = [
    ("record", record),
    ("block", block),
    ("message", message),
    ("agent_message", agent_message),
    ("conversation", conversation),
    ("control", control),
    ("first_packet", first_packet),
];

const BLOCK: u32 = 1 << 20;

/// An IV, then a block header, then the rest of a file record.
pub fn record(bytes: &[u8]) {
    let Some((iv, payload)) = bytes.split_first_chunk::<8>() else { return };
    let iv = u64::from_be_bytes(*iv);
    if let Ok(fields) = Iv::decode(iv, BLOCK as usize + block::HEADER_LEN) {
        assert_eq!(fields.encode(), Ok(iv), "an IV that decodes is the one that was encoded");
        assert!(fields.length as usize <= MAX_METADATA_LEN.max(BLOCK as usize + block::HEADER_LEN));
    }
    let data = payload.get(block::HEADER_LEN..).unwrap_or_default();
    let Ok(header) = BlockHeader::decode(payload, data.len(), BLOCK) else { return };
    assert_eq!(header.encode(), payload[..block::HEADER_LEN]);
    assert!(header.plain_len <= BLOCK && data.len() <= header.plain_len as usize);
    if header.flags == block::PACKED {
        unpack(&header, data);
    }
}

fn unpack(header: &BlockHeader, plain: &[u8]) {
    let Ok(files) = block::unpack(header.file, plain) else { return };
    assert_eq!(files.len() as u64, header.file);
    let mut due = files.len() * block::HEADER_LEN;
    for file in files {
        assert_eq!(file.start, due, "files of a packed record lie one behind the other");
        due += file.length;
    }
    assert_eq!(due, plain.len());
}

/// The payload of a file record as a receiver takes it apart: header, expansion into a slot, small files.
pub fn block(payload: &[u8]) {
    // Small, so that much is tried in little time.
    const SLOT: u32 = 1 << 14;
    const UNTOUCHED: u8 = 0xa5;
    let data = payload.get(block::HEADER_LEN..).unwrap_or_default();
    let Ok(header) = BlockHeader::decode(payload, data.len(), SLOT) else { return };
    let mut slot = vec![UNTOUCHED; SLOT as usize];
    let plain = if header.flags & block::ZSTD == 0 {
        data
    } else {
        let Ok(mut expander) = Expander::new() else { return };
        let expanded = expander.expand(&header, data, &mut slot);
        let (plain, beyond) = slot.split_at(header.plain_len as usize);
        assert!(
            beyond.iter().all(|&byte| byte == UNTOUCHED),
            "nothing is written beyond the declared length"
        );
        assert!(expander.expand(&header, data, &mut vec![0; plain.len() - 1]).is_err());
        if expanded.is_err() {
            return;
        }
        let mut again = vec![0; plain.len()];
        assert_eq!(expander.expand(&header, data, &mut again), Ok(()));
        assert!(again == plain, "every byte that is declared is written");
        plain
    };
    if header.flags & block::PACKED != 0 {
        unpack(&header, plain);
    }
}

/// The payload of a metadata record, on each kind of stream.
pub fn message(bytes: &[u8]) {
    let Ok(message) = Message::decode(bytes) else { return };
    if let Message::Agent(body) = &message {
        assert!(body.len() <= MAX_BODY_LEN);
    }
    let again = message.encode().map(|payload| Message::decode(&payload));
    assert_eq!(again, Ok(Ok(message.clone())));
    for number in [0, 1] {
        for peer in [PeerRole::Sender, PeerRole::Receiver] {
            let mut stream = Inbound::new(number, peer);
            if stream.on(Received::Message(&message)).is_err() {
                assert_eq!(stream.records(), 0, "an error changes nothing");
            }
        }
    }
}

/// One agent message.
pub fn agent_message(bytes: &[u8]) {
    let Ok(message) = AgentMessage::decode(bytes) else { return };
    let again = message.encode().unwrap_or_default();
    assert!(again.len() <= MAX_MESSAGE.min(bytes.len()), "the shortest encoding is written");
    assert_eq!(AgentMessage::decode(&again), Ok(message));
}

/// A whole conversation: messages with a length of two bytes before them, whose highest bit says who speaks.
pub fn conversation(bytes: &[u8]) {
    let mut talk = Conversation::new();
    let mut rest = bytes;
    while let Some((head, tail)) = rest.split_first_chunk::<2>() {
        let head = u16::from_be_bytes(*head);
        let from = if head >> 15 == 0 { Side::Near } else { Side::Far };
        let Some((body, tail)) = tail.split_at_checked(usize::from(head & 0x7fff)) else { return };
        rest = tail;
        let Ok(message) = AgentMessage::decode(body) else { return };
        if talk.on(from, &message).is_err() {
            return;
        }
        assert!(talk.outstanding() <= MAX_OUTSTANDING && talk.outstanding() <= talk.offered());
        assert!(talk.highest_credit() >= talk.offered() + talk.credit_left());
    }
}

/// What one side of a control channel hears, cut into pieces as the first byte says.
pub fn control(bytes: &[u8]) {
    let Some((&cut, bytes)) = bytes.split_first() else { return };
    let whole = frames(bytes, bytes.len().max(1));
    assert_eq!(frames(bytes, usize::from(cut).max(1)), whole, "frames do not depend on how bytes are cut");
    for side in [Side::Near, Side::Far] {
        let mut dialogue = Dialogue::new(side);
        for (index, body) in whole.0.iter().enumerate() {
            assert!(!body.is_empty() && body.len() <= MAX_FRAME);
            let input = if index == 0 { hello(body) } else { control_message(body) };
            let Some(input) = input else { break };
            if dialogue.on(input).is_err() {
                break;
            }
        }
    }
}

fn hello(body: &[u8]) -> Option<Input> {
    let hello = Hello::decode_body(body).ok()?;
    let frame = hello.encode_frame();
    assert_eq!(Hello::decode_body(&frame[4..]), Ok(hello));
    assert!(Hello::frame_of(body).is_ok_and(|whole| whole.ends_with(body)));
    Some(Input::Hello)
}

fn control_message(body: &[u8]) -> Option<Input> {
    let message = ControlMessage::decode(body).ok()?;
    let frame = message.encode_frame().unwrap_or_default();
    assert_eq!(frame.get(4..).map(ControlMessage::decode), Some(Ok(message.clone())));
    Some(Input::from(&message))
}

/// The frames of `bytes`, read in pieces, and what the channel's end comes to.
fn frames(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, Result<(), ProtocolError>) {
    let mut reader = FrameReader::new();
    let mut found = Vec::new();
    for part in bytes.chunks(piece) {
        reader.push(part);
        loop {
            match reader.next() {
                Ok(Some(frame)) => found.push(frame),
                Ok(None) => break,
                Err(error) => return (found, Err(error)),
            }
        }
    }
    let end = reader.finish();
    (found, end)
}

/// A first packet, or an answer.
pub fn first_packet(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<FIRST_PACKET_LEN>()
        && let Ok(packet) = FirstPacket::decode(bytes)
    {
        assert_eq!(&packet.encode(), bytes);
    }
    if let Some(bytes) = bytes.first_chunk::<ANSWER_LEN>() {
        assert_eq!(&Answer::decode(bytes).encode(), bytes);
    }
}
