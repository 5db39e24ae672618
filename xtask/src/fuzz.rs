//! A few seconds of coverage-guided fuzzing for every decoder that meets foreign bytes, without a nightly compiler:
//! the instrumentation is LLVM's (SanitizerCoverage), and rustc passes its options on.

use crate::run;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// For each target in `cargo xtask test`.
const SMOKE_SECONDS: u64 = 3;

/// As `cargo fuzz --sanitizer none` sets them: edge counters and compared values for libFuzzer to learn from.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table \
                        -Cllvm-args=-sanitizer-coverage-trace-compares \
                        -Ccodegen-units=1 --cfg fuzzing";

/// `cargo xtask fuzz [SECONDS]`: every target, for so long each.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    match arguments {
        [] => fuzz(60),
        [seconds] => fuzz(seconds.parse().map_err(|_| format!("'{seconds}' is no number of seconds"))?),
        _ => Err("usage: cargo xtask fuzz [SECONDS]".into()),
    }
}

/// The step of `cargo xtask test`. Programs that have not changed since they last passed are not run again.
pub(crate) fn smoke() -> Result<(), String> {
    let Some(programs) = build()? else { return Ok(()) };
    let stamp = directory().join("passed");
    let state = state_of(&programs)?;
    if std::fs::read_to_string(&stamp).is_ok_and(|passed| passed == state) {
        run::say("    unchanged since they passed");
        return Ok(());
    }
    all(&programs, SMOKE_SECONDS)?;
    std::fs::write(&stamp, state).map_err(|error| format!("{}: {error}", stamp.display()))
}

fn fuzz(seconds: u64) -> Result<(), String> {
    build()?.map_or(Ok(()), |programs| all(&programs, seconds))
}

/// Where everything of this task lies.
fn directory() -> PathBuf {
    run::root().join("target/fuzz")
}

/// Builds the targets; `None`, with a visible word, where this machine cannot.
fn build() -> Result<Option<Vec<PathBuf>>, String> {
    std::fs::create_dir_all(directory()).map_err(|error| format!("target/fuzz: {error}"))?;
    if let Some(why) = impossible()? {
        run::say(&format!("    SKIP fuzzing: {why}"));
        return Ok(None);
    }
    let version = run::output(run::program("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default();
    // With --target, build scripts and macros stay without the instrumentation.
    run::succeed(
        run::cargo()
            .args([
                "build",
                "--quiet",
                "--locked",
                "--manifest-path",
                "fuzz/Cargo.toml",
                "--profile",
                "smoke",
            ])
            .args(["--target", host, "--bins"])
            .env("CARGO_TARGET_DIR", directory())
            .env("RUSTFLAGS", COVERAGE),
    )?;
    let sources = std::fs::read_dir(run::root().join("fuzz/fuzz_targets"));
    let sources = sources.map_err(|error| format!("fuzz/fuzz_targets: {error}"))?;
    let names: BTreeSet<_> =
        sources.flatten().filter_map(|entry| Some(entry.path().file_stem()?.to_owned())).collect();
    Ok(Some(names.iter().map(|name| directory().join(host).join("smoke").join(name)).collect()))
}

/// What tells these programs from those of another build.
fn state_of(programs: &[PathBuf]) -> Result<String, String> {
    let mut state = String::new();
    for program in programs {
        let modified = std::fs::metadata(program).and_then(|meta| meta.modified());
        let modified = modified.map_err(|error| format!("{}: {error}", program.display()))?;
        state.push_str(&format!("{} {modified:?}\n", program.display()));
    }
    Ok(state)
}

/// Why this machine cannot build them, if it cannot: libFuzzer is C++, and the compiler must have the pass.
fn impossible() -> Result<Option<&'static str>, String> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    if !run::program(compiler).arg("--version").output().is_ok_and(|output| output.status.success()) {
        return Ok(Some("libFuzzer needs a C++ compiler (package g++)"));
    }
    let probe = directory().join("probe.rs");
    std::fs::write(&probe, "pub fn probe() {}\n").map_err(|error| format!("{}: {error}", probe.display()))?;
    let mut rustc = run::program("rustc");
    rustc.args(COVERAGE.split_whitespace()).args(["--crate-type", "rlib", "--out-dir"]).arg(directory());
    let able = rustc.arg(&probe).output().is_ok_and(|output| output.status.success());
    Ok((!able).then_some("this rustc has no SanitizerCoverage pass"))
}

/// Runs every program, two at a time.
fn all(programs: &[PathBuf], seconds: u64) -> Result<(), String> {
    let mut failed = Vec::new();
    for pair in programs.chunks(2) {
        std::thread::scope(|scope| {
            let running: Vec<_> =
                pair.iter().map(|program| scope.spawn(move || one(program, seconds))).collect();
            for outcome in running {
                match outcome.join() {
                    Ok(Ok(line)) => run::say(&format!("    {line}")),
                    Ok(Err(text)) => failed.push(text),
                    Err(_) => failed.push("a thread panicked".to_owned()),
                }
            }
        });
    }
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n")) }
}

/// Runs one program over its seeds and what earlier runs found; returns what it did.
fn one(program: &Path, seconds: u64) -> Result<String, String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let corpus = directory().join("corpus").join(&name);
    std::fs::create_dir_all(&corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
    let mut command = run::program(program);
    command
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=1024"])
        .arg(format!("-artifact_prefix={}/{name}-", directory().display()))
        .arg(&corpus)
        .arg(run::root().join("fuzz/seeds").join(&name));
    let output = command.output().map_err(|error| format!("cannot run {name}: {error}"))?;
    judge(&name, &command, &output)
}

fn judge(name: &str, command: &Command, output: &Output) -> Result<String, String> {
    let said = String::from_utf8_lossy(&output.stderr);
    let last = |word: &str| said.lines().rev().find(|line| line.contains(word)).map(str::trim);
    if !output.status.success() {
        let tail: Vec<&str> = said.lines().rev().take(30).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        return Err(format!("{} ended with {}\n{}", run::shown(command), output.status, tail.join("\n")));
    }
    // Without counters it would only throw dice.
    if last("inline 8-bit counters").is_none() {
        return Err(format!("{name} is not instrumented:\n{said}"));
    }
    let done = last("Done ").ok_or_else(|| format!("{name} did not finish:\n{said}"))?;
    let coverage = last(" cov: ").and_then(|line| line.split(" cov: ").nth(1)?.split(' ').next());
    Ok(format!("{name}: {done}, {} edges covered", coverage.unwrap_or("no")))
}
