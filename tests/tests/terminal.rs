//! A person at a terminal: the progress bar, the keys that stop and interrupt, and ssh's own questions.

use escp_testkit::run::{Run, wait_until};
use escp_testkit::sshd::PASSWORD;
use escp_testkit::terminal::Terminal;
use escp_testkit::{Checked, Host, Plan, World, compare, ensure, need_root, processes, skip, tree};
use escp_tests::parts::{self, Part};
use escp_tests::{Way, settle};
use std::time::Duration;

const MIB: u64 = tree::MIB;
const GONE: Duration = Duration::from_secs(10);

/// Two hosts with data on the near one that the proxy between them holds: a bar stays as long as a test needs it.
fn held(prepare: impl FnOnce(&World) -> Checked) -> Checked<World> {
    let world = Plan::default().apart().start()?;
    prepare(&world)?;
    settle(&world)?;
    world.proxy()?.hold();
    Ok(world)
}

fn one_file(world: &World) -> Checked {
    tree::file(&world.near.join("big"), 64 * MIB, 3)
}

/// A command line of the near user, as a terminal's shell would start it.
fn escp<'a>(world: &'a World, flags: &[&str], source: &str) -> Run<'a> {
    Way::Up.escp(world, flags, &[source], "copy").env("TERM", "xterm-256color")
}

fn start(world: &World, flags: &[&str], source: &str) -> Checked<Terminal> {
    let flags = [&["-t", "1"], flags].concat();
    escp(world, &flags, source).on_terminal(&world.users.near, 24, 120)
}

/// Whether a bar is shown that has seen data move.
fn is_moving(screen: &str) -> bool {
    screen.contains("[=") && screen.contains("iB/s")
}

#[test]
fn the_bar_tells_bytes_rate_time_and_files() -> Checked {
    need_root!();
    let world = held(|world| {
        std::fs::create_dir(world.near.join("tree"))?;
        (1..=3).try_for_each(|n| tree::file(&world.near.join(format!("tree/{n}")), 8 * MIB, n))
    })?;
    let mut terminal = start(&world, &["-r"], "tree")?;
    let screen = terminal.wait_for("the bar", is_moving)?;
    let words: Vec<&str> = screen.split_whitespace().collect();
    ensure!(screen.trim().lines().count() == 1, "more than a line:\n{screen}");
    ensure!(screen.contains("% ") && screen.contains(" MiB of 24.0 MiB  "), "no bytes:\n{screen}");
    ensure!(screen.contains("0 of 3 files"), "no files:\n{screen}");
    ensure!(words.iter().any(|word| word.starts_with("0:")), "no time:\n{screen}");
    world.proxy()?.release();
    let (outcome, screen) = terminal.end()?;
    let outcome = outcome.expect_status(0)?;
    // The bar is gone; the summary stays, and is all that stays.
    let summary = screen.trim();
    ensure!(summary.starts_with("3 files, 1 directory, 24.0 MiB in "), "{screen}");
    ensure!(summary.lines().count() == 1, "{screen}");
    ensure!(!outcome.stdout.contains("scanning: 0 files"), "data moved before a file was found: {screen}");
    compare::same(&world.near.join("tree"), &world.far.join("copy"))
}

#[test]
fn sessions_with_two_hosts_have_a_bar_each_and_one_summary() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    for (name, seed) in [("one", 1), ("two", 2)] {
        tree::file(&world.far.join(name), 24 * MIB, seed)?;
    }
    settle(&world)?;
    let far = |host: &str, name: &str| format!("{host}:{}/{name}", world.far.display());
    let run =
        world.escp().args(["-l", "100M"]).args([far("far", "one"), far("far6", "two")]).arg(&world.near);
    let run = run.env("TERM", "xterm-256color");
    let (outcome, screen) = run.on_terminal(&world.users.near, 24, 120)?.end()?;
    let outcome = outcome.expect_status(0)?;
    // Each draws its own way from the first per cents to the last; neither starts where the other ended.
    let bars: Vec<&str> = outcome
        .stdout
        .match_indices(" of 24.0 MiB")
        .map(|(at, _)| at)
        .filter_map(|at| {
            let line = outcome.stdout.get(..at)?;
            line.rsplit('[').next()
        })
        .collect();
    let shares: Vec<u32> =
        bars.iter().filter_map(|bar| bar.split_once(']')?.1.split_once('%')?.0.trim().parse().ok()).collect();
    let falls = shares.windows(2).filter(|pair| pair[1] < pair[0]).count();
    ensure!(shares.len() > 10 && falls == 1, "{shares:?} in {:?}", outcome.stdout);
    let summary = screen.trim();
    ensure!(summary.starts_with("2 files, 48.0 MiB in ") && summary.lines().count() == 1, "{screen}");
    Ok(())
}

#[test]
fn scanning_and_moving_are_told_apart() -> Checked {
    need_root!();
    // More than may be under way at once, so that the walk waits for data that the proxy holds.
    let world = held(|world| tree::many(&world.near.join("tree"), 16_000, 50))?;
    let mut terminal = start(&world, &["-r", "--no-fsync"], "tree")?;
    let both = |screen: &str| screen.contains("iB found  moved: ") && !screen.contains("moved: 0 B");
    let screen = terminal.wait_for("what was found and what has moved", both)?;
    ensure!(screen.trim_start().starts_with("scanning: "), "{screen}");
    ensure!(!screen.contains('%'), "a share of a total that nobody knows: {screen}");
    world.proxy()?.release();
    let (outcome, screen) = terminal.end()?;
    let outcome = outcome.expect_status(0)?;
    ensure!(!outcome.stdout.contains("scanning: 0 files"), "{}", outcome.told());
    ensure!(screen.trim().starts_with("16,000 files, "), "{screen}");
    Ok(())
}

#[test]
fn without_a_terminal_there_is_the_summary_and_nothing_else() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    tree::file(&world.near.join("big"), 24 * MIB, 3)?;
    settle(&world)?;
    let told = escp(&world, &[], "big").succeed()?;
    ensure!(told.stderr.is_empty(), "{}", told.told());
    ensure!(told.stdout.starts_with("1 file, 24.0 MiB in "), "{}", told.told());
    ensure!(told.stdout.lines().count() == 1 && told.stdout.ends_with('\n'), "{}", told.told());
    ensure!(!told.stdout.contains(|c: char| c.is_control() && c != '\n'), "{:?}", told.stdout);
    let quiet = escp(&world, &["-q"], "big").succeed()?;
    ensure!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{}", quiet.told());
    // Each host remarks on what an earlier run left; the far one's remarks come through ssh.
    for way in Way::BOTH {
        std::fs::write(way.target(&world).join(".escp-abcdefgh"), "x")?;
        settle(&world)?;
        let source = if way == Way::Up { "big" } else { "copy" };
        way.escp(&world, &[], &[source], "remarked").succeed()?.expect_stderr(".escp-abcdefgh")?;
        let quiet = way.escp(&world, &["-q"], &[source], "quiet").succeed()?;
        ensure!(quiet.stdout.is_empty() && quiet.stderr.is_empty(), "{way:?}: {}", quiet.told());
        // Errors are said all the same.
        way.escp(&world, &["-q"], &["nothing"], "quiet")
            .end()?
            .expect_status(1)?
            .expect_stderr("nothing: ")?;
    }
    Ok(())
}

#[test]
fn quiet_on_a_terminal_draws_nothing() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    tree::file(&world.near.join("big"), 24 * MIB, 3)?;
    settle(&world)?;
    let (outcome, screen) = start(&world, &["-q", "-l", "100M"], "big")?.end()?;
    let outcome = outcome.expect_status(0)?;
    ensure!(outcome.stdout.is_empty() && screen.trim().is_empty(), "{:?}", outcome.stdout);
    Ok(())
}

#[test]
fn the_bar_keeps_within_a_window_that_changes() -> Checked {
    need_root!();
    let world = held(one_file)?;
    let mut terminal = start(&world, &[], "big")?;
    terminal.wait_for("the whole bar", |screen| is_moving(screen) && screen.contains("0 of 1 file"))?;
    for columns in [40, 25, 60] {
        terminal.resize(24, columns)?;
        // What was drawn before the change may be wider; what is drawn twice after it may not.
        for _ in 0..2 {
            terminal.clear()?;
            terminal.wait_for("the bar", |screen| screen.contains("[="))?;
        }
        let screen = terminal.screen()?;
        ensure!(screen.trim_end().lines().count() == 1, "wider than {columns} columns:\n{screen}");
    }
    terminal.resize(24, 120)?;
    terminal.wait_for("the whole bar", |screen| is_moving(screen) && screen.contains("0 of 1 file"))?;
    world.proxy()?.release();
    terminal.end()?.0.expect_status(0).map(drop)
}

/// A shell with job control in which `"$@"` starts escp.
fn shell(world: &World) -> Checked<Terminal> {
    let run = escp(world, &["-t", "1"], "big").env("PS1", "> ").env("HISTFILE", "");
    run.under("bash", &["--norc", "--noprofile", "-i", "-s"]).on_terminal(&world.users.near, 24, 120)
}

#[test]
fn stopped_and_continued_it_goes_on() -> Checked {
    need_root!();
    let world = held(one_file)?;
    let mut terminal = shell(&world)?;
    terminal.type_in("\"$@\"\n")?;
    terminal.wait_for("the bar", is_moving)?;
    terminal.type_in("\x1a")?;
    terminal.wait_for("the shell's word", |screen| screen.contains("Stopped"))?;
    for part in [Part::Cli, Part::Ssh] {
        let state = processes::status(part.pid(&world)?, "State")?;
        ensure!(state.starts_with('T'), "{part:?} is {state}");
    }
    // The terminal is the shell's now, in the background, too.
    terminal.type_in("bg\necho in the $((2 * 3))th line\n")?;
    terminal.wait_for("the shell's answer", |screen| screen.contains("in the 6th line"))?;
    wait_until("it to go on", GONE, || {
        Part::Cli
            .pid(&world)
            .and_then(|pid| processes::status(pid, "State"))
            .is_ok_and(|s| !s.starts_with('T'))
    })?;
    terminal.clear()?;
    // Ten times as long as a bar needs to be drawn.
    std::thread::sleep(Duration::from_secs(1));
    let screen = terminal.screen()?;
    ensure!(screen.trim().is_empty(), "it draws from the background:\n{screen}");
    terminal.type_in("fg\n")?;
    terminal.wait_for("the bar again", is_moving)?;
    world.proxy()?.release();
    terminal.wait_for("the summary", |screen| screen.contains("1 file, 64.0 MiB in "))?;
    terminal.type_in("echo it ended with $?; exit\n")?;
    let (outcome, screen) = terminal.end()?;
    ensure!(screen.contains("it ended with 0"), "{screen}");
    outcome.expect_status(0)?;
    compare::same_sha256(&world.near.join("big"), &world.far.join("copy"))
}

#[test]
fn ctrl_c_ends_it_with_130() -> Checked {
    need_root!();
    let world = held(one_file)?;
    let mut terminal = start(&world, &[], "big")?;
    terminal.wait_for("the bar", is_moving)?;
    terminal.type_in("\x03")?;
    let (outcome, screen) = terminal.end()?;
    outcome.expect_status(130)?;
    // The terminal's own "^C" comes behind the bar, which may stay for that: how far it was is worth knowing.
    let said: Vec<&str> = screen.lines().filter(|line| !line.starts_with('[')).collect();
    ensure!(said == ["escp: interrupted"] && screen.lines().count() <= 2, "{screen}");
    world.expect_nothing_running(GONE)?;
    ensure!(parts::temporaries(&world.far)?.is_empty(), "temporary files are left");
    compare::holds_only(&world.far, &[])
}

/// An escp whose ssh knows no key of the host and none of the user: it has to ask.
fn asked(world: &World) -> Checked<Terminal> {
    let known = format!("UserKnownHostsFile={}", world.near.join("known").display());
    let flags = ["BatchMode=no", "StrictHostKeyChecking=ask", "PubkeyAuthentication=no", &known];
    let flags: Vec<&str> = flags.iter().flat_map(|option| ["-o", *option]).collect();
    start(world, &flags, "big")
}

#[test]
fn questions_of_ssh_are_asked_and_answered_undisturbed() -> Checked {
    need_root!();
    if !std::path::Path::new("/etc/pam.d/sshd").exists() {
        skip!("this sshd asks nobody for passwords through PAM");
    }
    let world = Plan::default().apart().passwords().start()?;
    one_file(&world)?;
    settle(&world)?;
    world.proxy()?.hold();
    let mut terminal = asked(&world)?;
    terminal.wait_for("the question about the host", |screen| screen.contains("(yes/no/[fingerprint])?"))?;
    terminal.type_in("yes\n")?;
    terminal.wait_for("the question for a password", |screen| screen.contains("'s password:"))?;
    ensure!(!terminal.echoes()?, "a password would be shown");
    let asked = terminal.screen()?;
    // Nothing is drawn over a question, however long the answer takes.
    std::thread::sleep(Duration::from_secs(1));
    ensure!(terminal.screen()? == asked, "the question was disturbed:\n{}", terminal.screen()?);
    terminal.type_in("not the password\n")?;
    terminal.wait_for("another try", |screen| screen.contains("Permission denied, please try again."))?;
    terminal.wait_for("the question again", |screen| screen.matches("'s password:").count() == 2)?;
    terminal.type_in(&format!("{PASSWORD}\n"))?;
    terminal.wait_for("the second factor", |screen| screen.contains(") Password:"))?;
    terminal.type_in(&format!("{PASSWORD}\n"))?;
    terminal.wait_for("the bar", is_moving)?;
    ensure!(terminal.echoes()?, "the terminal was left without its echo");
    world.proxy()?.release();
    let (outcome, _) = terminal.end()?;
    let outcome = outcome.expect_status(0)?;
    ensure!(!outcome.stdout.contains(PASSWORD), "the password was shown");
    compare::same_sha256(&world.near.join("big"), &world.far.join("copy"))
}

#[test]
fn ctrl_c_at_a_question_ends_it_with_130_and_gives_the_echo_back() -> Checked {
    need_root!();
    if !std::path::Path::new("/etc/pam.d/sshd").exists() {
        skip!("this sshd asks nobody for passwords through PAM");
    }
    let world = Plan::default().passwords().start()?;
    tree::file(&world.near.join("big"), MIB, 3)?;
    settle(&world)?;
    let mut terminal = asked(&world)?;
    terminal.wait_for("the question about the host", |screen| screen.contains("(yes/no/[fingerprint])?"))?;
    terminal.type_in("yes\n")?;
    terminal.wait_for("the question for a password", |screen| screen.contains("'s password:"))?;
    ensure!(!terminal.echoes()?, "a password would be shown");
    terminal.type_in("\x03")?;
    wait_until("the echo", GONE, || terminal.echoes().is_ok_and(|echoes| echoes))?;
    let (outcome, _) = terminal.end()?;
    outcome.expect_status(130)?;
    world.expect_nothing_running(GONE)?;
    compare::holds_only(&world.far, &[])
}
