//! What is said at the end: failed files, the reason of a session's failure, the summary.

use crate::figures::{Figures, counted, precise, size};
use escp_agent::escape::{escaped, foreign_text};
use escp_agent::link::SessionError;
use escp_agent::status;
use escp_agent::tally::{FailedFile, Tally};
use std::fmt::Write as _;
use std::time::Duration;

/// Most characters of a sentence that may come from the other side.
const MAX_SENTENCE: usize = 2000;

/// What is printed at the end, and the exit status.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// For stdout.
    pub(crate) out: String,
    /// For stderr.
    pub(crate) err: String,
    /// The exit status.
    pub(crate) status: u8,
}

/// A failed file on one line, without the program's name: `HOST:PATH: why`.
pub(crate) fn failure(failed: &FailedFile) -> String {
    let host = if failed.host.is_empty() { String::new() } else { format!("{}:", failed.host) };
    format!(
        "{}{}: {}",
        foreign_text(&host, 300),
        escaped(&failed.path),
        foreign_text(&failed.text, MAX_SENTENCE)
    )
}

/// Composes the report of a session that lasted `time` from its first file on.
pub(crate) fn compose(
    ended: &Result<Tally, SessionError>,
    so_far: &Tally,
    time: Duration,
    figures: Figures,
    quiet: bool,
) -> Report {
    let tally = ended.as_ref().unwrap_or(so_far);
    let mut report = Report { status: tally.status(), ..Report::default() };
    // Writing to a String cannot fail.
    for failed in &tally.kept {
        let _ = writeln!(report.err, "escp: {}", failure(failed));
    }
    let unnamed = tally.failed.saturating_sub(tally.kept.len() as u64);
    if unnamed > 0 {
        let _ = writeln!(report.err, "escp: and {}", counted(unnamed, "more failure", "more failures"));
    }
    match ended {
        Err(error) => {
            report.status = status::gravest(report.status, error.status);
            let _ = writeln!(report.err, "escp: {}", foreign_text(&error.text, MAX_SENTENCE));
            if so_far.files > 0 {
                let arrived = counted(so_far.files, "file", "files");
                let _ = writeln!(report.err, "escp: {arrived} had arrived whole before that");
            }
        }
        Ok(tally) if !quiet => {
            let _ = writeln!(report.out, "{}", summary(tally, time, figures));
        }
        Ok(_) => {}
    }
    report
}

/// `1,234 files, 7.00 GiB in 6.1 s, 1.15 GiB/s; 3 failed`.
fn summary(tally: &Tally, time: Duration, figures: Figures) -> String {
    let mut line = counted(tally.files, "file", "files");
    if tally.directories > 0 {
        let _ = write!(line, ", {}", counted(tally.directories, "directory", "directories"));
    }
    let millis = time.as_millis().max(1);
    let rate = u128::from(tally.bytes) * 1000 / millis;
    let rate = u64::try_from(rate).unwrap_or(u64::MAX);
    let _ = write!(line, ", {} in {}", size(tally.bytes), precise(time));
    let _ = write!(line, ", {}", figures.rate(rate));
    if tally.failed > 0 {
        let _ = write!(line, "; {} failed", tally.failed);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(path: &[u8], integrity: bool) -> FailedFile {
        FailedFile { host: "data1".into(), path: path.to_vec(), text: "Permission denied".into(), integrity }
    }

    fn lost() -> SessionError {
        SessionError { status: status::LOST, text: "the connection to data1 was lost".into() }
    }

    #[test]
    fn a_good_session_is_one_line_on_stdout() {
        let tally = Tally { files: 1234, bytes: 7 << 30, directories: 1, ..Tally::default() };
        let time = Duration::from_millis(6100);
        let report = compose(&Ok(tally.clone()), &Tally::default(), time, Figures::default(), false);
        assert_eq!(report.out, "1,234 files, 1 directory, 7.00 GiB in 6.1 s, 1.14 GiB/s\n");
        assert_eq!((report.err.as_str(), report.status), ("", 0));
        let quiet = compose(&Ok(tally), &Tally::default(), time, Figures::default(), true);
        assert_eq!(quiet, Report::default());
    }

    #[test]
    fn failures_are_named_even_when_quiet() {
        let mut tally = Tally { files: 1, ..Tally::default() };
        tally.fail(failed(b"a\x1b[2Jb", false));
        let report = compose(&Ok(tally), &Tally::default(), Duration::ZERO, Figures::default(), true);
        assert_eq!(report.err, "escp: data1:a\\x1b[2Jb: Permission denied\n");
        assert_eq!((report.out.as_str(), report.status), ("", 1));
    }

    #[test]
    fn a_thousand_failures_are_named_and_the_rest_counted() {
        let mut tally = Tally::default();
        (0..1234).for_each(|_| tally.fail(failed(b"x", false)));
        let report = compose(&Ok(tally), &Tally::default(), Duration::ZERO, Figures::default(), false);
        assert_eq!(report.err.lines().count(), 1001);
        assert!(report.err.ends_with("escp: and 234 more failures\n"), "{}", report.err);
        assert!(report.out.ends_with("; 1234 failed\n"), "{}", report.out);
    }

    #[test]
    fn the_gravest_status_wins() {
        let figures = Figures::default();
        let mut altered = Tally::default();
        altered.fail(failed(b"x", true));
        let status = |ended, so_far: &Tally| compose(&ended, so_far, Duration::ZERO, figures, false).status;
        assert_eq!(status(Ok(altered.clone()), &Tally::default()), 5);
        assert_eq!(status(Err(lost()), &altered), 5, "lost, but altered before");
        assert_eq!(status(Err(lost()), &Tally::default()), 4);
        let interrupted = SessionError { status: status::INTERRUPTED, text: "interrupted".into() };
        assert_eq!(status(Err(interrupted), &altered), 130);
    }

    #[test]
    fn a_lost_session_says_what_arrived() {
        let so_far = Tally { files: 3, ..Tally::default() };
        let report = compose(&Err(lost()), &so_far, Duration::ZERO, Figures::default(), false);
        assert_eq!(
            report.err,
            "escp: the connection to data1 was lost\nescp: 3 files had arrived whole before that\n"
        );
        assert_eq!(report.out, "");
    }
}
