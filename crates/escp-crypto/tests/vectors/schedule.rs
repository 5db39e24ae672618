//! From hellos to keys, and the first packets that the route key proves.

use super::{hex, samples};
use escp_crypto::{Flow, MasterSecret, RouteKey, StreamContext};
use escp_proto::first_packet::{Answer, FirstPacket};
use ring::hkdf;
use serde_json::{Value, json};

/// The session of every vector.
pub(crate) const SESSION: [u8; 16] = [0x5e; 16];
const NEAR: u8 = 0x11;
const FAR: u8 = 0x22;

/// The master secret of every vector.
pub(crate) fn master() -> MasterSecret {
    let (near, far) = (samples::hello(NEAR), samples::hello(FAR));
    MasterSecret::from_hellos(&near.encode_frame(), &far.encode_frame(), &near.random, &far.random)
}

/// A stream of the vectors' session; its nonces are made from its number.
pub(crate) fn context(stream: u16) -> StreamContext {
    let low = stream.to_be_bytes()[1];
    StreamContext { session: SESSION, stream, nonce: [0xa0 ^ low; 16], answer_nonce: [0xb0 ^ low; 16] }
}

/// A flow's name in the vectors.
pub(crate) fn flow_name(flow: Flow) -> &'static str {
    match flow {
        Flow::NearToFar => "near to far",
        Flow::FarToNear => "far to near",
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand, for the secrets that the crate does not show.
fn expand(secret: &[u8], info: &[&[u8]], length: usize) -> Vec<u8> {
    let mut out = vec![0; length];
    let prk = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    prk.expand(info, Length(length)).unwrap().fill(&mut out).unwrap();
    out
}

fn stream(number: u16, flow: Flow) -> Value {
    let context = context(number);
    let master = master();
    let octet = [u8::from(flow == Flow::FarToNear)];
    let stream = number.to_be_bytes();
    let info: [&[u8]; 6] =
        [b"escp2 stream", &SESSION, &stream, &octet, &context.nonce, &context.answer_nonce];
    let mut secret = expand(master.expose(), &info, 32);
    let first = secret.clone();
    let mut inner = master.stream_secret(&context, flow);
    let mut epochs = Vec::new();
    for epoch in 0..3 {
        assert_eq!(expand(&secret, &[b"escp2 key"], 16), inner.key().as_slice());
        assert_eq!(expand(&secret, &[b"escp2 iv"], 12), inner.iv_base());
        epochs.push(json!({
            "epoch": epoch,
            "secret": hex(&secret),
            "key": hex(&inner.key()[..]),
            "iv_base": hex(&inner.iv_base()),
        }));
        secret = expand(&secret, &[b"escp2 next"], 32);
        inner = inner.next_epoch();
    }
    json!({
        "stream": number,
        "flow": flow_name(flow),
        "nonce": hex(&context.nonce),
        "answer_nonce": hex(&context.answer_nonce),
        "secret": hex(&first),
        "epochs": epochs,
    })
}

fn first_packets(key: &RouteKey, number: u16) -> Value {
    let context = context(number);
    let proof = key.proof(&[&FirstPacket::proven(number, &SESSION, &context.nonce)]);
    let packet = FirstPacket { stream: number, session: SESSION, nonce: context.nonce, proof };
    let bytes = packet.encode();
    let answer = Answer { nonce: context.answer_nonce, proof: key.proof(&[&bytes, &context.answer_nonce]) };
    json!({
        "stream": number,
        "nonce": hex(&packet.nonce),
        "proof": hex(&packet.proof),
        "packet": hex(&bytes),
        "answer_nonce": hex(&answer.nonce),
        "answer_proof": hex(&answer.proof),
        "answer": hex(&answer.encode()),
    })
}

/// `schedule.json`.
pub(crate) fn vectors() -> Value {
    let (near, far) = (samples::hello(NEAR), samples::hello(FAR));
    let key = master().route_key(&SESSION);
    json!({
        "near_hello": hex(&near.encode_frame()),
        "far_hello": hex(&far.encode_frame()),
        "near_random": hex(&near.random),
        "far_random": hex(&far.random),
        "session": hex(&SESSION),
        "master": hex(master().expose()),
        "route_key": hex(key.expose()),
        "streams": [
            stream(0, Flow::NearToFar),
            stream(0, Flow::FarToNear),
            stream(1, Flow::NearToFar),
            stream(258, Flow::FarToNear),
        ],
        "first_packets": [first_packets(&key, 0), first_packets(&key, 258)],
    })
}
