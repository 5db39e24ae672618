//! Flags whose effect is seen from outside only: what is printed, logged, and handed to ssh and the far side.

use escp_testkit::{Checked, Host, World, compare, ensure, need_root, tree};
use escp_tests::{Way, settle};
use std::os::unix::fs::PermissionsExt;

fn with_source(world: &World) -> Checked {
    tree::file(&world.near.join("a"), 100_000, 1)?;
    settle(world)
}

#[test]
fn licence_and_version_are_printed_and_nothing_is_done() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for flag in ["-L", "--license"] {
        let told = world.on_near(world.programs.join("escp")).arg(flag).succeed()?;
        ensure!(told.stdout.contains("MIT") && told.stdout.contains("Apache License 2.0"), "{}", told.told());
        ensure!(told.stdout.lines().count() == 1 && told.stderr.is_empty(), "{}", told.told());
    }
    for flag in ["-V", "--version"] {
        let told = world.on_near(world.programs.join("escp")).arg(flag).succeed()?;
        ensure!(told.stdout == format!("escp {}\n", env!("CARGO_PKG_VERSION")), "{}", told.told());
        ensure!(told.stderr.is_empty(), "{}", told.told());
    }
    Ok(())
}

#[test]
fn a_log_file_gets_lines_with_time_level_and_fields() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let log = world.near.join("log");
    let flags = ["--logfile", &log.to_string_lossy()];
    Way::Up.escp(&world, &flags, &["a"], "a").succeed()?;
    let first = std::fs::read_to_string(&log)?;
    for line in first.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [time, level, target, ..] = words[..] else { return Err(escp_testkit::Trouble::new(line)) };
        ensure!(time.len() > 19 && time.contains('T') && time.ends_with('Z'), "no time: {line}");
        ensure!(["ERROR", "WARN", "INFO"].contains(&level) && target.starts_with("escp"), "{line}");
    }
    let last = first.lines().last().unwrap_or_default();
    for field in ["far: session ended", "files=1", "bytes=100000", "directories=0", "failed=0"] {
        ensure!(last.contains(field), "no {field} at the end of\n{first}");
    }
    // What fails is kept, and what was there before.
    Way::Up.escp(&world, &flags, &["nothing"], "a").end()?.expect_status(1)?;
    let second = std::fs::read_to_string(&log)?;
    let added = second.strip_prefix(first.as_str()).unwrap_or_default();
    ensure!(added.contains("failed: ") && added.contains("nothing: No such file"), "{second}");
    ensure!(added.lines().last().is_some_and(|line| line.contains("failed=1")), "{second}");
    Ok(())
}

#[test]
fn another_program_can_be_used_as_ssh() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let (wrapper, told) = (world.scratch.path().join("wrapper"), world.near.join("told"));
    let script = format!("#!/bin/sh\nprintf '%s\\n' \"$@\" > {}\nexec ssh \"$@\"\n", told.display());
    std::fs::write(&wrapper, script)?;
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755))?;
    let flags = ["-S", &wrapper.to_string_lossy(), "-o", "ServerAliveInterval=7", "-4"];
    Way::Up.escp(&world, &flags, &["a"], "a").succeed()?;
    compare::same(&world.near.join("a"), &world.far.join("a"))?;
    let told = std::fs::read_to_string(told)?;
    let arguments: Vec<&str> = told.lines().collect();
    ensure!(arguments.first() == Some(&"-x") && arguments.contains(&"-4"), "{arguments:?}");
    let pair = |first: &str, second: &str| arguments.windows(2).any(|pair| pair == [first, second]);
    ensure!(pair("-F", &world.sshd.client_config.to_string_lossy()), "{arguments:?}");
    ensure!(pair("-o", "ServerAliveInterval=7") && pair("--", "far"), "{arguments:?}");
    ensure!(arguments.last().is_some_and(|command| command.ends_with(" --server")), "{arguments:?}");
    Ok(())
}

#[test]
fn the_far_side_listens_where_it_is_told_to() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    // Somebody else has the first of these ports.
    let _taken = world.far_network().inside(|| std::net::TcpListener::bind(("0.0.0.0", 4100)))??;
    let lines: [(&[&str], &str, u16); 4] = [
        (&["--escp_port", "4000"], "usual range", 4000),
        (&["--escp_port", "4100", "--escp_portrange", "3"], "a number of ports", 4101),
        (&["--escp_portrange", "4200-4205"], "a range", 4200),
        (&["--escp-port", "4100", "--escp-portrange", "1"], "the last port", 4101),
    ];
    for (flags, what, port) in lines {
        let outcome = Way::Up.escp(&world, &[flags, &["-v"]].concat(), &["a"], "a").succeed()?;
        let told = format!("data connections to 127.0.0.1:{port}");
        ensure!(outcome.stderr.contains(&told), "{what}, not {port}: {}", outcome.told());
    }
    // None of them is free: another one serves, and it is said which.
    let flags = ["--escp_port", "4100", "--escp_portrange", "0", "-v"];
    let outcome = Way::Up.escp(&world, &flags, &["a"], "b").succeed()?;
    outcome.expect_stderr("ports 4100-4100 are all taken on this host: listening on ").map(drop)
}
