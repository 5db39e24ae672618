//! The instrument works: it measures something small and says so. Nothing here passes or fails by time.

use escp_testkit::run::{PATIENCE, wait_until};
use escp_testkit::{Checked, ensure, need_root, processes};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const BENCH: &str = env!("CARGO_BIN_EXE_escp-bench");

#[test]
fn it_measures_escp_beside_peers_and_limits() -> Checked {
    need_root!();
    let directory = tempfile::tempdir()?;
    let kept = directory.path().join("results.jsonl");
    let output = Command::new(BENCH)
        .args(["--only", "B1", "--size", "8M", "--runs", "1", "--cold", "--json", "--peers", "scp"])
        .arg("--results")
        .arg(&kept)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {told}", output.status);
    let results: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let lines = std::fs::read_to_string(kept)?.lines().count();
    ensure!(
        results.as_array().is_some_and(|all| all.len() == lines),
        "{lines} results were kept of {results:#}"
    );
    for name in ["escp", "scp", "floor"] {
        let result = results.as_array().and_then(|all| all.iter().find(|one| one["contender"] == name));
        let Some(result) = result else {
            return Err(escp_testkit::Trouble::new(format!("no result of {name}: {results:#}")));
        };
        ensure!(result["failure"].is_null(), "{name} failed: {result:#}");
        ensure!(result["speed"].as_f64().is_some_and(|speed| speed > 0.0), "{name} has no speed: {result:#}");
    }
    // Eight times 2^20 bytes and what surrounds them went over the wire, whoever carried them.
    let wire = results[0]["wire_mib"].as_f64();
    ensure!(wire.is_some_and(|mib| (8.0..9.0).contains(&mib)), "{wire:?} MiB went over the wire");
    Ok(())
}

#[test]
fn the_limits_copy_what_they_are_given() {
    // Not in the system's temporary directory, which may be a tmpfs that knows no O_DIRECT.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name);
    // No multiple of a page or block.
    escp_testkit::tree::file(&path("source"), (3 << 20) + 4321, 1).unwrap();
    let run = |words: &[&str]| {
        let words: Vec<_> = words
            .iter()
            .map(|word| if word.starts_with('-') || words[0] == *word { (*word).into() } else { path(word) })
            .collect();
        let output = Command::new(BENCH).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["floor", "--streams=2", "--from", "source", "--to", "by the floor"]);
    run(&["floor", "--streams=3", "--direct", "--from", "source", "--to", "by the direct floor"]);
    run(&["copy", "source", "by the copier"]);
    let source = std::fs::read(path("source")).unwrap();
    for name in ["by the floor", "by the direct floor", "by the copier"] {
        assert!(std::fs::read(path(name)).unwrap() == source, "{name}");
    }
    std::fs::create_dir_all(path("tree/inner")).unwrap();
    std::fs::write(path("tree/inner/file"), "x").unwrap();
    std::fs::write(path("tree/nothing"), "").unwrap();
    std::fs::copy(path("source"), path("tree/large")).unwrap();
    run(&["copy", "--threads=2", "tree", "tree copied"]);
    let compared = Command::new("diff").arg("-r").args([path("tree"), path("tree copied")]).output().unwrap();
    assert!(compared.status.success(), "{}", String::from_utf8_lossy(&compared.stdout));
    run(&["create", "--durable", "tree", "tree made"]);
    assert_eq!(std::fs::read(path("tree made/inner/file")).unwrap(), b"x");
}

#[test]
fn the_floor_by_io_uring_moves_what_it_is_given() -> Checked {
    if let Err(error) = io_uring::IoUring::new(4) {
        escp_testkit::skip!("io_uring is refused here: {error}");
    }
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let path = |name: &str| directory.path().join(name);
    // More blocks than are in flight, and no multiple of a page or block.
    escp_testkit::tree::file(&path("source"), (9 << 20) + 4321, 1)?;
    for (number, flags) in
        ["--streams=1 --depth=3", "--streams=2 --direct --depth=2", "--streams=2 --direct --plain-sockets"]
            .iter()
            .enumerate()
    {
        let made = path(&number.to_string());
        let mut floor = Command::new(BENCH);
        floor.args(["floor", "--uring", "--block=1048576"]).args(flags.split(' '));
        let output = floor.arg("--from").arg(path("source")).arg("--to").arg(&made).output()?;
        ensure!(output.status.success(), "{flags}: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(std::fs::read(made)? == std::fs::read(path("source"))?, "{flags}: not the source");
    }
    let output = Command::new(BENCH).args(["floor", "--uring", "--streams=3", "--size=9M"]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn what_either_end_of_the_floor_cannot_do_is_told() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    escp_testkit::tree::file(directory.path().join("source").as_path(), 4 << 20, 1).unwrap();
    std::fs::write(path("there"), "before").unwrap();
    let floor = |limit: &str, from: &str, to: &str| {
        // Writing beyond a limit fails like any other write then, instead of killing.
        let script = format!("trap '' XFSZ; {limit} exec \"$0\" floor --streams 2 --from \"$1\" --to \"$2\"");
        let output =
            Command::new("sh").args(["-c", &script, BENCH]).args([path(from), path(to)]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, told) = floor("", "nothing", "copy");
    assert!(status == Some(1) && told.contains("nothing: No such file"), "{told}");
    let (status, told) = floor("", "source", "there");
    assert!(status == Some(1) && told.contains("receiving end") && told.contains("there exists"), "{told}");
    let (status, told) = floor("ulimit -f 1;", "source", "copy");
    assert!(status == Some(1) && told.contains("receiving end") && told.contains("File too large"), "{told}");
    assert!(!std::fs::exists(path("copy")).unwrap() && std::fs::read(path("there")).unwrap() == b"before");
    assert_eq!(floor("", "source", "at last").0, Some(0));
}

/// Trees for the floor of small files, and what it says about them.
struct Grove(tempfile::TempDir);

impl Grove {
    fn new() -> Checked<Self> {
        Ok(Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Directories below each other, beside each other and without files; files of all modes and sizes that matter.
    fn plant(&self) -> Checked<PathBuf> {
        let tree = self.path("tree");
        for directory in ["empty", "a/b/c", "a b"] {
            std::fs::create_dir_all(tree.join(directory))?;
        }
        // More than go into a record, by their number and by their size; in more than one stream's share.
        for (directory, count, size) in [("a", 1500, 1), ("a/b/c", 80, 16_000), ("", 3, 300_000)] {
            for number in 0..count {
                let path = tree.join(directory).join(format!("f{number}"));
                escp_testkit::tree::file(&path, size + number % 7, number)?;
            }
        }
        std::fs::write(tree.join("a b/nothing"), "")?;
        for (name, mode) in [("f0", 0o640), ("a/f7", 0o755), ("a b/nothing", 0o400)] {
            std::fs::set_permissions(tree.join(name), std::fs::Permissions::from_mode(mode))?;
        }
        Ok(tree)
    }

    /// Runs it; `through` starts its receiving end, if there is any. Returns its status and what it said.
    fn floor(
        &self,
        flags: &[&str],
        from: &str,
        to: &str,
        through: &[&str],
    ) -> Checked<(Option<i32>, String)> {
        let mut floor = Command::new(BENCH);
        floor.args(["floor", "--files"]).args(flags);
        floor.arg("--from").arg(self.path(from)).arg("--to").arg(self.path(to)).arg("--").args(through);
        let output = floor.output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

/// Names, modes and lengths of all files in a tree, and the names of its directories.
fn found(tree: &Path) -> Checked<BTreeSet<(PathBuf, u32, u64)>> {
    let mut all = BTreeSet::new();
    let mut open = vec![tree.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let meta = path.symlink_metadata()?;
            let name = path.strip_prefix(tree)?.to_owned();
            if meta.is_dir() {
                all.insert((name, 0, 0));
                open.push(path);
            } else {
                all.insert((name, meta.permissions().mode(), meta.len()));
            }
        }
    }
    Ok(all)
}

#[test]
fn the_floor_for_small_files_makes_the_same_tree() -> Checked {
    let grove = Grove::new()?;
    let tree = grove.plant()?;
    let ways = ["--streams=1", "--streams=3", "--streams=2 --durable=each", "--streams=2 --durable=barrier"];
    for (number, flags) in ways.iter().enumerate() {
        let name = format!("made {number}");
        let words: Vec<_> = flags.split(' ').collect();
        let (status, told) = grove.floor(&words, "tree", &name, &[])?;
        ensure!(status == Some(0), "{flags}: {told}");
        let made = grove.path(&name);
        let compared = Command::new("diff").arg("-r").args([&tree, &made]).output()?;
        ensure!(compared.status.success(), "{flags}: {}", String::from_utf8_lossy(&compared.stdout));
        ensure!(found(&tree)? == found(&made)?, "{flags}: other modes, or names that were left behind");
    }
    Ok(())
}

#[test]
fn what_either_end_of_the_floor_for_small_files_cannot_do_is_told() -> Checked {
    let grove = Grove::new()?;
    let tree = grove.plant()?;
    let said = |flags: &[&str], to: &str, through: &[&str], words: &[&str]| -> Checked {
        let (status, told) = grove.floor(flags, "tree", to, through)?;
        ensure!(status == Some(1) && words.iter().all(|word| told.contains(word)), "{status:?}: {told}");
        Ok(())
    };
    let (status, told) = grove.floor(&[], "nothing", "copy", &[])?;
    ensure!(status == Some(1) && told.contains("nothing") && told.contains("No such file"), "{told}");
    std::fs::create_dir(grove.path("there"))?;
    said(&["--streams=2"], "there", &[], &["receiving end", "there: File exists"])?;
    ensure!(found(&grove.path("there"))?.is_empty(), "it wrote into a directory that was there");
    // Writing beyond a limit fails like any other write, or kills.
    let fails = ["sh", "-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\""];
    let dies = ["sh", "-c", "ulimit -c 0; ulimit -f 64; exec \"$0\" \"$@\""];
    for (number, way) in [&[][..], &["--durable=each"], &["--durable=barrier"]].iter().enumerate() {
        let flags = [&["--streams=2"][..], way].concat();
        let (to, dead) = (format!("fails {number}"), format!("dies {number}"));
        said(&flags, &to, &fails, &["receiving end", "File too large"])?;
        let (made, whole) = (found(&grove.path(&to))?, found(&tree)?);
        ensure!(made.is_subset(&whole), "{way:?} left {:?}", made.difference(&whole));
        said(&flags, &dead, &dies, &["receiving end (signal: "])?;
    }
    escp_testkit::tree::file(&tree.join("large"), 1 << 20, 1)?;
    said(&["--streams=2"], "large", &[], &["tree/large: 1048576 bytes do not fit"])
}

/// A sending end of the floor, which is killed if nobody else has.
struct Sender(Child);

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sender {
    /// Starts one that has more to send than anybody waits for.
    fn start(words: &[&str]) -> Checked<Self> {
        let mut floor = Command::new(BENCH);
        floor.args(["floor", "--size=999T"]).args(words);
        Ok(Self(floor.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?))
    }

    /// Waits until its receiving end is as far as `there` knows, kills it, and waits for the other's end.
    fn leaves_nobody_behind(mut self, there: impl Fn(u32) -> bool) -> Checked {
        let mut receiver = None;
        wait_until("the receiving end", PATIENCE, || {
            receiver = processes::descendants(self.0.id()).into_iter().find(|pid| there(*pid));
            receiver.is_some()
        })?;
        self.0.kill()?;
        self.0.wait()?;
        wait_until("the receiving end's own end", PATIENCE, || receiver.and_then(processes::read).is_none())
    }
}

/// Whether each of two streams has its thread, which only receives.
fn receives(pid: u32) -> bool {
    processes::status(pid, "Threads").is_ok_and(|threads| threads == "3")
}

#[test]
fn a_killed_sending_end_of_the_floor_leaves_nobody_behind() -> Checked {
    Sender::start(&["--streams=2"])?.leaves_nobody_behind(receives)?;
    // One that is still waited for has no connection that could break. Where the receiving end listens is never heard of.
    let directory = tempfile::tempdir()?;
    let listens = directory.path().join("listens");
    let script = format!("exec \"$0\" \"$@\" > {}", listens.display());
    let sender = Sender::start(&["--streams=2", "--", "sh", "-c", &script])?;
    sender.leaves_nobody_behind(|_| std::fs::read(&listens).is_ok_and(|said| said.ends_with(b"\n")))
}

/// A directory with a program `escp` that every user may run.
fn escp_that_runs(script: &str) -> Checked<tempfile::TempDir> {
    let all_may = || std::fs::Permissions::from_mode(0o755);
    let directory = tempfile::Builder::new().permissions(all_may()).tempdir()?;
    let program = directory.path().join("escp");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n"))?;
    std::fs::set_permissions(program, all_may())?;
    Ok(directory)
}

#[test]
fn the_predecessor_is_told_from_escp_by_what_it_calls_itself() -> Checked {
    need_root!();
    let ours = escp_that_runs("echo 'Usage: escp [flags] SOURCE... [USER@]HOST:TARGET'; exit 1")?;
    // Takes the flags it must be given, and copies like EScp: with ssh's own configuration to a port it was told.
    let theirs = escp_that_runs(
        "[ \"$1\" = --help ] && exec echo 'Energy Sciences Network transfer tool (EScp)'\n\
         [ \"$1 $2 $4 $6 $7\" = \"-q -F -P -D $0\" ] || exit 9\n\
         exec scp -q -F \"$3\" -P \"$5\" \"$8\" \"$9\"",
    )?;
    let usual = std::env::var_os("PATH").unwrap_or_default();
    let path = [ours.path().to_owned(), theirs.path().to_owned()].into_iter();
    let path = std::env::join_paths(path.chain(std::env::split_paths(&usual)))?;
    let output = Command::new(BENCH)
        .args(["--only", "B1", "--size", "8M", "--runs", "1", "--cold", "--json", "--peers", "EScp"])
        .arg("--results")
        .arg(ours.path().join("results"))
        .env("PATH", path)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "it ended with {}: {told}", output.status);
    let results: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let found = results.as_array().and_then(|all| all.iter().find(|one| one["contender"] == "EScp"));
    ensure!(found.is_some_and(|found| found["failure"].is_null()), "no EScp, or a failed one: {results:#}");
    Ok(())
}

#[test]
fn an_unknown_workload_is_named_with_the_known_ones() {
    let output = Command::new(BENCH).args(["--only", "B99"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("B99") && text.contains("B11"), "{text}");
}
