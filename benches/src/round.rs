//! Rounds: everybody runs once per round, in turn, so that whatever the machine does meanwhile meets all.

use crate::args::MeasureArgs;
use crate::contender::{Contender, Role, Trip};
use crate::ground::{Ground, Medium, drop_caches, with_memory_lock};
use crate::iperf;
use crate::machine::{Cost, Meter};
use crate::series::Series;
use crate::workload::Workload;
use escp_testkit::run::Running;
use escp_testkit::scratch::give;
use escp_testkit::{Checked, Trouble};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// For so long ext4 passes inodes over that were freed, one by one (`recently_deleted` of fs/ext4/ialloc.c): a tree that is
/// made right after another was removed takes several times as long.
const UNTIL_FORGOTTEN: Duration = Duration::from_secs(6);

/// Runs all rounds of a workload. `interrupted` ends them.
pub(crate) fn run(
    workload: &Workload,
    ground: &Ground,
    args: &MeasureArgs,
    interrupted: &AtomicBool,
) -> Checked<Vec<Series>> {
    let new =
        |contender: &Contender| Series { contender: contender.clone(), runs: Vec::new(), failure: None };
    let mut all: Vec<Series> = workload.contenders.iter().map(new).collect();
    let rounds = workload.rounds;
    let _slowed = workload.rate.map(|rate| ground.world.near_network.slowed_to(rate)).transpose()?;
    for round in 0..rounds {
        say(&format!("{}: round {} of {rounds}", workload.name, round + 1));
        // Each round begins with another one: who follows whom must not decide.
        let first = round as usize % all.len().max(1);
        for index in (first..all.len()).chain(0..first) {
            let Some(series) = all.get_mut(index) else { continue };
            if series.failure.is_some() {
                series.runs.push(None);
                continue;
            }
            let outcome = once(&series.contender, workload, ground, args, interrupted, round == 0);
            if interrupted.load(Ordering::Relaxed) {
                return Err(Trouble::new("interrupted"));
            }
            match outcome {
                Ok(cost) => series.runs.push(Some(cost)),
                Err(trouble) => {
                    say(&format!("{} failed: {trouble:?}", series.contender.name));
                    series.failure = Some(format!("{trouble:?}"));
                    series.runs.push(None);
                }
            }
        }
    }
    Ok(all)
}

/// Runs escp and the floor once more, under perf. Says where the graphs are.
pub(crate) fn profile(
    workload: &Workload,
    ground: &Ground,
    args: &MeasureArgs,
    interrupted: &AtomicBool,
) -> Checked {
    let directory = crate::record::directory();
    for contender in &workload.contenders {
        if matches!(contender.role, Role::Escp | Role::Floor) {
            let name = format!("{}-{}", workload.name, contender.name);
            let path = crate::profile::record(ground, &directory, &name, || {
                once(contender, workload, ground, args, interrupted, false).map(drop)
            })?;
            say(&format!("profile: {}.svg, {}.txt", path.display(), path.display()));
        }
    }
    Ok(())
}

/// Runs one contender once, looks at what it made, and removes that.
fn once(
    contender: &Contender,
    workload: &Workload,
    ground: &Ground,
    args: &MeasureArgs,
    interrupted: &AtomicBool,
    thoroughly: bool,
) -> Checked<Cost> {
    let trip = &workload.trip;
    let out = ground.out(trip, contender.is_remote());
    remove(&out)?;
    std::fs::create_dir(&out)?;
    let users = &ground.world.users;
    give(&out, if contender.is_remote() { &users.far } else { &users.near })?;
    if trip.medium == Medium::Disk {
        if trip.tree {
            std::thread::sleep(UNTIL_FORGOTTEN);
        }
        drop_caches()?;
    }
    if let Some(wan) = &ground.world.wan {
        let delay = contender.round_trip.or(workload.round_trip).unwrap_or_default() / 2;
        wan.change(|link| link.delay = delay);
    }
    let involved = if contender.is_escp() { ground.daemons() } else { Vec::new() };
    let server = if contender.is_iperf() { Some(iperf::server(ground)?) } else { None };
    let meter = Meter::begin(ground.group.as_ref(), &ground.world.near_network, &involved)?;
    let running = start(contender, ground, trip, args)?;
    let ended = wait(&running, meter.start() + args.patience, interrupted)?;
    let outcome = running.end()?.expect_status(0)?;
    let mut cost = meter.end(ended)?;
    cost.parts = parts(&outcome.stdout);
    if server.is_some() {
        cost = iperf::whole(cost, &outcome.stdout)?;
    }
    drop(server);
    if contender.makes_files {
        let made = out.join(&trip.name);
        look(&ground.source(trip), &made, thoroughly)
            .map_err(|trouble| Trouble::new(format!("what it made is not the source: {trouble:?}")))?;
    }
    remove(&out)?;
    Ok(cost)
}

/// Starts a contender; the floor may lock as much memory as the daemons.
fn start(contender: &Contender, ground: &Ground, trip: &Trip, args: &MeasureArgs) -> Checked<Running> {
    let start = || contender.run(ground, trip).patience(args.patience).start();
    if contender.role == Role::Floor { with_memory_lock(start) } else { start() }
}

/// Reads lines of `BEGAN ENDED`, in seconds.
fn parts(text: &str) -> Vec<f64> {
    let times = |line: &str| {
        let (began, ended) = line.split_once(' ')?;
        Some(ended.parse::<f64>().ok()? - began.parse::<f64>().ok()?)
    };
    text.lines().filter_map(times).collect()
}

/// Waits for the end of a program without waking up for it, and returns when that was.
fn wait(running: &Running, deadline: Instant, interrupted: &AtomicBool) -> Checked<Instant> {
    let pid = i32::try_from(running.pid()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Trouble::new("a process without a process id"))?;
    let handle = pidfd_open(pid, PidfdFlags::empty())?;
    let step = Timespec { tv_sec: 0, tv_nsec: 250_000_000 };
    loop {
        let mut fds = [PollFd::new(&handle, PollFlags::IN)];
        match poll(&mut fds, Some(&step)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(Instant::now()),
            Err(error) => return Err(error.into()),
        }
        if interrupted.load(Ordering::Relaxed) {
            return Err(Trouble::new("interrupted"));
        }
        if Instant::now() > deadline {
            return Err(Trouble::new("it took longer than --patience allows"));
        }
    }
}

/// Compares copy and source: always their sizes, and byte by byte if `thoroughly`.
fn look(source: &Path, made: &Path, thoroughly: bool) -> Checked {
    let (there, here) = (extent(source)?, extent(made)?);
    if there != here {
        return Err(Trouble::new(format!(
            "{} files of {} bytes became {} of {}",
            there.0, there.1, here.0, here.1
        )));
    }
    if thoroughly {
        let result = Command::new("diff").args(["-r", "--brief"]).args([source, made]).output()?;
        if !result.status.success() {
            return Err(Trouble::new(String::from_utf8_lossy(&result.stdout)));
        }
    }
    Ok(())
}

/// Files, and their bytes.
fn extent(path: &Path) -> Checked<(u64, u64)> {
    let meta = path.symlink_metadata()?;
    if !meta.is_dir() {
        return Ok((1, meta.len()));
    }
    let mut sum = (0, 0);
    for entry in std::fs::read_dir(path)? {
        let (files, bytes) = extent(&entry?.path())?;
        sum = (sum.0 + files, sum.1 + bytes);
    }
    Ok(sum)
}

/// Removes a file or tree, if it is there.
pub(crate) fn remove(path: &Path) -> Checked {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => Ok(std::fs::remove_dir_all(path)?),
        Ok(_) => Ok(std::fs::remove_file(path)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Tells the person who waits how far it is.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
