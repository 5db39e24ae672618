//! What happens when a part of a session dies, or is told to stop.

use escp_testkit::clock::Stopwatch;
use escp_testkit::daemon::Daemon;
use escp_testkit::mount::Hung;
use escp_testkit::run::{Outcome, Running, send_signal, wait_until};
use escp_testkit::{Checked, Host, Plan, Trouble, World, compare, ensure, need_root, processes, tree};
use escp_tests::parts::{self, Part, far_program};
use escp_tests::{Way, settle};
use rustix::process::Signal;
use std::path::PathBuf;
use std::time::Duration;

/// At 16 Mbit/s this takes half a minute: whatever ends before was ended.
const SIZE: u64 = 64 * tree::MIB;
const SLOWLY: [&str; 2] = ["-l", "16M"];
/// Within this, those that are left notice, say so and end.
const GONE: Duration = Duration::from_secs(10);

/// Two hosts, a large file on the sender's and an old one of that name on the receiver's.
struct Scene {
    world: World,
    way: Way,
}

impl Scene {
    fn new(plan: Plan, way: Way) -> Checked<Self> {
        let world = plan.start()?;
        tree::file(&way.source(&world).join("big"), SIZE, 5)?;
        tree::file(&way.source(&world).join("small"), 5000, 6)?;
        std::fs::create_dir(way.target(&world).join("target"))?;
        std::fs::write(way.target(&world).join("target/big"), "old")?;
        settle(&world)?;
        Ok(Self { world, way })
    }

    fn target(&self) -> PathBuf {
        self.way.target(&self.world).join("target")
    }

    /// Starts a session that stays slow, and waits until data has reached the receiver's disk.
    fn moving(&self) -> Checked<Running> {
        self.moving_with(&SLOWLY)
    }

    /// Starts a session that cannot end before [`escp_testkit::proxy::Proxy::release`], and waits likewise.
    fn held(&self) -> Checked<Running> {
        self.world.proxy()?.hold();
        self.moving_with(&["-v", "-t", "1"])
    }

    fn moving_with(&self, flags: &[&str]) -> Checked<Running> {
        let mut running = self.way.escp(&self.world, flags, &["big"], "target/big").start()?;
        parts::wait_until_moving(&self.target()).map_err(|trouble| {
            Trouble::new(format!("{trouble:?}\n{}", running.stderr().unwrap_or_default()))
        })?;
        Ok(running)
    }

    /// What holds after every end: the old file is untouched, and `left` temporary files are there.
    #[track_caller]
    fn is_tidy(&self, left: usize) -> Checked {
        let target = self.target();
        ensure!(std::fs::read_to_string(target.join("big"))? == "old", "the old file was touched");
        let others: Vec<String> = compare::names(&target)?.into_iter().filter(|name| name != "big").collect();
        ensure!(others.len() == left, "{left} temporary files were expected: {others:?}");
        ensure!(others.iter().all(|name| name.starts_with(".escp-")), "{others:?}");
        Ok(())
    }

    /// No daemon has a session, or a file of anybody's open.
    fn daemons_are_idle(&self) -> Checked {
        for daemon in self.world.daemons().filter(|daemon| processes::read(daemon.pid()).is_some()) {
            wait_until("no session in the metrics", GONE, || {
                let active = daemon.metric(&self.world.near_network, "escp_sessions_active", &[]);
                active.is_ok_and(|active| active == 0.0)
            })?;
            let mut files = processes::descriptors(daemon.pid());
            files.retain(|(_, path)| path.starts_with(&self.world.near) || path.starts_with(&self.world.far));
            ensure!(files.is_empty(), "a broker holds files: {files:?}");
        }
        Ok(())
    }

    /// The same hosts serve the next session.
    #[track_caller]
    fn serves(&self, flags: &[&str]) -> Checked<Outcome> {
        let outcome = self.way.escp(&self.world, flags, &["small"], "target/small").succeed()?;
        let small = self.target().join("small");
        compare::same_sha256(&self.way.source(&self.world).join("small"), &small)?;
        std::fs::remove_file(small)?;
        Ok(outcome)
    }
}

/// One sentence or a few, and no panic.
#[track_caller]
fn speaks_to_people(outcome: &Outcome) -> Checked {
    let words = outcome.stderr.split_whitespace().count();
    let machine =
        ["panicked", "RUST_BACKTRACE", "Os {", "Err("].iter().any(|word| outcome.stderr.contains(word));
    ensure!(words >= 4 && !machine, "not a sentence for people\n{}", outcome.told());
    Ok(())
}

/// Kills one part of a session that moves data and insists on what the others do.
fn kill(host: Host, way: Way, part: Part) -> Checked {
    need_root!();
    let scene = Scene::new(Plan::new(host, host), way)?;
    let session = scene.moving()?;
    let workers: Vec<u32> = scene.world.daemons().flat_map(Daemon::workers).collect();
    let start = Stopwatch::start();
    send_signal(part.pid(&scene.world)?, Signal::KILL)?;
    let outcome = session.end()?;
    scene.world.expect_nothing_running(GONE)?;
    // A worker whose broker is gone is no child of a daemon any more.
    let gone = || workers.iter().all(|&worker| processes::read(worker).is_none());
    wait_until("every worker to end", GONE, gone)?;
    scene.daemons_are_idle()?;
    let told = outcome.told();
    ensure!(start.elapsed() < GONE + Duration::from_secs(3), "it took {:?}\n{told}", start.elapsed());
    let receiver = if way == Way::Up { Part::FarAgent } else { Part::Cli };
    scene
        .is_tidy(usize::from(part == receiver))
        .map_err(|trouble| Trouble::new(format!("{trouble:?}\n{told}")))?;
    if part == Part::Cli {
        ensure!(outcome.code() == 137, "{told}");
    } else {
        speaks_to_people(&outcome)?;
        outcome.expect_status(4)?;
    }
    let next = scene.serves(&[])?;
    for temporary in parts::temporaries(&scene.target())? {
        let name = temporary.file_name().unwrap_or_default().to_string_lossy().into_owned();
        ensure!(next.stderr.contains(&name), "the next run does not name {name}\n{}", next.told());
    }
    let next = scene.serves(&["-v"])?;
    if part == Part::NearBroker || part == Part::FarBroker {
        ensure!(next.stderr.contains("no escpd at "), "{}", next.told());
    } else if host == Host::Daemon {
        ensure!(!next.stderr.contains("embedded"), "a daemon did not live on\n{}", next.told());
    }
    Ok(())
}

macro_rules! kills {
    ($($name:ident: $host:ident $way:ident $part:ident;)*) => {
        $(#[test]
        fn $name() -> Checked {
            kill(Host::$host, Way::$way, Part::$part)
        })*
    };
}

kills! {
    killed_cli_going_up: Embedded Up Cli;
    killed_cli_coming_down: Embedded Down Cli;
    killed_ssh_going_up: Embedded Up Ssh;
    killed_ssh_coming_down: Embedded Down Ssh;
    killed_far_agent_going_up: Embedded Up FarAgent;
    killed_far_agent_coming_down: Embedded Down FarAgent;
    killed_cli_of_daemons_going_up: Daemon Up Cli;
    killed_cli_of_daemons_coming_down: Daemon Down Cli;
    killed_ssh_of_daemons_going_up: Daemon Up Ssh;
    killed_ssh_of_daemons_coming_down: Daemon Down Ssh;
    killed_far_agent_of_daemons_going_up: Daemon Up FarAgent;
    killed_far_agent_of_daemons_coming_down: Daemon Down FarAgent;
    killed_near_worker_going_up: Daemon Up NearWorker;
    killed_near_worker_coming_down: Daemon Down NearWorker;
    killed_far_worker_going_up: Daemon Up FarWorker;
    killed_far_worker_coming_down: Daemon Down FarWorker;
    killed_near_broker_going_up: Daemon Up NearBroker;
    killed_near_broker_coming_down: Daemon Down NearBroker;
    killed_far_broker_going_up: Daemon Up FarBroker;
    killed_far_broker_coming_down: Daemon Down FarBroker;
}

#[test]
fn what_a_killed_worker_counted_is_kept() -> Checked {
    need_root!();
    let scene = Scene::new(Plan::new(Host::Daemon, Host::Daemon), Way::Up)?;
    let network = &scene.world.near_network;
    let daemon = scene.world.far_daemon.as_ref().ok_or_else(|| Trouble::new("no daemon"))?;
    let written = || daemon.metric(network, "escp_bytes_disk_total", &["direction=\"in\""]);
    let died = || daemon.metric(network, "escp_sessions_total", &["result=\"worker_died\""]);
    let session = scene.moving()?;
    wait_until("bytes to be counted", GONE, || written().is_ok_and(|bytes| bytes >= tree::MIB as f64))?;
    let before = written()?;
    send_signal(Part::FarWorker.pid(&scene.world)?, Signal::KILL)?;
    session.end()?.expect_status(4)?;
    wait_until("the worker's end to be counted", GONE, || died().is_ok_and(|count| count == 1.0))?;
    ensure!(written()? >= before, "{before} bytes were counted, then {}", written()?);
    scene.daemons_are_idle()?;
    scene.serves(&[]).map(drop)
}

/// Signals a session, as a person (only `escp`) or as a terminal (its whole process group) does.
fn interrupt(running: &Running, signal: Signal, group: bool) -> Checked {
    let pid = i32::try_from(running.pid())?;
    let pid = rustix::process::Pid::from_raw(pid).ok_or_else(|| Trouble::new("no pid"))?;
    if group {
        rustix::process::kill_process_group(pid, signal)?;
    } else {
        rustix::process::kill_process(pid, signal)?;
    }
    Ok(())
}

const SIGNALS: [(Signal, bool, i32); 3] =
    [(Signal::INT, true, 130), (Signal::INT, false, 130), (Signal::TERM, false, 143)];
/// How long a person waits for Ctrl-C, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Insists on the end of a session that got a signal.
#[track_caller]
fn ended_at_once(running: Running, since: Stopwatch, status: i32) -> Checked {
    let outcome = running.end()?;
    ensure!(since.elapsed() < AT_ONCE, "it took {:?}\n{}", since.elapsed(), outcome.told());
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.told());
    outcome.expect_status(status).map(drop)
}

fn signals_while_moving(host: Host, way: Way) -> Checked {
    need_root!();
    let scene = Scene::new(Plan::new(host, host), way)?;
    for (signal, group, status) in SIGNALS {
        let flags = [&SLOWLY[..], &["-q"]].concat();
        let run = scene.way.escp(&scene.world, &flags, &["big"], "target/big");
        let run = run.under("setsid", &[]).as_user(&scene.world.users.near).start()?;
        parts::wait_until_moving(&scene.target())?;
        let start = Stopwatch::start();
        interrupt(&run, signal, group)?;
        ended_at_once(run, start, status)?;
        scene.world.expect_nothing_running(GONE)?;
        scene.is_tidy(0)?;
    }
    scene.serves(&[]).map(drop)
}

#[test]
fn signals_going_up() -> Checked {
    signals_while_moving(Host::Embedded, Way::Up)
}

#[test]
fn signals_coming_down() -> Checked {
    signals_while_moving(Host::Embedded, Way::Down)
}

#[test]
fn signals_between_daemons_going_up() -> Checked {
    signals_while_moving(Host::Daemon, Way::Up)
}

#[test]
fn signals_between_daemons_coming_down() -> Checked {
    signals_while_moving(Host::Daemon, Way::Down)
}

#[test]
fn signals_before_anything_moves() -> Checked {
    need_root!();
    let scene = Scene::new(Plan::default(), Way::Up)?;
    let stuck = far_program(&scene.world, "sh -c 'sleep 60; exec \"$0\" \"$@\"'")?;
    // While ssh logs in, and while the other side starts.
    let stages: [(&str, &[&str]); 2] = [("log in", &["-o", "ProxyCommand=sleep 60"]), ("start", &[])];
    for (stage, flags) in stages {
        for (signal, group, status) in SIGNALS {
            let run = scene.world.escp_with(&stuck).args(flags);
            let run = scene.way.operands(&scene.world, run, &["big"], "target/big");
            let run = run.under("setsid", &[]).as_user(&scene.world.users.near).start()?;
            wait_until(stage, Duration::from_secs(20), || Part::Ssh.pid(&scene.world).is_ok())?;
            std::thread::sleep(Duration::from_millis(500));
            let start = Stopwatch::start();
            interrupt(&run, signal, group)?;
            ended_at_once(run, start, status)
                .map_err(|trouble| Trouble::new(format!("{stage}: {trouble:?}")))?;
            scene.is_tidy(0)?;
        }
    }
    Ok(())
}

/// A far escp that stays when its session is over, which the file `over` tells; the next one says nothing.
fn that_stays(world: &World) -> Checked<(PathBuf, PathBuf)> {
    let over = world.far.join("over");
    let file = over.display();
    let words = format!("sh -c 'test -e {file} || \"$0\" \"$@\"; : > {file}; exec sleep 60'");
    Ok((far_program(world, &words)?, over))
}

#[test]
fn a_signal_when_all_is_agreed_ends_the_waiting_only() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let scene = Scene::new(Plan::default(), way)?;
        let (stays, over) = that_stays(&scene.world)?;
        for (signal, group, _) in SIGNALS {
            let run = way.operands(&scene.world, scene.world.escp_with(&stays), &["small"], "target/small");
            let run = run.under("setsid", &[]).as_user(&scene.world.users.near).start()?;
            wait_until("the far side's end", Duration::from_secs(20), || over.exists())?;
            let start = Stopwatch::start();
            interrupt(&run, signal, group)?;
            ended_at_once(run, start, 0)?;
            let small = scene.target().join("small");
            compare::same_sha256(&way.source(&scene.world).join("small"), &small)?;
            std::fs::remove_file(small)?;
            std::fs::remove_file(&over)?;
        }
    }
    Ok(())
}

#[test]
fn a_signal_between_two_hosts_is_no_good_end() -> Checked {
    need_root!();
    let scene = Scene::new(Plan::default(), Way::Down)?;
    let (stays, over) = that_stays(&scene.world)?;
    let source = |host: &str, name: &str| format!("{host}:{}/{name}", scene.world.far.display());
    let run = scene.world.escp_with(&stays).arg(source("far", "small")).arg(source("far6", "big"));
    let run = run.arg(scene.target()).start()?;
    wait_until("the first host's end", Duration::from_secs(20), || over.exists())?;
    interrupt(&run, Signal::INT, false)?;
    let outcome = run.end()?.expect_status(130)?;
    ensure!(outcome.stderr == "escp: interrupted\nescp: 1 file arrived whole\n", "{}", outcome.told());
    compare::same_sha256(&scene.world.far.join("small"), &scene.target().join("small"))?;
    std::fs::remove_file(scene.target().join("small"))?;
    scene.is_tidy(0)
}

/// A look at a mount that hangs must not keep anyone from leaving: neither agent may wait for it in its task.
#[test]
fn a_hung_mount_lets_everybody_go() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let scene = Scene::new(Plan::default(), way)?;
        let Some(_hung) = Hung::new(&scene.target().join("hung"))? else {
            escp_testkit::skip!("no /dev/fuse here, so no mount can be made to hang");
        };
        let mut running = way.escp(&scene.world, &["-v"], &["small"], "target/hung/copy").start()?;
        // Whoever receives looks at its target once the data connections are up.
        wait_until("the data connections", Duration::from_secs(20), || {
            running.stderr().is_ok_and(|told| told.contains("data connections"))
        })?;
        std::thread::sleep(Duration::from_millis(1000));
        ensure!(running.is_running()?, "it did not wait for the mount: {}", running.stderr()?);
        let start = Stopwatch::start();
        running.signal(Signal::INT)?;
        ended_at_once(running, start, 130)?;
        scene.world.expect_nothing_running(GONE)?;
    }
    Ok(())
}

#[test]
fn signals_amid_many_files() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let scene = Scene::new(Plan::default(), way)?;
        tree::many(&way.source(&scene.world).join("tree"), 3000, 50)?;
        settle(&scene.world)?;
        let copy = scene.target().join("copy");
        let run = way.escp(&scene.world, &["-r", "-l", "4M"], &["tree"], "target/copy").start()?;
        wait_until("some files", Duration::from_secs(30), || copy.join("a0").is_dir())?;
        std::thread::sleep(Duration::from_millis(500));
        let start = Stopwatch::start();
        interrupt(&run, Signal::INT, false)?;
        ended_at_once(run, start, 130)?;
        scene.world.expect_nothing_running(GONE)?;
        // What is there is whole, and nothing else is.
        let list =
            escp_testkit::run::Run::new("find", None).arg(&copy).args(["-name", ".escp-*"]).succeed()?;
        ensure!(list.stdout.is_empty(), "temporary files were left: {}", list.stdout);
        let differing = escp_testkit::run::Run::new("diff", None)
            .arg("-r")
            .arg(way.source(&scene.world).join("tree"))
            .arg(&copy)
            .end()?;
        let missing_only =
            differing.stdout.lines().all(|line| line.contains("Only in") && line.contains("/tree"));
        ensure!(missing_only, "{}", differing.told());
    }
    Ok(())
}

/// A session between daemons that moves data while the far one is told to stop, once or twice.
fn drained(grace: &str, second: bool) -> Checked<(Scene, Running)> {
    let plan = Plan::new(Host::Daemon, Host::Daemon).config(&format!("grace_period: {grace}\n")).apart();
    let mut scene = Scene::new(plan, Way::Up)?;
    let running = scene.held()?;
    let daemon = scene.world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    daemon.running().signal(Signal::TERM)?;
    // Two signals at once are one to the kernel.
    wait_until("the daemon to drain", GONE, || {
        daemon.log().is_ok_and(|log| log.contains("sessions may end by themselves"))
    })?;
    if second {
        daemon.running().signal(Signal::TERM)?;
    }
    Ok((scene, running))
}

/// The far daemon ends in good order.
fn daemon_ends(scene: &mut Scene) -> Checked {
    let daemon = scene.world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    let running = daemon.running();
    wait_until("the daemon to end", GONE, || running.is_running().is_ok_and(|runs| !runs))
}

#[test]
fn a_daemon_that_is_stopped_lets_its_sessions_end() -> Checked {
    need_root!();
    let (mut scene, running) = drained("10m", false)?;
    scene.world.proxy()?.release();
    running.end()?.expect_status(0)?;
    compare::same_sha256(&scene.world.near.join("big"), &scene.target().join("big"))?;
    daemon_ends(&mut scene)
}

#[test]
fn while_a_daemon_drains_its_users_do_without() -> Checked {
    need_root!();
    let plan = Plan::new(Host::Daemon, Host::Daemon).config("grace_period: 10m\n");
    let mut scene = Scene::new(plan, Way::Up)?;
    let running = scene.moving()?;
    let daemon = scene.world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    daemon.running().signal(Signal::TERM)?;
    let socket = daemon.socket.clone();
    wait_until("the daemon to drain", GONE, || !socket.exists())?;
    let outcome = scene.serves(&["-v"])?;
    // The daemon keeps its ports for the session that is left.
    for said in ["embedded engine", "are all taken on this host"] {
        ensure!(outcome.stderr.contains(said), "{}", outcome.told());
    }
    running.signal(Signal::INT)?;
    running.end()?.expect_status(130)?;
    daemon_ends(&mut scene)
}

#[test]
fn after_the_grace_period_a_session_is_lost() -> Checked {
    need_root!();
    let (mut scene, running) = drained("1s", false)?;
    let outcome = running.end()?.expect_status(4)?;
    ensure!(outcome.stderr.contains("far: escpd was stopped"), "{}", outcome.told());
    daemon_ends(&mut scene)?;
    scene.world.expect_nothing_running(GONE)?;
    scene.is_tidy(0)
}

#[test]
fn told_twice_a_daemon_stops_at_once() -> Checked {
    need_root!();
    let (mut scene, running) = drained("10m", true)?;
    let start = Stopwatch::start();
    let outcome = running.end()?.expect_status(4)?;
    ensure!(start.elapsed() < GONE, "it took {:?}\n{}", start.elapsed(), outcome.told());
    speaks_to_people(&outcome)?;
    daemon_ends(&mut scene)?;
    scene.world.expect_nothing_running(GONE)?;
    scene.is_tidy(0)
}

#[test]
fn a_far_side_that_stands_still_is_told_of_and_goes_on() -> Checked {
    need_root!();
    let scene = Scene::new(Plan::default().apart(), Way::Up)?;
    let mut running = scene.held()?;
    let agent = Part::FarAgent.pid(&scene.world)?;
    send_signal(agent, Signal::STOP)?;
    let told = wait_until("a word about the silence", Duration::from_secs(20), || {
        running.stderr().is_ok_and(|text| text.contains("no word from the other side for 1"))
    });
    let text = running.stderr()?;
    send_signal(agent, Signal::CONT)?;
    ensure!(told.is_ok(), "10 s of silence were not told: {text}");
    scene.world.proxy()?.release();
    running.end()?.expect_status(0)?;
    compare::same_sha256(&scene.world.near.join("big"), &scene.target().join("big"))
}
