//! Keeping results: one JSON object per line for programs, a short history for people.

use escp_testkit::{Checked, Trouble};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where results go, below the workspace's root.
const DIRECTORY: &str = "target/bench";
/// The file in it that all runs append to.
const RESULTS: &str = "results.jsonl";
/// Where the history is; its table is the last thing in it.
const HISTORY: &str = "docs/benchmarks.md";

fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Where results go.
pub(crate) fn directory() -> PathBuf {
    root().join(DIRECTORY)
}

/// When, where and what was measured.
pub(crate) fn about() -> Value {
    let mut command = "cargo xtask bench".to_owned();
    for word in std::env::args().skip(1) {
        command.push(' ');
        command.push_str(&if word.contains([' ', '\'']) { format!("'{word}'") } else { word });
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "date": output("date", &["-u", "+%Y-%m-%dT%H:%MZ"]),
        "commit": output("git", &["describe", "--always", "--dirty", "--exclude=*"]),
        "command": command,
        "release": !cfg!(debug_assertions),
        "cpu": model.trim_start_matches([' ', '\t', ':']),
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "kernel": output("uname", &["-r"]),
        "memory": output("sh", &["-c", "grep MemTotal /proc/meminfo"]),
    })
}

fn output(program: &str, words: &[&str]) -> String {
    let result = Command::new(program).args(words).current_dir(root()).output();
    result.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Appends results to the file that all runs append to.
pub(crate) fn append(results: &[Value], file: Option<&Path>) -> Checked {
    let path = file.map_or_else(|| directory().join(RESULTS), Path::to_path_buf);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
    for result in results {
        writeln!(file, "{result}")?;
    }
    Ok(())
}

/// Appends lines to the table at the end of the history.
pub(crate) fn append_history(lines: &[String]) -> Checked {
    let path = root().join(HISTORY);
    let file = std::fs::OpenOptions::new().append(true).open(&path);
    let mut file = file.map_err(|error| Trouble::new(format!("{}: {error}", path.display())))?;
    for line in lines {
        writeln!(file, "{line}")?;
    }
    Ok(())
}
