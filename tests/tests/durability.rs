//! What makes a file durable, and when: seen at the system calls of the receiving side, on a real disk.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::run::Outcome;
use escp_testkit::{Checked, Host, Trouble, World, compare, ensure, need_program, need_root, skip, tree};
use escp_tests::calls::{Call, Calls, Strace, Waiting};
use escp_tests::{Way, parts, settle};
use std::collections::BTreeSet;

const BIG: u64 = 5 * tree::MIB + 17;
/// Small files, each in a directory of its own: of so many, some are made durable together.
const SMALL: usize = 12;
/// Calls that make durable; none of them may happen with --no-fsync.
const SYNCS: [&str; 5] = ["fdatasync", "fsync", "syncfs", "sync", "sync_file_range"];
const WATCHED: &str = "fdatasync,fsync,syncfs,sync,sync_file_range,rename,renameat,renameat2,mkdir,mkdirat,pwrite64,\
                       ftruncate,fallocate";

/// Two hosts, of which the receiver's files lie on a disk, and a tree to copy there.
struct Scene {
    _disk: Mount,
    world: World,
    way: Way,
}

/// A copy that was watched.
struct Copied {
    outcome: Outcome,
    seen: Calls,
    /// Process id of the CLI.
    cli: u32,
}

impl Scene {
    fn new(way: Way, host: Host) -> Checked<Self> {
        let world = World::start(host, host)?;
        let (user, directory) = world.side(way == Way::Up);
        let disk = Mount::new(Kind::Ext4, &directory.join("disk"), 64, user, "")?;
        let source = way.source(&world).join("tree");
        std::fs::create_dir(&source)?;
        tree::file(&source.join("big"), BIG, 1)?;
        for number in 0..SMALL {
            std::fs::create_dir(source.join(format!("d{number}")))?;
            tree::file(&source.join(format!("d{number}/small{number}")), 1000, number as u64)?;
        }
        settle(&world)?;
        Ok(Self { _disk: disk, world, way })
    }

    /// Copies the tree to a name of its own, watched as by [`Scene::copy_of`].
    fn copy(&self, flags: &[&str], more: &[&str]) -> Checked<Copied> {
        self.copy_of(&["tree"], flags, more)
    }

    /// Copies while the receiving side (agent, engine, and the CLI in any case) is watched.
    fn copy_of(&self, sources: &[&str], flags: &[&str], more: &[&str]) -> Checked<Copied> {
        let world = &self.world;
        let flags = [&["-r"], flags].concat();
        let waiting = Waiting::new(world, self.way.escp(world, &flags, sources, "disk/copy"))?;
        let cli = waiting.pid();
        let (engine, agent) = match self.way {
            Way::Up => (&world.far_daemon, Some(world.sshd.pid())),
            Way::Down => (&world.near_daemon, None),
        };
        let pids: Vec<u32> =
            std::iter::once(cli).chain(agent).chain(engine.as_ref().map(|d| d.pid())).collect();
        let strace = Strace::attach(world, &pids, WATCHED, more)?;
        let outcome = waiting.go()?.end()?;
        Ok(Copied { outcome, seen: strace.seen()?, cli })
    }

    /// Calls that make something of this world durable.
    fn syncs<'a>(&self, seen: &'a Calls) -> Vec<&'a Call> {
        let scratch = self.world.scratch.path().to_string_lossy().into_owned();
        let ours = |call: &&Call| call.text.contains(&scratch) || call.is("sync");
        SYNCS.iter().flat_map(|name| seen.named(name)).filter(ours).collect()
    }
}

/// The words of a renameat(2): directory, temporary and final name.
fn renamed(call: &Call) -> Option<(&str, &str, &str)> {
    let directory = call.text.split_once('<')?.1.split_once('>')?.0;
    let mut names = call.text.split('"').skip(1).step_by(2);
    let (old, new) = (names.next()?, names.next()?);
    old.starts_with(".escp-").then_some((directory, old, new))
}

/// Insists that a call happened as `when` says.
#[track_caller]
fn happened(seen: &Calls, what: &str, when: impl FnMut(&&Call) -> bool) -> Checked<usize> {
    let found = seen.calls.iter().find(when).map(|call| call.ended);
    found.ok_or_else(|| Trouble::new(format!("{what}: not among {:#?}", seen.calls)))
}

/// Insists that what was named in `directory` at `named` was made durable before `end`.
#[track_caller]
fn names_are_durable(seen: &Calls, directory: &str, named: usize, end: usize) -> Checked {
    happened(seen, &format!("a sync of {directory} after {named} and before {end}"), |call| {
        let whole = call.is("syncfs") && call.result == Some(0) && call.text.contains("/disk");
        (call.did("fsync", directory) || whole) && call.begun > named && call.ended < end
    })
    .map(drop)
}

/// Insists that nobody changed a file after `synced`.
#[track_caller]
fn unchanged_since(seen: &Calls, path: &str, synced: usize) -> Checked {
    let late = |change: &&Call| change.text.contains(&format!("<{path}>")) && change.ended > synced;
    let late: Vec<&Call> = seen.named("pwrite64").chain(seen.named("ftruncate")).filter(late).collect();
    ensure!(late.is_empty(), "{path} was changed after it was made durable: {late:#?}");
    Ok(())
}

/// Insists on the order: data, their sync, the name, the sync of its directory, the end.
fn durable_in_order(copied: &Copied) -> Checked {
    let seen = &copied.seen;
    let end = seen.end_of(copied.cli)?;
    let mut names = BTreeSet::new();
    for call in seen.calls.iter().filter(|call| call.text.starts_with("rename") && call.result == Some(0)) {
        let Some((directory, temporary, name)) = renamed(call) else { continue };
        let path = format!("{directory}/{temporary}");
        let synced = happened(seen, &format!("fdatasync of {name} before {}", call.begun), |sync| {
            sync.did("fdatasync", &path) && sync.ended < call.begun
        })?;
        unchanged_since(seen, &path, synced)?;
        names_are_durable(seen, directory, call.ended, end)?;
        names.insert(name.to_owned());
    }
    let wanted = (0..SMALL).map(|number| format!("small{number}")).chain(["big".to_owned()]).collect();
    ensure!(names == wanted, "renamed were {names:?}");
    let made: Vec<&Call> = seen.named("mkdirat").filter(|call| call.text.contains("/disk")).collect();
    ensure!(made.len() > SMALL, "directories made: {made:#?}");
    for call in made {
        let parent =
            call.text.split_once('<').and_then(|(_, rest)| rest.split_once('>')).unwrap_or_default().0;
        names_are_durable(seen, parent, call.ended, end)?;
    }
    Ok(())
}

fn durable(way: Way, host: Host) -> Checked {
    need_root!();
    need_program!("strace");
    let scene = Scene::new(way, host)?;
    let copied = scene.copy(&[], &[])?;
    let told = copied.outcome.told();
    ensure!(copied.outcome.code() == 0, "{told}");
    durable_in_order(&copied)?;
    // The space of the big file is reserved before it is written.
    let reserved = copied.seen.named("fallocate").any(|call| {
        call.result == Some(0) && call.text.contains("/.escp-") && call.text.ends_with(&format!("0, {BIG})"))
    });
    ensure!(reserved, "no fallocate of {BIG} bytes\n{:#?}", copied.seen.calls);
    compare::same(&way.source(&scene.world).join("tree"), &way.target(&scene.world).join("disk/copy"))
}

#[test]
fn files_and_names_are_durable_before_success_going_up() -> Checked {
    durable(Way::Up, Host::Embedded)
}

#[test]
fn files_and_names_are_durable_before_success_coming_down() -> Checked {
    durable(Way::Down, Host::Embedded)
}

#[test]
fn files_and_names_are_durable_before_success_between_daemons() -> Checked {
    durable(Way::Up, Host::Daemon)?;
    durable(Way::Down, Host::Daemon)
}

#[test]
fn without_fsync_nothing_is_made_durable() -> Checked {
    need_root!();
    need_program!("strace");
    for (way, host) in [(Way::Up, Host::Embedded), (Way::Down, Host::Daemon)] {
        let scene = Scene::new(way, host)?;
        let copied = scene.copy(&["--no-fsync"], &[])?;
        let told = copied.outcome.told();
        ensure!(copied.outcome.code() == 0, "{told}");
        let renames = copied.seen.calls.iter().filter_map(renamed).count();
        ensure!(renames == SMALL + 1, "{renames} renames were seen");
        let syncs = scene.syncs(&copied.seen);
        ensure!(syncs.is_empty(), "{way:?} with --no-fsync: {syncs:#?}");
        compare::same(&way.source(&scene.world).join("tree"), &way.target(&scene.world).join("disk/copy"))?;
    }
    Ok(())
}

/// Several sources go to a directory that is made for them.
#[test]
fn a_target_that_is_made_is_durable_unless_that_is_off() -> Checked {
    need_root!();
    need_program!("strace");
    let sources = ["tree/d0/small0", "tree/d1/small1"];
    for flags in [&[][..], &["--no-fsync"]] {
        let scene = Scene::new(Way::Up, Host::Embedded)?;
        let copied = scene.copy_of(&sources, flags, &[])?;
        let told = copied.outcome.told();
        ensure!(copied.outcome.code() == 0, "{told}");
        let made = happened(&copied.seen, "the target being made", |call| {
            call.is("mkdirat") && call.result == Some(0) && call.text.contains("disk/copy")
        })?;
        let disk = scene.world.far.join("disk").to_string_lossy().into_owned();
        if flags.is_empty() {
            names_are_durable(&copied.seen, &disk, made, copied.seen.end_of(copied.cli)?)?;
        } else {
            let syncs = scene.syncs(&copied.seen);
            ensure!(syncs.is_empty(), "with --no-fsync: {syncs:#?}");
        }
        for source in sources {
            let name = source.rsplit('/').next().unwrap_or_default();
            let copy = scene.world.far.join("disk/copy").join(name);
            compare::same_sha256(&scene.world.near.join(source), &copy)?;
        }
    }
    Ok(())
}

/// What fails at one call of the receiving side: which files are named, and with which words.
#[test]
fn an_error_of_any_of_these_calls_fails_what_it_was_for() -> Checked {
    need_root!();
    need_program!("strace");
    let numbers = format!("{BIG} bytes: No space left on device ({BIG} bytes needed, ");
    for (host, call, error, words, small_arrive) in [
        (Host::Embedded, "fsync,syncfs", "EIO", "its name may not outlive a crash", false),
        (Host::Daemon, "fdatasync", "EIO", "nput/output error", false),
        (Host::Embedded, "fallocate", "ENOSPC", &numbers, true),
    ] {
        let scene = Scene::new(Way::Up, host)?;
        let inject = format!("inject={call}:error={error}");
        let outcome = scene.copy(&[], &["-e", &inject])?.outcome.expect_status(1)?;
        let told =
            |name: &str| outcome.stderr.lines().any(|line| line.contains(name) && line.contains(words));
        ensure!(told("/big: "), "{call}: big is not named with '{words}'\n{}", outcome.told());
        let copy = scene.world.far.join("disk/copy");
        // Without its directory's sync a file is there, and not promised.
        ensure!(copy.join("big").exists() == call.starts_with("fsync"), "{call}: big\n{}", outcome.told());
        for number in 0..SMALL {
            let name = format!("d{number}/small{number}");
            ensure!(told(&name) != small_arrive, "{call}: {name}\n{}", outcome.told());
            if small_arrive {
                compare::same_sha256(&scene.world.near.join("tree").join(&name), &copy.join(&name))?;
            }
        }
        ensure!(parts::temporaries(&copy)?.is_empty(), "{call} left a temporary file");
    }
    Ok(())
}

/// Small files of one directory: enough that a barrier makes them durable together.
const MANY: usize = 300;

impl Scene {
    /// Copies many small files, again until a barrier was used for some: where much of the machine's memory waits for
    /// disks, each is made durable by itself. `None` where that stays so.
    fn copy_by_barrier(&self, more: &[&str]) -> Checked<Option<Copied>> {
        let source = self.way.source(&self.world).join("many");
        std::fs::create_dir(&source)?;
        for number in 0..MANY {
            tree::file(&source.join(format!("f{number}")), 1000 + number as u64, number as u64)?;
        }
        settle(&self.world)?;
        for _ in 0..10 {
            rustix::fs::sync();
            let copy = self.way.target(&self.world).join("disk/copy");
            if copy.exists() {
                std::fs::remove_dir_all(&copy)?;
            }
            let copied = self.copy_of(&["many"], &[], more)?;
            if copied.seen.named("sync_file_range").next().is_some()
                || copied.seen.named("syncfs").any(failed)
            {
                return Ok(Some(copied));
            }
        }
        Ok(None)
    }
}

fn failed(call: &Call) -> bool {
    call.result == Some(-1)
}

/// Insists that each file's data was durable, by itself or by a barrier, before it got its name. Returns how many got one.
fn each_is_durable_before_its_name(seen: &Calls) -> Checked<usize> {
    let mut renames = 0;
    for call in seen.calls.iter().filter(|call| call.text.starts_with("rename") && call.result == Some(0)) {
        let Some((directory, temporary, name)) = renamed(call) else { continue };
        let path = format!("{directory}/{temporary}");
        let data = happened(seen, &format!("data of {name}"), |write| write.did("pwrite64", &path))?;
        let synced = happened(seen, &format!("{name} being durable before {}", call.begun), |asked| {
            let barrier = || {
                let passed = |barrier: &Call| barrier.result == Some(0) && barrier.text.contains("/disk");
                seen.named("syncfs").any(|b| passed(b) && b.begun > data && b.ended < asked.begun)
            };
            let synced = asked.did("fdatasync", &path) || (asked.did("sync_file_range", &path) && barrier());
            synced && asked.begun > data && asked.ended < call.begun
        })?;
        unchanged_since(seen, &path, synced)?;
        renames += 1;
    }
    Ok(renames)
}

#[test]
fn many_small_files_pass_one_barrier_before_their_names() -> Checked {
    need_root!();
    need_program!("strace");
    for (way, host) in [(Way::Up, Host::Daemon), (Way::Down, Host::Embedded)] {
        let scene = Scene::new(way, host)?;
        let Some(copied) = scene.copy_by_barrier(&[])? else {
            skip!("too much of this machine's memory waits for its disks");
        };
        ensure!(copied.outcome.code() == 0, "{}", copied.outcome.told());
        let named = each_is_durable_before_its_name(&copied.seen)?;
        ensure!(named == MANY, "{named} of {MANY} files got their names");
        compare::same(&way.source(&scene.world).join("many"), &way.target(&scene.world).join("disk/copy"))?;
    }
    Ok(())
}

#[test]
fn where_a_barrier_fails_each_file_is_made_durable_by_itself() -> Checked {
    need_root!();
    need_program!("strace");
    let scene = Scene::new(Way::Up, Host::Embedded)?;
    let Some(copied) = scene.copy_by_barrier(&["-e", "inject=syncfs:error=EIO"])? else {
        skip!("too much of this machine's memory waits for its disks");
    };
    ensure!(copied.outcome.code() == 0, "{}", copied.outcome.told());
    ensure!(copied.seen.named("syncfs").all(failed), "a syncfs went well");
    let named = each_is_durable_before_its_name(&copied.seen)?;
    ensure!(named == MANY, "{named} of {MANY} files got their names");
    compare::same(&scene.world.near.join("many"), &scene.world.far.join("disk/copy"))
}

#[test]
fn a_file_that_a_barrier_lost_is_named_and_the_others_arrive() -> Checked {
    need_root!();
    need_program!("strace");
    let scene = Scene::new(Way::Up, Host::Daemon)?;
    let Some(copied) = scene.copy_by_barrier(&["-e", "inject=sync_file_range:error=EIO:when=3"])? else {
        skip!("too much of this machine's memory waits for its disks");
    };
    let outcome = copied.outcome.expect_status(1)?;
    let copy = scene.world.far.join("disk/copy");
    // The third of each thread that asks.
    let lost = copied.seen.named("sync_file_range").filter(|call| failed(call)).count();
    let missing: Vec<_> =
        (0..MANY).map(|n| format!("f{n}")).filter(|name| !copy.join(name).exists()).collect();
    ensure!(lost > 0 && missing.len() == lost, "{lost} were lost, missing are {missing:?}");
    for name in &missing {
        let told = outcome
            .stderr
            .lines()
            .any(|line| line.contains(&format!("/{name}: ")) && line.contains("nput/output error"));
        ensure!(told, "{name} is not named\n{}", outcome.told());
    }
    ensure!(parts::temporaries(&copy)?.is_empty(), "a temporary file was left");
    Ok(())
}
