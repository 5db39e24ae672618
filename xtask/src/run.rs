//! Running other programs, and saying so.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// Prints a line for the person at the terminal.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    // A closed standard output is no reason to fail the task.
    let _ = writeln!(out, "{}", text.trim_end());
    let _ = out.flush();
}

/// Prints an error.
pub(crate) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "xtask: {}", text.trim_end());
}

/// The workspace's root directory.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The cargo that runs this task.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// A program in the workspace's root, with no standard input.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// Runs a command to its end; its output goes where ours goes.
///
/// # Errors
/// A sentence with the command, when it cannot be started or does not succeed.
pub(crate) fn succeed(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("cannot run {}: {error}", shown(command)))?;
    if status.success() { Ok(()) } else { Err(format!("{} ended with {status}", shown(command))) }
}

/// Runs a command and returns its standard output.
///
/// # Errors
/// A sentence with the command and what it wrote to standard error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let result = command.output().map_err(|error| format!("cannot run {}: {error}", shown(command)))?;
    if !result.status.success() {
        let stderr = String::from_utf8_lossy(&result.stderr);
        return Err(format!("{} ended with {}: {}", shown(command), result.status, stderr.trim()));
    }
    String::from_utf8(result.stdout).map_err(|_| format!("{} printed text that is not UTF-8", shown(command)))
}

/// The command as a person would type it, for messages.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Runs one step of a task between two lines that name it and tell how long it took.
pub(crate) fn step(name: &str, work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    say(&format!("==> {name}"));
    let start = Instant::now();
    let outcome = work();
    let seconds = start.elapsed().as_secs_f32();
    match &outcome {
        Ok(()) => say(&format!("    {name}: ok, {seconds:.1} s")),
        Err(text) => say(&format!("    {name}: FAILED after {seconds:.1} s: {text}")),
    }
    outcome
}

/// Where a program lies on `PATH` or in one of `extra`.
pub(crate) fn find(name: &str, extra: &[PathBuf]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra.iter().cloned())
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}
