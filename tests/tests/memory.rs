//! Memory is the same, however many files there are.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::{Checked, Host, World, compare, ensure, need_root, processes, tree};
use escp_tests::{Way, settle};
use std::collections::BTreeMap;
use std::time::Duration;

/// Peak resident memory in KiB of every process of a transfer, by its part in it.
type Peaks = BTreeMap<&'static str, u64>;

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

/// Moves the same tree three times, compares it, and takes the middle peak of each process: how full windows and
/// queues get differs a little from run to run.
fn middle_peaks(world: &World, tree: &str) -> Checked<Peaks> {
    let mut seen: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for run in 0..3 {
        let target = format!("{tree}-{run}");
        for (part, peak) in peaks_of(world, Way::Up, tree, &target)? {
            seen.entry(part).or_default().push(peak);
        }
        compare::same(&world.near.join(tree), &world.far.join(&target))?;
    }
    let middle = |mut peaks: Vec<u64>| {
        peaks.sort_unstable();
        peaks[peaks.len() / 2]
    };
    Ok(seen.into_iter().map(|(part, peaks)| (part, middle(peaks))).collect())
}

#[test]
fn heavy_ten_times_the_files_take_no_more_memory() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    // In memory, so that the disk's pace does not decide how long this takes.
    let _near = Mount::new(Kind::Tmpfs, &world.near.join("fs"), 1000, &world.users.near, "")?;
    let _far = Mount::new(Kind::Tmpfs, &world.far.join("fs"), 3000, &world.users.far, "")?;
    for (name, count) in [("some", 10_000), ("many", 100_000)] {
        tree::many(&world.near.join("fs").join(name), count, 50)?;
    }
    settle(&world)?;
    // What is mapped once, whatever comes, is mapped after this.
    peaks_of(&world, Way::Up, "fs/some", "fs/first")?;
    let (some, many) = (middle_peaks(&world, "fs/some")?, middle_peaks(&world, "fs/many")?);
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
