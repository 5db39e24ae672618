//! Distance, loss, damage and partitions between two hosts, below TCP.

use escp_testkit::run::wait_until;
use escp_testkit::wan::Link;
use escp_testkit::{Checked, FAR_PORTS, Host, Plan, World, compare, ensure, need_wan, skip, tree};
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
        world.wan()?.change(|link| (link.loss, link.flips) = (0.004, 0.004));
        copy_and_compare(&world, way, &["-t", "8"], "big", "big")?;
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
    let outcome = copy_and_compare(&world, Way::Up, &["-r", "-v"], "many", "many")?;
    // Addresses of their own make two hosts of them, though they share a kernel.
    outcome.expect_stderr(": 5 data connections to ")?.expect_stderr("a round trip takes 100.")?;
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

/// What `ss` knows about the data connections of a host.
fn connections(world: &World, far: bool) -> Checked<String> {
    let run = if far { world.on_far("ss") } else { world.on_near("ss") };
    let ports = format!(
        "( sport >= :{} and sport <= :{} ) or ( dport >= :{0} and dport <= :{1} )",
        FAR_PORTS.0, FAR_PORTS.1
    );
    Ok(run.args(["-Htin", "state", "established"]).arg(ports).succeed()?.stdout)
}

#[test]
fn congestion_control_is_chosen_on_both_hosts_or_refused_in_words() -> Checked {
    need_wan!();
    // The same in every namespace, and for all of the machine to change: what is there is taken as it is.
    let names = |which: &str| -> Checked<Vec<String>> {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv4/tcp_{which}congestion_control"))?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    };
    let (own, allowed, available) = (names("")?, names("allowed_")?, names("available_")?);
    let Some(other) = allowed.iter().find(|name| !own.contains(name)) else {
        skip!("this machine allows no congestion control but {own:?}");
    };
    for (way, host) in [(Way::Up, Host::Daemon), (Way::Down, Host::Embedded)] {
        let world = world(host, Link::new(20 * MS, Some(40_000_000)), way, 8 * tree::MIB)?;
        // Without a word it is each host's own, also where a connection began with another.
        for (flags, name, copy) in
            [(&["-t", "3"][..], &own[0], "first"), (&["--congestion", other, "-t", "3"], other, "big")]
        {
            let running = way.escp(&world, flags, &["big"], copy).start()?;
            parts::wait_until_moving(&way.target(&world))?;
            for far in [false, true] {
                let shown = connections(&world, far)?;
                let with =
                    shown.lines().filter(|line| line.split_whitespace().any(|word| word == name)).count();
                ensure!(with >= 3, "{with} connections with {name}, far: {far}:\n{shown}");
            }
            running.end()?.expect_status(0)?;
        }
        let unknown = way.escp(&world, &["--congestion", "nosuch"], &["big"], "again").end()?;
        unknown.expect_status(3)?.expect_stderr("net.ipv4.tcp_available_congestion_control")?;
        if let Some(forbidden) = available.iter().find(|name| !allowed.contains(name)) {
            let forbidden = way.escp(&world, &["--congestion", forbidden], &["big"], "again").end()?;
            forbidden.expect_status(3)?.expect_stderr("net.ipv4.tcp_allowed_congestion_control")?;
        }
    }
    Ok(())
}

#[test]
fn buffers_too_small_for_the_way_are_named() -> Checked {
    need_wan!();
    for (way, host) in [(Way::Up, Host::Daemon), (Way::Down, Host::Embedded)] {
        let world = world(host, Link::new(50 * MS, None), way, 16 * tree::MIB)?;
        let (sender, receiver) = match way {
            Way::Up => (&world.near_network, world.far_network()),
            Way::Down => (world.far_network(), &world.near_network),
        };
        let plenty = way.escp(&world, &[], &["big"], "big").succeed()?;
        ensure!(!plenty.stderr.contains("hold the transfer back"), "{}", plenty.told());
        sender.set("net/ipv4/tcp_wmem", "4096 65536 131072")?;
        let small = way.escp(&world, &[], &["big"], "again").succeed()?;
        let small = small.expect_stderr("net.ipv4.tcp_wmem on the sending host")?;
        ensure!(small.stderr.matches("hold the transfer back").count() == 1, "{}", small.told());
        sender.set("net/ipv4/tcp_wmem", "4096 65536 67108864")?;
        receiver.set("net/ipv4/tcp_rmem", "4096 65536 131072")?;
        let small = way.escp(&world, &[], &["big"], "third").succeed()?;
        small.expect_stderr("net.ipv4.tcp_rmem on the receiving host")?;
    }
    Ok(())
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
