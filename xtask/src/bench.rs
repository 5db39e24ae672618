//! `cargo xtask bench`: builds the instrument and the programs it measures for release, and starts it.

use crate::{run, tools};

const USAGE: &str = "\
Usage: cargo xtask bench [--micro [FILTER...]] [flags]

Without any argument: the single steps below, briefly, then everything else.
Without --micro: escp, through a daemon on both ends, beside scp, rsync and tar over ssh and the limits of the
machine; needs root, and a machine that does nothing else. docs/benchmarks.md says how to read it.
With --micro: the time of single steps (sealing, checking, codecs, the pool); arguments go to criterion.
";

/// For criterion: enough to see a step that has become slow, in a fraction of its usual time.
const BRIEFLY: [&str; 4] = ["--warm-up-time", "0.5", "--measurement-time", "1"];

/// Runs the benchmarks.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    if let Some((_, rest)) = arguments.split_first().filter(|(first, _)| *first == "--micro") {
        return micro(rest);
    }
    tools::provide(tools::BENCH)?;
    if arguments.is_empty() {
        micro(&BRIEFLY.map(str::to_owned))?;
    }
    // One by one, as the instrument itself would build the programs: together they would share features, and be
    // built twice.
    for binaries in [&["escp-benches", "escp-bench"][..], &["escp-cli", "escp", "escpd", "escpd"]] {
        let mut build = run::cargo();
        build.args(["build", "--release", "--locked"]);
        for pair in binaries.chunks(2) {
            build.arg("--package").args(pair.first()).arg("--bin").args(pair.last());
        }
        run::succeed(&mut build)?;
    }
    if arguments.iter().any(|word| word == "-h" || word == "--help") {
        run::say(USAGE);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| run::root().join("target"), Into::into);
    run::succeed(run::program(target.join("release/escp-bench")).args(arguments))
}

fn micro(arguments: &[String]) -> Result<(), String> {
    run::succeed(run::cargo().args(["bench", "--locked", "--package", "escp-benches", "--"]).args(arguments))
}
