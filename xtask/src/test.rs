//! `cargo xtask test`: everything CI checks.

use crate::{fuzz, run, tidy, tools};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Runs all checks, then all tests; the test runner's own summary is the last thing printed. Arguments go to
/// the test runner.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    let mut failed: Vec<&str> = Vec::new();
    let mut check = |name: &'static str, work: &mut dyn FnMut() -> Result<(), String>| {
        if run::step(name, work).is_err() {
            failed.push(name);
        }
    };
    check("programs the tests need", &mut provide);
    check("format", &mut || run::succeed(run::cargo().args(["fmt", "--all", "--check"])));
    check("tidy", &mut || tidy::run(&[]));
    check("dependencies", &mut dependencies);
    check("lints", &mut || {
        run::succeed(run::cargo().args([
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    });
    check("documentation", &mut || {
        run::succeed(run::cargo().env("RUSTDOCFLAGS", "-D warnings").args([
            "doc",
            "--locked",
            "--workspace",
            "--no-deps",
            "--document-private-items",
        ]))
    });
    check("programs", &mut || {
        // As the tests build them, so that no test has to wait for it.
        escp_testkit::programs::installed().map(drop).map_err(|trouble| format!("{trouble:?}"))
    });
    check("fuzzing", &mut fuzz::smoke);
    if !failed.is_empty() {
        run::complain(&format!("FAILED so far: {}; the tests follow", failed.join(", ")));
    }
    let tests = tests(arguments);
    match (failed.is_empty(), tests) {
        (true, outcome) => outcome,
        (false, Ok(())) => Err(format!("FAILED: {}", failed.join(", "))),
        (false, Err(text)) => Err(format!("FAILED: {}; {text}", failed.join(", "))),
    }
}

fn provide() -> Result<(), String> {
    tools::provide(tools::TEST)?;
    tools::promtool()?;
    tools::cargo_tool("cargo-nextest")?;
    tools::cargo_tool("cargo-deny").map(drop)
}

fn dependencies() -> Result<(), String> {
    let deny = tools::cargo_tool("cargo-deny")?;
    let check = |what: &[&str]| {
        let mut command = run::program(&deny);
        command.args(["--log-level", "error", "check", "--hide-inclusion-graph"]).args(what);
        command
    };
    run::succeed(&mut check(&["bans", "licenses", "sources"]))?;
    // The advisory database lies outside the package registry; not every machine reaches it.
    let result = check(&["advisories"]).output().map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&result.stderr);
    if result.status.success() {
        run::say("    advisories ok");
    } else if text.contains("failed to fetch advisory database") {
        run::say("    SKIP advisories: the advisory database cannot be fetched from here");
    } else {
        return Err(text.into_owned());
    }
    Ok(())
}

fn tests(arguments: &[String]) -> Result<(), String> {
    let nextest = tools::cargo_tool("cargo-nextest")?;
    let skips = Skips::begin()?;
    run::say("==> tests");
    let mut command = run::program(nextest);
    command.args(["nextest", "run", "--locked", "--workspace", "--no-fail-fast"]).args(arguments);
    command.env("ESCP_SKIP_LOG", &skips.path).env("ESCP_PYTHON", tools::PYTHON).env("PATH", path()?);
    let outcome = run::succeed(&mut command);
    drop(skips);
    outcome
}

fn path() -> Result<std::ffi::OsString, String> {
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&inherited).chain(tools::places()).chain(system);
    std::env::join_paths(all).map_err(|error| error.to_string())
}

/// Shows the skips of tests while they run: the runner hides what a passing test prints, and a test that
/// could not be run here passes.
struct Skips {
    path: PathBuf,
    over: Arc<AtomicBool>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl Skips {
    fn begin() -> Result<Self, String> {
        let path = run::root().join("target/skipped-tests.log");
        let make = || -> std::io::Result<std::fs::File> {
            std::fs::create_dir_all(run::root().join("target"))?;
            std::fs::write(&path, "")?;
            std::fs::File::open(&path)
        };
        let file = make().map_err(|error| format!("cannot make {}: {error}", path.display()))?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let reader = std::thread::spawn(move || follow(file, &seen));
        Ok(Self { path, over, reader: Some(reader) })
    }
}

impl Drop for Skips {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn follow(file: std::fs::File, over: &AtomicBool) {
    let mut reader = BufReader::new(file);
    loop {
        let last = over.load(Ordering::Relaxed);
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|length| length > 0) {
            run::say(&format!("        {}", line.trim_end()));
            line.clear();
        }
        if last {
            return;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Where a path would lie below the workspace's root.
#[cfg(test)]
fn below(path: &str) -> PathBuf {
    run::root().join(path)
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn the_files_that_ci_needs_are_there() {
        for path in
            [".ci/run", ".config/nextest.toml", "deny.toml", "Cargo.lock", "LICENSE-MIT", "LICENSE-APACHE"]
        {
            assert!(below(path).is_file(), "{path}");
        }
    }
}
