//! Every process of a session is killed in the middle of it; nothing may be left but the old file.

use escp_testkit::daemon::Daemon;
use escp_testkit::mount::Hung;
use escp_testkit::processes;
use escp_testkit::run::{Outcome, Running, send_signal, wait_until};
use escp_testkit::{Checked, Host, Plan, Trouble, World, compare, ensure, need_root, tree};
use escp_tests::{Way, settle};
use rustix::process::Signal;
use std::time::{Duration, Instant};

const OLD: &str = "the old one";

/// A transfer of 32 MiB at 32 Mbit/s (8 s) over an old file, in the middle.
fn begin(world: &World, way: Way) -> Checked<Running> {
    tree::file(&way.source(world).join("source"), 32 * tree::MIB, 7)?;
    std::fs::write(way.target(world).join("copy"), OLD)?;
    settle(world)?;
    let mut running = way.escp(world, &["-v", "-l", "32M"], &["source"], "copy").start()?;
    let target = way.target(world);
    wait_until("the temporary file", Duration::from_secs(20), || {
        compare::names(&target).is_ok_and(|names| names.iter().any(|name| name.starts_with(".escp")))
    })?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(running.is_running()?, "over before it could be killed: {}", running.stderr()?);
    Ok(running)
}

/// The pid of the far agent: a process of the far user that runs `escp --server` of this world.
fn far_agent(world: &World) -> Checked<u32> {
    let uid = world.users.far.uid.to_string();
    world
        .leftovers()
        .into_iter()
        .filter(|process| process.command.contains("--server") && !process.command.starts_with("sh"))
        .find(|process| {
            processes::status(process.pid, "Uid")
                .is_ok_and(|line| line.split_whitespace().next() == Some(&uid))
                && std::fs::read_link(format!("/proc/{}/exe", process.pid))
                    .is_ok_and(|exe| exe.ends_with("escp"))
        })
        .map(|process| process.pid)
        .ok_or_else(|| Trouble::new(format!("no far agent in {:#?}", world.leftovers())))
}

/// What must hold after the fact, whatever was killed.
fn aftermath(world: &World, way: Way) -> Checked {
    world.expect_nothing_running(Duration::from_secs(15))?;
    let kept = std::fs::read(way.target(world).join("copy"))?;
    ensure!(kept == OLD.as_bytes(), "the old file is gone; {} bytes are there", kept.len());
    for daemon in world.daemons() {
        let network = &world.near_network;
        wait_until("no session in the metrics", Duration::from_secs(15), || {
            daemon.metric(network, "escp_sessions_active", &[]).is_ok_and(|active| active == 0.0)
        })?;
        let open = processes::descriptors(daemon.pid());
        let files: Vec<_> =
            open.iter().filter(|(_, path)| path.starts_with(world.scratch.path().join("near"))).collect();
        ensure!(files.is_empty(), "the broker holds files: {files:?}");
    }
    Ok(())
}

/// Ends a session whose process was killed; data must stop within 10 s.
fn ended(running: Running, since: Instant, status: i32) -> Checked<Outcome> {
    let outcome = running.end()?;
    ensure!(since.elapsed() < Duration::from_secs(10), "it took {:?}: {}", since.elapsed(), outcome.told());
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.told());
    outcome.expect_status(status)
}

fn worlds() -> impl Iterator<Item = (Way, Host)> {
    Way::BOTH.into_iter().flat_map(|way| [(way, Host::Embedded), (way, Host::Daemon)])
}

/// A look at a mount that hangs must not keep anyone from leaving: neither agent may wait for it in its task.
#[test]
fn a_hung_mount_lets_everybody_go() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = World::start(Host::Embedded, Host::Embedded)?;
        std::fs::write(way.source(&world).join("source"), "content")?;
        settle(&world)?;
        let Some(_hung) = Hung::new(&way.target(&world).join("hung"))? else {
            escp_testkit::skip!("no /dev/fuse here, so no mount can be made to hang");
        };
        let mut running = way.escp(&world, &["-v"], &["source"], "hung/copy").start()?;
        // Whoever receives looks at its target once the data connections are up.
        wait_until("the data connections", Duration::from_secs(20), || {
            running.stderr().is_ok_and(|told| told.contains("data connections"))
        })?;
        std::thread::sleep(Duration::from_millis(1000));
        ensure!(running.is_running()?, "it did not wait for the mount: {}", running.stderr()?);
        running.signal(Signal::INT)?;
        ended(running, Instant::now(), 130)?;
        world.expect_nothing_running(Duration::from_secs(15))?;
    }
    Ok(())
}

#[test]
fn the_cli() -> Checked {
    need_root!();
    for (way, host) in worlds() {
        let world = World::start(host, host)?;
        let running = begin(&world, way)?;
        running.signal(Signal::KILL)?;
        let outcome = running.end()?;
        ensure!(outcome.code() == 137, "{}", outcome.told());
        aftermath(&world, way)?;
    }
    Ok(())
}

#[test]
fn the_far_agent() -> Checked {
    need_root!();
    for (way, host) in worlds() {
        let world = World::start(host, host)?;
        let running = begin(&world, way)?;
        send_signal(far_agent(&world)?, Signal::KILL)?;
        ended(running, Instant::now(), 4)?;
        aftermath(&world, way)?;
    }
    Ok(())
}

#[test]
fn ssh() -> Checked {
    need_root!();
    for (way, host) in worlds() {
        let world = World::start(host, host)?;
        let running = begin(&world, way)?;
        let ssh = processes::descendants(running.pid())
            .into_iter()
            .find(|pid| processes::read(*pid).is_some_and(|process| process.command.starts_with("ssh")))
            .ok_or_else(|| Trouble::new("no ssh"))?;
        send_signal(ssh, Signal::KILL)?;
        ended(running, Instant::now(), 4)?;
        aftermath(&world, way)?;
    }
    Ok(())
}

fn one_worker(daemon: Option<&Daemon>) -> Checked<u32> {
    match daemon.map(Daemon::workers).as_deref() {
        Some([worker]) => Ok(*worker),
        other => Err(Trouble::new(format!("workers: {other:?}"))),
    }
}

#[test]
fn a_worker_of_either_side() -> Checked {
    need_root!();
    for way in Way::BOTH {
        for near in [true, false] {
            let world = World::start(Host::Daemon, Host::Daemon)?;
            let running = begin(&world, way)?;
            let daemon = if near { &world.near_daemon } else { &world.far_daemon };
            send_signal(one_worker(daemon.as_ref())?, Signal::KILL)?;
            ended(running, Instant::now(), 4)?;
            aftermath(&world, way)?;
            // The daemon lives on and serves the next one; counters of the killed worker are kept.
            let read = daemon
                .as_ref()
                .map(|daemon| daemon.metric(&world.near_network, "escp_bytes_disk_total", &[]))
                .transpose()?;
            ensure!(read.is_some_and(|bytes| bytes > 0.0), "the killed worker's counters are lost");
            way.escp(&world, &[], &["source"], "copy").succeed()?;
            compare::same_sha256(&way.source(&world).join("source"), &way.target(&world).join("copy"))?;
        }
    }
    Ok(())
}

#[test]
fn a_broker_of_either_side() -> Checked {
    need_root!();
    for way in Way::BOTH {
        for near in [true, false] {
            let mut world = World::start(Host::Daemon, Host::Daemon)?;
            let running = begin(&world, way)?;
            let daemon = if near { world.near_daemon.take() } else { world.far_daemon.take() };
            let daemon = daemon.ok_or_else(|| Trouble::new("no daemon"))?;
            let worker = one_worker(Some(&daemon))?;
            send_signal(daemon.pid(), Signal::KILL)?;
            ended(running, Instant::now(), 4)?;
            wait_until("the worker to follow its broker", Duration::from_secs(15), || {
                processes::read(worker).is_none()
            })?;
            aftermath(&world, way)?;
        }
    }
    Ok(())
}

#[test]
fn interrupt_and_terminate() -> Checked {
    need_root!();
    for (way, host) in worlds() {
        for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let world = World::start(host, host)?;
            let running = begin(&world, way)?;
            running.signal(signal)?;
            ended(running, Instant::now(), status)?;
            aftermath(&world, way)?;
            compare::same_sha256(&way.source(&world).join("source"), &way.source(&world).join("source"))?;
            let left = compare::names(&way.target(&world))?;
            ensure!(!left.iter().any(|name| name.starts_with(".escp")), "left behind: {left:?}");
        }
    }
    Ok(())
}

#[test]
fn interrupt_while_logging_in() -> Checked {
    need_root!();
    // The far side takes its time before it starts anything.
    let world = Plan::default().sshd_line("ForceCommand sleep 30").start()?;
    std::fs::write(world.near.join("source"), "x")?;
    settle(&world)?;
    for (signal, status) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let running = Way::Up.escp(&world, &[], &["source"], "copy").start()?;
        std::thread::sleep(Duration::from_millis(700));
        running.signal(signal)?;
        ended(running, Instant::now(), status)?;
    }
    compare::holds_only(&world.far, &[])
}

#[test]
fn a_daemon_that_is_told_to_stop_lets_its_sessions_end() -> Checked {
    need_root!();
    let mut world = Plan::new(Host::Embedded, Host::Daemon).start()?;
    let running = begin(&world, Way::Up)?;
    let daemon = world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    daemon.running().signal(Signal::TERM)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(daemon.running().is_running()?, "it did not wait for its session: {}", daemon.log()?);
    running.end()?.expect_status(0)?;
    wait_until("the daemon to end", Duration::from_secs(10), || {
        !daemon.running().is_running().unwrap_or(true)
    })?;
    compare::same_sha256(&world.near.join("source"), &world.far.join("copy"))
}

#[test]
fn a_second_word_stops_a_daemon_at_once() -> Checked {
    need_root!();
    let mut world = World::start(Host::Embedded, Host::Daemon)?;
    let running = begin(&world, Way::Up)?;
    let daemon = world.far_daemon.as_mut().ok_or_else(|| Trouble::new("no daemon"))?;
    for _ in 0..2 {
        daemon.running().signal(Signal::TERM)?;
        std::thread::sleep(Duration::from_millis(300));
    }
    ended(running, Instant::now(), 4)?;
    wait_until("the daemon to end", Duration::from_secs(10), || {
        !daemon.running().is_running().unwrap_or(true)
    })?;
    world.far_daemon = None;
    aftermath(&world, Way::Up)
}

#[test]
fn a_far_side_that_stands_still_is_told_of_and_goes_on() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let mut running = begin(&world, Way::Up)?;
    let agent = far_agent(&world)?;
    send_signal(agent, Signal::STOP)?;
    let told = wait_until("a word about the silence", Duration::from_secs(20), || {
        running
            .stderr()
            .is_ok_and(|text| text.contains("no word") || text.contains("silent") || text.contains("nothing"))
    });
    let text = running.stderr()?;
    send_signal(agent, Signal::CONT)?;
    ensure!(told.is_ok(), "10 s of silence were not told: {text}");
    running.end()?.expect_status(0)?;
    compare::same_sha256(&world.near.join("source"), &world.far.join("copy"))
}
