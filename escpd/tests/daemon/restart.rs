//! The daemon's own end, and what outlives it.

use crate::harness::{DAEMON_UID, Daemon, SOON, is_root, open, options, until};
use escp_engine_api::{Direction, EngineKind, Event, Side};
use escp_ipc::ConnectError;
use escp_sys::seqpacket;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_lets_sessions_end_and_takes_no_new_one() {
    let mut daemon = Daemon::start("");
    let (mut near, mut far) = daemon.pair(1, EngineKind::Posix).await;
    daemon.signal(Signal::TERM);
    until("it drains", || daemon.log().contains("sessions may end by themselves"));
    // Nothing is there for a new agent, which uses an engine of its own then.
    let absent = escp_ipc::connect(&daemon.socket).await.unwrap_err();
    assert!(matches!(absent, ConnectError::Absent { .. }), "{absent}");
    assert!(!daemon.socket.exists());
    assert!(!daemon.has_ended());
    for party in [&near, &far] {
        party.finish(0).await;
    }
    for party in [&mut near, &mut far] {
        let event = party.last().await;
        assert!(matches!(event, Event::Ended { files: 0, .. }), "{event:?}");
    }
    drop((near, far));
    assert!(daemon.ended().success());
    assert!(daemon.log().contains("escpd has stopped"));
}

/// The daemon's command, with a descriptor that a service manager would pass.
fn passing(daemon: &Daemon, name: &str, socket: OwnedFd) -> Command {
    let script =
        "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=$1; shift; exec \"$@\"";
    let inner = daemon.command();
    let mut shell = Command::new("sh");
    shell.args(["-c", script, "sh", name]).arg(inner.get_program()).args(inner.get_args()).stdin(socket);
    shell
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_to_a_managers_socket_while_a_daemon_drains_is_served_by_the_next() {
    let mut daemon = Daemon::prepared("");
    let kept = seqpacket::listen(&daemon.socket, 0o666, 16).unwrap();
    // It is told of another path, on which it does not listen then.
    let real = std::mem::replace(&mut daemon.socket, "/nowhere/escpd.sock".into());
    let command = passing(&daemon, "local", kept.try_clone().unwrap());
    daemon.socket = real;
    daemon.launch(command);
    let ready = format!("socket={}", daemon.socket.display());
    assert!(daemon.log().contains(&ready), "{}", daemon.log());
    let (near, far) = daemon.pair(1, EngineKind::Posix).await;
    daemon.signal(Signal::TERM);
    until("it drains", || daemon.log().contains("sessions may end by themselves"));
    let socket = daemon.socket.clone();
    let mut waiting = tokio::spawn(async move { escp_ipc::connect(&socket).await });
    let early = tokio::time::timeout(Duration::from_millis(500), &mut waiting).await;
    assert!(early.is_err(), "it was answered: {:?}", early.map(|answer| answer.unwrap().err()));
    drop((near, far));
    assert!(daemon.ended().success());
    assert!(!daemon.log().contains("got no session"), "{}", daemon.log());

    let command = passing(&daemon, "local", kept);
    daemon.launch(command);
    let engine = waiting.await.unwrap().unwrap();
    open(engine, options(2, Side::Near, Direction::Send, EngineKind::Dummy)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_grace_period_sessions_are_ended() {
    let mut daemon = Daemon::start("grace_period: 1s\n");
    let mut session = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    let started = Instant::now();
    daemon.signal(Signal::TERM);
    let event = session.last().await;
    assert!(matches!(&event, Event::Failed(failure) if failure.text == "escpd was stopped"), "{event:?}");
    assert!(started.elapsed().as_secs_f64() > 0.9, "it did not wait");
    drop(session);
    assert!(daemon.ended().success());
    assert!(daemon.log().contains("result=\"stopped\""), "{}", daemon.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_twice_it_stops_at_once_and_leaves_no_worker() {
    let mut daemon = Daemon::start("grace_period: 5m\n");
    let mut session = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    let worker = daemon.workers()[0];
    daemon.signal(Signal::TERM);
    until("it drains", || daemon.log().contains("sessions may end by themselves"));
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    until("the worker is gone", || !crate::harness::lives(worker));
    assert!(matches!(session.last().await, Event::Failed(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_changes_limits_and_survives_a_broken_file() {
    let daemon = Daemon::start("");
    let config = daemon.directory.path().join("escp.conf");
    std::fs::write(&config, "limits:\n  sessions: oops\n").unwrap();
    daemon.signal(Signal::HUP);
    until("it is refused", || daemon.log().contains("configuration not reloaded"));
    let first = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    std::fs::write(&config, "limits:\n  sessions: 1\n").unwrap();
    daemon.signal(Signal::HUP);
    until("it is taken", || daemon.log().contains("configuration reloaded"));
    let refused = escp_ipc::connect(&daemon.socket).await.unwrap_err().to_string();
    assert_eq!(refused, "escpd has 1 sessions, as many as it may (limits.sessions)");
    drop(first);
}

/// What a daemon gave its service manager to keep, by name.
fn stored(manager: &UnixDatagram, count: usize) -> BTreeMap<String, OwnedFd> {
    manager.set_read_timeout(Some(SOON)).unwrap();
    let mut kept = BTreeMap::new();
    while kept.len() < count {
        let mut buffer = [0; 4096];
        let packet = seqpacket::receive(manager, &mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..packet.length]).unwrap().to_owned();
        if let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) {
            assert!(text.contains("FDSTORE=1"), "{text}");
            kept.extend(packet.descriptors.into_iter().map(|descriptor| (name.to_owned(), descriptor)));
        }
    }
    kept
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_ports_outlive_the_daemon_in_the_managers_store() {
    let mut daemon = Daemon::prepared("");
    let notify = daemon.directory.path().join("notify");
    let manager = UnixDatagram::bind(&notify).unwrap();
    if is_root() {
        std::os::unix::fs::chown(&notify, Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
    }
    let mut command = daemon.command();
    command.env("NOTIFY_SOCKET", &notify);
    daemon.launch(command);
    let mut kept = stored(&manager, 3);
    daemon.signal(Signal::KILL);
    daemon.ended();

    // With nobody to accept, a connection waits instead of being refused.
    let (port, _) = daemon.ports;
    let waiting = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    let passed = TcpListener::from(kept.remove(&format!("port-{port}")).unwrap());
    drop(kept);
    let inode = rustix::fs::fstat(&passed).unwrap().st_ino;
    let command = passing(&daemon, &format!("port-{port}"), passed.into());
    daemon.launch(command);
    if is_root() {
        let held = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap();
        let links: Vec<_> = held.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok()).collect();
        assert!(links.contains(&format!("socket:[{inode}]").into()), "{links:?}");
    }
    drop(waiting);
    daemon.pair(1, EngineKind::Posix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_for_the_journal_leave_the_time_to_it() {
    use std::os::unix::fs::MetadataExt;
    // With a time of their own, whatever the variable says of another file.
    for (journal, stamped) in [(true, false), (false, true)] {
        let mut daemon = Daemon::prepared("log:\n  level: debug\n");
        std::fs::write(daemon.log_path(), "").unwrap();
        let log = std::fs::metadata(daemon.log_path()).unwrap();
        let inode = if journal { log.ino() } else { log.ino() + 1 };
        let mut command = daemon.command();
        command.env("JOURNAL_STREAM", format!("{}:{inode}", log.dev()));
        daemon.launch(command);
        let (near, far) = daemon.pair(1, EngineKind::Posix).await;
        drop((near, far));
        // A line of the broker's and one of a worker's.
        until("both have spoken", || {
            ["session started", "session failed", "the agent hung up"]
                .iter()
                .filter(|line| daemon.log().contains(**line))
                .count()
                >= 2
        });
        for line in daemon.log().lines() {
            assert_eq!(line.starts_with("20"), stamped, "{line}");
        }
    }
}
