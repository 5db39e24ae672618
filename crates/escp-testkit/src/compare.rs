//! Comparing trees with programs that are not ours: diff, sha256sum, stat.

use crate::run::{Run, program};
use crate::{Checked, Trouble};
use std::path::Path;

/// Insists that two trees (or files) hold the same names and bytes, by `diff -r`.
///
/// # Errors
/// With diff's words.
#[track_caller]
pub fn same(left: &Path, right: &Path) -> Checked {
    let outcome =
        Run::new(program("diff")?, None).args(["-r", "--no-dereference"]).arg(left).arg(right).end()?;
    if outcome.code() == 0 && outcome.stdout.is_empty() {
        return same_directories(left, right);
    }
    Err(Trouble::new(format!("trees differ:\n{}{}", outcome.stdout, outcome.stderr)))
}

/// diff -r does not see empty directories on one side only when both lack files; find does.
fn same_directories(left: &Path, right: &Path) -> Checked {
    if !left.is_dir() {
        return Ok(());
    }
    let list = |root: &Path| -> Checked<String> {
        let text = "cd \"$1\" && find . -printf '%y %P\\0' | LC_ALL=C sort -z | tr '\\0\\n' '\\n#'";
        Ok(Run::new("sh", None).args(["-c", text, "sh"]).arg(root).succeed()?.stdout)
    };
    if list(left)? == list(right)? { Ok(()) } else { Err(Trouble::new("the trees hold different entries")) }
}

/// Insists that permission bits and modification times (to the nanosecond) of both trees are the same.
///
/// # Errors
/// With the lines that differ.
#[track_caller]
pub fn same_attributes(left: &Path, right: &Path) -> Checked {
    compare_attributes(left, right, "%P %m %T@")
}

/// Insists that permission bits are the same.
///
/// # Errors
/// With the lines that differ.
#[track_caller]
pub fn same_modes(left: &Path, right: &Path) -> Checked {
    compare_attributes(left, right, "%P %m")
}

#[track_caller]
fn compare_attributes(left: &Path, right: &Path, format: &str) -> Checked {
    let list = |root: &Path| -> Checked<Vec<String>> {
        let out = Run::new(program("find")?, None)
            .arg(root)
            .args(["-printf", &format!("{format}\\0")])
            .succeed()?;
        let mut lines: Vec<String> = out.stdout.split('\0').map(str::to_owned).collect();
        lines.sort();
        Ok(lines)
    };
    let (ours, theirs) = (list(left)?, list(right)?);
    let differing: Vec<String> = ours
        .iter()
        .zip(&theirs)
        .filter(|(a, b)| a != b)
        .take(10)
        .map(|(a, b)| format!("{a:?} and {b:?}"))
        .collect();
    if ours.len() == theirs.len() && differing.is_empty() {
        return Ok(());
    }
    Err(Trouble::new(format!("attributes differ:\n{}", differing.join("\n"))))
}

/// The SHA-256 of a file, by sha256sum.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> Checked<String> {
    let input = std::fs::File::open(path)?;
    let out = Run::new(program("sha256sum")?, None).stdin(input).succeed()?;
    Ok(out.stdout.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Insists that two files have one SHA-256.
///
/// # Errors
/// When they do not.
#[track_caller]
pub fn same_sha256(left: &Path, right: &Path) -> Checked {
    let (a, b) = (sha256(left)?, sha256(right)?);
    if a == b {
        Ok(())
    } else {
        Err(Trouble::new(format!("{}: {a}, {}: {b}", left.display(), right.display())))
    }
}

/// What lies in a directory, names only, sorted; non-UTF-8 names lossily.
///
/// # Errors
/// When it cannot be read.
pub fn names(directory: &Path) -> Checked<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Insists that a directory holds exactly these names: nothing is missing and nothing was left behind.
///
/// # Errors
/// With the names that are there.
#[track_caller]
pub fn holds_only(directory: &Path, expected: &[&str]) -> Checked {
    let found = names(directory)?;
    let mut expected: Vec<String> = expected.iter().map(|name| (*name).to_owned()).collect();
    expected.sort();
    if found == expected {
        return Ok(());
    }
    Err(Trouble::new(format!("{} holds {found:?}, not {expected:?}", directory.display())))
}
