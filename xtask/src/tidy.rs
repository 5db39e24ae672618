//! `cargo xtask tidy`: the rules of the tree that no compiler checks.
//!
//! A rule looks at one file, or at Cargo's metadata, and returns findings. There are no exceptions by
//! comment: a rule that needs one is changed here, where the reason can be read.

mod arrows;
mod rules;
mod source;

use crate::run;
use source::SourceFile;
use std::fmt;
use std::path::PathBuf;

/// Something that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Path below the workspace's root, or a package's name.
    pub(crate) place: String,
    /// Line, from 1; 0 for the whole file.
    pub(crate) line: usize,
    /// What is wrong and what to do instead.
    pub(crate) text: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.place, self.text),
            line => write!(f, "{}:{line}: {}", self.place, self.text),
        }
    }
}

/// Runs every rule over the tree.
pub(crate) fn run(_arguments: &[String]) -> Result<(), String> {
    let files = tracked()?;
    let mut findings = arrows::check(&metadata()?)?;
    for file in &files {
        findings.extend(rules::check(file));
    }
    findings.extend(rules::check_together(&files));
    for finding in &findings {
        run::say(&finding.to_string());
    }
    if findings.is_empty() {
        run::say(&format!("tidy: {} files, nothing to say", files.len()));
        Ok(())
    } else {
        Err(format!("tidy: {} findings", findings.len()))
    }
}

fn metadata() -> Result<serde_json::Value, String> {
    let text =
        run::output(run::cargo().args(["metadata", "--no-deps", "--format-version", "1", "--locked"]))?;
    serde_json::from_str(&text).map_err(|error| format!("cargo metadata printed no JSON: {error}"))
}

/// Every text file that is committed or would be.
fn tracked() -> Result<Vec<SourceFile>, String> {
    let listing = run::output(run::program("git").args([
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
    ]))?;
    let mut names: Vec<&str> = listing.split_terminator('\0').collect();
    names.sort_unstable();
    names.dedup();
    let mut files = Vec::new();
    for name in names {
        let path: PathBuf = run::root().join(name);
        // Binary files (fuzzing corpora, vectors) are not text, and a deleted file may still be listed.
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        files.push(SourceFile::new(name, text));
    }
    Ok(files)
}
