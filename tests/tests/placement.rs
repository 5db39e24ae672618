//! Where data threads run: what the kernel says of each of them.

use escp_testkit::run::wait_until;
use escp_testkit::{Checked, Host, Plan, Trouble, World, ensure, need_root, skip, tree};
use escp_tests::parts::{Part, wait_until_moving};
use escp_tests::{Way, settle};
use std::time::Duration;

/// `Cpus_allowed_list` of every data thread of a process.
fn cpus_of_data_threads(pid: u32) -> Checked<Vec<String>> {
    let mut lists = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
        };
        if field("Name:").is_some_and(|name| name.starts_with("escp-data-")) {
            lists.push(field("Cpus_allowed_list:").ok_or_else(|| Trouble::new("no Cpus_allowed_list"))?);
        }
    }
    Ok(lists)
}

fn slow_session(world: &World) -> Checked<escp_testkit::run::Running> {
    tree::file(&world.near.join("big"), 64 * tree::MIB, 1)?;
    settle(world)?;
    let session = Way::Up.escp(world, &["-v", "-l", "16M"], &["big"], "copy").start()?;
    wait_until_moving(&world.far)?;
    Ok(session)
}

#[test]
fn a_mask_binds_every_data_thread_and_shows() -> Checked {
    need_root!();
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        skip!("one CPU leaves nothing to choose");
    }
    // The lowest bit is CPU 0, so this is CPU 1.
    for (key, value, cpus) in [("cpumask", "\"2\"", "1"), ("cpumask", "0x1", "0")] {
        let world = Plan::new(Host::Daemon, Host::Daemon).config(&format!("{key}: {value}\n")).start()?;
        let session = slow_session(&world)?;
        for (part, daemon) in [Part::NearWorker, Part::FarWorker].into_iter().zip(world.daemons()) {
            let lists = cpus_of_data_threads(part.pid(&world)?)?;
            ensure!(
                !lists.is_empty() && lists.iter().all(|list| list == cpus),
                "{part:?}: {lists:?}, not {cpus}"
            );
            let labels = ["reason=\"mask\"", &format!("cpus=\"{cpus}\"")];
            let shown = || daemon.metric(&world.near_network, "escp_sessions_placed", &labels);
            wait_until("the placement to show", Duration::from_secs(5), || {
                shown().is_ok_and(|count| count == 1.0)
            })?;
        }
        escp_testkit::run::send_signal(session.pid(), rustix::process::Signal::INT)?;
        let outcome = session.end()?.expect_status(130)?;
        ensure!(outcome.stderr.contains(&format!("data threads run on CPUs {cpus} ")), "{}", outcome.told());
    }
    Ok(())
}

#[test]
fn without_a_mask_loopback_leaves_threads_where_they_are() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Daemon)?;
    let session = slow_session(&world)?;
    let status = std::fs::read_to_string("/proc/self/status")?;
    let own = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or_default();
    for part in [Part::Cli, Part::FarWorker] {
        let lists = cpus_of_data_threads(part.pid(&world)?)?;
        ensure!(
            !lists.is_empty() && lists.iter().all(|list| list == own.trim()),
            "{part:?}: {lists:?}, not {own}"
        );
    }
    escp_testkit::run::send_signal(session.pid(), rustix::process::Signal::INT)?;
    session.end()?.expect_status(130)?;
    Ok(())
}
