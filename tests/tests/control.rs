//! The control channel and everything before the first byte of data.

use escp_proto::control::{ControlFailure, ControlMessage};
use escp_testkit::clock::Stopwatch;
use escp_testkit::run::{Outcome, Run};
use escp_testkit::{Checked, Host, Plan, Trouble, World, compare, ensure, need_root, tree};
use escp_tests::parts::far_program;
use escp_tests::{Way, settle};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

fn with_source(world: &World) -> Checked {
    tree::file(&world.near.join("a"), 100_000, 1)?;
    settle(world)
}

#[test]
fn a_refused_login_is_told_in_the_words_of_ssh() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let outcome = world
        .escp()
        .args(["-o", "User=escp-mallory"])
        .arg(world.near.join("a"))
        .arg(world.remote("a"))
        .end()?
        .expect_status(3)?;
    ensure!(outcome.stderr.contains("Permission denied"), "{}", outcome.told());
    ensure!(!outcome.stderr.contains("escp: \n"), "an empty sentence: {}", outcome.told());
    compare::holds_only(&world.far, &[])
}

#[test]
fn a_changed_host_key_is_told_in_the_words_of_ssh() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let directory = world.scratch.path().join("ssh");
    let user_key = std::fs::read_to_string(directory.join("user_key.pub"))?;
    std::fs::write(directory.join("known_hosts"), format!("escp-test {user_key}"))?;
    let outcome = Way::Up.escp(&world, &[], &["a"], "a").end()?.expect_status(3)?;
    ensure!(outcome.stderr.contains("Host key verification failed"), "{}", outcome.told());
    compare::holds_only(&world.far, &[])
}

#[test]
fn nobody_answers_on_the_ssh_port() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let outcome = world
        .escp()
        .args(["-P", "1"])
        .arg(world.near.join("a"))
        .arg(world.remote("a"))
        .end()?
        .expect_status(3)?;
    ensure!(outcome.stderr.contains("refused"), "{}", outcome.told());
    Ok(())
}

#[test]
fn no_escp_on_the_far_side() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    for path in ["/nowhere/escp", "escp-that-is-not-installed"] {
        let outcome = world
            .on_near(world.programs.join("escp"))
            .arg("-F")
            .arg(&world.sshd.client_config)
            .args(["-D", path])
            .arg(world.near.join("a"))
            .arg(world.remote("a"))
            .end()?
            .expect_status(3)?;
        ensure!(outcome.stderr.contains("escp is not installed on far"), "{}", outcome.told());
        ensure!(outcome.stderr.contains("--escp"), "it is not said what to do: {}", outcome.told());
    }
    Ok(())
}

#[test]
fn a_login_shell_that_prints_text() -> Checked {
    need_root!();
    let world = Plan::default()
        .sshd_line("ForceCommand echo Welcome to this host; exec sh -c \"$SSH_ORIGINAL_COMMAND\"")
        .start()?;
    with_source(&world)?;
    let outcome = Way::Up.escp(&world, &[], &["a"], "a").end()?.expect_status(3)?;
    ensure!(outcome.stderr.contains("Welcome to this host"), "the text is not shown: {}", outcome.told());
    ensure!(outcome.stderr.trim().lines().count() <= 2, "more than a sentence: {}", outcome.told());
    Ok(())
}

#[test]
fn a_login_shell_that_says_nothing_and_leaves() -> Checked {
    need_root!();
    let world = Plan::default().sshd_line("ForceCommand true").start()?;
    with_source(&world)?;
    let outcome = Way::Up.escp(&world, &[], &["a"], "a").end()?.expect_status(3)?;
    ensure!(!outcome.stderr.trim().is_empty(), "silent failure");
    Ok(())
}

/// Runs escp against a far side that answers with these bytes, whatever is said to it, and then waits.
fn answered_with(bytes: &[u8], status: i32) -> Checked<String> {
    let world = Plan::default().start()?;
    Ok(answered(&world, "", bytes, &[], status)?.stderr)
}

/// The same behind a good hello: the near side's own, which names its session.
fn answered_after_hello(world: &World, bytes: &[u8], flags: &[&str], status: i32) -> Checked<Outcome> {
    let hello = format!("head -c {}\n", 4 + escp_proto::control::FULL_HELLO_LEN);
    answered(world, &hello, bytes, flags, status)
}

fn answered(world: &World, before: &str, bytes: &[u8], flags: &[&str], status: i32) -> Checked<Outcome> {
    with_source(world)?;
    let answer = world.scratch.path().join("answer");
    std::fs::write(&answer, bytes)?;
    let fake = world.scratch.path().join("fake");
    std::fs::write(&fake, format!("#!/bin/sh\n{before}cat {}\ncat > /dev/null\n", answer.display()))?;
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755))?;
    std::fs::set_permissions(&answer, std::fs::Permissions::from_mode(0o644))?;
    let start = Stopwatch::start();
    let outcome = world
        .escp_with(&fake)
        .args(flags)
        .arg(world.near.join("a"))
        .arg(world.remote("a"))
        .end()?
        .expect_status(status)?;
    ensure!(start.elapsed() < Duration::from_secs(20), "it took {:?}", start.elapsed());
    ensure!(!outcome.stderr.contains("panicked"), "{}", outcome.told());
    Ok(outcome)
}

#[test]
fn versions_that_do_not_overlap() -> Checked {
    need_root!();
    let hello = |lowest: u16, highest: u16| {
        let mut frame = 68_u32.to_be_bytes().to_vec();
        frame.extend(b"escp-ctl");
        frame.extend(lowest.to_be_bytes());
        frame.extend(highest.to_be_bytes());
        frame.extend([0; 56]);
        frame
    };
    let said = answered_with(&hello(700, 701), 3)?;
    ensure!(said.contains("700 to 701"), "the versions are not named: {said}");
    Ok(())
}

#[test]
fn frames_that_are_none() -> Checked {
    need_root!();
    // A length of 4 GiB less one where the hello is due; nothing of that size may be allocated.
    answered_with(&[0xff; 200], 5)?;
    let world = Plan::default().start()?;
    // After a good hello: 4 GiB, random bytes, text that is not UTF-8.
    for tail in [
        &[0xff, 0xff, 0xff, 0xff, 1, 2, 3][..],
        &[0, 0, 0, 8, 0xde, 0xad, 0xbe, 0xef, 0xff, 0xff, 0xff, 0xff],
        &[0, 0, 0, 5, 2, 3, 0xff, 0xfe, 0xfd],
    ] {
        let outcome = answered_after_hello(&world, tail, &[], 5)?;
        let outcome = outcome.expect_stderr("broke the protocol on the control channel")?;
        outcome.expect_stderr("nothing altered has a final name; run the same command again")?;
    }
    Ok(())
}

#[test]
fn what_the_other_side_says_forges_nothing() -> Checked {
    need_root!();
    let world = Plan::default().start()?;
    let evil = "no\nescp: 1 file, all good\r\u{1b}[2J\u{9b}31m\u{202e}";
    let log = world.near.join("log");
    let logfile = log.to_string_lossy();
    let refused = ControlFailure { status: 3, text: evil.to_owned() };
    let frame = ControlMessage::Failed(refused).encode_frame()?;
    let outcome = answered_after_hello(&world, &frame, &["-v", "--logfile", &logfile], 3)?;
    for (place, text) in
        [("the terminal", outcome.stderr.as_str()), ("the log", &std::fs::read_to_string(log)?)]
    {
        ensure!(text.contains("no\\nescp: 1 file, all good\\r\\x1b[2J"), "not told on {place}: {text}");
        let raw = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
        ensure!(!text.contains(raw), "raw on {place}: {text:?}");
        ensure!(
            !text.lines().any(|line| line.starts_with("escp: 1 file")),
            "a line on {place} is forged: {text}"
        );
    }
    Ok(())
}

#[test]
fn without_a_daemon_or_without_the_right_to_it() -> Checked {
    need_root!();
    let mut world = World::start(Host::Daemon, Host::Daemon)?;
    with_source(&world)?;
    for daemon in world.daemons() {
        std::fs::set_permissions(&daemon.socket, std::fs::Permissions::from_mode(0o600))?;
    }
    let outcome = Way::Up.escp(&world, &["-v"], &["a"], "b").succeed()?;
    ensure!(outcome.stderr.contains("no right to use"), "no reason with -v: {}", outcome.told());
    ensure!(outcome.stderr.contains("embedded"), "the embedded engine is not told of: {}", outcome.told());
    // The far daemon holds its ports; any other one served.
    ensure!(outcome.stderr.contains("port"), "the other port is not told of: {}", outcome.told());
    world.near_daemon = None;
    world.far_daemon = None;
    let quiet = Way::Up.escp(&world, &[], &["a"], "c").succeed()?;
    ensure!(quiet.stderr.is_empty(), "told without -v: {}", quiet.told());
    compare::same(&world.near.join("a"), &world.far.join("c"))
}

#[test]
fn filtered_data_ports() -> Checked {
    need_root!();
    let world = Plan::default().apart().start()?;
    with_source(&world)?;
    // What a firewall that drops leaves of a connection: it is never answered.
    let proxy = world.proxy()?;
    proxy.close_data_ports();
    let _filtered = escp_testkit::proxy::Filtered::new(&world.near_network, escp_testkit::FAR_PORTS)?;
    let start = Stopwatch::start();
    let outcome = Way::Up.escp(&world, &[], &["a"], "a").end()?.expect_status(3)?;
    // Promised within ten; one more for a busy machine.
    ensure!(start.elapsed() < Duration::from_secs(11), "it took {:?}", start.elapsed());
    for word in ["1232", "far", "ssh", "--tunnel"] {
        ensure!(outcome.stderr.contains(word), "'{word}' is not said: {}", outcome.told());
    }
    compare::holds_only(&world.far, &[])
}

#[test]
fn closed_data_ports() -> Checked {
    need_root!();
    let world = Plan::default().apart().start()?;
    with_source(&world)?;
    world.proxy()?.close_data_ports();
    let outcome = Way::Up.escp(&world, &[], &["a"], "a").end()?.expect_status(3)?;
    ensure!(outcome.stderr.contains("1232"), "{}", outcome.told());
    compare::holds_only(&world.far, &[])
}

#[test]
fn a_dead_address_beside_a_live_one() -> Checked {
    need_root!();
    let world = Plan::default().apart().start()?;
    with_source(&world)?;
    // ssh comes in by 127.0.0.1, the address the far side names first. Data ports are dead there; the host's
    // own name leads to another address, where they live.
    let proxy = world.proxy()?;
    proxy.close_data_ports();
    let _dead = escp_testkit::proxy::Filtered::new(&world.near_network, escp_testkit::FAR_PORTS)?;
    proxy.open_data_ports_on(&world.near_network, "127.0.0.2", escp_testkit::FAR_PORTS)?;
    let config = std::fs::read_to_string(&world.sshd.client_config)?;
    std::fs::write(&world.sshd.client_config, config.replace("Host far\n", "Host far 127.0.0.2\n"))?;
    let start = Stopwatch::start();
    world
        .escp()
        .arg(world.near.join("a"))
        .arg(format!("127.0.0.2:{}", world.far.join("a").display()))
        .succeed()?;
    ensure!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    compare::same(&world.near.join("a"), &world.far.join("a"))
}

/// Connections that the kernel dropped because a queue was full, in this thread's network namespace.
fn dropped() -> Checked<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "ListenDrops");
    Ok(found.ok_or_else(|| Trouble::new("no ListenDrops"))?.1.parse()?)
}

#[test]
fn a_dead_ipv6_address_beside_a_live_ipv4_one() -> Checked {
    need_root!();
    const DEAD: &str = "2001:db8::9";
    let world = Plan::default().apart().start()?;
    with_source(&world)?;
    let near = &world.near_network;
    near.inside(|| {
        let add = ["-6", "address", "add", DEAD, "dev", "lo", "nodad"];
        Run::new("ip", None).args(add).succeed().map(drop)
    })??;
    let _dead = escp_testkit::proxy::Filtered::at(near, DEAD.parse()?, escp_testkit::FAR_PORTS)?;
    // The far side names the dead address; what its name leads to here is alive.
    let announces = format!("env \"SSH_CONNECTION={DEAD} 1 {DEAD} 22\"");
    let far = far_program(&world, &announces)?;
    let config = std::fs::read_to_string(&world.sshd.client_config)?;
    std::fs::write(&world.sshd.client_config, config.replace("Host far\n", "Host far 127.0.0.1\n"))?;
    let before = near.inside(dropped)??;
    let start = Stopwatch::start();
    world
        .escp_with(&far)
        .arg("-v")
        .arg(world.near.join("a"))
        .arg(format!("127.0.0.1:{}", world.far.join("a").display()))
        .succeed()?
        .expect_stderr("data connections to 127.0.0.1:")?;
    ensure!(start.elapsed() < Duration::from_secs(5), "it took {:?}", start.elapsed());
    ensure!(near.inside(dropped)?? > before, "{DEAD} was never dialled");
    compare::same(&world.near.join("a"), &world.far.join("a"))
}

#[test]
fn one_machine_gets_no_more_connections_than_it_serves() -> Checked {
    need_root!();
    let cores = std::thread::available_parallelism()?.get();
    // With stream 0, which carries no file data.
    let shared = 1 + cores.clamp(1, 4);
    for (plan, flags, lanes) in [
        (Plan::new(Host::Embedded, Host::Daemon), &["-v"][..], shared),
        (Plan::new(Host::Embedded, Host::Daemon), &["-v", "-t", "7"], 8),
    ] {
        let world = plan.start()?;
        with_source(&world)?;
        let outcome = Way::Up.escp(&world, flags, &["a"], "a").succeed()?;
        let told = format!(": {lanes} data connections");
        ensure!(outcome.stderr.contains(&told), "not {lanes}: {}", outcome.told());
        compare::same_sha256(&world.near.join("a"), &world.far.join("a"))?;
    }
    Ok(())
}

#[test]
fn over_ipv6() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Daemon)?;
    with_source(&world)?;
    let target = format!("far6:{}", world.far.join("b").display());
    world
        .escp()
        .args(["-6", "-v"])
        .arg(world.near.join("a"))
        .arg(target)
        .succeed()?
        .expect_stderr("[::1]")?;
    compare::same(&world.near.join("a"), &world.far.join("b"))
}

#[test]
fn sources_on_several_hosts_have_one_end() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for (directory, name) in [("one", "a"), ("one", "same"), ("two", "same"), ("two", "c")] {
        std::fs::create_dir_all(world.far.join(directory))?;
        tree::file(&world.far.join(directory).join(name), 100_000, u64::from(name.as_bytes()[0]))?;
    }
    std::fs::write(world.far.join("two/same"), "second")?;
    std::fs::create_dir(world.near.join("into"))?;
    settle(&world)?;
    let far = |host: &str, below: &str| format!("{host}:{}/{below}", world.far.display());
    let into = world.near.join("into");
    let run = |sources: &[String]| world.escp().args(sources).arg(&into).end();

    let good = run(&[far("far", "one/a"), far("far6", "two/c")])?.expect_status(0)?;
    ensure!(good.stderr.is_empty() && good.stdout.starts_with("2 files, 195 KiB in "), "{}", good.told());
    ensure!(good.stdout.lines().count() == 1, "more than one summary: {}", good.told());
    for (directory, name) in [("one", "a"), ("two", "c")] {
        compare::same_sha256(&world.far.join(directory).join(name), &into.join(name))?;
    }

    // Neither overwrites the other, as with one host.
    let twice =
        run(&[far("far", "one/same"), far("far6", "two/same"), far("far6", "no")])?.expect_status(1)?;
    ensure!(twice.stderr.lines().count() == 2, "{}", twice.told());
    let twice =
        twice.expect_stderr("another source has the same name")?.expect_stderr("/no: No such file")?;
    ensure!(
        twice.stdout.starts_with("1 file, ") && twice.stdout.ends_with("; 2 failed\n"),
        "{}",
        twice.told()
    );
    compare::same_sha256(&world.far.join("one/same"), &into.join("same"))?;

    // A host that cannot be reached keeps nobody from the next, and its status is the graver one.
    std::fs::remove_file(into.join("c"))?;
    let reached =
        run(&[far("nowhere.invalid", "x"), far("far", "no"), far("far6", "two/c")])?.expect_status(3)?;
    ensure!(reached.stdout.is_empty(), "{}", reached.told());
    let reached =
        reached.expect_stderr("cannot log in to nowhere.invalid")?.expect_stderr("/no: No such file")?;
    reached.expect_stderr("1 file arrived whole")?;
    compare::same_sha256(&world.far.join("two/c"), &into.join("c"))?;

    // What is wrong with the target is said once.
    let sources = [far("far", "one/a"), far("far6", "two/c")];
    let outcome = world.escp().args(sources).arg(world.near.join("no")).end()?.expect_status(1)?;
    ensure!(outcome.stderr.lines().count() == 1, "{}", outcome.told());
    Ok(())
}

#[test]
fn usage_is_told_with_status_2() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    with_source(&world)?;
    let lines: [&[&str]; 6] = [
        &[],
        &["a"],
        &["a", "b"],
        &["far:a", "far:b"],
        &["--no-such-flag", "a", "far:"],
        &["-l", "x", "a", "far:"],
    ];
    for line in lines {
        let outcome = world.escp().args(line).directory(&world.near).end()?.expect_status(2)?;
        ensure!(!outcome.stderr.trim().is_empty(), "silent failure");
    }
    Ok(())
}
