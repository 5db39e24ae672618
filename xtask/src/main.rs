//! The project's own tasks: demo, test, bench, fuzz, tidy.

mod bench;
mod demo;
mod fuzz;
mod run;
mod test;
mod tidy;
mod tools;

use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask <task>

  demo    real data from disk to disk through two escpd and a real ssh, there and back, verified
  test    everything CI checks: format, lints, documentation, tidy, dependencies, some fuzzing, every test
  bench   the benchmarks; says what it measures
  fuzz    every decoder of foreign bytes, a minute each or so many seconds
  tidy    the rules of the tree that no compiler checks
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let outcome = match task.as_str() {
        "demo" => demo::run(&rest),
        "test" => test::run(&rest),
        "bench" => bench::run(&rest),
        "fuzz" => fuzz::run(&rest),
        "tidy" => tidy::run(&rest),
        "" | "help" | "-h" | "--help" => {
            run::say(USAGE);
            return ExitCode::from(if task.is_empty() { 2 } else { 0 });
        }
        other => Err(format!("unknown task '{other}'\n\n{USAGE}")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            run::complain(&text);
            ExitCode::FAILURE
        }
    }
}
