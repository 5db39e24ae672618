//! The hostile sender's lanes, and the engine that it meets.

use escp_crypto::{Flow, MasterSecret, Opener, Sealer, StreamContext};
use escp_engine::{Host, spawn};
use escp_engine_api::{
    Command, Direction, EngineHandle, Event, Failure, Fault, FileSpec, JobOptions, Listen, Secret, SessionId,
    Side,
};
use escp_proto::block::{BlockHeader, HEADER_LEN};
use escp_proto::first_packet::{ANSWER_LEN, Answer, FIRST_PACKET_LEN, FirstPacket};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::record::{Iv, Kind};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BLOCK: u32 = 256 * 1024;
pub(crate) const SESSION: [u8; 16] = [7; 16];
pub(crate) const SECRET: [u8; 32] = [9; 32];
pub(crate) const SIZE: u64 = 3 * BLOCK as u64;
/// The longest payload of a record: a block's header and a whole block.
#[expect(clippy::cast_possible_truncation, reason = "32")]
pub(crate) const GREATEST: u32 = HEADER_LEN as u32 + BLOCK;

/// A lane of the hostile sender.
pub(crate) struct Stream {
    pub(crate) socket: TcpStream,
    pub(crate) sealer: Sealer,
    pub(crate) opener: Opener,
    /// Everything that was sent on the connection, to replay it.
    pub(crate) recorded: Vec<u8>,
}

impl Stream {
    pub(crate) fn dial(port: u16, number: u16) -> Self {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let master = MasterSecret::from_bytes(SECRET);
        let route = master.route_key(&SESSION);
        let nonce = [u8::try_from(number).unwrap() + 1; 16];
        let packet = first_packet(number, nonce);
        socket.write_all(&packet).unwrap();
        let mut answer = [0; ANSWER_LEN];
        socket.read_exact(&mut answer).unwrap();
        let answer = Answer::decode(&answer);
        route.verify(&[&packet, &answer.nonce], &answer.proof).unwrap();
        let context = StreamContext { session: SESSION, stream: number, nonce, answer_nonce: answer.nonce };
        let sealer = Sealer::new(master.stream_secret(&context, Flow::NearToFar)).unwrap();
        let opener = Opener::new(master.stream_secret(&context, Flow::FarToNear)).unwrap();
        Self { socket, sealer, opener, recorded: packet.to_vec() }
    }

    pub(crate) fn record(&mut self, kind: Kind, payload: &[u8]) -> Vec<u8> {
        let sequence = self.sealer.next_sequence().unwrap();
        let length = u32::try_from(payload.len()).unwrap();
        let iv = Iv { kind, length, sequence: sequence.number() }.encode().unwrap();
        let mut sealed = payload.to_vec();
        let tag = self.sealer.seal(sequence, iv, &mut sealed).unwrap();
        [&iv.to_be_bytes()[..], &sealed, &tag].concat()
    }

    pub(crate) fn block(&mut self, header: BlockHeader, data: &[u8]) -> Vec<u8> {
        let payload = [&header.encode()[..], data].concat();
        self.record(Kind::File, &payload)
    }

    pub(crate) fn say(&mut self, message: EngineMessage) -> Vec<u8> {
        let payload = Message::Engine(message).encode().unwrap();
        self.record(Kind::Metadata, &payload)
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.recorded.extend_from_slice(bytes);
        // The engine may have hung up already: that is what these tests are about.
        let _ = self.socket.write_all(bytes);
    }
}

/// A first packet of the session, properly proven.
pub(crate) fn first_packet(stream: u16, nonce: [u8; 16]) -> [u8; FIRST_PACKET_LEN] {
    let route = MasterSecret::from_bytes(SECRET).route_key(&SESSION);
    let proof = route.proof(&[&FirstPacket::proven(stream, &SESSION, &nonce)]);
    FirstPacket { stream, session: SESSION, nonce, proof }.encode()
}

/// A receiving engine with one open file of three blocks, its hostile peer, and the file's path.
pub(crate) struct Stage {
    pub(crate) engine: EngineHandle,
    pub(crate) control: Stream,
    pub(crate) data: Stream,
    pub(crate) port: u16,
    pub(crate) directory: tempfile::TempDir,
}

pub(crate) async fn next(engine: &mut EngineHandle) -> Option<Event> {
    tokio::time::timeout(Duration::from_secs(20), engine.events.recv()).await.expect("an event in time")
}

pub(crate) async fn stage() -> Stage {
    let mut engine = spawn(Host::embedded());
    let options = JobOptions {
        listen: Some(Listen { first_port: 0, last_port: 0 }),
        streams: 1,
        block_size: BLOCK,
        durable: false,
        ..JobOptions::new(SessionId(SESSION), Secret(SECRET), Side::Far, Direction::Receive)
    };
    engine.commands.send(Command::Open(Box::new(options))).await.unwrap();
    let Some(Event::Opened(opened)) = next(&mut engine).await else { panic!("not opened") };
    let port = opened.ports[0];
    let (control, data) =
        tokio::task::spawn_blocking(move || (Stream::dial(port, 0), Stream::dial(port, 1))).await.unwrap();
    assert!(matches!(next(&mut engine).await, Some(Event::Connected { .. })));
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let target = std::fs::File::create(directory.path().join("target")).unwrap();
    let spec = FileSpec { number: 1, size: SIZE, direct_alignment: 0, in_memory: false, sparse: true };
    engine
        .commands
        .send(Command::AddFiles(vec![(spec, Some(Arc::new(OwnedFd::from(target))))]))
        .await
        .unwrap();
    // The file is known once a command after it was handled, and a message to the peer is such a command.
    engine.commands.send(Command::Message(b"ready".to_vec())).await.unwrap();
    let mut ready = control.socket.try_clone().unwrap();
    tokio::task::spawn_blocking(move || ready.read_exact(&mut [0; 8]).unwrap()).await.unwrap();
    Stage { engine, control, data, port, directory }
}

impl Stage {
    /// What ended the session.
    pub(crate) async fn failure(mut self) -> (Failure, u64) {
        loop {
            match next(&mut self.engine).await {
                Some(Event::Failed(failure)) => {
                    let written = std::fs::read(self.directory.path().join("target")).unwrap();
                    return (failure, written.iter().filter(|&&byte| byte != 0).count() as u64);
                }
                Some(Event::Ended { .. }) | None => panic!("the session ended well"),
                Some(_) => {}
            }
        }
    }

    pub(crate) async fn expect(self, fault: Fault, words: &str) {
        let (failure, written) = self.failure().await;
        assert_eq!(failure.fault, fault, "{failure}");
        assert!(failure.text.contains(words), "{failure}");
        assert_eq!(written, 0, "bytes that were refused reached the file");
    }
}

pub(crate) fn plain(offset: u64, data: &[u8]) -> BlockHeader {
    let check = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, data);
    BlockHeader { file: 1, offset, plain_len: u32::try_from(data.len()).unwrap(), flags: 0, check }
}

impl Stage {
    /// Another connection that says this is closed without an answer.
    pub(crate) async fn shuts_out(&self, words: Vec<u8>) {
        let port = self.port;
        tokio::task::spawn_blocking(move || {
            let mut other = TcpStream::connect(("127.0.0.1", port)).unwrap();
            other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            other.write_all(&words).unwrap();
            let mut answer = Vec::new();
            // Closed without a byte; bytes it had not read may make that a reset.
            let end = other.read_to_end(&mut answer);
            let late = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
            assert!(answer.is_empty() && !late, "answered with {answer:x?}, or kept");
        })
        .await
        .unwrap();
    }

    /// Sends the file from `offset` on, in blocks as long as may be, and insists that it arrives.
    pub(crate) async fn completes_from(mut self, offset: u64) {
        let data = vec![0; usize::try_from(SIZE - offset).unwrap()];
        for (index, part) in data.chunks(BLOCK as usize).enumerate() {
            let offset = offset + (index * BLOCK as usize) as u64;
            let record = self.data.block(plain(offset, part), part);
            self.data.send(&record);
        }
        loop {
            match next(&mut self.engine).await {
                Some(Event::Files(files)) => {
                    assert!(files[0].outcome.is_ok(), "{files:?}");
                    break;
                }
                Some(Event::Failed(failure)) => panic!("{failure}"),
                _ => {}
            }
        }
    }
}
