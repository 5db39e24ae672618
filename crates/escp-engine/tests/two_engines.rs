//! Two engines over loopback, with real files: what goes in comes out, and what must not pass does not.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

mod pair;

use escp_engine_api::{
    Command, Counters, Direction, EngineHandle, EngineKind, Event, Extent, ExtentKind, FileCheck, FileReport,
    FileSpec, JobOptions, Side, Stage, Summary,
};
use pair::{BLOCK, connect, next, open_at, open_read, open_write, options, spec, whole};
use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::sync::Arc;

fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()[0]
        })
        .collect()
}

/// Gathers the reports on `count` files.
async fn reports(engine: &mut EngineHandle, count: usize) -> HashMap<u64, FileReport> {
    let mut all = HashMap::new();
    while all.len() < count {
        match next(engine).await {
            Event::Files(files) => all.extend(files.into_iter().map(|file| (file.number, file))),
            Event::Failed(failure) => panic!("{failure:?}"),
            _ => {}
        }
    }
    all
}

/// Ends a session; returns each side's totals, and what it noted.
async fn finish(
    sender: &mut EngineHandle,
    receiver: &mut EngineHandle,
    files: u64,
) -> [(Counters, Vec<String>); 2] {
    let summary = Summary { files, list_hash: [1; 32] };
    for engine in [&*sender, &*receiver] {
        engine.commands.send(Command::Finish(summary)).await.unwrap();
    }
    [ended(sender).await, ended(receiver).await]
}

async fn ended(engine: &mut EngineHandle) -> (Counters, Vec<String>) {
    let mut notes = Vec::new();
    loop {
        match next(engine).await {
            Event::Note(note) => notes.push(note),
            Event::Ended { counters, .. } => return (counters, notes),
            Event::Failed(failure) => panic!("{failure:?}"),
            _ => {}
        }
    }
}

async fn last(engine: &mut EngineHandle) -> Event {
    loop {
        let event = next(engine).await;
        if matches!(event, Event::Ended { .. } | Event::Failed(_)) {
            return event;
        }
    }
}

/// A directory on a real disk: O_DIRECT means something there.
fn disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

async fn move_files(near: JobOptions, far: JobOptions, direct: bool) {
    let directory = disk();
    let sizes = [
        0,
        1,
        4095,
        4096,
        4097,
        131_072,
        131_073,
        BLOCK as usize - 1,
        BLOCK as usize,
        BLOCK as usize + 1,
        3_000_001,
    ];
    let near_sends = near.direction == Direction::Send;
    let (near, far) = connect(near, far).await;
    let (mut sender, mut receiver) = if near_sends { (near, far) } else { (far, near) };
    let (mut from, mut to, mut extents) = (Vec::new(), Vec::new(), Vec::new());
    for (number, &size) in (1..).zip(&sizes) {
        let source = directory.path().join(format!("source-{number}"));
        std::fs::write(&source, bytes(size, number)).unwrap();
        let mut spec = spec(number, size as u64);
        let direct = direct && size > 1_000_000;
        spec.direct_alignment = if direct { 4096 } else { 0 };
        from.push((spec, Some(open_read(&source, direct))));
        to.push((spec, Some(open_write(&directory.path().join(format!("target-{number}")), direct))));
        if size > 0 {
            extents.push(whole(number, size as u64));
        }
    }
    open_at(&receiver, &mut sender, to).await;
    sender.commands.send(Command::AddFiles(from)).await.unwrap();
    sender.commands.send(Command::Schedule(extents)).await.unwrap();
    let sent = reports(&mut sender, sizes.len()).await;
    let received = reports(&mut receiver, sizes.len()).await;
    assert_eq!(sent, received);
    for (number, &size) in (1_u64..).zip(&sizes) {
        let expected = bytes(size, number);
        let target = std::fs::read(directory.path().join(format!("target-{number}"))).unwrap();
        assert!(target == expected, "file {number} of {size} bytes differs");
        let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &expected);
        assert_eq!(sent[&number].outcome, Ok(FileCheck::Crc64(crc)), "file {number} of {size} bytes");
    }
    let summary = Summary { files: sizes.len() as u64, list_hash: [1; 32] };
    for engine in [&sender, &receiver] {
        engine.commands.send(Command::Finish(summary)).await.unwrap();
    }
    let total: u64 = sizes.iter().map(|&size| size as u64).sum();
    for engine in [&mut sender, &mut receiver] {
        let event = last(engine).await;
        let Event::Ended { files, counters } = event else { panic!("{event:?}") };
        assert_eq!((files, counters.bytes_disk), (sizes.len() as u64, total));
        assert_eq!(counters.direct_fallbacks, 0, "the disk takes O_DIRECT, and small files do not want it");
        assert!(engine.events.recv().await.is_none());
    }
}

macro_rules! moves {
    ($($name:ident: $near_direction:ident, $kind:ident, $direct:expr, $change:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            let near_direction = Direction::$near_direction;
            let far_direction = match near_direction {
                Direction::Send => Direction::Receive,
                Direction::Receive => Direction::Send,
            };
            let mut near = options(Side::Near, near_direction, EngineKind::$kind);
            let mut far = options(Side::Far, far_direction, EngineKind::$kind);
            let change: fn(&mut JobOptions) = $change;
            change(&mut near);
            change(&mut far);
            move_files(near, far, $direct).await;
        }
    )*};
}

moves! {
    uring_sends: Send, Uring, false, |_| {};
    uring_receives: Receive, Uring, false, |_| {};
    uring_sends_direct: Send, Uring, true, |_| {};
    posix_sends: Send, Posix, false, |_| {};
    posix_receives_direct: Receive, Posix, true, |_| {};
    uring_compresses: Send, Uring, true, |o| o.compress = Some(1);
    uring_one_stream: Send, Uring, true, |o| o.streams = 1;
    uring_many_streams: Receive, Uring, true, |o| { o.streams = 9; o.depth = 2; };
}

#[tokio::test]
async fn dummy_moves_without_files() {
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Dummy),
        options(Side::Far, Direction::Receive, EngineKind::Dummy),
    )
    .await;
    let size = 40 * u64::from(BLOCK) + 5;
    open_at(&receiver, &mut sender, vec![(spec(1, size), None)]).await;
    sender.commands.send(Command::AddFiles(vec![(spec(1, size), None)])).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, size)])).await.unwrap();
    assert_eq!(reports(&mut sender, 1).await, reports(&mut receiver, 1).await);
    for (counters, _) in finish(&mut sender, &mut receiver, 1).await {
        assert_eq!((counters.bytes_disk, counters.bytes_compressed), (0, size));
    }
}

#[tokio::test]
async fn a_long_copy_uses_registered_buffers_and_overlaps_disk_and_network() {
    let directory = disk();
    let size = 256 * u64::from(BLOCK);
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    std::fs::write(&source, bytes(usize::try_from(size).unwrap(), 11)).unwrap();
    let one = |side, direction| JobOptions { streams: 1, ..options(side, direction, EngineKind::Uring) };
    let (mut sender, mut receiver) =
        connect(one(Side::Near, Direction::Send), one(Side::Far, Direction::Receive)).await;
    let file = FileSpec { direct_alignment: 4096, ..spec(1, size) };
    open_at(&receiver, &mut sender, vec![(file, Some(open_write(&target, true)))]).await;
    sender.commands.send(Command::AddFiles(vec![(file, Some(open_read(&source, true)))])).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, size)])).await.unwrap();
    assert_eq!(reports(&mut sender, 1).await, reports(&mut receiver, 1).await);
    for (_, notes) in finish(&mut sender, &mut receiver, 1).await {
        let peaks = notes.iter().find(|note| note.starts_with("stream 1: ")).expect("peaks");
        let numbers: Vec<u64> =
            peaks.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
        let [1, disk, beside, fixed] = numbers[..] else { panic!("{peaks}") };
        assert!(disk >= 2 && beside >= 2 && beside <= disk, "{peaks}");
        // From the 65th block on, but for those that were in flight then.
        assert!((128..=192).contains(&fixed), "{peaks}");
    }
    assert!(std::fs::read(&source).unwrap() == std::fs::read(&target).unwrap());
}

#[tokio::test]
async fn each_file_that_wanted_o_direct_and_did_not_get_it_counts_once() {
    let directory = disk();
    let size = 8 * u64::from(BLOCK) + 5;
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    // Not wanted; refused to the agent; granted, with an alignment that no block of the session has.
    let kinds = [(0, false), (4096, false), (1 << 30, true)];
    let (mut from, mut to) = (Vec::new(), Vec::new());
    for (number, (direct_alignment, direct)) in (1..).zip(kinds) {
        let path = |name| directory.path().join(format!("{name}-{number}"));
        std::fs::write(path("source"), bytes(usize::try_from(size).unwrap(), number)).unwrap();
        let file = FileSpec { direct_alignment, ..spec(number, size) };
        from.push((file, Some(open_read(&path("source"), direct))));
        to.push((file, Some(open_write(&path("target"), direct))));
    }
    open_at(&receiver, &mut sender, to).await;
    sender.commands.send(Command::AddFiles(from)).await.unwrap();
    sender.commands.send(Command::Schedule((1..=3).map(|n| whole(n, size)).collect())).await.unwrap();
    assert_eq!(reports(&mut sender, 3).await, reports(&mut receiver, 3).await);
    for (counters, _) in finish(&mut sender, &mut receiver, 3).await {
        assert_eq!((counters.direct_fallbacks, counters.bytes_disk), (2, 3 * size));
    }
}

#[tokio::test]
async fn holes_travel_as_headers_and_stay_holes() {
    let directory = disk();
    let size = 64 * u64::from(BLOCK);
    let (source, target) = (directory.path().join("source"), directory.path().join("target"));
    let mut file = File::create(&source).unwrap();
    file.set_len(size).unwrap();
    file.write_all(&bytes(8192, 3)).unwrap();
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    let sparse = FileSpec { sparse: true, ..spec(1, size) };
    open_at(&receiver, &mut sender, vec![(sparse, Some(open_write(&target, false)))]).await;
    sender.commands.send(Command::AddFiles(vec![(sparse, Some(open_read(&source, false)))])).await.unwrap();
    let hole = Extent { file: 1, offset: 8192, length: size - 8192, kind: ExtentKind::Hole };
    sender.commands.send(Command::Schedule(vec![whole(1, 8192), hole])).await.unwrap();
    let expected = std::fs::read(&source).unwrap();
    let crc = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, &expected);
    assert_eq!(reports(&mut sender, 1).await[&1].outcome, Ok(FileCheck::Crc64(crc)));
    assert_eq!(reports(&mut receiver, 1).await[&1].outcome, Ok(FileCheck::Crc64(crc)));
    assert!(std::fs::read(&target).unwrap() == expected);
    use std::os::unix::fs::MetadataExt;
    assert!(std::fs::metadata(&target).unwrap().blocks() * 512 <= 65_536, "the hole was filled");
}

#[tokio::test]
async fn bad_descriptors_fail_alone() {
    let directory = disk();
    let good = directory.path().join("good");
    std::fs::write(&good, b"good").unwrap();
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    let target = open_write(&directory.path().join("target"), false);
    open_at(&receiver, &mut sender, vec![(spec(2, 4), Some(target))]).await;
    let bad = File::open(directory.path()).unwrap();
    let files = vec![
        (spec(1, 4), Some(Arc::new(bad.into()))),
        (spec(2, 4), Some(open_read(&good, false))),
        (spec(3, 4), None),
    ];
    sender.commands.send(Command::AddFiles(files)).await.unwrap();
    sender.commands.send(Command::Schedule(vec![whole(2, 4)])).await.unwrap();
    let sent = reports(&mut sender, 3).await;
    for number in [1, 3] {
        assert_eq!(sent[&number].outcome.as_ref().unwrap_err().stage, Stage::Accept, "{number}");
    }
    assert!(sent[&2].outcome.is_ok());
    assert_eq!(reports(&mut receiver, 1).await[&2], sent[&2]);
}

#[tokio::test]
async fn a_source_that_shrank_fails_alone() {
    let directory = disk();
    let source = directory.path().join("source");
    std::fs::write(&source, bytes(300_000, 1)).unwrap();
    let (mut sender, mut receiver) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    let target = open_write(&directory.path().join("target"), false);
    let announced = 2_000_000;
    open_at(&receiver, &mut sender, vec![(spec(1, announced), Some(target))]).await;
    sender
        .commands
        .send(Command::AddFiles(vec![(spec(1, announced), Some(open_read(&source, false)))]))
        .await
        .unwrap();
    sender.commands.send(Command::Schedule(vec![whole(1, announced)])).await.unwrap();
    let error = reports(&mut sender, 1).await[&1].outcome.clone().unwrap_err();
    assert!(error.text.contains("shorter"), "{error:?}");
    // The receiver's agent gives the file up; blocks of it that are still on their way harm nobody.
    receiver.commands.send(Command::DropFiles(vec![1])).await.unwrap();
    assert_eq!(reports(&mut receiver, 1).await[&1].outcome.as_ref().unwrap_err().stage, Stage::Dropped);
}

#[tokio::test]
async fn messages_cross_in_order_both_ways() {
    let (mut near, mut far) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    let message = |n: u32| n.to_be_bytes().repeat(1 + (n as usize * 97) % 10_000);
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut near, &mut far];
        let commands = ends[from].commands.clone();
        let sending = tokio::spawn(async move {
            for n in 0..500 {
                commands.send(Command::Message(message(n))).await.unwrap();
            }
        });
        let mut expected = 0;
        while expected < 500 {
            if let Event::Message(got) = next(ends[to]).await {
                assert!(got == message(expected), "message {expected}");
                expected += 1;
            }
        }
        sending.await.unwrap();
    }
}

#[tokio::test]
async fn two_summaries_that_differ_end_in_an_integrity_failure() {
    let (mut near, mut far) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    near.commands.send(Command::Finish(Summary { files: 1, list_hash: [1; 32] })).await.unwrap();
    far.commands.send(Command::Finish(Summary { files: 1, list_hash: [2; 32] })).await.unwrap();
    for engine in [&mut near, &mut far] {
        let event = last(engine).await;
        let Event::Failed(failure) = event else { panic!("{event:?}") };
        assert_eq!(failure.fault, escp_engine_api::Fault::Integrity, "{failure}");
    }
}

#[tokio::test]
async fn an_agent_that_hangs_up_ends_the_other_side() {
    let (near, mut far) = connect(
        options(Side::Near, Direction::Send, EngineKind::Uring),
        options(Side::Far, Direction::Receive, EngineKind::Uring),
    )
    .await;
    drop(near);
    let event = last(&mut far).await;
    assert!(matches!(event, Event::Failed(_)), "{event:?}");
}
