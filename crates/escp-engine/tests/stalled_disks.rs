//! Disks that stop for longer than a dead connection may, and go on: no connection is given up for that.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod pair;

use escp_engine_api::{Command, Direction, EngineHandle, EngineKind, Event, Side};
use escp_testkit::stalling::Stalling;
use escp_testkit::{Checked, need_root, skip};
use pair::{BLOCK, connect, next, open_at, open_read, open_write, options, reports, spec, whole};
use std::path::Path;
use std::time::Duration;

/// Beyond the 30 s of a dead connection.
const STALL: Duration = Duration::from_secs(40);
const SIZE: u64 = 64 * BLOCK as u64;

/// Which of the two has the disk that stalls.
#[derive(Clone, Copy, PartialEq)]
enum Slow {
    Sender,
    Receiver,
}

/// A copy whose one side works on `disk` and whose other side is quick.
async fn copy(kind: EngineKind, slow: Slow, disk: &Stalling, other: &Path) {
    let (source, target) = match slow {
        Slow::Sender => (disk.file(), other.join(format!("target-{kind}"))),
        Slow::Receiver => (other.join("source"), disk.file()),
    };
    let (mut sender, mut receiver) =
        connect(options(Side::Near, Direction::Send, kind), options(Side::Far, Direction::Receive, kind))
            .await;
    open_at(&receiver, &mut sender, vec![(spec(1, SIZE), Some(open_write(&target, false)))]).await;
    disk.stall();
    let source = open_read(&source, false);
    sender.commands.send(Command::AddFiles(vec![(spec(1, SIZE), Some(source))])).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, SIZE)])).await.unwrap();
    tokio::time::timeout(STALL, async { tokio::join!(nothing(&mut sender), nothing(&mut receiver)) })
        .await
        .expect_err("neither side is over before the disk goes on");
    disk.go_on();
    let (sent, received) = (reports(&mut sender, 1).await, reports(&mut receiver, 1).await);
    assert_eq!(sent, received);
    assert!(sent[&1].outcome.is_ok(), "{sent:?}");
}

/// Takes events as long as none of them is an end.
async fn nothing(engine: &mut EngineHandle) {
    loop {
        let event = next(engine).await;
        assert!(!matches!(event, Event::Failed(_) | Event::Ended { .. }), "{event:?}");
        if let Event::Files(files) = event {
            panic!("{files:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stops_for_a_while_ends_no_session() -> Checked {
    need_root!();
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut all = tokio::task::JoinSet::new();
    std::fs::write(directory.path().join("source"), vec![0; usize::try_from(SIZE)?])?;
    for (number, (kind, slow)) in [
        (EngineKind::Uring, Slow::Sender),
        (EngineKind::Uring, Slow::Receiver),
        (EngineKind::Posix, Slow::Sender),
        (EngineKind::Posix, Slow::Receiver),
    ]
    .into_iter()
    .enumerate()
    {
        let Some(disk) = Stalling::new(&directory.path().join(format!("disk-{number}")), SIZE)? else {
            skip!("no /dev/fuse here, so no disk can be made to stall");
        };
        let other = directory.path().to_path_buf();
        all.spawn(async move { copy(kind, slow, &disk, &other).await });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    Ok(())
}
