//! Looking at processes through /proc.

use crate::{Checked, Trouble};
use std::path::PathBuf;

/// A process as /proc shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: u32,
    /// Its parent.
    pub parent: u32,
    /// Its command line, words joined by spaces.
    pub command: String,
}

/// Every process that is not a zombie.
#[must_use]
pub fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

/// One process, unless it is gone or a zombie.
#[must_use]
pub fn read(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything.
    let mut fields = stat.get(stat.rfind(')')? + 2..)?.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    let parent = fields.next()?.parse().ok()?;
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let command = String::from_utf8_lossy(&command).trim_end_matches('\0').replace('\0', " ");
    Some(Process { pid, parent, command })
}

/// Processes whose command line holds `text`; this process is left out.
#[must_use]
pub fn with(text: &str) -> Vec<Process> {
    let own = std::process::id();
    all().into_iter().filter(|process| process.pid != own && process.command.contains(text)).collect()
}

/// Children, their children and so on.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let all = all();
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(all.iter().filter(|process| process.parent == parent).map(|process| process.pid));
        next += 1;
    }
    found.remove(0);
    found
}

/// The value of a line of /proc/PID/status, such as `VmHWM` or `CapEff`.
///
/// # Errors
/// When the process or the line is not there.
pub fn status(pid: u32, field: &str) -> Checked<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .map(|value| value.trim().to_owned())
        .ok_or_else(|| Trouble::new(format!("/proc/{pid}/status has no {field}")))
}

/// Peak resident memory in KiB, of `VmHWM`.
///
/// # Errors
/// When the process is gone.
pub fn peak_kib(pid: u32) -> Checked<u64> {
    let value = status(pid, "VmHWM")?;
    Ok(value.split_whitespace().next().unwrap_or_default().parse()?)
}

/// What its descriptors point at.
#[must_use]
pub fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            Some((number, std::fs::read_link(entry.path()).ok()?))
        })
        .collect()
}

/// The status flags a descriptor was opened with, as `fcntl(F_GETFL)` shows them.
///
/// # Errors
/// When it is closed.
pub fn flags(pid: u32, descriptor: u32) -> Checked<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{descriptor}"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .ok_or_else(|| Trouble::new("fdinfo without flags"))?;
    Ok(u32::from_str_radix(value.trim(), 8)?)
}
