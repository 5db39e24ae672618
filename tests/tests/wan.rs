//! Distance, loss, damage and partitions between two hosts, below TCP.

use escp_testkit::run::wait_until;
use escp_testkit::wan::Link;
use escp_testkit::{Checked, Host, Plan, World, compare, ensure, need_wan, tree};
use escp_tests::{Way, copy_and_compare, parts, settle};
use std::time::Duration;

const MS: Duration = Duration::from_millis(1);
/// Time for a session to be gone, at a distance.
const GONE: Duration = Duration::from_secs(10);

/// Two hosts at a distance, and a random file on the sender's.
fn world(host: Host, link: Link, way: Way, size: u64) -> Checked<World> {
    let world = Plan::new(host, host).over(link).start()?;
    tree::file(&way.source(&world).join("big"), size, 7)?;
    settle(&world)?;
    Ok(world)
}

#[test]
fn a_file_arrives_whole_through_loss_and_damage_that_tcp_sees() -> Checked {
    need_wan!();
    for (way, host) in [(Way::Up, Host::Daemon), (Way::Down, Host::Embedded)] {
        let world = world(host, Link::new(50 * MS, None), way, 20 * tree::MIB)?;
        world.wan()?.change(|link| (link.loss, link.flips) = (0.01, 0.01));
        copy_and_compare(&world, way, &[], "big", "big")?;
        let counts = world.wan()?.counts();
        ensure!(counts.lost > 0 && counts.flipped > 0, "nothing was lost or damaged: {counts:?}");
    }
    Ok(())
}

#[test]
fn small_files_arrive_whole_from_afar() -> Checked {
    need_wan!();
    let world = Plan::new(Host::Daemon, Host::Daemon).over(Link::new(100 * MS, None)).start()?;
    tree::many(&world.near.join("many"), 3000, 500)?;
    settle(&world)?;
    copy_and_compare(&world, Way::Up, &["-r"], "many", "many")?;
    Ok(())
}

#[test]
fn a_partition_is_told_and_outlived() -> Checked {
    need_wan!();
    let link = Link::new(20 * MS, Some(40_000_000));
    // Twelve seconds of data, and quicker once the partition is over.
    let world = world(Host::Daemon, link, Way::Up, 60 * tree::MIB)?;
    let mut running = Way::Up.escp(&world, &[], &["big"], "big").start()?;
    parts::wait_until_moving(&world.far)?;
    world.wan()?.change(|link| link.cut = true);
    // 10 s, or a few more on a machine that stood still meanwhile.
    let told = "no word from the other side for 1";
    wait_until("the user to be told of silence", Duration::from_secs(20), || {
        running.stderr().is_ok_and(|text| text.contains(told))
    })?;
    std::thread::sleep(2 * 1000 * MS);
    ensure!(running.is_running()?, "given up too early: {}", running.stderr()?);
    world.wan()?.change(|link| (link.cut, link.rate) = (false, None));
    let outcome = running.end()?.expect_status(0)?.expect_stderr(told)?;
    ensure!(world.wan()?.counts().cut > 0, "nothing was cut: {}", outcome.told());
    compare::same(&world.near.join("big"), &world.far.join("big"))
}

#[test]
fn damage_that_tcp_does_not_see_ends_with_5_and_reaches_no_file() -> Checked {
    need_wan!();
    for way in Way::BOTH {
        let world = world(Host::Embedded, Link::new(20 * MS, Some(100_000_000)), way, 200 * tree::MIB)?;
        let target = way.target(&world);
        std::fs::create_dir(target.join("target"))?;
        std::fs::write(target.join("target/big"), "old")?;
        settle(&world)?;
        let running = way.escp(&world, &[], &["big"], "target/big").start()?;
        parts::wait_until_moving(&target.join("target"))?;
        let strike = |link: &mut Link| (link.flips, link.flips_fit_checksum) = (0.2, true);
        if way == Way::Up {
            world.wan()?.change_to_far(strike);
        } else {
            world.wan()?.change_to_near(strike);
        }
        wait_until("a bit to be flipped", GONE, || world.wan().is_ok_and(|wan| wan.counts().flipped > 0))?;
        world.wan()?.change(|link| link.flips = 0.0);
        running.end()?.expect_status(5)?.expect_stderr("altered on the network")?;
        world.expect_nothing_running(GONE)?;
        compare::holds_only(&target.join("target"), &["big"])?;
        ensure!(std::fs::read_to_string(target.join("target/big"))? == "old", "the old file was touched");
    }
    Ok(())
}
