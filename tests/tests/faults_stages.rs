//! A part of a session is killed, or the session told to stop, while it logs in, dials, publishes or agrees on its
//! end. Data moves in `faults_processes.rs`.

use escp_testkit::clock::Stopwatch;
use escp_testkit::mount::{Kind, Mount};
use escp_testkit::proxy::Action;
use escp_testkit::run::{Outcome, PATIENCE, Running, send_signal, wait_until};
use escp_testkit::{
    Checked, Host, Plan, Trouble, World, compare, ensure, need_program, need_root, processes, tree,
};
use escp_tests::calls::{Strace, Waiting};
use escp_tests::parts::{self, Part};
use escp_tests::{Way, settle};
use rustix::process::Signal;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

const FILES: usize = 20;
const SIZE: u64 = 5000;
/// How long a call is held at most.
const HELD: &str = "30s";
/// Within this, those that are left notice, say so and end.
const GONE: Duration = Duration::from_secs(10);
/// How long a person waits for Ctrl-C, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// How far a session is when it is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// ssh has connected to somebody who says nothing.
    LoggingIn,
    /// A data connection is made and its first packet not answered.
    Dialling,
    /// Files are whole; the first fdatasync has begun.
    Syncing,
    /// The first rename has begun.
    Naming,
    /// Every file has its name; of what ends the session, nothing but the receiver's first word gets through.
    Agreeing,
}

/// Two hosts with files on the sender's, one of which the receiver's disk has in an older version, and a session
/// that stays in its stage.
struct Scene {
    _disk: Mount,
    strace: Option<Strace>,
    world: World,
    way: Way,
    stage: Stage,
}

fn names() -> Vec<String> {
    (0..FILES).map(|number| format!("f{number}")).collect()
}

impl Scene {
    fn new(stage: Stage, host: Host, way: Way) -> Checked<Self> {
        let world = Plan::new(host, host).apart().start()?;
        let (user, directory) = world.side(way == Way::Up);
        let disk = Mount::new(Kind::Ext4, &directory.join("disk"), 16, user, "")?;
        std::fs::write(directory.join("disk/f0"), "old")?;
        for (seed, name) in (1..).zip(names()) {
            tree::file(&way.source(&world).join(name), SIZE, seed)?;
        }
        settle(&world)?;
        Ok(Self { _disk: disk, strace: None, world, way, stage })
    }

    fn target(&self) -> PathBuf {
        self.way.target(&self.world).join("disk")
    }

    /// Starts a session, and waits until it is in its stage.
    fn reach(&mut self) -> Checked<Running> {
        let names = names();
        let sources: Vec<&str> = names.iter().map(String::as_str).collect();
        let flags: &[&str] = match self.stage {
            // It takes what ssh says and goes with it.
            Stage::LoggingIn => &["-o", "ProxyCommand=sh -c 'cat > /dev/null; true'"],
            _ => &["-t", "1"],
        };
        let reached = self.hold()?;
        let waiting = Waiting::new(&self.world, self.way.escp(&self.world, flags, &sources, "disk"))?;
        if let Some(call) = self.held_call() {
            let daemon = [&self.world.near_daemon, &self.world.far_daemon];
            let daemon = daemon.into_iter().flatten().map(|daemon| daemon.pid());
            let pids: Vec<u32> = [waiting.pid(), self.world.sshd.pid()].into_iter().chain(daemon).collect();
            let inject = format!("inject={call}:delay_enter={HELD}");
            let watched = format!("{call},rt_sigreturn");
            self.strace = Some(Strace::attach(&self.world, &pids, &watched, &["-e", &inject])?);
        }
        let running = waiting.go()?;
        match (&self.strace, self.held_call()) {
            (Some(strace), Some(call)) => strace.wait_for(call)?,
            _ if self.stage == Stage::LoggingIn => {
                wait_until("ssh", PATIENCE, || Part::Ssh.pid(&self.world).is_ok())?;
            }
            _ => wait_until("the stage", PATIENCE, || reached.load(Relaxed))?,
        }
        Ok(running)
    }

    /// The system call in which the stage is.
    fn held_call(&self) -> Option<&'static str> {
        match self.stage {
            Stage::Syncing => Some("fdatasync"),
            Stage::Naming => Some("renameat"),
            _ => None,
        }
    }

    /// Has the network keep a session in its stage. What is returned tells when it is there.
    fn hold(&self) -> Checked<Arc<AtomicBool>> {
        let reached = Arc::new(AtomicBool::new(false));
        let (there, target, stage) = (Arc::clone(&reached), self.target(), self.stage);
        let (to_far, mut told) = (self.way == Way::Up, false);
        self.world.proxy()?.tamper(move |unit| {
            let strikes = match stage {
                Stage::Dialling => unit.index == 0 && unit.to_far,
                Stage::Agreeing if unit.stream == 0 && published(&target) => {
                    let first = !told && unit.to_far != to_far;
                    told |= first;
                    !first
                }
                _ => false,
            };
            if !strikes {
                return Action::Pass;
            }
            there.store(true, Relaxed);
            Action::Stall
        });
        Ok(reached)
    }

    /// Keeps the sender from hearing what is published, so that the session cannot end as if nobody had told it to stop,
    /// however late a busy machine lets the signal's own task run.
    fn keep_the_receivers_word(&self) -> Checked {
        let to_far = self.way == Way::Up;
        self.world.proxy()?.tamper(move |unit| {
            if unit.stream == 0 && unit.to_far != to_far { Action::Stall } else { Action::Pass }
        });
        Ok(())
    }

    /// Ends the strace that holds a call: it would not let a thread that it holds die.
    fn let_go(&mut self) {
        self.strace = None;
    }

    /// What holds after every end: each name is free, or the old file's, or the complete new one's; of
    /// temporary files there are none unless the receiver itself was killed.
    fn is_sound(&self, receiver_killed: bool) -> Checked {
        let target = self.target();
        for name in names() {
            let path = target.join(&name);
            let old = name == "f0" && std::fs::read(&path).is_ok_and(|bytes| bytes == b"old");
            let whole = self.stage == Stage::Agreeing || (path.exists() && !old);
            if whole {
                compare::same_sha256(&self.way.source(&self.world).join(&name), &path)?;
            }
            ensure!(old || whole || name != "f0", "the old file is gone");
        }
        let left = parts::temporaries(&target)?;
        ensure!(receiver_killed || left.is_empty(), "temporary files are left: {left:?}");
        let others: Vec<String> = compare::names(&target)?;
        let others: Vec<&String> =
            others.iter().filter(|name| !name.starts_with(".escp-") && !names().contains(name)).collect();
        ensure!(others.is_empty(), "{others:?}");
        Ok(())
    }

    /// Nobody is left, no session is counted, and the same hosts serve.
    fn goes_on(&mut self) -> Checked {
        self.world.expect_nothing_running(GONE)?;
        for daemon in self.world.daemons() {
            let network = if Some(daemon.pid()) == self.world.far_daemon.as_ref().map(|far| far.pid()) {
                self.world.far_network()
            } else {
                &self.world.near_network
            };
            wait_until("no session in the metrics", GONE, || {
                daemon.metric(network, "escp_sessions_active", &[]).is_ok_and(|active| active == 0.0)
            })?;
            let mut files = processes::descriptors(daemon.pid());
            files.retain(|(_, path)| path.starts_with(&self.world.near) || path.starts_with(&self.world.far));
            ensure!(files.is_empty(), "a broker holds files: {files:?}");
        }
        self.world.proxy()?.tamper(|_| Action::Pass);
        self.way.escp(&self.world, &[], &["f1"], "disk/again").succeed()?;
        compare::same_sha256(&self.way.source(&self.world).join("f1"), &self.target().join("again"))?;
        Ok(std::fs::remove_file(self.target().join("again"))?)
    }
}

/// Whether every file has its name.
fn published(target: &std::path::Path) -> bool {
    let whole = |name: String| std::fs::metadata(target.join(name)).is_ok_and(|meta| meta.len() == SIZE);
    names().into_iter().all(whole)
}

#[track_caller]
fn within(since: Stopwatch, most: Duration, outcome: &Outcome) -> Checked {
    ensure!(since.elapsed() < most, "it took {:?}\n{}", since.elapsed(), outcome.told());
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.told());
    Ok(())
}

/// Kills one part of a session in a stage and insists on what the others do.
fn kill(stage: Stage, host: Host, way: Way, part: Part) -> Checked {
    need_root!();
    need_program!("strace");
    let told = |trouble| Trouble::new(format!("{part:?} of {host:?} {way:?} while {stage:?}: {trouble:?}"));
    let mut scene = Scene::new(stage, host, way)?;
    let session = scene.reach()?;
    let start = Stopwatch::start();
    send_signal(part.pid(&scene.world)?, Signal::KILL)?;
    scene.let_go();
    let outcome = session.end()?;
    within(start, GONE + Duration::from_secs(1), &outcome).map_err(told)?;
    if part == Part::Cli {
        ensure!(outcome.code() == 137, "{}", outcome.told());
    } else {
        // Before the data connections are up, nothing is there to be lost.
        let statuses: &[i32] = match stage {
            Stage::LoggingIn => &[3],
            Stage::Dialling => &[3, 4],
            _ => &[4],
        };
        ensure!(statuses.contains(&outcome.code()), "{stage:?}: {}", outcome.told());
        ensure!(outcome.stderr.split_whitespace().count() >= 4, "no sentence\n{}", outcome.told());
    }
    scene.goes_on().map_err(|trouble| told(Trouble::new(format!("{trouble:?}\n{}", outcome.told()))))?;
    let receiver = if way == Way::Up { Part::FarAgent } else { Part::Cli };
    scene.is_sound(part == receiver).map_err(told)
}

#[test]
fn killed_while_logging_in() -> Checked {
    kill(Stage::LoggingIn, Host::Embedded, Way::Up, Part::Ssh)?;
    // Its ssh, whose server says nothing, does not look whether anybody waits for it.
    kill(Stage::LoggingIn, Host::Embedded, Way::Up, Part::Cli)
}

#[test]
fn killed_while_dialling() -> Checked {
    kill(Stage::Dialling, Host::Embedded, Way::Up, Part::Cli)?;
    kill(Stage::Dialling, Host::Embedded, Way::Down, Part::FarAgent)?;
    kill(Stage::Dialling, Host::Daemon, Way::Up, Part::NearWorker)?;
    kill(Stage::Dialling, Host::Daemon, Way::Up, Part::FarWorker)
}

#[test]
fn killed_while_syncing() -> Checked {
    kill(Stage::Syncing, Host::Embedded, Way::Up, Part::Cli)?;
    kill(Stage::Syncing, Host::Embedded, Way::Up, Part::FarAgent)?;
    kill(Stage::Syncing, Host::Daemon, Way::Up, Part::FarWorker)
}

#[test]
fn killed_while_naming() -> Checked {
    kill(Stage::Naming, Host::Embedded, Way::Up, Part::Cli)?;
    kill(Stage::Naming, Host::Embedded, Way::Up, Part::FarAgent)?;
    kill(Stage::Naming, Host::Embedded, Way::Down, Part::Cli)?;
    kill(Stage::Naming, Host::Daemon, Way::Up, Part::FarWorker)
}

#[test]
fn killed_while_agreeing() -> Checked {
    kill(Stage::Agreeing, Host::Embedded, Way::Up, Part::Cli)?;
    kill(Stage::Agreeing, Host::Embedded, Way::Up, Part::FarAgent)?;
    kill(Stage::Agreeing, Host::Embedded, Way::Down, Part::FarAgent)?;
    kill(Stage::Agreeing, Host::Daemon, Way::Up, Part::NearWorker)?;
    kill(Stage::Agreeing, Host::Daemon, Way::Up, Part::FarWorker)
}

/// Tells a session in a stage to stop, and insists on a quick end.
fn signals(stage: Stage, host: Host, way: Way) -> Checked {
    need_root!();
    need_program!("strace");
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let told =
            |trouble| Trouble::new(format!("{signal:?} of {host:?} {way:?} while {stage:?}: {trouble:?}"));
        let mut scene = Scene::new(stage, host, way)?;
        let session = scene.reach()?;
        if scene.held_call().is_some() {
            scene.keep_the_receivers_word()?;
        }
        let start = Stopwatch::start();
        session.signal(signal)?;
        if let Some(strace) = &scene.strace {
            strace.wait_for_handler(session.pid())?;
        }
        scene.let_go();
        let outcome = session.end()?;
        within(start, AT_ONCE, &outcome).map_err(told)?;
        let outcome = outcome.expect_status(status).map_err(told)?;
        scene.goes_on().map_err(|trouble| told(Trouble::new(format!("{trouble:?}\n{}", outcome.told()))))?;
        scene.is_sound(false).map_err(told)?;
    }
    Ok(())
}

#[test]
fn signals_while_dialling() -> Checked {
    signals(Stage::Dialling, Host::Embedded, Way::Up)
}

#[test]
fn signals_while_syncing() -> Checked {
    signals(Stage::Syncing, Host::Embedded, Way::Up)?;
    signals(Stage::Syncing, Host::Daemon, Way::Down)
}

#[test]
fn signals_while_naming() -> Checked {
    signals(Stage::Naming, Host::Embedded, Way::Up)?;
    signals(Stage::Naming, Host::Embedded, Way::Down)
}

#[test]
fn signals_while_agreeing() -> Checked {
    signals(Stage::Agreeing, Host::Embedded, Way::Up)?;
    signals(Stage::Agreeing, Host::Embedded, Way::Down)
}
