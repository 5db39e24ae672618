//! Both ends over a real socket, with an engine whose every word the test decides.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers fail the test")]

use escp_engine_api::{
    Command, Counters, Direction, EngineHandle, EngineKind, EnginePort, Event, Failure, Fault, FileSpec,
    JobOptions, Lane, Opened, Secret, SessionId, Side, engine_pair,
};
use escp_ipc::{Channel, ConnectError, FrameBuffer, Hello, ServeEnd, connect, encode_command, refuse, serve};
use escp_sys::seqpacket;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
    listener: OwnedFd,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("escpd.sock");
    let listener = seqpacket::listen(&path, 0o666, 16).unwrap();
    Place { _directory: directory, path, listener }
}

impl Place {
    async fn accepted(&self) -> OwnedFd {
        loop {
            match seqpacket::accept(&self.listener) {
                Ok(socket) => return socket,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Fills the queue of connections; returns those in it.
    fn fill(&self) -> Vec<OwnedFd> {
        let mut queue = Vec::new();
        loop {
            match seqpacket::connect(&self.path) {
                Ok(socket) => queue.push(socket),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return queue,
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// An agent's handle, the engine's end behind the socket, and the worker that serves it.
    async fn session(&self) -> (EngineHandle, EnginePort, JoinHandle<ServeEnd>) {
        let (engine, port) = engine_pair();
        let path = self.path.clone();
        let agent = tokio::spawn(async move { connect(&path).await });
        let worker = tokio::spawn(serve(self.accepted().await, engine));
        (agent.await.unwrap().unwrap(), port, worker)
    }

    /// A connection that has said its hello and may now say anything, with its worker.
    async fn raw(&self) -> (Channel, EnginePort, JoinHandle<ServeEnd>) {
        let (engine, port) = engine_pair();
        let channel = Channel::new(seqpacket::connect(&self.path).unwrap()).unwrap();
        let worker = tokio::spawn(serve(self.accepted().await, engine));
        let mut buffer = FrameBuffer::new();
        channel.receive(&mut buffer).await.unwrap().unwrap();
        assert_eq!(Hello::decode(buffer.frame()), Ok(Hello::ours()));
        channel.send(&Hello::ours().encode(), &[]).await.unwrap();
        (channel, port, worker)
    }
}

fn options() -> Box<JobOptions> {
    let (session, secret) = (SessionId([1; 16]), Secret([0xa5; 32]));
    Box::new(JobOptions::new(session, secret, Side::Near, Direction::Send))
}

fn opened() -> Event {
    Event::Opened(Opened {
        kind: EngineKind::Uring,
        kind_reason: None,
        ports: vec![1232],
        port_note: None,
        daemon: true,
    })
}

/// The reading end of a pipe whose only writing end is returned too: it ends when that one is closed
/// everywhere.
fn probe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK).unwrap()
}

async fn closed_everywhere(reader: &OwnedFd) {
    let wait = async {
        while rustix::io::read(reader, &mut [0; 1]) != Ok(0) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.expect("a passed descriptor is still open somewhere");
}

async fn next(events: &mut tokio::sync::mpsc::Receiver<Event>) -> Option<Event> {
    timeout(SOON, events.recv()).await.unwrap()
}

#[tokio::test]
async fn a_session_from_open_to_end() {
    let place = place();
    let (mut agent, mut engine, worker) = place.session().await;
    agent.commands.send(Command::Open(options())).await.unwrap();
    let (reader, writer) = probe();
    let spec = FileSpec { number: 7, size: 1, direct_alignment: 0, in_memory: false, sparse: false };
    agent.commands.send(Command::AddFiles(vec![(spec, Some(Arc::new(writer)))])).await.unwrap();
    let (lane, _other) = seqpacket::pair().unwrap();
    agent.commands.send(Command::AddLane(Lane { stream: 3, socket: lane })).await.unwrap();

    let Some(Command::Open(got)) = engine.commands.recv().await else { panic!() };
    assert_eq!((got.session, got.secret.0), (SessionId([1; 16]), [0xa5; 32]));
    engine.events.send(opened()).await.unwrap();
    let Some(Command::AddFiles(files)) = engine.commands.recv().await else { panic!() };
    assert_eq!(files[0].0, spec);
    rustix::io::write(files[0].1.as_ref().unwrap(), b"x").unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 2]), Ok(1));
    drop(files);
    closed_everywhere(&reader).await;
    assert!(matches!(engine.commands.recv().await, Some(Command::AddLane(Lane { stream: 3, .. }))));
    engine.events.send(Event::Ended { files: 1, counters: Counters::default() }).await.unwrap();

    assert!(matches!(next(&mut agent.events).await, Some(Event::Opened(_))));
    assert!(matches!(next(&mut agent.events).await, Some(Event::Ended { files: 1, .. })));
    assert!(next(&mut agent.events).await.is_none());
    assert_eq!(timeout(SOON, worker).await.unwrap().unwrap(), ServeEnd::Ended { files: 1 });
}

#[tokio::test]
async fn a_slow_reader_makes_the_other_end_wait_and_loses_nothing() {
    let place = place();
    let (mut agent, engine, _worker) = place.session().await;
    let sender = tokio::spawn(async move {
        for number in 0..400_u32 {
            let mut message = vec![0; 50_000];
            message[..4].copy_from_slice(&number.to_be_bytes());
            engine.events.send(Event::Message(message)).await.unwrap();
        }
        engine
    });
    sleep(Duration::from_millis(300)).await;
    for number in 0..400_u32 {
        let Some(Event::Message(message)) = next(&mut agent.events).await else { panic!() };
        assert_eq!((message.len(), &message[..4]), (50_000, &number.to_be_bytes()[..]));
    }
    sender.await.unwrap();
}

#[tokio::test]
async fn the_agents_hang_up_ends_the_engine() {
    let place = place();
    let (agent, mut engine, worker) = place.session().await;
    let (reader, writer) = probe();
    let spec = FileSpec { number: 7, size: 1, direct_alignment: 0, in_memory: false, sparse: false };
    agent.commands.send(Command::AddFiles(vec![(spec, Some(Arc::new(writer)))])).await.unwrap();
    drop(agent);
    assert_eq!(timeout(SOON, worker).await.unwrap().unwrap(), ServeEnd::AgentGone);
    // What was said before still arrives; then the queues are closed.
    assert!(matches!(engine.commands.recv().await, Some(Command::AddFiles(_))));
    assert!(engine.commands.recv().await.is_none());
    assert!(engine.events.is_closed());
    closed_everywhere(&reader).await;
}

#[tokio::test]
async fn an_agent_may_drop_one_queue_and_keep_the_other() {
    let place = place();
    let (EngineHandle { commands, mut events }, engine, worker) = place.session().await;
    drop(commands);
    sleep(Duration::from_millis(50)).await;
    let round_trip = Duration::from_micros(50_100);
    engine.events.send(Event::Connected { round_trip }).await.unwrap();
    assert!(
        matches!(next(&mut events).await, Some(Event::Connected { round_trip: told }) if told == round_trip)
    );
    drop(events);
    assert_eq!(timeout(SOON, worker).await.unwrap().unwrap(), ServeEnd::AgentGone);
}

#[tokio::test]
async fn the_workers_death_is_a_loss() {
    let place = place();
    let (mut agent, _engine, worker) = place.session().await;
    agent.commands.send(Command::Open(options())).await.unwrap();
    worker.abort();
    let Some(Event::Failed(failure)) = next(&mut agent.events).await else { panic!() };
    assert_eq!(failure.fault, Fault::Lost);
    assert!(failure.text.starts_with("escpd's worker ended"), "{failure}");
    assert!(next(&mut agent.events).await.is_none());
    agent.commands.closed().await;
}

#[tokio::test]
async fn a_failure_arrives_even_while_the_agent_still_talks() {
    let place = place();
    let (mut agent, engine, worker) = place.session().await;
    for number in 0..40 {
        agent.commands.send(Command::DropFiles(vec![number])).await.unwrap();
    }
    let failure = Failure { fault: Fault::Integrity, text: "altered".to_owned() };
    engine.events.send(Event::Failed(failure.clone())).await.unwrap();
    drop(engine);
    let Some(Event::Failed(got)) = next(&mut agent.events).await else { panic!() };
    assert_eq!(got, failure);
    assert_eq!(timeout(SOON, worker).await.unwrap().unwrap(), ServeEnd::Failed(failure));
}

#[tokio::test]
async fn what_breaks_the_rules_ends_the_session_and_leaks_nothing() {
    let place = place();
    let (_, end) = probe();
    let frame_of = |command| encode_command(command).unwrap().remove(0).frame.to_vec();
    let lane = frame_of(Command::AddLane(Lane { stream: 1, socket: end }));
    let cases: [(&str, Vec<u8>, usize, &str); 6] = [
        ("no frame", b"\x07rubbish".to_vec(), 1, "unknown kind 7"),
        ("4 GiB", vec![2, 3, 0xff, 0xff, 0xff, 0xff, 0x0f], 1, "does not decode"),
        ("none", lane.clone(), 0, "0 descriptors where 1 are due"),
        ("two", lane.clone(), 2, "2 descriptors where 1 are due"),
        ("253", lane, 253, "253 descriptors where 1 are due"),
        ("oversize", vec![1; 65_536], 3, "larger than any may be"),
    ];
    for (name, bytes, count, expected) in cases {
        let (channel, mut engine, worker) = place.raw().await;
        let (reader, writer) = probe();
        seqpacket::send(&channel, &bytes, &vec![writer.as_fd(); count]).unwrap();
        drop(writer);
        let mut buffer = FrameBuffer::new();
        timeout(SOON, channel.receive(&mut buffer)).await.unwrap().unwrap().unwrap();
        let event = escp_ipc::decode_event(buffer.frame(), 0).unwrap();
        let Event::Failed(failure) = event else { panic!("{name}: {event:?}") };
        assert!(failure.text.contains(expected), "{name}: {failure}");
        assert!(matches!(failure.fault, Fault::Local), "{name}");
        drop(channel);
        let end = timeout(SOON, worker).await.unwrap().unwrap();
        assert!(matches!(&end, ServeEnd::Refused(why) if why.contains(expected)), "{name}: {end:?}");
        assert!(engine.commands.recv().await.is_none(), "{name}");
        closed_everywhere(&reader).await;
    }
}

#[tokio::test]
async fn each_reason_for_no_session_is_told_apart() {
    let place = place();
    let absent = connect(&place.path.with_file_name("nowhere")).await.unwrap_err();
    assert!(matches!(&absent, ConnectError::Absent { .. }), "{absent}");

    let turned_away = tokio::join!(connect(&place.path), async {
        refuse(place.accepted().await, "you have 8 sessions, as many as one user may");
    });
    let turned_away = turned_away.0.unwrap_err();
    assert!(matches!(&turned_away, ConnectError::Refused(_)), "{turned_away}");
    assert_eq!(turned_away.to_string(), "you have 8 sessions, as many as one user may");

    let hello = Hello::Welcome { version: 99, release: "9.9.9".to_owned() };
    let other = tokio::join!(connect(&place.path), async {
        let socket = place.accepted().await;
        seqpacket::send(&socket, &hello.encode(), &[]).unwrap();
        socket
    });
    let other = other.0.unwrap_err();
    assert!(matches!(&other, ConnectError::Version { .. }), "{other}");
    assert!(other.to_string().contains("9.9.9 (socket protocol 99)"), "{other}");

    let silent = tokio::join!(connect(&place.path), async { drop(place.accepted().await) }).0.unwrap_err();
    assert!(matches!(&silent, ConnectError::Broken { .. }), "{silent}");

    let path = place.path.clone();
    drop(place.listener);
    let refused = connect(&path).await.unwrap_err();
    assert!(matches!(&refused, ConnectError::Absent { .. }), "{refused}");
}

#[tokio::test]
async fn a_place_in_a_full_queue_of_connections_is_waited_for() {
    let place = place();
    let queue = place.fill();
    let mut agent = std::pin::pin!(connect(&place.path));
    let at_once = tokio::select! {
        biased;
        ended = &mut agent => Some(ended.map(drop)),
        () = std::future::ready(()) => None,
    };
    assert!(at_once.is_none(), "{at_once:?}");
    // It has tried once, and not again before those in front of it had their turn.
    for _ in &queue {
        seqpacket::accept(&place.listener).unwrap();
    }
    let (engine, _port) = engine_pair();
    let served = async { serve(place.accepted().await, engine).await };
    let connected = async {
        tokio::select! {
            connected = agent => connected.map(drop),
            end = served => panic!("{end:?}"),
        }
    };
    timeout(SOON, connected).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_queue_that_stays_full_is_given_up() {
    let place = place();
    let _queue = place.fill();
    let error = connect(&place.path).await.unwrap_err();
    assert!(
        matches!(&error, ConnectError::Broken { source, .. } if source.kind() == ErrorKind::WouldBlock),
        "{error}"
    );
}

#[tokio::test]
async fn an_agent_of_another_version_is_noticed_by_the_worker() {
    let place = place();
    let (engine, _port) = engine_pair();
    let channel = Channel::new(seqpacket::connect(&place.path).unwrap()).unwrap();
    let worker = tokio::spawn(serve(place.accepted().await, engine));
    let hello = Hello::Welcome { version: 99, release: "9.9.9".to_owned() };
    channel.send(&hello.encode(), &[]).await.unwrap();
    let end = timeout(SOON, worker).await.unwrap().unwrap();
    assert!(matches!(&end, ServeEnd::Refused(why) if why.contains("socket protocol 99")), "{end:?}");
}
