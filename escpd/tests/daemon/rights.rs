//! What the processes of a daemon may do.

use crate::harness::{DAEMON_UID, Daemon, is_root, lives, status, until};
use escp_engine_api::{Direction, EngineKind, Event, Fault};
use escp_testkit::{say_skipped, test_name};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_is_another_process_of_the_daemons_user_without_any_right() {
    let daemon = Daemon::start("");
    let _session = daemon.far(1, Direction::Receive, EngineKind::Uring).await;
    let workers = daemon.workers();
    let &[worker] = &workers[..] else { panic!("{workers:?}") };
    assert_ne!(worker, daemon.pid());
    assert_eq!(status(worker, "PPid"), daemon.pid().to_string());
    let uid = if is_root() { DAEMON_UID } else { rustix::process::geteuid().as_raw() };
    for process in [worker, daemon.pid()] {
        assert_eq!(
            status(process, "Uid"),
            [uid.to_string(), uid.to_string(), uid.to_string(), uid.to_string()].join("\t")
        );
        assert_eq!(status(process, "NoNewPrivs"), "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(process, set), 16), Ok(0), "{set}");
        }
        // Only who is root can start a process without a bounding set; under the unit it is empty, too.
        if is_root() {
            assert_eq!(u64::from_str_radix(&status(process, "CapBnd"), 16), Ok(0));
        }
        // What a process that may not be dumped leaves its user in /proc belongs to root.
        for name in ["mem", "environ", "fd"] {
            assert_eq!(fs::metadata(format!("/proc/{process}/{name}")).unwrap().uid(), 0, "{name}");
        }
    }
    if is_root() {
        assert_eq!(fs::read(format!("/proc/{worker}/environ")).unwrap(), b"");
        let held: Vec<_> = fs::read_dir(format!("/proc/{worker}/fd"))
            .unwrap()
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .collect();
        let harmless = |link: &Path| {
            let shown = link.to_string_lossy();
            link == Path::new("/dev/null") || shown.starts_with("/memfd:") || link.ends_with("log")
        };
        let opened: Vec<_> = held.iter().filter(|link| link.is_absolute() && !harmless(link)).collect();
        assert!(opened.is_empty(), "a worker holds {opened:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_leaves_no_worker() {
    let mut daemon = Daemon::start("");
    let mut sessions = Vec::new();
    for number in 1..=3 {
        sessions.push(daemon.far(number, Direction::Receive, EngineKind::Uring).await);
    }
    let workers = daemon.workers();
    assert_eq!(workers.len(), 3);
    daemon.signal(Signal::KILL);
    daemon.ended();
    until("the workers are gone", || !workers.iter().any(|worker| lives(*worker)));
    for session in &mut sessions {
        let Event::Failed(failure) = session.last().await else { panic!("ended?") };
        assert_eq!(failure.fault, Fault::Lost);
    }
}

#[test]
fn root_is_refused_and_workers_are_not_started_by_hand() {
    let program = env!("CARGO_BIN_EXE_escpd");
    if is_root() {
        let output = Command::new(program).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("escpd: escpd does not run as root"), "{said}");
    } else {
        say_skipped(&test_name(), "refusing root needs root");
    }
    let output = Command::new(program).arg("worker").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("escpd starts its workers itself"), "{said}");
}
