//! Remarks to stderr, and a structured log to a file or syslog.

use crate::args::MessageArgs;
use crate::screen::Screen;
use escp_agent::escape::escaped;
use std::ffi::OsStr;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::filter::{dynamic_filter_fn, filter_fn};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

type BoxedLayer<S> = Box<dyn Layer<S> + Send + Sync>;

/// The verbosity that flags ask for, on either host.
pub(crate) fn wanted(messages: &MessageArgs) -> u8 {
    if messages.quiet { 0 } else { messages.verbose.saturating_add(1) }
}

/// How much goes to stderr; may change while the program runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Verbosity(Arc<AtomicU8>);

impl Verbosity {
    /// Errors only at 0, then warnings, remarks, decisions, everything: see [`wanted`].
    pub(crate) fn set(&self, level: u8) {
        self.0.store(level, Ordering::Relaxed);
    }

    fn level(&self) -> LevelFilter {
        match self.0.load(Ordering::Relaxed) {
            0 => LevelFilter::ERROR,
            1 => LevelFilter::WARN,
            2 => LevelFilter::INFO,
            3 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        }
    }
}

/// Other crates' logs may hold anything; only escp's own are known to hold no secret.
fn ours(metadata: &Metadata<'_>) -> bool {
    metadata.target().starts_with("escp")
}

/// Starts logging: remarks to stderr behind `prefix`, and what is worth keeping to `logfile`.
///
/// # Errors
/// One sentence, when the log cannot be opened.
pub(crate) fn start(
    prefix: &'static str,
    verbosity: &Verbosity,
    logfile: Option<&OsStr>,
    screen: Option<Arc<Screen>>,
) -> Result<(), String> {
    let log = logfile.map(file_or_syslog).transpose()?;
    subscriber(prefix, verbosity, log, screen).try_init().map_err(|error| error.to_string())
}

fn subscriber(
    prefix: &'static str,
    verbosity: &Verbosity,
    log: Option<BoxedLayer<Registry>>,
    screen: Option<Arc<Screen>>,
) -> impl Subscriber + Send + Sync {
    let level = verbosity.clone();
    let remarks = tracing_subscriber::fmt::layer()
        .event_format(Plain { prefix })
        .with_writer(Stderr { screen })
        .with_filter(dynamic_filter_fn(move |metadata, _| {
            ours(metadata) && *metadata.level() <= level.level()
        }));
    let kept = log.as_ref().map(|_| verbosity.level().max(LevelFilter::INFO));
    let is_kept = move |metadata: &Metadata<'_>| kept.is_some_and(|kept| *metadata.level() <= kept);
    let log =
        log.map(|layer| layer.with_filter(filter_fn(move |metadata| ours(metadata) && is_kept(metadata))));
    // The filters of single layers let everything be put into words before they look at it; this one looks first.
    let level = verbosity.clone();
    let first = dynamic_filter_fn(move |metadata, _| {
        ours(metadata) && (*metadata.level() <= level.level() || is_kept(metadata))
    });
    tracing_subscriber::registry().with(log).with(remarks).with(first)
}

fn file_or_syslog<S>(name: &OsStr) -> Result<BoxedLayer<S>, String>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    if let Some(facility) = name.to_str().and_then(facility) {
        let options = syslog_tracing::Options::LOG_PID;
        let syslog = syslog_tracing::Syslog::new(c"escp", options, facility)
            .ok_or("--logfile: syslog is open already")?;
        let layer = tracing_subscriber::fmt::layer().without_time().with_ansi(false).with_level(false);
        return Ok(layer.with_writer(Clean(syslog)).boxed());
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(name)
        .map_err(|error| format!("--logfile {}: {error}", escaped(name.as_encoded_bytes())))?;
    Ok(tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Clean(Arc::new(file))).boxed())
}

fn facility(name: &str) -> Option<syslog_tracing::Facility> {
    use syslog_tracing::Facility;
    Some(match name {
        "LOCAL0" => Facility::Local0,
        "LOCAL1" => Facility::Local1,
        "LOCAL2" => Facility::Local2,
        "LOCAL3" => Facility::Local3,
        "LOCAL4" => Facility::Local4,
        "LOCAL5" => Facility::Local5,
        "LOCAL6" => Facility::Local6,
        "LOCAL7" => Facility::Local7,
        _ => return None,
    })
}

/// Writes lines of a log with everything escaped that could end a line or drive a terminal: much of what is logged was
/// said by the other side. The formatter hands over a whole line at a time.
struct Clean<T>(T);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Clean<M> {
    type Writer = Clean<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Clean(self.0.make_writer())
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Self::Writer {
        Clean(self.0.make_writer_for(metadata))
    }
}

impl<W: Write> Write for Clean<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut clean = escaped(line.strip_suffix(b"\n").unwrap_or(line)).into_bytes();
        if line.ends_with(b"\n") {
            clean.push(b'\n');
        }
        self.0.write_all(&clean)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// A remark on one line, as people read it.
struct Plain {
    prefix: &'static str,
}

impl<S, N> FormatEvent<S, N> for Plain
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        context.field_format().format_fields(Writer::new(&mut line), event)?;
        writeln!(writer, "{}: {}", self.prefix, escaped(line.as_bytes()))
    }
}

/// Stderr, without tearing the progress bar.
struct Stderr {
    screen: Option<Arc<Screen>>,
}

struct Line<'a> {
    screen: Option<&'a Screen>,
}

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { screen: self.screen.as_deref() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.screen {
            Some(screen) => screen.beside_bar(|| io::stderr().write(bytes)),
            None => io::stderr().write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn what_nobody_reads_is_not_put_into_words() {
        let verbosity = Verbosity::default();
        verbosity.set(1);
        let subscriber = subscriber("escp", &verbosity, None, None);
        tracing::subscriber::with_default(subscriber, || {
            let said = std::cell::Cell::new(0);
            let word = || said.replace(said.get() + 1);
            tracing::debug!("{}", word());
            assert_eq!(said.get(), 0, "nobody asked for it");
            verbosity.set(3);
            tracing::debug!("{}", word());
            assert_eq!(said.get(), 1, "-vv");
        });
    }

    #[test]
    fn only_the_eight_local_facilities_are_syslog() {
        for number in 0..8 {
            assert!(facility(&format!("LOCAL{number}")).is_some());
        }
        for file in ["LOCAL8", "local0", "LOCAL", "/var/log/escp"] {
            assert!(facility(file).is_none(), "{file}");
        }
    }

    #[test]
    fn verbosity_rises_with_every_v() {
        let verbosity = Verbosity::default();
        let mut levels = Vec::new();
        for flags in [&["-q"][..], &[], &["-v"], &["-vv"], &["-vvv"], &["-vvvvv"]] {
            let line = std::iter::once(&"escp").chain(flags).chain(&["a", "b:"]);
            let args = crate::args::Args::try_parse_from(line).unwrap();
            verbosity.set(wanted(&args.messages));
            levels.push(verbosity.level());
        }
        use LevelFilter as L;
        assert_eq!(levels, [L::ERROR, L::WARN, L::INFO, L::DEBUG, L::TRACE, L::TRACE]);
    }

    #[test]
    fn no_text_forges_a_line_of_the_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let log = file_or_syslog(path.as_os_str()).unwrap();
        let evil = "lost\nERROR forged\r\u{1b}[2J\u{9b}31m\u{2028}\u{202e}gpj";
        let verbosity = Verbosity::default();
        tracing::subscriber::with_default(subscriber("escp", &verbosity, Some(log), None), || {
            tracing::info!(field = evil, shown = %evil, "data1: {evil}");
        });
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with('\n') && text.contains("\\nERROR forged"), "{text}");
        let line = text.trim_end_matches('\n');
        assert_eq!(escaped(line.as_bytes()), line, "something is left to escape");
    }
}
