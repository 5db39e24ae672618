//! Two engines over loopback, and how their agents would talk to them.

use escp_engine::{Host, spawn};
use escp_engine_api::{
    Command, Direction, EngineHandle, EngineKind, Event, Extent, ExtentKind, FileSpec, JobOptions, Lane,
    Listen, Secret, SessionId, Side,
};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(crate) const BLOCK: u32 = 256 * 1024;

pub(crate) fn options(side: Side, direction: Direction, kind: EngineKind) -> JobOptions {
    JobOptions {
        kind,
        listen: (side == Side::Far).then_some(Listen { first_port: 0, last_port: 0 }),
        streams: 2,
        block_size: BLOCK,
        ..JobOptions::new(SessionId([7; 16]), Secret([9; 32]), side, direction)
    }
}

pub(crate) async fn next(engine: &mut EngineHandle) -> Event {
    tokio::time::timeout(Duration::from_secs(60), engine.events.recv())
        .await
        .expect("an event")
        .expect("a queue")
}

/// Opens both engines and connects them; `sender` is the near one.
pub(crate) async fn connect(near: JobOptions, far: JobOptions) -> (EngineHandle, EngineHandle) {
    let (mut near_engine, mut far_engine) = (spawn(Host::embedded()), spawn(Host::embedded()));
    let streams = near.streams;
    far_engine.commands.send(Command::Open(Box::new(far))).await.unwrap();
    let Event::Opened(opened) = next(&mut far_engine).await else { panic!("not opened") };
    near_engine.commands.send(Command::Open(Box::new(near))).await.unwrap();
    assert!(matches!(next(&mut near_engine).await, Event::Opened(_)));
    for stream in 0..=streams {
        let socket = TcpStream::connect(("127.0.0.1", opened.ports[0])).unwrap();
        near_engine.commands.send(Command::AddLane(Lane { stream, socket: socket.into() })).await.unwrap();
    }
    for engine in [&mut near_engine, &mut far_engine] {
        assert!(matches!(next(engine).await, Event::Connected { .. }));
    }
    (near_engine, far_engine)
}

pub(crate) fn spec(number: u64, size: u64) -> FileSpec {
    FileSpec { number, size, direct_alignment: 0, in_memory: false, sparse: false }
}

/// Gives the receiver its files, and waits until it has them, as agents do with `Ready`.
pub(crate) async fn open_at(
    receiver: &EngineHandle,
    sender: &mut EngineHandle,
    files: Vec<(FileSpec, Option<Arc<OwnedFd>>)>,
) {
    receiver.commands.send(Command::AddFiles(files)).await.unwrap();
    receiver.commands.send(Command::Message(b"ready".to_vec())).await.unwrap();
    while !matches!(next(sender).await, Event::Message(_)) {}
}

pub(crate) fn open_read(path: &Path, direct: bool) -> Arc<OwnedFd> {
    let flags = rustix::fs::OFlags::RDONLY
        | if direct { rustix::fs::OFlags::DIRECT } else { rustix::fs::OFlags::empty() };
    Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap())
}

pub(crate) fn open_write(path: &Path, direct: bool) -> Arc<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let direct = if direct { OFlags::DIRECT } else { OFlags::empty() };
    Arc::new(
        rustix::fs::open(path, OFlags::RDWR | OFlags::CREATE | direct, Mode::from_raw_mode(0o600)).unwrap(),
    )
}

pub(crate) fn whole(number: u64, length: u64) -> Extent {
    Extent { file: number, offset: 0, length, kind: ExtentKind::Data }
}
