//! SIGHUP and --check-config: the configuration read again, or only looked at.

use crate::logging::Logging;
use escp_config::{Applies, Change, Config, ConfigError, Weight};
use std::io::{self, Write};
use std::path::Path;

/// What a reload led to.
#[derive(Debug)]
pub(crate) enum Reloaded {
    /// The new configuration counts, as far as it can without a restart.
    Taken {
        /// What the daemon works with from now on.
        config: Box<Config>,
        /// Keys that changed and that are in force.
        applied: Vec<Change>,
        /// Keys that changed and that wait for a restart.
        waiting: Vec<Change>,
    },
    /// The file is broken: everything stays as it was.
    Kept(ConfigError),
}

/// Reads the configuration again. `file` as given with --config; `overrides` puts back what the command line
/// decided; `running` is what the daemon works with now.
pub(crate) fn read(file: Option<&Path>, overrides: impl FnOnce(&mut Config), running: &Config) -> Reloaded {
    let new = Config::load(file).and_then(|mut config| {
        overrides(&mut config);
        config.cpus()?;
        Ok(config)
    });
    match new {
        Err(error) => Reloaded::Kept(error),
        Ok(new) => {
            let changes =
                running.changes(&new).into_iter().filter(|change| change.applies != Applies::NextRun);
            let (applied, waiting) = changes.partition(|change| change.applies == Applies::AtOnce);
            Reloaded::Taken { config: Box::new(running.reloaded(&new)), applied, waiting }
        }
    }
}

impl Reloaded {
    /// Puts the new log settings into force, opens a log file again, and says in the log what happened.
    /// Returns one sentence for the service manager.
    pub(crate) fn announce(&self, logging: &Logging) -> String {
        if let Err(error) = logging.reopen() {
            tracing::error!("{error}; the old file stays in use");
        }
        match self {
            Self::Kept(error) => {
                tracing::error!("configuration not reloaded, the old one stays in force: {error}");
                format!("configuration not reloaded: {error}")
            }
            Self::Taken { config, applied, waiting } => {
                logging.set_level(config.log.level);
                tracing::info!("configuration reloaded; {}", list(applied));
                if waiting.is_empty() {
                    return "configuration reloaded".to_owned();
                }
                let keys: Vec<&str> = waiting.iter().map(|change| change.key).collect();
                let needs = format!("a restart is needed for: {}", keys.join(", "));
                tracing::warn!("{needs} ({})", list(waiting));
                format!("configuration reloaded; {needs}")
            }
        }
    }
}

fn list(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "nothing changed".to_owned();
    }
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// `escpd --check-config`: says everything that is wrong with the configuration, line by line. Returns the
/// exit status: 0 when escpd would start with it, 2 when it would not.
///
/// # Errors
/// `out` cannot be written.
pub(crate) fn check(file: Option<&Path>, out: &mut impl Write) -> io::Result<u8> {
    let found = escp_config::check(file);
    for finding in &found.findings {
        writeln!(out, "{finding}")?;
    }
    let shown =
        file.unwrap_or(Path::new(escp_config::DEFAULT_PATH)).to_string_lossy().escape_debug().to_string();
    let errors = found.findings.iter().filter(|finding| finding.weight == Weight::Error).count();
    if found.config.is_none() {
        writeln!(
            out,
            "{shown}: {errors} error{}, escpd would not start",
            if errors == 1 { "" } else { "s" }
        )?;
        return Ok(2);
    }
    writeln!(out, "{shown}: can be used")?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_config::{LogLevel, PortRange};

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    /// The configuration depends on nothing of ours, so it has these numbers a second time.
    #[test]
    fn the_bounds_of_the_configuration_are_the_engines() {
        assert_eq!(escp_config::MIN_BLOCK_SIZE, escp_engine_api::MIN_BLOCK_SIZE);
        assert_eq!(escp_config::MAX_BLOCK_SIZE, escp_engine_api::MAX_BLOCK_SIZE);
        assert_eq!(escp_config::MAX_STREAMS, escp_engine_api::MAX_STREAMS);
        for engine in [escp_config::Engine::Uring, escp_config::Engine::Posix] {
            assert!(engine.name().parse::<escp_engine_api::EngineKind>().is_ok());
        }
    }

    #[test]
    fn what_can_be_applied_is_and_the_rest_is_named() {
        let running = Config::default();
        let file = file("ports: 2000\nlog:\n  level: debug\nlimits:\n  sessions: 3\nstreams: 8\n");
        let Reloaded::Taken { config, applied, waiting } = read(Some(file.path()), |_| {}, &running) else {
            panic!("not taken");
        };
        assert_eq!((config.log.level, config.limits.sessions), (LogLevel::Debug, 3));
        assert_eq!(config.ports, PortRange::DEFAULT);
        assert_eq!(
            applied.iter().map(|change| change.key).collect::<Vec<_>>(),
            ["limits.sessions", "log.level"]
        );
        assert_eq!(waiting.iter().map(|change| change.key).collect::<Vec<_>>(), ["ports"]);
        // A second reload still names what waits, and no more.
        let Reloaded::Taken { applied, waiting, .. } = read(Some(file.path()), |_| {}, &config) else {
            panic!("not taken");
        };
        assert_eq!((applied.len(), waiting.len()), (0, 1));
    }

    #[test]
    fn the_command_line_still_counts_after_a_reload() {
        let running = Config { metrics: None, ..Config::default() };
        let file = file("limits:\n  sessions: 5\n");
        let Reloaded::Taken { waiting, .. } =
            read(Some(file.path()), |config| config.metrics = None, &running)
        else {
            panic!("not taken");
        };
        assert!(waiting.is_empty(), "{waiting:?}");
    }

    #[test]
    fn a_broken_file_changes_nothing() {
        let file = file("limits:\n  sessions: 3\n  sesions: 4\n");
        let Reloaded::Kept(error) = read(Some(file.path()), |_| {}, &Config::default()) else {
            panic!("taken");
        };
        assert_eq!(error.line_number(), Some(3));
    }

    #[test]
    fn check_config_lists_every_mistake_and_decides_the_status() {
        let checked = |text: &str| {
            let (file, mut out) = (file(text), Vec::new());
            let status = check(Some(file.path()), &mut out).unwrap();
            (status, String::from_utf8(out).unwrap())
        };
        let (status, out) = checked("prots: 1\nstreams: 0\n");
        assert_eq!(status, 2);
        assert!(out.contains(":1: prots: is no known key; the nearest is ports\n"), "{out}");
        assert!(out.contains(":2: streams: ") && out.ends_with("2 errors, escpd would not start\n"), "{out}");
        let (status, out) = checked("ports: 80\n");
        assert_eq!(
            (status, out.starts_with("warning: "), out.ends_with(": can be used\n")),
            (0, true, true),
            "{out}"
        );
        assert_eq!(checked("").0, 0);
        let (status, missing) = {
            let mut out = Vec::new();
            (check(Some(Path::new("/nowhere/escp.conf")), &mut out).unwrap(), out)
        };
        assert_eq!(status, 2);
        assert!(String::from_utf8(missing).unwrap().contains("cannot read the configuration"));
    }
}
