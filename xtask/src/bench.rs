//! `cargo xtask bench`.

use crate::run;

/// Runs the criterion benchmarks of the `escp-benches` package; arguments go to criterion.
pub(crate) fn run(arguments: &[String]) -> Result<(), String> {
    run::succeed(run::cargo().args(["bench", "--package", "escp-benches", "--"]).args(arguments))
}
