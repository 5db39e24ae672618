//! The two ends of a session over pipes in memory, against each other and against hostile peers.

use crate::control::{ControlReader, ControlWriter, raise};
use crate::far::{self, FarSettings};
use crate::link::{HangUp, Observer, SessionError, TransferOptions};
use crate::near::{self, GreetError, Greeted, NearJob, NearTransfer};
use crate::send::Source;
use crate::status;
use crate::tally::{FailedFile, Tally};
use escp_engine_api::{
    Command, EngineHandle, EngineKind, Event, Failure, Fault, JobOptions, Opened, Side, engine_pair,
};
use escp_proto::agent::{AgentMessage, Request, Transfer};
use escp_proto::control::{ControlFailure, ControlMessage, FULL_HELLO_LEN, Hello, Job, Listening, Streams};
use escp_proto::{ProtocolError, VERSION};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::watch;

#[path = "end_tests.rs"]
mod end;
#[path = "start_tests.rs"]
mod start;

const SHORT: Duration = Duration::from_millis(100);
const LONG: Duration = Duration::from_secs(20);

struct Silent;

impl Observer for Silent {
    fn scanned(&self, _: u64, _: u64, _: bool) {}
    fn moved(&self, _: u64, _: u64) {}
    fn published(&self, _: &dyn Fn() -> Vec<u8>) {}
    fn failed(&self, _: &FailedFile) {}
    fn silent(&self, _: u32, _: &str) {}
    fn note(&self, _: &str) {}
}

fn hello(lowest: u16, highest: u16, session: [u8; 16]) -> Hello {
    Hello { lowest, highest, features: 0, session, random: [7; 32], machine: [0; 16] }
}

fn near_job() -> NearJob {
    NearJob {
        host: "127.0.0.1".into(),
        transfer: NearTransfer::Upload {
            sources: vec![Source::Path(b"/nonexistent".to_vec())],
            target: b"x".to_vec(),
            directory_required: false,
        },
        options: TransferOptions { block_size: 1 << 20, ..TransferOptions::default() },
        near_kind: EngineKind::Posix,
        far_kind: EngineKind::Uring,
        streams: 3,
        streams_on_one_machine: 3,
        depth: 4,
        compress: None,
        rate_limit: None,
        congestion: None,
        cpus: Vec::new(),
        far_ports: None,
        family: crate::dial::Family::Any,
        verbose: 0,
    }
}

fn far_settings() -> FarSettings {
    FarSettings {
        from_here: false,
        address: Some("127.0.0.1".parse().unwrap()),
        ports: (1, 2),
        cpus: Vec::new(),
        rate_limit: None,
        memory: 1 << 40,
        posix_only: false,
    }
}

/// An engine whose peer speaks before it says that its lanes are up.
fn overtaken(message: Vec<u8>) -> EngineHandle {
    let (handle, mut port) = engine_pair();
    tokio::spawn(async move {
        while let Some(command) = port.commands.recv().await {
            let events = match command {
                Command::Open(options) => {
                    let kind = options.kind;
                    let ports = vec![1];
                    let opened = Opened { kind, kind_reason: None, ports, port_note: None, daemon: false };
                    let connected = Event::Connected { round_trip: Duration::ZERO };
                    vec![Event::Opened(opened), Event::Message(message.clone()), connected]
                }
                Command::Message(_) => {
                    let text = "the answer arrived".into();
                    vec![Event::Failed(Failure { fault: Fault::Lost, text })]
                }
                _ => Vec::new(),
            };
            for event in events {
                let _ = port.events.send(event).await;
            }
        }
    });
    handle
}

/// What an engine was asked for.
#[derive(Clone, Default)]
struct Asked {
    options: Arc<Mutex<Option<JobOptions>>>,
    lanes: Arc<Mutex<Vec<u16>>>,
    /// Told to end, or left by its agent.
    aborted: Arc<Mutex<Option<String>>>,
}

/// An engine that opens with `ports`, and fails once `lanes` lanes were added (0: as soon as it is open).
fn engine(ports: Vec<u16>, lanes: usize) -> (EngineHandle, Asked) {
    let (handle, mut port) = engine_pair();
    let asked = Asked::default();
    let seen = asked.clone();
    tokio::spawn(async move {
        while let Some(command) = port.commands.recv().await {
            match command {
                Command::Open(options) => {
                    let opened = Opened {
                        kind: options.kind,
                        kind_reason: None,
                        ports: ports.clone(),
                        port_note: None,
                        daemon: false,
                    };
                    *seen.options.lock().unwrap() = Some(*options);
                    let _ = port.events.send(Event::Opened(opened)).await;
                }
                Command::AddLane(lane) => {
                    seen.lanes.lock().unwrap().push(lane.stream);
                    if seen.lanes.lock().unwrap().len() == lanes {
                        let failure = Failure { fault: Fault::Lost, text: "the test is over".into() };
                        let _ = port.events.send(Event::Failed(failure)).await;
                    }
                }
                Command::Abort { reason } => {
                    *seen.aborted.lock().unwrap() = Some(reason);
                    return;
                }
                _ => {}
            }
        }
        seen.aborted.lock().unwrap().get_or_insert("left".into());
    });
    (handle, asked)
}

type Pipe = (ReadHalf<DuplexStream>, WriteHalf<DuplexStream>);

/// Greets a far side that answers properly; returns the session and the far side's ends.
async fn greeted() -> (Greeted<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>, Pipe) {
    let (near, far) = duplex(1 << 16);
    let (near_reader, near_writer) = split(near);
    let far_side = async {
        let (mut reader, mut writer) = split(far);
        let mut frame = [0; 4 + FULL_HELLO_LEN];
        reader.read_exact(&mut frame).await.unwrap();
        let theirs = Hello::decode_body(&frame[4..]).unwrap();
        let answer = hello(VERSION, VERSION, theirs.session).encode_frame();
        writer.write_all(&answer).await.unwrap();
        (reader, writer)
    };
    let (greeted, far) = tokio::join!(near::greet((near_reader, near_writer), near_job(), LONG), far_side);
    (greeted.unwrap(), far)
}

/// Runs a near session whose far side, after the hellos, sends `bytes` and, unless `open`, hangs up.
async fn near_against(bytes: &[u8], open: bool) -> (Result<Tally, SessionError>, Asked) {
    let (greeted, (mut reader, mut writer)) = greeted().await;
    writer.write_all(bytes).await.unwrap();
    let hold = tokio::spawn(async move {
        if !open {
            writer.shutdown().await.unwrap();
        }
        let mut all = Vec::new();
        let _ = reader.read_to_end(&mut all).await;
        drop(writer);
    });
    let (handle, asked) = engine(Vec::new(), 0);
    let stop = watch::Sender::new(None);
    let run = near::run(greeted, async || Ok(handle), stop, Arc::new(Silent));
    let ended = tokio::time::timeout(LONG, run).await.expect("it ends in time");
    hold.abort();
    (ended, asked)
}

async fn near_error(bytes: &[u8], open: bool) -> SessionError {
    near_against(bytes, open).await.0.unwrap_err()
}

/// Greets a far side that sends `bytes` at once, then hangs up or (`open`) stays silent.
async fn greet_error(bytes: &[u8], open: bool) -> GreetError {
    let (near, mut far) = duplex(1 << 16);
    far.write_all(bytes).await.unwrap();
    if !open {
        far.shutdown().await.unwrap();
    }
    let error = near::greet(split(near), near_job(), SHORT).await.unwrap_err();
    drop(far);
    error
}

#[tokio::test]
async fn whatever_is_not_escp_is_told_apart_by_the_near_side() {
    assert!(matches!(greet_error(b"", false).await, GreetError::Closed));
    assert!(matches!(greet_error(b"", true).await, GreetError::Silent(SHORT)));
    assert!(matches!(
        greet_error(b"Welcome to box!\nLast login...", true).await,
        GreetError::ForeignText(line) if line == "Welcome to box!"
    ));
    assert!(matches!(greet_error(b"no newline", false).await, GreetError::ForeignText(_)));
    let newer = hello(VERSION + 1, VERSION + 2, [0; 16]).encode_frame();
    assert!(matches!(
        greet_error(&newer, true).await,
        GreetError::Version(ProtocolError::Version { peer, ours: VERSION }) if peer == "3 to 4"
    ));
    let claims_4_gib = [0xff, 0xff, 0xff, 0xff, 0];
    assert!(matches!(greet_error(&claims_4_gib, true).await, GreetError::Broken(_)));
    let cut = &hello(VERSION, VERSION, [0; 16]).encode_frame()[..20];
    assert!(matches!(greet_error(cut, false).await, GreetError::Broken(_)));
    let another_session = hello(VERSION, VERSION, [9; 16]).encode_frame();
    assert!(matches!(greet_error(&another_session, true).await, GreetError::Broken(_)));
}

#[tokio::test]
async fn a_far_side_that_breaks_the_protocol_ends_the_session_with_status_5() {
    let bye = ControlMessage::Bye.encode_frame().unwrap();
    for (bytes, what) in [
        (&[0xff, 0xff, 0xff, 0xff][..], "claims 4 GiB"),
        (&[0, 1, 0, 1], "claims a byte too many"),
        (&[0, 0, 0, 0], "empty"),
        (&[0, 0, 0, 1, 0xff], "unknown message"),
        (&[0, 0, 0, 4, 2, 3, 2, 0xff], "not UTF-8"),
        (&[0, 0, 0, 2, 0, 0], "half a job"),
        (&[0, 0, 0, 4, 2, 0, 1, b'x'], "a failure with status 0"),
        (&bye, "goodbye out of turn"),
    ] {
        let error = near_error(bytes, true).await;
        assert_eq!(error.status, status::INTEGRITY, "{what}: {error}");
        assert!(error.text.contains("127.0.0.1 broke the protocol"), "{what}: {error}");
    }
    let cut = near_error(&[0, 0, 0, 9, 1, 1], false).await;
    assert_eq!(cut.status, status::INTEGRITY, "cut: {cut}");
}

#[tokio::test]
async fn a_far_side_that_hangs_up_is_a_lost_connection() {
    let error = near_error(b"", false).await;
    assert_eq!(error.status, status::LOST);
    assert!(error.text.starts_with("the connection to 127.0.0.1 was lost"), "{error}");
}

#[tokio::test]
async fn the_far_sides_own_words_reach_the_user_with_its_status() {
    let failed = |status, text: &str| {
        ControlMessage::Failed(ControlFailure { status, text: text.into() }).encode_frame().unwrap()
    };
    let error = near_error(&failed(3, "no free port"), true).await;
    assert_eq!((error.status, error.text.as_str()), (3, "127.0.0.1: no free port"));
    let error = near_error(&failed(143, "terminated"), true).await;
    assert_eq!(error.status, status::LOST, "nobody ended this side by a signal");
}

#[tokio::test]
async fn a_far_side_that_dies_after_the_lanes_were_asked_for_does_not_hang_the_near_one() {
    // Nothing listens on port 1 of loopback; the control channel is gone before dialling matters.
    let listening = ControlMessage::Listening(Listening {
        addresses: vec!["127.0.0.1".parse().unwrap()],
        ports: vec![1],
        engine: "uring".into(),
        daemon: false,
        notes: Vec::new(),
    });
    let (ended, asked) = near_against(&listening.encode_frame().unwrap(), false).await;
    let error = ended.unwrap_err();
    assert!([status::LOST, status::CONNECT].contains(&error.status), "{error}");
    assert!(asked.aborted.lock().unwrap().is_some(), "the own engine was told");
}

#[tokio::test]
async fn a_signal_stops_the_near_side_and_tells_the_far_one() {
    let (greeted, (reader, mut writer)) = greeted().await;
    let stop = watch::Sender::new(None);
    let signal = stop.clone();
    let far_side = async {
        let mut reader = ControlReader::new(reader, escp_proto::Side::Far);
        // The reader has not seen the hello; it takes the job for the first frame it may judge.
        tokio::time::sleep(SHORT).await;
        raise(&signal, HangUp { status: status::INTERRUPTED, text: "interrupted".into() });
        let mut all = Vec::new();
        while let Ok(frame) = reader.frame().await {
            all.push(frame);
        }
        let _ = writer.shutdown().await;
        all
    };
    let (handle, _) = engine(Vec::new(), 0);
    let near_side = near::run(greeted, async || Ok(handle), stop, Arc::new(Silent));
    let (ended, _) =
        tokio::join!(tokio::time::timeout(LONG, near_side), tokio::time::timeout(LONG, far_side));
    let error = ended.unwrap().unwrap_err();
    assert_eq!((error.status, error.text.as_str()), (status::INTERRUPTED, "interrupted"));
}

/// Serves a near side that sends `bytes`, then hangs up or (`open`) stays; returns what the far side said.
async fn far_against(bytes: &[u8], open: bool) -> (SessionError, Vec<u8>, Asked) {
    let (near, far) = duplex(1 << 16);
    let (mut near_reader, mut near_writer) = split(near);
    near_writer.write_all(bytes).await.unwrap();
    if !open {
        near_writer.shutdown().await.unwrap();
    }
    let (handle, asked) = engine(vec![1], 0);
    let serving = far::serve(
        split(far),
        async || Ok(handle),
        far_settings(),
        watch::Sender::new(None),
        |_| {},
        Arc::new(Silent),
    );
    let error = tokio::time::timeout(LONG, serving).await.expect("it ends in time").unwrap_err();
    let mut said = Vec::new();
    near_reader.read_to_end(&mut said).await.unwrap();
    drop(near_writer);
    (error, said, asked)
}

fn job(engine: &str) -> Job {
    Job {
        far_sends: false,
        engine: engine.into(),
        streams: Streams { count: 3, depth: 4 },
        streams_on_one_machine: Streams { count: 1, depth: 12 },
        block_size: 1 << 20,
        compress: None,
        checksum: true,
        durable: true,
        rate_limit: None,
        congestion: None,
        ports: None,
        verbose: 0,
    }
}

fn job_bytes(engine: &str) -> Vec<u8> {
    let job = ControlMessage::Job(job(engine)).encode_frame().unwrap();
    [hello(VERSION, VERSION, [3; 16]).encode_frame(), job].concat()
}

#[tokio::test]
async fn the_far_side_answers_a_foreign_version_with_its_own_hello_and_the_reason() {
    let (error, said, asked) = far_against(&hello(9, 9, [3; 16]).encode_frame(), true).await;
    assert_eq!(error.status, status::CONNECT);
    assert!(error.text.contains("peer speaks escp protocol 9, this is 2"), "{error}");
    let ours = Hello::decode_body(&said[4..4 + FULL_HELLO_LEN]).unwrap();
    assert_eq!((ours.lowest, ours.highest, ours.session), (VERSION, VERSION, [3; 16]));
    assert!(said.len() > 4 + FULL_HELLO_LEN, "and a sentence");
    assert!(asked.options.lock().unwrap().is_none(), "no engine was opened");
}

#[tokio::test]
async fn a_near_side_that_breaks_the_protocol_gets_no_engine() {
    let greeting = hello(VERSION, VERSION, [3; 16]).encode_frame();
    let then = |more: &[u8]| [greeting.as_slice(), more].concat();
    for (bytes, open, due) in [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), true, status::INTEGRITY),
        (vec![0xff, 0xff, 0xff, 0xff], true, status::INTEGRITY),
        (then(&[0xff, 0xff, 0xff, 0xff]), true, status::INTEGRITY),
        (then(&[0, 0, 0, 1, 3]), true, status::INTEGRITY),
        (then(&[0, 0, 0, 9, 0]), false, status::INTEGRITY),
        (greeting.clone(), false, status::LOST),
        (Vec::new(), false, status::LOST),
        (job_bytes("warp"), true, status::CONNECT),
    ] {
        let (error, _, asked) = far_against(&bytes, open).await;
        assert_eq!(error.status, due, "{bytes:?}: {error}");
        assert!(asked.options.lock().unwrap().is_none(), "{bytes:?}");
    }
}

/// A request for one source, in files or without.
fn download_request(dummy: bool) -> AgentMessage {
    AgentMessage::Request(Request {
        transfer: Transfer::Download { sources: vec![b"dummy:1".to_vec()] },
        recursive: false,
        preserve: false,
        inplace: false,
        durable: true,
        direct: true,
        checksum: true,
        dummy,
    })
}

#[tokio::test]
async fn a_request_that_overtakes_the_last_lane_is_heard() {
    let request = download_request(false).encode().unwrap();
    let (near, far) = duplex(1 << 16);
    let (_near_reader, mut near_writer) = split(near);
    near_writer.write_all(&job_bytes("uring")).await.unwrap();
    let engine = async || Ok(overtaken(request));
    let stop = watch::Sender::new(None);
    let serving = far::serve(split(far), engine, far_settings(), stop, |_| {}, Arc::new(Silent));
    let error = tokio::time::timeout(LONG, serving).await.expect("at once").unwrap_err();
    // The job says upload, so the request is refused: it was heard.
    assert_eq!(error.status, status::INTEGRITY);
    assert!(error.text.contains("differ in direction"), "{error}");
}

#[tokio::test]
async fn the_near_sides_hang_up_ends_the_far_engine() {
    let (error, _, asked) = far_against(&job_bytes("uring"), false).await;
    assert_eq!(error.status, status::LOST);
    assert!(error.text.contains("connection to the near side was lost"), "{error}");
    let gone = async {
        while asked.aborted.lock().unwrap().is_none() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, gone).await.expect("told, or left");
}

#[tokio::test]
async fn both_ends_open_their_engines_with_one_secret_and_opposite_roles() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (near_pipe, far_pipe) = duplex(1 << 16);
    let (near_engine, near_asked) = engine(Vec::new(), 4);
    let (far_engine, far_asked) = engine(vec![port], 0);
    let near_side = async {
        let greeted = near::greet(split(near_pipe), near_job(), LONG).await.unwrap();
        near::run(greeted, async || Ok(near_engine), watch::Sender::new(None), Arc::new(Silent)).await
    };
    let far_side = far::serve(
        split(far_pipe),
        async || Ok(far_engine),
        far_settings(),
        watch::Sender::new(None),
        |_| {},
        Arc::new(Silent),
    );
    let ends = async { tokio::join!(near_side, far_side) };
    let (near_end, far_end) = tokio::time::timeout(LONG, ends).await.unwrap();
    assert_eq!(near_end.unwrap_err().text, "the test is over");
    let far_end = far_end.unwrap_err();
    assert_eq!(far_end.text, "the near side: the test is over");
    assert_eq!(far_end.status, status::LOST);

    let near = near_asked.options.lock().unwrap().take().unwrap();
    let far = far_asked.options.lock().unwrap().take().unwrap();
    assert_eq!(near.secret.0, far.secret.0);
    assert_ne!(near.secret.0, [0; 32]);
    assert_eq!(near.session, far.session);
    assert_eq!((near.side, far.side), (Side::Near, Side::Far));
    assert_ne!(near.direction, far.direction);
    assert_eq!((near.streams, near.block_size, near.depth), (far.streams, far.block_size, far.depth));
    assert_eq!((near.kind, far.kind), (EngineKind::Posix, EngineKind::Uring));
    assert!(near.listen.is_none() && far.listen.is_some());
    assert_eq!(*near_asked.lanes.lock().unwrap(), [0, 1, 2, 3]);
    assert!(far_asked.aborted.lock().unwrap().is_some(), "the far engine was told");
}

#[tokio::test]
async fn a_writer_whose_reader_is_gone_says_so() {
    let (near, far) = duplex(64);
    drop(far);
    let mut writer = ControlWriter::new(near);
    assert!(writer.send(&ControlMessage::Bye).await.is_err());
}

#[test]
fn the_address_ssh_came_in_on() {
    assert!(far::is_from_here("10.0.0.1 50000 10.0.0.1 22"));
    assert!(!far::is_from_here("10.0.0.1 50000 10.0.0.2 22") && !far::is_from_here(""));
    let address = |text: &str| far::address_of_connection(text).map(|address| address.to_string());
    assert_eq!(address("10.0.0.1 55555 10.0.0.2 22").as_deref(), Some("10.0.0.2"));
    assert_eq!(address("2001:db8::1 55555 2001:db8::2 22").as_deref(), Some("2001:db8::2"));
    for none in ["", "a b c d", "10.0.0.1 5", "fe80::1%eth0 1 fe80::2%eth0 22"] {
        assert_eq!(address(none), None, "{none}");
    }
}
