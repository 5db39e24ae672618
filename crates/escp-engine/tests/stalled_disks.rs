//! Disks that stop for longer than a dead connection may, and go on: no connection is given up for that.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod pair;

use escp_engine_api::{Command, Direction, EngineHandle, EngineKind, Event, FileReport, Side, Summary};
use escp_testkit::stalling::Stalling;
use escp_testkit::{Checked, need_root, skip};
use pair::{BLOCK, connect, next, open_at, open_read, open_write, options, spec, whole};
use std::path::Path;
use std::time::Duration;

/// Beyond the 30 s of a dead connection.
const STALL: Duration = Duration::from_secs(40);
const AFTER: Duration = Duration::from_secs(6);
const SIZE: u64 = 64 * BLOCK as u64;

/// Which of the two has the disk that stalls.
#[derive(Clone, Copy, PartialEq)]
enum Slow {
    Sender,
    Receiver,
}

/// A copy of which one side works on `disk`, and the other, in the directory `other`, is quick.
#[derive(Clone, Copy)]
struct Case {
    kind: EngineKind,
    near: Direction,
    slow: Slow,
    /// What each side's user is told while the disk stalls.
    near_told: Option<&'static str>,
    far_told: Option<&'static str>,
}

const CASES: [Case; 5] = {
    use Direction::{Receive, Send};
    use EngineKind::{Posix, Uring};
    const READING: &str = "the disk here does not give";
    const WRITING: &str = "the disk here does not take";
    const OTHER: &str = "the other side";
    let case = Case { kind: Uring, near: Send, slow: Slow::Sender, near_told: Some(READING), far_told: None };
    let receiver = Case { slow: Slow::Receiver, near_told: Some(OTHER), far_told: Some(WRITING), ..case };
    [
        case,
        receiver,
        Case { kind: Posix, ..case },
        Case { kind: Posix, ..receiver },
        Case { near: Receive, near_told: Some(OTHER), far_told: Some(READING), ..case },
    ]
};

async fn copy(case: Case, disk: &Stalling, other: &Path) {
    let (source, target) = match case.slow {
        Slow::Sender => (disk.file(), other.join("target")),
        Slow::Receiver => (other.join("source"), disk.file()),
    };
    if case.slow == Slow::Receiver {
        std::fs::write(&source, vec![0; usize::try_from(SIZE).unwrap()]).unwrap();
    }
    let far = if case.near == Direction::Send { Direction::Receive } else { Direction::Send };
    let (near, far) =
        connect(options(Side::Near, case.near, case.kind), options(Side::Far, far, case.kind)).await;
    let ((mut sender, sender_told), (mut receiver, receiver_told)) = match case.near {
        Direction::Send => ((near, case.near_told), (far, case.far_told)),
        Direction::Receive => ((far, case.far_told), (near, case.near_told)),
    };
    open_at(&receiver, &mut sender, vec![(spec(1, SIZE), Some(open_write(&target, false)))]).await;
    disk.stall();
    let source = open_read(&source, false);
    sender.commands.send(Command::AddFiles(vec![(spec(1, SIZE), Some(source))])).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, SIZE)])).await.unwrap();
    let (sent, received) = tokio::join!(watch(&mut sender, STALL), watch(&mut receiver, STALL));
    sent.is(sender_told, false);
    received.is(receiver_told, false);
    disk.go_on();
    let (sent, received) = tokio::join!(watch(&mut sender, AFTER), watch(&mut receiver, AFTER));
    sent.is(sender_told.map(|_| "it goes on after"), true);
    received.is(receiver_told.map(|_| "it goes on after"), true);
}

/// What an engine said in some time.
#[derive(Debug, Default)]
struct Said {
    remarks: Vec<String>,
    files: Vec<FileReport>,
}

impl Said {
    /// Whether it said just this to every user, and whether the file is through.
    fn is(&self, remark: Option<&str>, through: bool) {
        assert_eq!(self.remarks.len(), usize::from(remark.is_some()), "{self:?} and not {remark:?}");
        assert!(self.remarks.iter().zip(remark).all(|(said, due)| said.contains(due)), "{self:?}");
        assert_eq!(self.files.len(), usize::from(through), "{self:?}");
        assert!(self.files.iter().all(|file| file.outcome.is_ok()), "{self:?}");
    }
}

/// Takes an engine's events for some time; none of them may be an end.
async fn watch(engine: &mut EngineHandle, time: Duration) -> Said {
    let mut said = Said::default();
    let end = tokio::time::Instant::now() + time;
    while let Ok(event) = tokio::time::timeout_at(end, engine.events.recv()).await {
        match event.expect("the session goes on") {
            Event::Remark(text) => said.remarks.push(text),
            Event::Files(files) => said.files.extend(files),
            event @ (Event::Failed(_) | Event::Ended { .. }) => panic!("{event:?}"),
            _ => {}
        }
    }
    said
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stops_for_a_while_is_named_and_ends_no_session() -> Checked {
    need_root!();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut all = tokio::task::JoinSet::new();
    for (number, case) in CASES.into_iter().enumerate() {
        let other = directory.path().join(number.to_string());
        std::fs::create_dir(&other)?;
        let Some(disk) = Stalling::new(&other.join("disk"), SIZE)? else {
            skip!("no /dev/fuse here, so no disk can be made to stall");
        };
        all.spawn(async move { copy(case, &disk, &other).await });
    }
    while let Some(done) = all.join_next().await {
        done?;
    }
    Ok(())
}

/// A daemon's worker and `escp` itself have one thread for all that is not data, as this test has.
#[tokio::test]
async fn closing_a_file_that_waits_for_its_disk_holds_up_nobody() -> Checked {
    need_root!();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    for (number, slow) in [Slow::Sender, Slow::Receiver].into_iter().enumerate() {
        let other = directory.path().join(number.to_string());
        std::fs::create_dir(&other)?;
        let Some(disk) = Stalling::new(&other.join("disk"), BLOCK.into())? else {
            skip!("no /dev/fuse here, so no disk can be made to stall");
        };
        disk.stall_closing();
        copy_to_the_end(slow, &disk, &other.join("other")).await;
        // The thread that closes it is waited for at the end of the test.
        disk.go_on();
    }
    Ok(())
}

/// Copies a block between `disk` and the file `other`, until both engines agreed on the end.
async fn copy_to_the_end(slow: Slow, disk: &Stalling, other: &Path) {
    const LENGTH: u64 = BLOCK as u64;
    std::fs::write(other, vec![0; BLOCK as usize]).unwrap();
    let (source, target) = match slow {
        Slow::Sender => (disk.file(), other.to_owned()),
        Slow::Receiver => (other.to_owned(), disk.file()),
    };
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    open_at(&receiver, &mut sender, vec![(spec(1, LENGTH), Some(open_write(&target, false)))]).await;
    let source = open_read(&source, false);
    sender.commands.send(Command::AddFiles(vec![(spec(1, LENGTH), Some(source))])).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, LENGTH)])).await.unwrap();
    for engine in [&mut sender, &mut receiver] {
        while !matches!(next(engine).await, Event::Files(_)) {}
        engine.commands.send(Command::Finish(Summary { files: 1, list_hash: [0; 32] })).await.unwrap();
    }
    for engine in [&mut sender, &mut receiver] {
        while !matches!(next(engine).await, Event::Ended { .. }) {}
    }
}
