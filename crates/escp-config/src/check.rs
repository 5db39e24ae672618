//! `escpd --check-config`: every problem of a configuration at once, each with its line.

use crate::{Config, ConfigError, DEFAULT_PATH, LogTarget, format_size, load};
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::path::Path;

/// Most errors that are listed: what follows more than these is rarely a configuration at all.
const MAX_ERRORS: usize = 20;

/// What [`check`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The configuration, if it can be used.
    pub config: Option<Config>,
    /// Everything found, errors first, in the order of the file.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong or suspicious.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether the configuration can be used in spite of it.
    pub weight: Weight,
    /// What and where.
    pub what: ConfigError,
}

/// How much a [`Finding`] weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// escpd refuses to start, and a reload keeps the old configuration.
    Error,
    /// It can be used, but probably means something else than what was wanted.
    Warning,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.weight {
            Weight::Error => write!(f, "error: {}", self.what),
            Weight::Warning => write!(f, "warning: {}", self.what),
        }
    }
}

/// Checks the configuration at `path`, or the default one, against itself and against this host.
#[must_use]
pub fn check(path: Option<&Path>) -> Findings {
    let file = path.unwrap_or(Path::new(DEFAULT_PATH));
    match load::text(file) {
        Ok(text) => check_text(&text, file),
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => check_text("", file),
        Err(error) => Findings {
            config: None,
            findings: vec![Finding { weight: Weight::Error, what: load::unreadable(&error).file(file) }],
        },
    }
}

fn check_text(text: &str, file: &Path) -> Findings {
    let mut skip = BTreeSet::new();
    let mut errors: Vec<ConfigError> = Vec::new();
    let config = loop {
        match load::pass(text, &skip) {
            Ok(config) => break config,
            Err(stop) => {
                errors.push(stop.error);
                match stop.occurrence {
                    Some(occurrence) if errors.len() < MAX_ERRORS => skip.insert(occurrence),
                    _ => return refused(errors, file),
                };
            }
        }
    };
    if let Err(error) = config.cpus() {
        let line = error.key_name().and_then(|key| load::line_of(text, key));
        errors.push(error.line(line));
    }
    if !errors.is_empty() {
        return refused(errors, file);
    }
    let findings = suspicions(&config)
        .into_iter()
        .map(|(key, reason)| {
            let what = ConfigError::new(reason).key(key).line(load::line_of(text, key)).file(file);
            Finding { weight: Weight::Warning, what }
        })
        .collect();
    Findings { config: Some(config), findings }
}

fn refused(errors: Vec<ConfigError>, file: &Path) -> Findings {
    let findings = errors.into_iter().map(|what| Finding { weight: Weight::Error, what: what.file(file) });
    Findings { config: None, findings: findings.collect() }
}

/// What can be used but is probably not meant.
fn suspicions(config: &Config) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let limits = &config.limits;
    if let Some(address) = config.metrics {
        if config.ports.contains(address.port()) {
            let port = address.port();
            found.push(("metrics", format!("port {port} is also one of ports {}", config.ports)));
        }
        if !address.ip().is_loopback() {
            found.push(("metrics", format!("{address} is not loopback: anyone who reaches it can read it")));
        }
    }
    if config.ports.first < 1024 {
        let needs = "ports below 1024 need a capability that escpd.service does not have";
        found.push(("ports", needs.to_owned()));
    }
    if limits.sessions_per_uid > limits.sessions {
        let (per_uid, all) = (limits.sessions_per_uid, limits.sessions);
        found.push(("limits.sessions_per_uid", format!("{per_uid} of one user, but only {all} in all")));
    }
    if limits.unproven_per_address <= usize::from(config.streams) {
        let needed = usize::from(config.streams) + 1;
        found.push((
            "limits.unproven_per_address",
            format!("{} is less than the {needed} connections of one transfer", limits.unproven_per_address),
        ));
    }
    if limits.depth(config.streams, config.block_size, config.depth) < config.depth {
        found.push((
            "limits.memory_per_session",
            format!(
                "{} is less than {} streams x {} blocks of {}: transfers get fewer blocks",
                format_size(limits.memory_per_session),
                config.streams,
                config.depth,
                format_size(config.block_size.into())
            ),
        ));
    }
    if let LogTarget::File(path) = &config.log.target
        && !path.parent().is_some_and(Path::is_dir)
    {
        found.push(("log.target", format!("the directory of {} does not exist", path.display())));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<String> {
        check_text(text, Path::new("f")).findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_file_has_no_findings() {
        assert_eq!(said("ports: 2000-2001\n"), Vec::<String>::new());
        assert!(check_text("", Path::new("f")).config.is_some());
    }

    #[test]
    fn every_error_is_listed_with_its_line() {
        let text = "prots: 1\nstreams: 0\nlimits:\n  sessions: x\n  sessions: 2\nports: 1232\nlog: 3\n";
        let lines: Vec<_> = check_text(text, Path::new("f"))
            .findings
            .iter()
            .map(|finding| finding.what.line_number())
            .collect();
        assert_eq!(lines, [Some(1), Some(2), Some(4), Some(7)]);
        assert!(check_text(text, Path::new("f")).config.is_none());
        assert!(said(text)[0].starts_with("error: f:1: prots: "));
    }

    #[test]
    fn a_broken_document_ends_the_list() {
        let found = said("streams: 0\nports: 1\n  x: 2\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with("error: f:3: not understood"), "{found:?}");
    }

    #[test]
    fn suspicions_are_warnings_with_the_line() {
        let text =
            "metrics: 0.0.0.0:1240\nports: 80-1300\nlimits:\n  sessions: 2\n  unproven_per_address: 3\n";
        assert_eq!(check_text("metrics: 0.0.0.0:1240\n", Path::new("f")).findings.len(), 2);
        assert!(said("ports: 80\n")[0].starts_with("warning: f:1: ports: ports below 1024"));
        assert!(said("limits:\n  sessions: 2\n")[0].contains("f: limits.sessions_per_uid: 16 of one user"));
        assert!(said("limits:\n  unproven_per_address: 3\n")[0].contains("f:2: limits.unproven_per_address"));
        assert!(said("depth: 64\nstreams: 60\n")[0].contains("transfers get fewer blocks"));
        assert!(said("log:\n  target: /nowhere/at/all\n")[0].contains("does not exist"));
        assert!(said(&text.replace("80-1300", "1100-1300")).iter().all(|line| line.starts_with("warning")));
    }

    #[test]
    fn a_mask_without_a_cpu_of_this_host_is_an_error() {
        let mask = format!("8{}", "0".repeat(2047));
        let found = said(&format!("ports: 1232\ncpumask: {mask}\n"));
        assert!(found[0].starts_with("error: f:2: cpumask: none of the CPUs"), "{found:?}");
    }
}
