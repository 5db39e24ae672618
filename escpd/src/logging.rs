//! Where log lines go, how they look, and what is too unimportant for them.
//!
//! Names of files and text of peers are data of strangers: nothing that reaches a log line can end it,
//! colour it or turn its direction. Secrets have no `Debug` that prints them, and no code logs one.

use escp_config::{Log, LogFormat, LogLevel, LogTarget};
use escp_ipc::link::LogChoice;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt, reload};

/// Where a service manager says which standard error leads to the journal. Workers inherit both.
pub(crate) const JOURNAL_STREAM: &str = "JOURNAL_STREAM";

/// The log of this process: what can be changed while it runs.
#[derive(Debug)]
pub(crate) struct Logging {
    level: reload::Handle<Targets, Registry>,
    file: Option<Arc<LogFile>>,
}

/// A log that could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The file of `log.target`.
    #[error("cannot open the log {}: {error}", path.to_string_lossy().escape_debug())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The journal.
    #[error("cannot reach the journal: {0}; set log.target to stderr or a file")]
    Journal(io::Error),
    /// Something else of this process logs already.
    #[error("the log is already open: {0}")]
    Twice(#[from] tracing_subscriber::util::TryInitError),
}

impl Logging {
    /// Opens the log of this process; once.
    ///
    /// # Errors
    /// A file or journal that cannot be opened.
    pub(crate) fn start(log: &Log) -> Result<Self, LogError> {
        let (filter, level) = reload::Layer::new(targets(log.level));
        let (sink, file) = sink(log)?;
        tracing_subscriber::registry().with(filter).with(sink).try_init()?;
        Ok(Self { level, file })
    }

    /// Logs from this level on, at once.
    pub(crate) fn set_level(&self, level: LogLevel) {
        if let Err(error) = self.level.reload(targets(level)) {
            tracing::warn!("the log level stays as it was: {error}");
        }
    }

    /// Opens the log file again, after it was rotated. Nothing to do for other targets.
    ///
    /// # Errors
    /// The file cannot be opened; the old one stays in use.
    pub(crate) fn reopen(&self) -> Result<(), LogError> {
        self.file.as_ref().map_or(Ok(()), |file| file.reopen())
    }
}

/// What the broker tells a worker of its own log.
pub(crate) fn to_choice(log: &Log) -> LogChoice {
    LogChoice {
        level: LogLevel::ALL.iter().position(|level| *level == log.level).unwrap_or_default(),
        json: log.format == LogFormat::Json,
        journald: log.target == LogTarget::Journald,
        file: match &log.target {
            LogTarget::File(path) => Some(path.clone()),
            LogTarget::Stderr | LogTarget::Journald => None,
        },
    }
}

/// What a worker makes of it.
pub(crate) fn from_choice(choice: LogChoice) -> Log {
    Log {
        level: LogLevel::ALL.get(choice.level).copied().unwrap_or(LogLevel::Info),
        format: if choice.json { LogFormat::Json } else { LogFormat::Text },
        target: match choice.file {
            Some(path) => LogTarget::File(path),
            None if choice.journald => LogTarget::Journald,
            None => LogTarget::Stderr,
        },
    }
}

type Sink = Box<dyn Layer<reload_stack::Filtered> + Send + Sync>;

mod reload_stack {
    use tracing_subscriber::filter::Targets;
    use tracing_subscriber::layer::Layered;
    use tracing_subscriber::{Registry, reload};

    /// What the sink is stacked on: the registry behind its filter.
    pub(super) type Filtered = Layered<reload::Layer<Targets, Registry>, Registry>;
}

/// escp's own events from `level` on; of libraries only what is grave.
fn targets(level: LogLevel) -> Targets {
    let own = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    Targets::new().with_target("escp", own).with_default(own.min(LevelFilter::WARN))
}

fn sink(log: &Log) -> Result<(Sink, Option<Arc<LogFile>>), LogError> {
    match &log.target {
        LogTarget::Journald => {
            let journal = tracing_journald::layer().map_err(LogError::Journal)?;
            Ok((journal.with_syslog_identifier("escpd".to_owned()).boxed(), None))
        }
        LogTarget::Stderr => Ok((lines(log.format, !goes_to_journal(), || Clean(io::stderr())), None)),
        LogTarget::File(path) => {
            let file = Arc::new(LogFile::open(path)?);
            let writer = Arc::clone(&file);
            Ok((lines(log.format, true, move || Clean(SharedFile(Arc::clone(&writer)))), Some(file)))
        }
    }
}

/// Whether standard error leads to the journal, which keeps the time of each line itself (systemd.exec(5)).
fn goes_to_journal() -> bool {
    let said = std::env::var(JOURNAL_STREAM).unwrap_or_default();
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| said == format!("{}:{}", stat.st_dev, stat.st_ino))
}

fn lines<W>(format: LogFormat, timed: bool, writer: W) -> Sink
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let layer = fmt::layer().with_ansi(false).with_writer(writer);
    match (format, timed) {
        (LogFormat::Text, true) => layer.boxed(),
        (LogFormat::Text, false) => layer.without_time().boxed(),
        (LogFormat::Json, true) => layer.json().flatten_event(true).boxed(),
        (LogFormat::Json, false) => layer.json().flatten_event(true).without_time().boxed(),
    }
}

/// A log file that can be opened again.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    fn open(path: &Path) -> Result<Self, LogError> {
        Ok(Self { path: path.to_path_buf(), file: Mutex::new(open(path)?) })
    }

    fn reopen(&self) -> Result<(), LogError> {
        let file = open(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
        Ok(())
    }
}

/// Appending, so that broker and workers write whole lines into one file; never through a symlink, which
/// whoever may write to the directory could have planted.
fn open(path: &Path) -> Result<File, LogError> {
    let nofollow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or_default();
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(0o640).custom_flags(nofollow);
    options.open(path).map_err(|error| LogError::File { path: path.to_path_buf(), error })
}

struct SharedFile(Arc<LogFile>);

impl Write for SharedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// Writes log lines with everything escaped that a terminal, or a reader's eye, could take for something
/// else. The formatter hands over a whole line at a time.
struct Clean<W>(W);

impl<W: Write> Write for Clean<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(clean(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

fn clean(line: &str) -> Cow<'_, str> {
    let body = line.strip_suffix('\n').unwrap_or(line);
    if !body.chars().any(misleading) {
        return Cow::Borrowed(line);
    }
    let mut cleaned = String::with_capacity(line.len() + 16);
    for c in body.chars() {
        if misleading(c) {
            // The form that JSON knows too, so that a line of JSON stays one. Writing to a String cannot fail.
            let _ = write!(cleaned, "\\u{:04x}", u32::from(c));
        } else {
            cleaned.push(c);
        }
    }
    cleaned.push_str(&line[body.len()..]);
    Cow::Owned(cleaned)
}

/// Control characters, line and paragraph separators, and what turns the direction of text.
fn misleading(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(level: LogLevel, format: LogFormat, work: impl FnOnce(&Logging, &Path)) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("escpd.log");
        let log = Log { level, format, target: LogTarget::File(path.clone()) };
        let (filter, level) = reload::Layer::new(targets(log.level));
        let (sink, file) = sink(&log).unwrap();
        let logging = Logging { level, file };
        let subscriber = tracing_subscriber::registry().with(filter).with(sink);
        tracing::subscriber::with_default(subscriber, || work(&logging, &path));
        std::fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_worker_logs_as_its_broker_does() {
        for level in LogLevel::ALL {
            for format in [LogFormat::Text, LogFormat::Json] {
                for target in [LogTarget::Stderr, LogTarget::Journald, LogTarget::File("/a/b.log".into())] {
                    let log = Log { level, format, target };
                    assert_eq!(from_choice(to_choice(&log)), log);
                }
            }
        }
    }

    #[test]
    fn the_level_can_be_changed_and_libraries_stay_quiet() {
        let text = logged(LogLevel::Info, LogFormat::Text, |logging, _| {
            tracing::debug!("one");
            tracing::info!("two");
            tracing::info!(target: "hyper", "three");
            tracing::warn!(target: "hyper", "four");
            logging.set_level(LogLevel::Debug);
            tracing::debug!("five");
            tracing::debug!(target: "hyper", "six");
            logging.set_level(LogLevel::Error);
            tracing::warn!("seven");
            tracing::warn!(target: "hyper", "eight");
        });
        let said: Vec<bool> = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
            .iter()
            .map(|word| text.contains(word))
            .collect();
        assert_eq!(said, [false, true, false, true, true, false, false, false], "{text}");
    }

    #[test]
    fn nothing_that_is_logged_ends_or_colours_the_line() {
        let evil = "a\nERROR forged\r\u{1b}[2J\u{9b}31m\u{202e}gpj";
        for format in [LogFormat::Text, LogFormat::Json] {
            let text = logged(LogLevel::Info, format, |_, _| {
                tracing::info!(name = evil, shown = %evil, debugged = ?evil, "message {evil}");
            });
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(text.trim_end_matches('\n').chars().all(|c| !misleading(c)), "{text}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(line["name"], evil);
                assert_eq!(line["level"], "INFO");
            }
        }
    }

    #[test]
    fn a_rotated_file_is_opened_again() {
        let text = logged(LogLevel::Info, LogFormat::Text, |logging, path| {
            tracing::info!("before");
            std::fs::rename(path, path.with_extension("1")).unwrap();
            tracing::info!("between");
            logging.reopen().unwrap();
            tracing::info!("after");
            let old = std::fs::read_to_string(path.with_extension("1")).unwrap();
            assert!(old.contains("before") && old.contains("between"), "{old}");
        });
        assert!(text.contains("after") && !text.contains("between"), "{text}");
    }

    #[test]
    fn a_log_file_that_cannot_be_opened_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp/elsewhere", &link).unwrap();
        for path in [link, dir.path().join("no/such/directory")] {
            let error = LogFile::open(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot open the log {}", path.display())), "{error}");
        }
    }
}
