//! What the daemon tells its service manager and its log, by their own sockets.

use crate::harness::{DAEMON_UID, Daemon, SOON, is_root, powerless, until};
use escp_engine_api::{Direction, EngineKind};
use escp_testkit::{say_skipped, test_name};
use rustix::process::Signal;
use rustix::time::{ClockId, clock_gettime};
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_go_to_the_journal_with_their_fields() {
    if !is_root() {
        return say_skipped(&test_name(), "a journal socket of its own needs root (a mount namespace)");
    }
    let mut daemon = Daemon::prepared("log:\n  level: debug\n  target: journald\n");
    let journal = daemon.directory.path().join("journal");
    fs::create_dir(&journal).unwrap();
    let receiver = bound(&journal.join("socket"));
    let inner = powerless(DAEMON_UID, &daemon.directory.path().join("escpd"));
    let script = "mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/journal && \
                  mount --bind \"$1\" /run/systemd/journal && shift && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&journal);
    command.arg(inner.get_program()).args(inner.get_args());
    command.args(daemon.arguments().into_iter().filter(|word| word != "--foreground"));
    daemon.launch(command);
    drop(daemon.far(1, Direction::Receive, EngineKind::Posix).await);
    // The broker's line, and one of a worker's, which opened the journal for itself.
    let mut waited: Vec<(&str, &str)> = vec![("escpd is ready", "5"), ("the agent hung up", "6")];
    while !waited.is_empty() {
        let mut buffer = vec![0; 65536];
        let length = receiver.recv(&mut buffer).unwrap();
        let entry = String::from_utf8_lossy(&buffer[..length]).into_owned();
        waited.retain(|(message, priority)| {
            let matches = entry.contains(message);
            if matches {
                // A name, the length of the value in 8 bytes, the value.
                let field = format!("PRIORITY\n\u{1}\0\0\0\0\0\0\0{priority}\n");
                assert!(entry.contains(&field), "{entry}");
                assert!(entry.contains("SYSLOG_IDENTIFIER\n") && entry.contains("escpd"), "{entry}");
            }
            !matches
        });
    }
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    assert_eq!(daemon.log(), "", "lines went to standard error as well");
}
