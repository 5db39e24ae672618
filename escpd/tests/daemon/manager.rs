//! What the daemon hears from its service manager, and tells it.

use crate::harness::{DAEMON_UID, Daemon, SOON, is_root, powerless, until};
use escp_engine_api::{Direction, EngineKind};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

/// A datagram socket that the daemon may send to.
fn bound(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    if is_root() {
        chown(path, Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
    }
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket
}

/// The next message that begins with `first`.
fn told(manager: &UnixDatagram, first: &str) -> Vec<String> {
    loop {
        let mut buffer = [0; 4096];
        let length = manager.recv(&mut buffer).unwrap();
        let text = std::str::from_utf8(&buffer[..length]).unwrap();
        let lines: Vec<String> = text.lines().map(str::to_owned).collect();
        if lines.first().is_some_and(|line| line == first) {
            return lines;
        }
    }
}

#[test]
fn the_service_manager_is_told_what_happens() {
    let mut daemon = Daemon::prepared("grace_period: 3s\n");
    let notify = daemon.directory.path().join("notify");
    let manager = bound(&notify);
    let mut command = daemon.command();
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "200000");
    daemon.launch(command);
    assert_eq!(told(&manager, "READY=1"), ["READY=1", "STATUS=serving on 3 TCP ports"]);
    for _ in 0..3 {
        assert_eq!(told(&manager, "WATCHDOG=1").len(), 1);
    }

    let micros = || {
        let now = clock_gettime(ClockId::Monotonic);
        now.tv_sec * 1_000_000 + now.tv_nsec / 1000
    };
    let before = micros();
    daemon.signal(Signal::HUP);
    let reloading = told(&manager, "RELOADING=1");
    let [_, time] = &reloading[..] else { panic!("{reloading:?}") };
    let time: i64 = time.strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!((before..=micros()).contains(&time), "{before} {time}");
    let status = "STATUS=serving on 3 TCP ports; configuration reloaded";
    assert_eq!(told(&manager, "READY=1"), ["READY=1", status]);

    daemon.signal(Signal::TERM);
    let last = ["STOPPING=1", "EXTEND_TIMEOUT_USEC=13000000", "STATUS=stopping; 0 sessions are left"];
    assert_eq!(told(&manager, "STOPPING=1"), last);
    assert!(daemon.ended().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_reaches_the_sessions_that_run() {
    let mut daemon = Daemon::prepared("");
    let (log, old) = (daemon.socket.with_file_name("log"), daemon.socket.with_file_name("log.1"));
    let config = daemon.directory.path().join("escp.conf");
    let with = |level: &str| format!("log:\n  level: {level}\n  target: {}\n", log.display());
    fs::write(&config, with("info")).unwrap();
    let mut command = powerless(DAEMON_UID, &daemon.directory.path().join("escpd"));
    command.args(daemon.arguments().into_iter().filter(|word| word != "--foreground"));
    daemon.launch(command);
    let session = daemon.far(1, Direction::Receive, EngineKind::Posix).await;
    fs::rename(&log, &old).unwrap();
    fs::write(&config, with("debug")).unwrap();
    daemon.signal(Signal::HUP);
    let logged = || fs::read_to_string(&log).unwrap_or_default();
    until("the worker has heard of it", || logged().contains("logging as the configuration says now"));
    drop(session);
    until("the worker says what it would not have said", || logged().contains("the agent hung up"));
    assert!(!fs::read_to_string(&old).unwrap().contains("DEBUG"));
}
