//! Memory is the same, however many files there are.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::{Checked, Host, Trouble, World, compare, ensure, need_root, processes, tree};
use escp_tests::{Way, settle};
use std::collections::BTreeMap;
use std::time::Duration;

/// Peak resident memory in KiB of every process of a transfer, by its part in it.
type Peaks = BTreeMap<&'static str, u64>;

/// Most that any process of a transfer of small files may take.
const LIMIT_KIB: u64 = 256 << 10;

fn peaks_of(world: &World, way: Way, source: &str, target: &str) -> Checked<Peaks> {
    let patience = Duration::from_secs(200);
    let mut running = way.escp(world, &["-r"], &[source], target).patience(patience).start()?;
    let mut peaks = Peaks::new();
    let mut note = |part: &'static str, pid: u32| {
        // VmHWM only rises, so the last look before the end is the peak but for the last milliseconds.
        if let Ok(peak) = processes::peak_kib(pid) {
            let known = peaks.entry(part).or_default();
            *known = peak.max(*known);
        }
    };
    let far = world.users.far.uid.to_string();
    let mut agent = None;
    while running.is_running()? {
        note("the CLI", running.pid());
        agent = agent.filter(|pid| processes::read(*pid).is_some()).or_else(|| {
            world.leftovers().iter().map(|process| process.pid).find(|pid| {
                let of_far = processes::status(*pid, "Uid").is_ok_and(|uid| uid.starts_with(&far));
                let exe = std::fs::read_link(format!("/proc/{pid}/exe"));
                of_far && exe.is_ok_and(|exe| exe.ends_with("escp"))
            })
        });
        if let Some(pid) = agent {
            note("the far agent", pid);
        }
        for (daemon, broker, worker) in [
            (&world.near_daemon, "the near broker", "the near worker"),
            (&world.far_daemon, "the far broker", "the far worker"),
        ] {
            if let Some(daemon) = daemon {
                note(broker, daemon.pid());
                daemon.workers().into_iter().for_each(|pid| note(worker, pid));
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    running.end()?.expect_status(0)?;
    Ok(peaks)
}

/// Peaks of several transfers, in the order in which they ran.
type Courses = BTreeMap<&'static str, Vec<u64>>;

/// Moves the same tree several times, and compares what came of it the last time.
fn courses_of(world: &World, way: Way, tree: &str, runs: usize) -> Checked<Courses> {
    let mut seen = Courses::new();
    for left in (0..runs).rev() {
        let target = format!("{tree}-copy");
        for (part, peak) in peaks_of(world, way, tree, &target)? {
            seen.entry(part).or_default().push(peak);
        }
        if left == 0 {
            compare::same(&way.source(world).join(tree), &way.target(world).join(&target))?;
        }
        std::fs::remove_dir_all(way.target(world).join(&target))?;
    }
    Ok(seen)
}

/// The middle peak of three transfers: how full windows and queues get differs a little from run to run.
fn middle_peaks(world: &World, way: Way, tree: &str) -> Checked<Peaks> {
    let middle = |mut peaks: Vec<u64>| {
        peaks.sort_unstable();
        peaks[peaks.len() / 2]
    };
    Ok(courses_of(world, way, tree, 3)?.into_iter().map(|(part, peaks)| (part, middle(peaks))).collect())
}

/// Two hosts with room in memory, so that the disk's pace does not decide how long this takes, and a tree of `few`
/// files and one of ten times as many on the sender's.
struct Scene {
    _near: Mount,
    _far: Mount,
    world: World,
}

fn scene(few: u64, host: Host, way: Way) -> Checked<Scene> {
    let world = World::start(host, host)?;
    let near = Mount::new(Kind::Tmpfs, &world.near.join("fs"), 1500, &world.users.near, "")?;
    let far = Mount::new(Kind::Tmpfs, &world.far.join("fs"), 1500, &world.users.far, "")?;
    for (name, count) in [("some", few), ("many", 10 * few)] {
        tree::many(&way.source(&world).join("fs").join(name), count, 50)?;
    }
    settle(&world)?;
    Ok(Scene { _near: near, _far: far, world })
}

#[test]
fn heavy_ten_times_the_files_take_no_more_memory() -> Checked {
    need_root!();
    let way = Way::Up;
    let Scene { world, .. } = &scene(10_000, Host::Daemon, way)?;
    // What is mapped once, whatever comes, is mapped after this.
    peaks_of(world, way, "fs/some", "fs/first")?;
    let (some, many) = (middle_peaks(world, way, "fs/some")?, middle_peaks(world, way, "fs/many")?);
    ensure!(some.len() == 6 && many.len() == 6, "not every process was seen: {some:?} {many:?}");
    let told = format!("KiB with 10,000 files: {some:#?}; with 100,000: {many:#?}");
    for (part, peak) in &some {
        let later = many.get(part).copied().unwrap_or_default();
        ensure!(
            later * 10 <= peak * 11 && later * 10 >= peak * 9,
            "{part} went from {peak} to {later} KiB\n{told}"
        );
    }
    Ok(())
}

/// Insists that no process of a transfer needs more for ten times `few` files, and none more than its limit. `few` fill
/// windows and queues in the fullest of five runs at least; what grows with the files shows in each run of many.
fn grows_with_nothing(few: u64, host: Host, way: Way) -> Checked {
    need_root!();
    let Scene { world, .. } = &scene(few, host, way)?;
    let (some, many) = (courses_of(world, way, "fs/some", 5)?, courses_of(world, way, "fs/many", 2)?);
    // The CLI and the far agent, and a broker and a worker of each daemon.
    let parts = if host == Host::Daemon { 6 } else { 2 };
    let told = format!("{host:?} {way:?}, KiB with {few} files: {some:?}; with ten times as many: {many:?}");
    ensure!(some.len() == parts && many.len() == parts, "not every process was seen: {told}");
    for (part, peaks) in &many {
        let (lowest, highest) = (peaks.iter().min().copied(), peaks.iter().max().copied());
        let before = some.get(part).and_then(|peaks| peaks.iter().max().copied());
        let (Some(before), Some(lowest), Some(highest)) = (before, lowest, highest) else {
            return Err(Trouble::new(format!("{part} was not seen: {told}")));
        };
        ensure!(lowest * 10 <= before * 11, "{part} went from {before} to {lowest} KiB; {told}");
        ensure!(highest <= LIMIT_KIB, "{part} took {highest} KiB; {told}");
    }
    Ok(())
}

#[test]
fn heavy_downloads_of_many_files_take_no_more_memory() -> Checked {
    grows_with_nothing(3000, Host::Daemon, Way::Down)
}

#[test]
fn heavy_uploads_without_daemons_take_no_more_memory_for_many_files() -> Checked {
    grows_with_nothing(3000, Host::Embedded, Way::Up)
}

#[test]
fn heavy_downloads_without_daemons_take_no_more_memory_for_many_files() -> Checked {
    grows_with_nothing(3000, Host::Embedded, Way::Down)
}
