//! `-C`: what travels over networks of several speeds, and that it arrives as it was.

use escp_testkit::{Checked, Host, World, compare, ensure, need_root, skip, tree};
use escp_tests::{Way, settle};
use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

/// Bytes of file data that have travelled to the far host, in sessions that are over.
fn travelled(world: &World) -> Checked<f64> {
    let network = &world.near_network;
    // A worker's last counts may come a moment after its agent has left.
    escp_testkit::run::wait_until("every session to be over", Duration::from_secs(10), || {
        world.daemons().all(|daemon| {
            daemon.metric(network, "escp_sessions_active", &[]).is_ok_and(|active| active == 0.0)
        })
    })?;
    let daemon = world.far_daemon.as_ref().ok_or_else(|| escp_testkit::Trouble::new("no daemon"))?;
    daemon.metric(network, "escp_bytes_compressed_total", &["direction=\"in\""])
}

fn copy(world: &World, flags: &[&str], source: &str, target: &str) -> Checked {
    Way::Up.escp(world, flags, &[source], target).succeed()?;
    compare::same_sha256(&world.near.join(source), &world.far.join(target))
}

#[test]
fn a_slow_network_carries_less_than_the_file() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    // Large beside the few records of a choice that is tried and does not pay.
    let size = 64 * tree::MIB;
    tree::words(&world.near.join("words"), size)?;
    settle(&world)?;
    // So slow that compressing pays on a busy machine, too.
    let slowed = match world.near_network.slowed_to("50mbit") {
        Ok(slowed) => slowed,
        Err(trouble) => skip!("no slow network can be made here: {trouble:?}"),
    };
    copy(&world, &["-C"], "words", "copy")?;
    drop(slowed);
    let bytes = travelled(&world)?;
    ensure!(bytes < size as f64 * 0.5, "{bytes} of {size} bytes of text travelled over a slow network");
    Ok(())
}

#[test]
fn a_rate_is_a_slow_network_too() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Daemon)?;
    // Large beside the few records of a choice that is tried and does not pay.
    let size = 64 * tree::MIB;
    tree::words(&world.near.join("words"), size)?;
    settle(&world)?;
    copy(&world, &["-C", "-l", "50M"], "words", "copy")?;
    let bytes = travelled(&world)?;
    ensure!(bytes < size as f64 * 0.5, "{bytes} of {size} bytes of text travelled at 50 Mbit/s");
    Ok(())
}

#[test]
fn a_file_that_changes_its_nature_arrives_whole() -> Checked {
    need_root!();
    for (flags, streams) in
        [(&["-C"][..], "4"), (&["-C", "--ioengine", "posix"], "3"), (&["-C", "-l", "400M"], "1")]
    {
        let world = World::start(Host::Embedded, Host::Daemon)?;
        let (mixed, part) = (world.near.join("mixed"), world.scratch.path().join("part"));
        let mut out = OpenOptions::new().create(true).append(true).open(&mixed)?;
        let mut noise = 0;
        for round in 0..3 {
            tree::words(&part, 9 * tree::MIB + round)?;
            out.write_all(&std::fs::read(&part)?)?;
            tree::file(&part, 5 * tree::MIB + 17, round)?;
            noise += 5 * tree::MIB;
            out.write_all(&std::fs::read(&part)?)?;
        }
        let size = out.metadata()?.len();
        settle(&world)?;
        let words: Vec<&str> = flags.iter().copied().chain(["-t", streams]).collect();
        copy(&world, &words, "mixed", "copy")?;
        let bytes = travelled(&world)?;
        ensure!(bytes > noise as f64 && bytes <= size as f64, "{bytes} of {size} bytes travelled: {words:?}");
    }
    Ok(())
}

#[test]
fn small_files_are_packed_and_compressed_and_counted_alike_on_both_ends() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    let source = world.near.join("tree");
    std::fs::create_dir(&source)?;
    for index in 0..500_u64 {
        tree::words(&source.join(format!("f{index}")), 100 + index * 40)?;
    }
    settle(&world)?;
    Way::Up.escp(&world, &["-rC"], &["tree"], "copy").succeed()?;
    compare::same(&source, &world.far.join("copy"))?;
    let arrived = travelled(&world)?;
    let near = world.near_daemon.as_ref().ok_or_else(|| escp_testkit::Trouble::new("no daemon"))?;
    let sent = near.metric(&world.near_network, "escp_bytes_compressed_total", &["direction=\"out\""])?;
    let plain = near.metric(&world.near_network, "escp_bytes_disk_total", &["direction=\"out\""])?;
    ensure!(
        sent == arrived && sent > 0.0 && sent < plain,
        "{plain} bytes became {sent}, of which {arrived} arrived"
    );
    Ok(())
}
