//! What can be seen from outside: a daemon's metrics, to the byte, while it works and after faults.

use escp_testkit::daemon::Daemon;
use escp_testkit::mount::{Kind, Mount};
use escp_testkit::network::Network;
use escp_testkit::run::{Run, program, wait_until};
use escp_testkit::{Checked, FAR_PORTS, Host, Trouble, World, compare, ensure, need_root, skip, tree};
use escp_tests::parts::{self, Part};
use escp_tests::{Way, settle};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// Regular files below a directory, and their bytes.
fn contents(directory: &Path) -> Checked<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let (more_files, more_bytes) =
            if entry.file_type()?.is_dir() { contents(&entry.path())? } else { (1, entry.metadata()?.len()) };
        files += more_files;
        bytes += more_bytes;
    }
    Ok((files, bytes))
}

/// A sample of a daemon's metrics.
#[derive(Clone, Copy)]
struct Gauge<'a> {
    daemon: &'a Daemon,
    network: &'a Network,
}

impl Gauge<'_> {
    fn read(self, name: &str, label: &str) -> Checked<u64> {
        let value = self.daemon.metric(self.network, name, &[label])?;
        ensure!(value >= 0.0 && value.fract() == 0.0, "{name}{{{label}}} is {value}");
        // Exact: all that is counted here is far below 2^53.
        Ok(format!("{value:.0}").parse()?)
    }

    /// Insists on a value; the last counts of a worker come a moment after its agent has left.
    #[track_caller]
    fn becomes(self, name: &str, label: &str, expected: u64) -> Checked {
        let mut seen = 0;
        let came = wait_until(name, PATIENCE, || {
            seen = self.read(name, label).unwrap_or(u64::MAX);
            seen == expected
        });
        came.map_err(|_| Trouble::new(format!("{name}{{{label}}} is {seen}, not {expected}")))
    }
}

/// Near and far daemon.
fn gauges(world: &World) -> Checked<[Gauge<'_>; 2]> {
    let missing = || Trouble::new("no daemon");
    let network = &world.near_network;
    Ok([
        Gauge { daemon: world.near_daemon.as_ref().ok_or_else(missing)?, network },
        Gauge { daemon: world.far_daemon.as_ref().ok_or_else(missing)?, network },
    ])
}

#[test]
fn counters_agree_with_what_moved_to_the_byte() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    // A disk, so that O_DIRECT pads the last block of each file; padding must not be counted.
    let _near = Mount::new(Kind::Ext4, &world.near.join("disk"), 128, &world.users.near, "")?;
    let _far = Mount::new(Kind::Ext4, &world.far.join("disk"), 128, &world.users.far, "")?;
    let source = world.near.join("disk/tree");
    std::fs::create_dir(&source)?;
    tree::sizes(&source)?;
    tree::many(&source.join("many"), 500, 60)?;
    settle(&world)?;
    let (files, bytes) = contents(&source)?;
    let [near, far] = gauges(&world)?;
    let mut moved = 0;
    for (round, way) in (1..).zip(Way::BOTH) {
        let (from, to, sender, receiver) = match way {
            Way::Up => ("disk/tree", "disk/copy", near, far),
            Way::Down => ("disk/copy", "disk/back", far, near),
        };
        way.escp(&world, &["-r"], &[from], to).succeed()?;
        for gauge in [near, far] {
            gauge.becomes("escp_sessions_total", "result=\"ended\"", round)?;
            gauge.becomes("escp_sessions_active", "", 0)?;
        }
        sender.becomes("escp_bytes_disk_total", "direction=\"out\"", bytes)?;
        receiver.becomes("escp_bytes_disk_total", "direction=\"in\"", bytes)?;
        // As they travelled: the same, without -C. The headers of packed files are none of them.
        sender.becomes("escp_bytes_compressed_total", "direction=\"out\"", bytes)?;
        receiver.becomes("escp_bytes_compressed_total", "direction=\"in\"", bytes)?;
        let sent = sender.read("escp_bytes_network_total", "direction=\"out\"")?;
        receiver.becomes("escp_bytes_network_total", "direction=\"in\"", sent)?;
        // Headers and tags: some tens of bytes for each file and block.
        ensure!(
            sent > bytes && sent < bytes + bytes / 100 + 200 * files,
            "{sent} bytes of network for {bytes}"
        );
        sender.becomes("escp_files_total", "result=\"sent\"", files)?;
        receiver.becomes("escp_files_total", "result=\"received\"", files)?;
        for gauge in [near, far] {
            gauge.becomes("escp_files_total", "result=\"failed\"", 0)?;
            gauge.becomes("escp_errors_total", "", 0)?;
            gauge.becomes("escp_connections_refused_total", "", 0)?;
        }
        moved += bytes;
    }
    compare::same(&source, &world.near.join("disk/back"))?;
    let all = near.read("escp_bytes_disk_total", "")? + far.read("escp_bytes_disk_total", "")?;
    ensure!(all == 2 * moved, "{all} bytes in all, not {}", 2 * moved);
    Ok(())
}

#[test]
fn errors_and_strangers_are_counted() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    tree::file(&world.near.join("big"), 64 * tree::MIB, 1)?;
    settle(&world)?;
    let [near, far] = gauges(&world)?;

    let session = Way::Up.escp(&world, &["-l", "16M"], &["big"], "copy").start()?;
    parts::wait_until_moving(&world.far)?;
    for gauge in [near, far] {
        gauge.becomes("escp_sessions_active", "", 1)?;
        gauge.becomes("escp_engine_sessions_active", "engine=\"uring\"", 1)?;
    }
    escp_testkit::run::send_signal(Part::NearWorker.pid(&world)?, rustix::process::Signal::KILL)?;
    let lost = session.end()?.expect_status(4)?;
    lost.expect_stderr("nothing partial has a final name; run the same command again")?;
    near.becomes("escp_sessions_total", "result=\"worker_died\"", 1)?;
    far.becomes("escp_sessions_active", "", 0)?;
    far.becomes("escp_sessions_total", "result=\"ended\"", 0)?;
    let over = far.read("escp_sessions_total", "")?;
    ensure!(over == 1, "{over} sessions are over");
    far.becomes("escp_errors_total", "kind=\"network\"", 1)?;
    near.becomes("escp_engine_sessions_active", "engine=\"uring\"", 0)?;
    near.becomes("escp_engine_sessions_total", "engine=\"uring\"", 1)?;

    for _ in 0..5 {
        let mut stranger = world.near_network.inside(|| TcpStream::connect(("127.0.0.1", FAR_PORTS.0)))??;
        // Enough for a first packet, and none.
        stranger.write_all(&[b'x'; 64])?;
        let _ = stranger.read(&mut [0; 1]);
    }
    far.becomes("escp_connections_refused_total", "", 5)?;
    near.becomes("escp_connections_refused_total", "", 0)
}

#[test]
fn files_that_a_file_system_refuses_o_direct_are_counted() -> Checked {
    need_root!();
    // ext4 has no O_DIRECT for files whose data goes through its journal.
    for (kind, options, refused) in
        [(Kind::Ext4, "", 0), (Kind::Ext4, "data=journal", 2), (Kind::Tmpfs, "", 0)]
    {
        let mut world = World::start(Host::Daemon, Host::Daemon)?;
        let _near = Mount::new(kind, &world.near.join("fs"), 96, &world.users.near, options)?;
        let _far = Mount::new(kind, &world.far.join("fs"), 96, &world.users.far, options)?;
        let source = world.near.join("fs/tree");
        std::fs::create_dir(&source)?;
        tree::many(&source, 30, 40)?;
        for name in ["one", "two"] {
            tree::file(&source.join(name), 3 * tree::MIB + 5, 1)?;
        }
        settle(&world)?;
        Way::Up.escp(&world, &["-r"], &["fs/tree"], "fs/copy").succeed()?;
        compare::same(&source, &world.far.join("fs/copy"))?;
        for (gauge, result) in gauges(&world)?.into_iter().zip(["sent", "received"]) {
            gauge.becomes("escp_files_total", &format!("result=\"{result}\""), 32)?;
            gauge.becomes("escp_direct_fallbacks_total", "", refused)?;
        }
        // Once for all of a session's files.
        for daemon in [&mut world.near_daemon, &mut world.far_daemon].into_iter().flatten() {
            let log = daemon.log()?;
            let said = log.lines().filter(|line| line.contains("O_DIRECT is refused")).count();
            ensure!(said == usize::from(refused > 0), "said {said} times\n{log}");
        }
    }
    Ok(())
}

#[test]
fn promtool_accepts_the_metrics_of_a_daemon_that_has_worked() -> Checked {
    need_root!();
    let Ok(promtool) = program("promtool") else { skip!("promtool (package prometheus) is not installed") };
    let world = World::start(Host::Daemon, Host::Daemon)?;
    tree::file(&world.near.join("f"), 3 * tree::MIB, 1)?;
    settle(&world)?;
    Way::Up.escp(&world, &["-C"], &["f"], "f").succeed()?;
    for gauge in gauges(&world)? {
        gauge.becomes("escp_sessions_total", "result=\"ended\"", 1)?;
        let text = gauge.daemon.scrape(gauge.network)?;
        for family in [
            "escp_bytes_network_total",
            "escp_bytes_disk_total",
            "escp_bytes_compressed_total",
            "escp_sessions_active",
            "escp_sessions_total",
            "escp_files_total",
            "escp_errors_total",
            "escp_engine_sessions_active",
            "escp_direct_fallbacks_total",
            "escp_connections_refused_total",
            "escp_build_info",
        ] {
            ensure!(text.contains(&format!("# TYPE {family} ")), "no {family} in\n{text}");
        }
        let page = world.scratch.path().join("metrics");
        std::fs::write(&page, text)?;
        let checked = Run::new(&promtool, None)
            .args(["check", "metrics"])
            .stdin(std::fs::File::open(&page)?)
            .succeed()?;
        ensure!(checked.stdout.is_empty() && checked.stderr.is_empty(), "{}", checked.told());
    }
    Ok(())
}

#[test]
fn metrics_are_served_where_they_were_asked_for_and_nowhere_else() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Daemon)?;
    let daemon = world.far_daemon.as_ref().ok_or_else(|| Trouble::new("no daemon"))?;
    let metrics = daemon.metrics;
    ensure!(metrics.ip().is_loopback(), "metrics on {metrics}");
    let other = std::net::SocketAddr::from(([127, 0, 0, 2], metrics.port()));
    let answered =
        world.near_network.inside(|| TcpStream::connect_timeout(&other, Duration::from_secs(2)).is_ok())?;
    ensure!(!answered, "metrics are served on more than the address that was given");
    Ok(())
}
