//! Who gets a session, and what others can do about it.

use crate::harness::{
    DAEMON_UID, Daemon, OTHER_UID, is_root, next, open, options, powerless, reachable, until,
};
use escp_engine_api::{Command, Direction, EngineKind, Event, Listen, Side};
use escp_testkit::{say_skipped, test_name};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

const UNPROVEN: &str = "escp_connections_refused_total ";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_gets_as_many_sessions_as_configured_and_the_next_a_sentence() {
    let daemon = Daemon::start("limits:\n  sessions_per_uid: 2\n");
    let first = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    let _second = daemon.far(2, Direction::Receive, EngineKind::Uring).await;
    let refused = escp_ipc::connect(&daemon.socket).await.unwrap_err();
    let expected = "this user has 2 sessions with escpd, as many as one user may (limits.sessions_per_uid)";
    assert_eq!(refused.to_string(), expected);
    assert!(matches!(refused, escp_ipc::ConnectError::Refused(_)));
    assert_eq!(daemon.metric("escp_sessions_refused_total{reason=\"sessions_per_user\"}"), 1);
    drop(first);
    until("the session is over", || daemon.metric("escp_sessions_active ") == 1);
    assert_eq!(daemon.metric("escp_sessions_total{result=\"agent_gone\"}"), 1);
    daemon.far(3, Direction::Receive, EngineKind::Uring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_has_as_many_sessions_as_configured() {
    let daemon = Daemon::start("limits:\n  sessions: 1\n");
    let _first = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    let refused = escp_ipc::connect(&daemon.socket).await.unwrap_err().to_string();
    assert_eq!(refused, "escpd has 1 sessions, as many as it may (limits.sessions)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_does_not_fit_into_a_sessions_memory_is_refused_with_the_limit() {
    let daemon = Daemon::start("limits:\n  memory_per_session: 16M\n");
    let mut engine = escp_ipc::connect(&daemon.socket).await.unwrap();
    let mut options = options(1, Side::Near, Direction::Send, EngineKind::Uring);
    (options.streams, options.block_size, options.depth) = (64, 8 << 20, 4);
    engine.commands.send(Command::Open(Box::new(options))).await.unwrap();
    let Event::Failed(failure) = next(&mut engine).await else { panic!("not refused") };
    for part in
        ["64 data connections with 2 blocks of 8192 KiB", "1024 MiB", "limits.memory_per_session", "16 MiB"]
    {
        assert!(failure.text.contains(part), "{part} is not in {failure}");
    }
}

/// Opens a session of a given id and returns what is said about it.
async fn opening(socket: &Path, session: u8) -> String {
    let mut engine = match escp_ipc::connect(socket).await {
        Ok(engine) => engine,
        Err(error) => return error.to_string(),
    };
    let listen = Some(Listen { first_port: 0, last_port: 0 });
    let mut options = options(session, Side::Far, Direction::Receive, EngineKind::Uring);
    options.listen = listen;
    engine.commands.send(Command::Open(Box::new(options))).await.unwrap();
    format!("{:?}", next(&mut engine).await)
}

/// Not a test by itself: what another user's process does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_users_agent() {
    let Some(socket) = std::env::var_os("ESCPD_TEST_SOCKET") else { return };
    println!("\nSAID {}", opening(socket.as_ref(), 7).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_id_that_is_taken_is_refused_whoever_asks() {
    let daemon = Daemon::start("");
    let _session = daemon.far(7, Direction::Receive, EngineKind::Uring).await;
    let own = opening(&daemon.socket, 7).await;
    assert!(own.contains("escpd has a session of that id already"), "{own}");
    if !is_root() {
        return say_skipped(&test_name(), "acting as another user needs root");
    }
    let other = said_to_another_user(&daemon);
    // To the letter the same: nobody learns whose it is.
    assert_eq!(other, own);
    let owner = rustix::process::geteuid().as_raw();
    let line = format!("a user named another user's session uid={OTHER_UID} owner={owner}");
    assert!(daemon.log().contains(&line), "{}", daemon.log());
    assert_ne!(OTHER_UID, DAEMON_UID);
}

/// What a process of another user is told when it opens session 7.
fn said_to_another_user(daemon: &Daemon) -> String {
    let test = reachable(daemon.directory.path(), &std::env::current_exe().unwrap());
    let output = powerless(OTHER_UID, &test)
        .args(["limits::another_users_agent", "--exact", "--nocapture"])
        .env("ESCPD_TEST_SOCKET", &daemon.socket)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text.lines().find_map(|line| line.strip_prefix("SAID ")).unwrap().to_owned()
}

#[test]
fn a_socket_that_is_narrowed_keeps_others_out() {
    if !is_root() {
        return say_skipped(&test_name(), "acting as another user needs root");
    }
    let daemon = Daemon::start("");
    assert!(said_to_another_user(&daemon).starts_with("Opened("));
    std::fs::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o600)).unwrap();
    let expected = format!("no right to use escpd's socket {}", daemon.socket.display());
    assert_eq!(said_to_another_user(&daemon), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_on_a_data_port_get_nothing_and_keep_nobody_out() {
    let daemon = Daemon::start("limits:\n  unproven: 64\n  unproven_per_address: 32\n");
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.ports.0));
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(address).unwrap()).collect();
    let mut talker = TcpStream::connect(address).unwrap();
    talker.write_all(b"GET / HTTP/1.1\r\nHost: example.org\r\nAccept: text/html,*/*;q=0.1\r\n\r\n").unwrap();
    let (_near, _far) = daemon.pair(1, EngineKind::Posix).await;
    for mut stranger in silent.into_iter().chain([talker]) {
        // Three times the deadline: a busy machine is late, but nobody is kept for ever.
        stranger.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        match stranger.read(&mut [0; 1]) {
            Ok(0) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("not shut out: {other:?}"),
        }
    }
    until("all are counted", || daemon.metric(UNPROVEN) == 201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn taken_ports_are_left_out_and_no_free_port_is_an_error() {
    let mut daemon = Daemon::prepared("");
    let (first, last) = daemon.ports;
    let taken: Vec<_> = (first..last).map(|port| TcpListener::bind(("::", port)).unwrap()).collect();
    let command = daemon.command();
    daemon.launch(command);
    let session = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    assert_eq!(session.opened.ports, [last]);
    assert!(session.opened.daemon);

    let mut second = Daemon::prepared("");
    second.ports = daemon.ports;
    let output = second.command().output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("escpd: none of the TCP ports {first}-{last} is free")), "{said}");

    second.socket.clone_from(&daemon.socket);
    let output = second.command().output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("another escpd serves"), "{said}");
    drop(taken);
    open(daemon.connect().await, options(2, Side::Near, Direction::Send, EngineKind::Dummy)).await;
}
