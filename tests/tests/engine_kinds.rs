//! The engines themselves: what reaches the kernel, what is chosen when io_uring is refused, and that small
//! limits only slow them down.

use escp_testkit::mount::{Kind, Mount};
use escp_testkit::proxy::Action;
use escp_testkit::run::{Outcome, wait_until};
use escp_testkit::users::User;
use escp_testkit::{Checked, Host, Plan, World, compare, ensure, need_program, need_root, processes, tree};
use escp_tests::calls::{Strace, Waiting};
use escp_tests::parts::{self, Part};
use escp_tests::{Way, settle};
use std::collections::HashMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const SIZE: u64 = 8 * tree::MIB + 1234;
/// `O_DIRECT` on x86-64 and on other architectures, as fdinfo shows it.
const DIRECT: u32 =
    if cfg!(any(target_arch = "aarch64", target_arch = "arm")) { 0o200_000 } else { 0o40_000 };
const CALLS: &str = "io_uring_setup,io_uring_enter,io_uring_register,read,write,pread64,pwrite64,readv,writev,\
                     preadv,pwritev,preadv2,pwritev2,recvfrom,sendto,recvmsg,sendmsg,sendfile,splice,fcntl";

/// Two hosts with a real disk each (tmpfs takes neither O_DIRECT nor the ring), and a file on the sender's.
struct Disks {
    near: Mount,
    far: Mount,
    world: World,
}

fn disks(plan: Plan, way: Way, size: u64) -> Checked<Disks> {
    let world = plan.start()?;
    let mib = 96.max(size / tree::MIB * 5 / 4 + 32);
    let near = Mount::new(Kind::Ext4, &world.near.join("disk"), mib, &world.users.near, "")?;
    let far = Mount::new(Kind::Ext4, &world.far.join("disk"), mib, &world.users.far, "")?;
    tree::file(&way.source(&world).join("disk/big"), size, 7)?;
    settle(&world)?;
    Ok(Disks { near, far, world })
}

/// What strace wrote: one file per thread, owned by the user whose escp it was.
struct Traces(PathBuf);

impl Traces {
    fn new(world: &World) -> Checked<Self> {
        let directory = world.scratch.directory("traces", None, 0o777)?;
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o777))?;
        Ok(Self(directory))
    }

    /// Copies the file of [`disks`] with both hosts' escp under strace.
    fn run(&self, world: &World, way: Way, more: &[&str], flags: &[&str]) -> Checked<Outcome> {
        let prefix = self.0.join("t").display().to_string();
        let trace = format!("trace={CALLS}");
        let mut words = vec!["-ff", "-qq", "-o", &prefix, "-e", &trace];
        words.extend(more);
        let run = parts::both_behind(world, way, ("strace", &words), flags, ("disk/big", "disk/copy"))?;
        let outcome = run.succeed()?;
        compare::same_sha256(&way.source(world).join("disk/big"), &way.target(world).join("disk/copy"))?;
        Ok(outcome)
    }

    fn lines(&self, user: &User) -> Checked<Vec<String>> {
        let mut lines = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            if entry.metadata()?.uid() == user.uid {
                lines.extend(std::fs::read_to_string(entry.path())?.lines().map(str::to_owned));
            }
        }
        ensure!(!lines.is_empty(), "strace saw nothing of {}", user.name);
        Ok(lines)
    }
}

fn calls(lines: &[String], name: &str) -> usize {
    lines.iter().filter(|line| line.starts_with(name)).count()
}

/// Bytes that went through calls other than the ring's.
fn bytes_of_plain_calls(lines: &[String]) -> u64 {
    lines
        .iter()
        .filter(|line| !line.starts_with("io_uring") && !line.starts_with("fcntl"))
        .filter_map(|line| line.rsplit(" = ").next()?.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn file_data_goes_through_the_ring_and_to_disks_directly() -> Checked {
    need_root!();
    need_program!("strace");
    for way in Way::BOTH {
        let disks = disks(Plan::default(), way, SIZE)?;
        let traces = Traces::new(&disks.world)?;
        traces.run(&disks.world, way, &[], &["--ioengine", "uring"])?;
        for user in [&disks.world.users.near, &disks.world.users.far] {
            let lines = traces.lines(user)?;
            let (enters, plain) = (calls(&lines, "io_uring_enter"), bytes_of_plain_calls(&lines));
            ensure!(enters > 0, "{} never entered a ring", user.name);
            // What is left is the program's own start, ssh's pipes and control records.
            ensure!(plain < SIZE / 8, "{plain} bytes of {} went past the ring", user.name);
            let direct = |line: &&String| line.contains("F_SETFL") && line.contains("O_DIRECT");
            ensure!(lines.iter().any(|line| direct(&line)), "{} used no O_DIRECT", user.name);
        }
    }
    Ok(())
}

#[test]
fn posix_makes_no_call_of_io_uring() -> Checked {
    need_root!();
    need_program!("strace");
    let disks = disks(Plan::default(), Way::Up, SIZE)?;
    let traces = Traces::new(&disks.world)?;
    traces.run(&disks.world, Way::Up, &[], &["--ioengine", "posix"])?;
    for user in [&disks.world.users.near, &disks.world.users.far] {
        let lines = traces.lines(user)?;
        ensure!(calls(&lines, "io_uring") == 0, "{} made calls of io_uring", user.name);
        let plain = bytes_of_plain_calls(&lines);
        ensure!(plain >= 2 * SIZE, "only {plain} bytes of {} went through plain calls", user.name);
    }
    Ok(())
}

#[test]
fn where_io_uring_is_refused_plain_calls_are_chosen_and_said() -> Checked {
    need_root!();
    need_program!("strace");
    for (error, words) in [("ENOSYS", "Function not implemented"), ("EPERM", "Operation not permitted")] {
        let disks = disks(Plan::default(), Way::Up, SIZE)?;
        let traces = Traces::new(&disks.world)?;
        let inject = format!("inject=io_uring_setup:error={error}");
        let outcome = traces.run(&disks.world, Way::Up, &["-e", &inject], &["-v"])?;
        let refused = format!("io_uring is refused here ({words})");
        for said in [format!("posix engine embedded: {refused}"), format!("far: {refused}")] {
            ensure!(outcome.stderr.contains(&said), "'{said}' is not said\n{}", outcome.told());
        }
        let near = traces.lines(&disks.world.users.near)?;
        ensure!(calls(&near, "io_uring_enter") == 0, "a ring was used that could not be had");
    }
    Ok(())
}

/// What the lines "stream N: up to X disk operations outstanding, Y of them beside one on the network; Z on registered
/// buffers" say, far side included: X, Y, Z.
fn peaks(said: &str) -> Vec<[u32; 3]> {
    said.lines()
        .filter_map(|line| {
            let (_, rest) = line.split_once(": up to ")?;
            let (disk, rest) = rest.split_once(" disk operations outstanding, ")?;
            let (beside, rest) = rest.split_once(" of them beside one on the network; ")?;
            let (fixed, _) = rest.split_once(" on registered buffers")?;
            Some([disk.parse().ok()?, beside.parse().ok()?, fixed.parse().ok()?])
        })
        .collect()
}

/// Blocks of each stream that pass before the receiver's disk goes on: more than the sockets on the way hold.
const BEHIND_A_DISK: usize = 10;

#[test]
fn each_stream_keeps_disk_and_network_busy_at_once() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let disks = disks(Plan::default().apart(), way, 64 * tree::MIB)?;
        let target = if way == Way::Up { &disks.far } else { &disks.near };
        let passed = Arc::new(Mutex::new(HashMap::<u16, usize>::new()));
        let counted = Arc::clone(&passed);
        let proxy = disks.world.proxy()?;
        proxy.tamper(move |unit| {
            if unit.is_file_record()
                && let Ok(mut counted) = counted.lock()
            {
                *counted.entry(unit.stream).or_default() += 1;
            }
            Action::Pass
        });
        proxy.hold();
        let flags = ["-v", "-t", "2", "--ioengine", "uring"];
        let running = way.escp(&disks.world, &flags, &["disk/big"], "disk/copy").start()?;
        parts::wait_until_moving(&target.path)?;
        // A disk faster than the network would leave nothing in flight to be seen.
        let frozen = target.freeze()?;
        proxy.release();
        wait_until("both streams to go on before a disk that waits", Duration::from_secs(30), || {
            passed
                .lock()
                .is_ok_and(|passed| passed.values().filter(|&&blocks| blocks >= BEHIND_A_DISK).count() == 2)
        })?;
        drop(frozen);
        let outcome = running.end()?.expect_status(0)?;
        let peaks = peaks(&outcome.stderr);
        ensure!(peaks.len() == 4, "not two streams of two hosts: {peaks:?}\n{}", outcome.told());
        // At least two on the disk while one is on the network.
        ensure!(peaks.iter().all(|&[_, beside, _]| beside >= 2), "{peaks:?}\n{}", outcome.told());
    }
    Ok(())
}

#[test]
fn buffers_are_registered_where_they_may_be_and_a_refusal_costs_nothing_but_time() -> Checked {
    need_root!();
    for (limit, registered) in [("--memlock=8388608:8388608", true), ("--memlock=65536:65536", false)] {
        let disks = disks(Plan::default(), Way::Up, 32 * tree::MIB)?;
        let world = &disks.world;
        let flags = ["-v", "-t", "1", "--blocksize", "256K", "--ioengine", "uring"];
        let copy = ("disk/big", "disk/copy");
        let outcome = parts::both_behind(world, Way::Up, ("prlimit", &[limit]), &flags, copy)?.succeed()?;
        compare::same_sha256(&world.near.join("disk/big"), &world.far.join("disk/copy"))?;
        let peaks = peaks(&outcome.stderr);
        let as_due = peaks.iter().all(|&[_, _, fixed]| (fixed > 0) == registered);
        ensure!(peaks.len() == 2 && as_due, "{limit}: {peaks:?}\n{}", outcome.told());
    }
    Ok(())
}

/// Descriptors of a process that lead to `path` or to a temporary file, with their flags.
fn flags_of_data_files(pid: u32, path: &Path) -> Vec<u32> {
    processes::descriptors(pid)
        .into_iter()
        .filter(|(_, target)| target == path || target.to_string_lossy().contains("/.escp-"))
        .filter_map(|(descriptor, _)| processes::flags(pid, descriptor).ok())
        .collect()
}

#[test]
fn data_descriptors_are_direct_while_data_moves() -> Checked {
    need_root!();
    let near_and_far =
        [(Host::Embedded, [Part::Cli, Part::FarAgent]), (Host::Daemon, [Part::NearWorker, Part::FarWorker])];
    for (host, parts) in near_and_far {
        let disks = disks(Plan::new(host, host).apart(), Way::Up, 64 * tree::MIB)?;
        let world = &disks.world;
        world.proxy()?.hold();
        let running = Way::Up.escp(world, &["-t", "1"], &["disk/big"], "disk/copy").start()?;
        parts::wait_until_moving(&world.far.join("disk"))?;
        for part in parts {
            let flags = flags_of_data_files(part.pid(world)?, &world.near.join("disk/big"));
            let direct = !flags.is_empty() && flags.iter().all(|flags| flags & DIRECT != 0);
            ensure!(direct, "{part:?} of {host:?} has its file open with {flags:x?}");
        }
        world.proxy()?.release();
        running.end()?.expect_status(0)?;
        compare::same_sha256(&world.near.join("disk/big"), &world.far.join("disk/copy"))?;
    }
    Ok(())
}

fn works_within(limit: &str, flags: &[&str]) -> Checked {
    need_root!();
    for way in Way::BOTH {
        let disks = disks(Plan::default(), way, SIZE)?;
        let world = &disks.world;
        let source = way.source(world).join("tree");
        std::fs::create_dir(&source)?;
        tree::many(&source, 300, 40)?;
        tree::file(&source.join("big"), SIZE, 9)?;
        settle(world)?;
        let flags = [&["-r"], flags].concat();
        parts::both_behind(world, way, ("prlimit", &[limit]), &flags, ("tree", "copy"))?.succeed()?;
        parts::both_behind(world, way, ("prlimit", &[limit]), &flags, ("disk/big", "disk/copy"))?
            .succeed()?;
        compare::same(&source, &way.target(world).join("copy"))?;
        compare::same_sha256(&way.source(world).join("disk/big"), &way.target(world).join("disk/copy"))?;
    }
    Ok(())
}

#[test]
fn eight_mib_of_locked_memory_are_enough() -> Checked {
    works_within("--memlock=8388608:8388608", &["--ioengine", "uring"])
}

/// Copies more blocks than it takes for buffers to be registered, both hosts with 8 MiB of locked memory.
/// Returns what the kernel answered to each registration.
fn registrations(way: Way, block: &str, size: u64) -> Checked<Vec<String>> {
    let disks = disks(Plan::default(), way, size)?;
    let world = &disks.world;
    let flags = ["-t", "1", "--blocksize", block, "--ioengine", "uring"];
    let limit = ("prlimit", &["--memlock=8388608:8388608"][..]);
    let run = parts::both_behind(world, way, limit, &flags, ("disk/big", "disk/copy"))?;
    let waiting = Waiting::new(world, run)?;
    let pids = [waiting.pid(), world.sshd.pid()];
    let strace = Strace::attach(world, &pids, "io_uring_register", &[])?;
    waiting.go()?.end()?.expect_status(0)?;
    compare::same_sha256(&way.source(world).join("disk/big"), &way.target(world).join("disk/copy"))?;
    let seen = strace.seen()?;
    let buffers = seen.calls.iter().filter(|call| call.text.contains("IORING_REGISTER_BUFFERS"));
    Ok(buffers.map(|call| call.answer.clone()).collect())
}

/// Alone on the machine: what is locked counts over all processes of a user.
#[test]
fn heavy_buffers_are_registered_where_the_limit_allows_it() -> Checked {
    need_root!();
    need_program!("strace");
    for way in Way::BOTH {
        let answers = registrations(way, "256K", 80 * 256 * 1024)?;
        ensure!(answers.len() == 2 && answers.iter().all(|answer| answer == "0"), "{way:?}: {answers:?}");
    }
    Ok(())
}

#[test]
fn buffers_that_may_not_be_registered_serve_as_they_are() -> Checked {
    need_root!();
    need_program!("strace");
    for way in Way::BOTH {
        // Any two blocks are more than 8 MiB.
        let answers = registrations(way, "4M", 70 * 4 * tree::MIB)?;
        let refused = answers.iter().all(|answer| answer.starts_with("-1 ENOMEM"));
        ensure!(answers.len() == 2 && refused, "{way:?}: {answers:?}");
    }
    Ok(())
}

#[test]
fn hardly_any_locked_memory_is_enough() -> Checked {
    works_within("--memlock=65536:65536", &["--ioengine", "uring"])
}

#[test]
fn a_daemon_with_hardly_any_locked_memory_works() -> Checked {
    need_root!();
    for limit in ["--memlock=8388608:8388608", "--memlock=65536:65536"] {
        let plan = Plan::new(Host::Daemon, Host::Daemon).daemons_under(&["prlimit", limit]);
        let disks = disks(plan, Way::Up, SIZE)?;
        Way::Up.escp(&disks.world, &[], &["disk/big"], "disk/copy").succeed()?;
        compare::same_sha256(&disks.world.near.join("disk/big"), &disks.world.far.join("disk/copy"))?;
    }
    Ok(())
}

#[test]
fn sixty_four_descriptors_are_enough() -> Checked {
    works_within("--nofile=64:64", &[])
}

#[test]
fn a_wrong_check_value_at_the_receiver_publishes_nothing() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let plan = Plan::default();
        let corrupt = "ESCP_TEST_CORRUPT_CHECK";
        let plan = if way == Way::Up { plan.far_variable(corrupt, "1") } else { plan };
        let world = plan.start()?;
        tree::file(&way.source(&world).join("big"), 3 * tree::MIB + 5, 1)?;
        tree::file(&way.source(&world).join("small"), 100, 2)?;
        let target = way.target(&world).join("target");
        std::fs::create_dir(&target)?;
        std::fs::write(target.join("small"), "old")?;
        settle(&world)?;
        let run = way.escp(&world, &[], &["big", "small"], "target");
        let run = if way == Way::Down { run.env(corrupt, "1") } else { run };
        let outcome = run.end()?.expect_status(5)?;
        for name in ["big: ", "small: "] {
            ensure!(outcome.stderr.contains(name), "{name} is not named\n{}", outcome.told());
        }
        compare::holds_only(&target, &["small"])?;
        ensure!(std::fs::read_to_string(target.join("small"))? == "old", "the old file was touched");
    }
    Ok(())
}

#[test]
fn a_gibibyte_of_nothing_touches_no_file() -> Checked {
    need_root!();
    let world = World::start(Host::Embedded, Host::Embedded)?;
    let up = world.escp().args(["-v", "--ioengine", "dummy", "dummy:1G", "far:"]).succeed()?;
    let down = world.escp().args(["-v", "--ioengine", "dummy", "far:dummy:1G"]).arg(&world.near).succeed()?;
    for outcome in [up, down] {
        ensure!(outcome.stdout.contains("1.00 GiB"), "{}", outcome.told());
        ensure!(outcome.stderr.contains("dummy engine"), "{}", outcome.told());
    }
    for directory in [&world.near, &world.far] {
        compare::holds_only(directory, &[])?;
    }
    Ok(())
}

#[test]
fn a_rate_is_kept_in_all_and_not_per_stream() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = World::start(Host::Embedded, Host::Embedded)?;
        tree::file(&way.source(&world).join("f"), 4 * tree::MIB, 1)?;
        settle(&world)?;
        // Kbit/s, and bits per second with a unit: 4 MiB in 4.2 s and in 2.1 s.
        for (rate, due) in [("8000", 4.2), ("16M", 2.1)] {
            let mut least = f64::INFINITY;
            // However busy the machine is, it can only be slower. The quickest run shows what the limit costs.
            for _ in 0..3 {
                let run = way.escp(&world, &["-t", "4", "-l", rate], &["f"], rate).succeed()?;
                least = least.min(run.took.as_secs_f64());
                ensure!(least > due * 0.9, "4 MiB at {rate} took {least:.2} s\n{}", run.told());
                if least < due * 1.5 + 1.0 {
                    break;
                }
            }
            ensure!(least < due * 2.0 + 2.0, "4 MiB at {rate} took {least:.2} s");
        }
    }
    Ok(())
}

#[test]
fn compression_shrinks_what_travels_and_leaves_noise_alone() -> Checked {
    need_root!();
    for way in Way::BOTH {
        let world = World::start(Host::Daemon, Host::Daemon)?;
        let size = 6 * tree::MIB;
        tree::text_file(&way.source(&world).join("text"), size)?;
        tree::file(&way.source(&world).join("noise"), size, 3)?;
        settle(&world)?;
        let mut before = [0.0; 2];
        for (name, least, most) in [("text", 0.0, size as f64 / 10.0), ("noise", size as f64, size as f64)] {
            way.escp(&world, &["-C"], &[name], &format!("copy-{name}")).succeed()?;
            compare::same_sha256(
                &way.source(&world).join(name),
                &way.target(&world).join(format!("copy-{name}")),
            )?;
            for (seen, (daemon, direction)) in before.iter_mut().zip(world.daemons().zip(directions(way))) {
                let label = format!("direction=\"{direction}\"");
                let read = |name, labels: &[&str]| daemon.metric(&world.near_network, name, labels);
                // A worker's last counts may come a moment after its agent has left.
                wait_until("the session to be over", Duration::from_secs(10), || {
                    read("escp_sessions_active", &[]).is_ok_and(|active| active == 0.0)
                })?;
                let total = read("escp_bytes_compressed_total", &[&label])?;
                let travelled = total - *seen;
                *seen = total;
                ensure!(
                    travelled >= least && travelled <= most,
                    "{name}: {travelled} of {size} bytes ({direction})"
                );
            }
        }
    }
    Ok(())
}

/// Directions of the near and the far host's counters.
fn directions(way: Way) -> [&'static str; 2] {
    if way == Way::Up { ["out", "in"] } else { ["in", "out"] }
}
