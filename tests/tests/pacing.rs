//! The rate of a user: what all of its sessions send together. Limits lie far below what any machine moves, and
//! bounds are wide.

use escp_testkit::{Checked, Host, Plan, Trouble, compare, ensure, need_root, tree};
use escp_tests::{Way, settle};
use rustix::process::Signal;
use std::time::{Duration, Instant};

/// 4 MiB a second.
const LIMIT: &str = "limits:\n  rate_per_uid: 33554432\n";

#[test]
fn sessions_of_one_user_share_a_rate_evenly() -> Checked {
    need_root!();
    let world = Plan::new(Host::Daemon, Host::Daemon).config(LIMIT).start()?;
    tree::file(&world.near.join("f"), 10 * tree::MIB, 1)?;
    settle(&world)?;
    // More streams get no more of it.
    let start = |streams, name| Way::Up.escp(&world, &["-q", streams], &["f"], name).start();
    let (one, two) = (start("-t1", "one")?, start("-t8", "two")?);
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| two.end());
        let one = one.end();
        (one, other.join().unwrap_or_else(|_| Err(Trouble::new("a thread broke down"))))
    });
    let took = |ended: Checked<escp_testkit::run::Outcome>| -> Checked<f64> {
        Ok(ended?.expect_status(0)?.took.as_secs_f64())
    };
    let (one, two) = (took(one)?, took(two)?);
    let rate = 20.0 / one.max(two);
    ensure!(rate < 5.0, "{rate:.2} MiB/s of 4 for two sessions of {one:.1} s and {two:.1} s");
    ensure!(rate > 1.0, "{rate:.2} MiB/s of 4 for two sessions of {one:.1} s and {two:.1} s");
    // By streams, the second had eight parts of nine and were through in half the time.
    ensure!(one.min(two) > 0.65 * one.max(two), "{one:.1} s and {two:.1} s for the same bytes");
    for name in ["one", "two"] {
        compare::same_sha256(&world.near.join("f"), &world.far.join(name))?;
    }
    Ok(())
}

#[test]
fn a_reload_changes_the_rate_of_running_sessions() -> Checked {
    need_root!();
    let world = Plan::new(Host::Daemon, Host::Embedded).config(LIMIT).start()?;
    tree::file(&world.near.join("f"), 200 * tree::MIB, 1)?;
    settle(&world)?;
    let daemon = world.near_daemon.as_ref().ok_or_else(|| Trouble::new("no daemon"))?;
    let session = Way::Up.escp(&world, &["-q"], &["f"], "copy").start()?;
    escp_tests::parts::wait_until_moving(&world.far)?;
    std::fs::write(daemon.socket.with_file_name("escp.conf"), "limits:\n  rate_per_uid: off\n")?;
    escp_testkit::run::send_signal(daemon.pid(), Signal::HUP)?;
    let start = Instant::now();
    session.end()?.expect_status(0)?;
    // At the old rate, what was left takes nearly 50 s.
    let rest = start.elapsed();
    ensure!(rest < Duration::from_secs(30), "{rest:?} after the limit went");
    compare::same_sha256(&world.near.join("f"), &world.far.join("copy"))
}
