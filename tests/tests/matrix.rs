//! Both directions, engines in daemons or embedded, io_uring or plain system calls: every size and a tree.

use escp_testkit::{Checked, Host, World, compare, ensure, need_root, tree};
use escp_tests::{Way, copy_and_compare, settle};
use std::time::Duration;

fn cell(way: Way, near: Host, far: Host, engine: &str) -> Checked {
    need_root!();
    let world = World::start(near, far)?;
    let source = way.source(&world);
    tree::everything(&source.join("tree"))?;
    settle(&world)?;
    let flags = ["-r", "-v", "--ioengine", engine];
    let outcome = copy_and_compare(&world, way, &flags, "tree", "copy")?;
    compare::same_sha256(
        &source.join("tree/sizes/size-3158073"),
        &way.target(&world).join("copy/sizes/size-3158073"),
    )?;
    compare::holds_only(&way.target(&world), &["copy"])?;
    for (host, daemon) in [(near, &world.near_daemon), (far, &world.far_daemon)] {
        if let Some(daemon) = daemon {
            let network = if host == near { &world.near_network } else { world.far_network() };
            let label = format!("engine=\"{engine}\"");
            let sessions = daemon.metric(network, "escp_engine_sessions_total", &[&label])?;
            ensure!(sessions == 1.0, "{sessions} sessions of {engine}\n{}", outcome.told());
        }
    }
    world.expect_nothing_running(Duration::from_secs(15))
}

macro_rules! cells {
    ($($name:ident: $way:ident $near:ident $far:ident $engine:literal;)*) => {
        $(#[test]
        fn $name() -> Checked {
            cell(Way::$way, Host::$near, Host::$far, $engine)
        })*
    };
}

cells! {
    up_embedded_uring: Up Embedded Embedded "uring";
    up_embedded_posix: Up Embedded Embedded "posix";
    up_daemons_uring: Up Daemon Daemon "uring";
    up_daemons_posix: Up Daemon Daemon "posix";
    up_from_daemon_to_embedded: Up Daemon Embedded "uring";
    up_from_embedded_to_daemon: Up Embedded Daemon "uring";
    down_embedded_uring: Down Embedded Embedded "uring";
    down_embedded_posix: Down Embedded Embedded "posix";
    down_daemons_uring: Down Daemon Daemon "uring";
    down_daemons_posix: Down Daemon Daemon "posix";
    down_from_daemon_to_embedded: Down Daemon Embedded "uring";
    down_from_embedded_to_daemon: Down Embedded Daemon "uring";
}

#[test]
fn each_size_alone() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Daemon)?;
    for way in Way::BOTH {
        let names = tree::sizes(&way.source(&world))?;
        settle(&world)?;
        for name in names {
            let target = format!("copy-{name}");
            copy_and_compare(&world, way, &[], &name, &target)?;
        }
    }
    Ok(())
}

#[test]
fn one_engine_per_side() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    tree::file(&world.near.join("a"), 5 * tree::MIB + 1, 1)?;
    settle(&world)?;
    copy_and_compare(&world, Way::Up, &["--ioengine", "uring::posix"], "a", "b")?;
    for (daemon, engine) in [(&world.near_daemon, "uring"), (&world.far_daemon, "posix")] {
        let label = format!("engine=\"{engine}\"");
        let daemon = daemon.as_ref().ok_or_else(|| escp_testkit::Trouble::new("no daemon"))?;
        let sessions = daemon.metric(&world.near_network, "escp_engine_sessions_total", &[&label])?;
        ensure!(sessions == 1.0, "{sessions} sessions of {engine}");
    }
    Ok(())
}

#[test]
fn options_of_the_data_path() -> Checked {
    need_root!();
    let world = World::start(Host::Daemon, Host::Daemon)?;
    tree::text_file(&world.near.join("text"), 9 * tree::MIB + 7)?;
    tree::file(&world.near.join("noise"), 9 * tree::MIB + 7, 3)?;
    settle(&world)?;
    let variants: [&[&str]; 8] = [
        &["-C"],
        &["--blocksize", "256K"],
        &["--blocksize", "8M"],
        &["-t", "1"],
        &["-t", "16"],
        &["--nodirect"],
        &["--nochecksum"],
        &["--no-fsync"],
    ];
    for (index, flags) in variants.into_iter().enumerate() {
        for source in ["text", "noise"] {
            copy_and_compare(&world, Way::Up, flags, source, &format!("{source}-{index}"))?;
        }
    }
    Ok(())
}

#[test]
fn dummy_moves_bytes_and_no_files() -> Checked {
    need_root!();
    for (near, far) in escp_tests::PAIRS {
        let world = World::start(near, far)?;
        world.escp().args(["-v", "--ioengine", "dummy", "dummy:64M", "far:"]).succeed()?;
        world.escp().args(["--ioengine", "dummy", "far:dummy:64M"]).arg(world.near.as_os_str()).succeed()?;
        compare::holds_only(&world.near, &[])?;
    }
    Ok(())
}
