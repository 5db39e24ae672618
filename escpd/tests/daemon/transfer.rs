//! Files through workers, and what is left when something dies.

use crate::harness::{Daemon, kill, lives, until};
use escp_engine_api::{EngineKind, Event, Fault};
use rustix::process::Signal;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// A directory that the daemon's user may not enter, with a file in it.
fn secluded(length: usize) -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let source = directory.path().join("source");
    let bytes: Vec<u8> = (0..length).map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[2]).collect();
    fs::write(&source, bytes).unwrap();
    (directory, source)
}

async fn moves_a_file(kind: EngineKind) {
    let daemon = Daemon::start("log:\n  level: debug\n");
    let length = 3_000_001;
    let (directory, source) = secluded(length);
    let target = directory.path().join("target");
    let (mut near, mut far) = daemon.pair(1, kind).await;
    assert_eq!((near.opened.daemon, near.opened.ports.len()), (true, 0));
    far.add(9, length as u64, fs::File::create(&target).unwrap().into()).await;
    far.announce(&mut near).await;
    near.add(9, length as u64, fs::File::open(&source).unwrap().into()).await;
    near.send_whole(9, length as u64).await;
    assert_eq!(near.reported().await, far.reported().await);
    for party in [&near, &far] {
        party.finish(1).await;
    }
    for party in [&mut near, &mut far] {
        let event = party.last().await;
        let Event::Ended { files: 1, counters } = event else { panic!("{event:?}") };
        assert_eq!(counters.bytes_disk, length as u64);
    }
    assert!(fs::read(&source).unwrap() == fs::read(&target).unwrap());
    drop((near, far));
    until("both sessions are over", || daemon.metric("escp_sessions_active ") == 0);
    // A worker whose engine leaks says so, after it has waited for it.
    let log = daemon.log();
    assert!(log.contains("session ended") && !log.contains("the engine holds on to something"), "{log}");
    assert!(daemon.workers().is_empty());
    let total = |sample: &str| daemon.metric(sample);
    assert_eq!(total("escp_bytes_disk_total{direction=\"in\"}"), length as u64);
    assert_eq!(total("escp_bytes_disk_total{direction=\"out\"}"), length as u64);
    assert_eq!(total("escp_sessions_total{result=\"ended\"}"), 2);
    assert_eq!(total(&format!("escp_engine_sessions_total{{engine=\"{kind}\"}}")), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_moves_between_two_workers_that_may_not_reach_it_by_uring() {
    moves_a_file(EngineKind::Uring).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_moves_between_two_workers_that_may_not_reach_it_by_plain_calls() {
    moves_a_file(EngineKind::Posix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_worker_is_a_loss_and_its_counters_are_kept() {
    let daemon = Daemon::start("");
    let length = 700_000;
    let (directory, source) = secluded(length);
    let (mut near, mut far) = daemon.pair(1, EngineKind::Posix).await;
    let target = fs::File::create(directory.path().join("target")).unwrap();
    far.add(9, length as u64, target.into()).await;
    far.announce(&mut near).await;
    near.add(9, length as u64, fs::File::open(&source).unwrap().into()).await;
    near.send_whole(9, length as u64).await;
    near.reported().await;
    far.reported().await;
    for worker in daemon.workers() {
        kill(worker, Signal::KILL);
    }
    for party in [&mut near, &mut far] {
        let Event::Failed(failure) = party.last().await else { panic!("ended?") };
        assert_eq!(failure.fault, Fault::Lost, "{failure}");
    }
    until("both are counted", || daemon.metric("escp_sessions_active ") == 0);
    assert_eq!(daemon.metric("escp_bytes_disk_total{direction=\"in\"}"), length as u64);
    assert_eq!(daemon.metric("escp_bytes_disk_total{direction=\"out\"}"), length as u64);
    assert_eq!(daemon.metric("escp_files_total{result=\"received\"}"), 1);
    let died = daemon.metric("escp_sessions_total{result=\"worker_died\"}");
    let lost = daemon.metric("escp_sessions_total{result=\"lost\"}");
    // The second may have noticed the first one's end before it was killed itself.
    assert!(died >= 1 && died + lost == 2, "{died} died, {lost} lost");
    // The daemon goes on.
    daemon.pair(2, EngineKind::Posix).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_end_is_the_workers_end() {
    let daemon = Daemon::start("");
    let (near, mut far) = daemon.pair(1, EngineKind::Uring).await;
    drop(near);
    let started = Instant::now();
    let event = far.last().await;
    assert!(matches!(event, Event::Failed(_)), "{event:?}");
    // Before anybody would speak of silence.
    assert!(started.elapsed() < Duration::from_secs(10), "took {:?}", started.elapsed());
    drop(far);
    until("both sessions are over", || daemon.metric("escp_sessions_active ") == 0);
    assert!(daemon.workers().is_empty());
    assert_eq!(daemon.metric("escp_sessions_total{result=\"agent_gone\"}"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_hangs_is_killed_once_its_agent_is_gone() {
    let daemon = Daemon::start("");
    let (near, far) = daemon.pair(1, EngineKind::Uring).await;
    let workers = daemon.workers();
    for worker in &workers {
        kill(*worker, Signal::STOP);
    }
    std::thread::sleep(Duration::from_secs(2));
    assert!(workers.iter().all(|worker| lives(*worker)), "killed although its agent is there");
    drop((near, far));
    until("they were killed", || daemon.metric("escp_sessions_active ") == 0);
    assert!(daemon.workers().is_empty());
    assert_eq!(daemon.metric("escp_sessions_total{result=\"agent_gone\"}"), 2);
    assert!(daemon.log().contains("its agent is gone and it does not end"), "{}", daemon.log());
}
