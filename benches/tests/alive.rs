//! The instrument works: it measures something small and says so. Nothing here passes or fails by time.

use escp_testkit::{Checked, ensure, need_root};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

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
