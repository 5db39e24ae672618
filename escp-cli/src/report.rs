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

/// How a session ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The other host.
    pub(crate) host: String,
    /// What became of its files, or why nothing more did.
    pub(crate) outcome: Result<Tally, SessionError>,
    /// What had become of them until then.
    pub(crate) so_far: Tally,
    /// How long it lasted from its first file on.
    pub(crate) time: Duration,
}

/// How a report is worded.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Manner {
    /// Units.
    pub(crate) figures: Figures,
    /// Errors only.
    pub(crate) quiet: bool,
    /// Files were written in place: final names may hold parts.
    pub(crate) inplace: bool,
}

/// Composes the report of all sessions.
pub(crate) fn compose(ended: Vec<Ended>, manner: Manner) -> Report {
    let mut report = Report::default();
    let (mut tally, mut time) = (Tally::default(), Duration::ZERO);
    let (mut reasons, mut altered_from) = (Vec::new(), Vec::new());
    for Ended { host, outcome, so_far, time: lasted } in ended {
        time += lasted;
        let (results, status) = match outcome {
            Ok(results) => (results, status::GOOD),
            Err(error) => {
                reasons.push(foreign_text(&error.text, MAX_SENTENCE));
                (so_far, error.status)
            }
        };
        let status = status::gravest(status, results.status());
        report.status = status::gravest(report.status, status);
        if status == status::INTEGRITY {
            altered_from.push(host);
        }
        tally.add(results);
    }
    // Writing to a String cannot fail.
    for failed in &tally.kept {
        let _ = writeln!(report.err, "escp: {}", failure(failed));
    }
    let unnamed = tally.failed.saturating_sub(tally.kept.len() as u64);
    if unnamed > 0 {
        let _ = writeln!(report.err, "escp: and {}", counted(unnamed, "more failure", "more failures"));
    }
    // Several hosts may stumble over one thing, such as the target.
    reasons.dedup();
    for reason in &reasons {
        let _ = writeln!(report.err, "escp: {reason}");
    }
    if !reasons.is_empty() && tally.files > 0 {
        let arrived = counted(tally.files, "file", "files");
        let _ = writeln!(report.err, "escp: {arrived} arrived whole");
    }
    if let Some(advice) = advice(report.status, &altered_from, manner) {
        let _ = writeln!(report.err, "escp: {advice}");
    }
    if reasons.is_empty() && !manner.quiet {
        let _ = writeln!(report.out, "{}", summary(&tally, time, manner.figures));
    }
    report
}

/// What to do about a status that the reasons above do not say themselves, and what to rely on.
fn advice(status: u8, hosts: &[String], manner: Manner) -> Option<String> {
    let in_place = "what was written with --inplace may be incomplete";
    match status {
        status::LOST => {
            let left = if manner.inplace { in_place } else { "nothing partial has a final name" };
            Some(format!("{left}; run the same command again, it copies everything anew"))
        }
        status::INTEGRITY => {
            let left = if manner.inplace { in_place } else { "nothing altered has a final name" };
            let hosts = foreign_text(&hosts.join(" or "), 300);
            Some(format!(
                "{left}; run the same command again. If it happens again, something between here and {hosts} or the \
                 memory of one of the hosts alters data, or the two escp differ (escp -V): tell who runs them"
            ))
        }
        _ => None,
    }
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

    fn ended(outcome: Result<Tally, SessionError>, so_far: Tally) -> Ended {
        Ended { host: "data1".into(), outcome, so_far, time: Duration::from_millis(6100) }
    }

    fn composed(outcome: Result<Tally, SessionError>, so_far: Tally) -> Report {
        compose(vec![ended(outcome, so_far)], Manner::default())
    }

    #[test]
    fn a_good_session_is_one_line_on_stdout() {
        let tally = Tally { files: 1234, bytes: 7 << 30, directories: 1, ..Tally::default() };
        let report = composed(Ok(tally.clone()), Tally::default());
        assert_eq!(report.out, "1,234 files, 1 directory, 7.00 GiB in 6.1 s, 1.14 GiB/s\n");
        assert_eq!((report.err.as_str(), report.status), ("", 0));
        let quiet = Manner { quiet: true, ..Manner::default() };
        assert_eq!(compose(vec![ended(Ok(tally), Tally::default())], quiet), Report::default());
    }

    #[test]
    fn failures_are_named_even_when_quiet() {
        let mut tally = Tally { files: 1, ..Tally::default() };
        tally.fail(failed(b"a\x1b[2Jb", false));
        let quiet = Manner { quiet: true, ..Manner::default() };
        let report = compose(vec![ended(Ok(tally), Tally::default())], quiet);
        assert_eq!(report.err, "escp: data1:a\\x1b[2Jb: Permission denied\n");
        assert_eq!((report.out.as_str(), report.status), ("", 1));
    }

    #[test]
    fn a_thousand_failures_are_named_and_the_rest_counted() {
        let mut tally = Tally::default();
        (0..1234).for_each(|_| tally.fail(failed(b"x", false)));
        let report = composed(Ok(tally.clone()), Tally::default());
        assert_eq!(report.err.lines().count(), 1001);
        assert!(report.err.ends_with("escp: and 234 more failures\n"), "{}", report.err);
        assert!(report.out.ends_with("; 1234 failed\n"), "{}", report.out);
        let both = [tally.clone(), tally].map(|tally| ended(Ok(tally), Tally::default()));
        let report = compose(both.into(), Manner::default());
        assert_eq!(report.err.lines().count(), 1001, "of all hosts together");
        assert!(report.err.ends_with("escp: and 1,468 more failures\n"), "{}", report.err);
    }

    #[test]
    fn the_gravest_status_wins() {
        let mut altered = Tally::default();
        altered.fail(failed(b"x", true));
        let status = |outcome, so_far: &Tally| composed(outcome, so_far.clone()).status;
        assert_eq!(status(Ok(altered.clone()), &Tally::default()), 5);
        assert_eq!(status(Err(lost()), &altered), 5, "lost, but altered before");
        assert_eq!(status(Err(lost()), &Tally::default()), 4);
        let interrupted = SessionError { status: status::INTERRUPTED, text: "interrupted".into() };
        assert_eq!(status(Err(interrupted), &altered), 130);
        let hosts = [Err(lost()), Ok(altered), Ok(Tally::default())].map(|one| ended(one, Tally::default()));
        assert_eq!(compose(hosts.into(), Manner::default()).status, 5, "of all hosts");
    }

    #[test]
    fn a_lost_session_says_what_arrived_and_what_to_do() {
        let so_far = Tally { files: 3, ..Tally::default() };
        let report = composed(Err(lost()), so_far.clone());
        assert_eq!(
            report.err,
            "escp: the connection to data1 was lost\nescp: 3 files arrived whole\nescp: nothing \
             partial has a final name; run the same command again, it copies everything anew\n"
        );
        assert_eq!(report.out, "");
        let inplace = Manner { inplace: true, ..Manner::default() };
        let report = compose(vec![ended(Err(lost()), so_far)], inplace);
        assert!(
            report.err.contains("\nescp: what was written with --inplace may be incomplete;"),
            "{}",
            report.err
        );
    }

    #[test]
    fn altered_data_is_told_with_what_to_do() {
        let mut altered = Tally::default();
        altered.fail(failed(b"x", true));
        let error =
            SessionError { status: status::INTEGRITY, text: "data was altered on the network".into() };
        for report in [composed(Ok(altered), Tally::default()), composed(Err(error), Tally::default())] {
            let said = report.err.lines().last().unwrap_or_default();
            let due =
                "escp: nothing altered has a final name; run the same command again. If it happens again";
            assert!(said.starts_with(due) && said.contains("between here and data1 or"), "{said}");
        }
        let interrupted = SessionError { status: status::INTERRUPTED, text: "interrupted".into() };
        assert_eq!(composed(Err(interrupted), Tally::default()).err, "escp: interrupted\n");
    }

    #[test]
    fn sessions_with_several_hosts_have_one_report() {
        let good = |files| Ok(Tally { files, bytes: 1 << 30, ..Tally::default() });
        let both = [good(1), good(2)].map(|one| ended(one, Tally::default()));
        let report = compose(both.into(), Manner::default());
        assert_eq!(report.out, "3 files, 2.00 GiB in 12.2 s, 167 MiB/s\n");
        let target = || Err(SessionError { status: 1, text: "x: Not a directory".into() });
        let both = [target(), target()].map(|one| ended(one, Tally::default()));
        let report = compose(both.into(), Manner::default());
        assert_eq!((report.err.as_str(), report.status), ("escp: x: Not a directory\n", 1));
        let one_lost = [Err(lost()), good(2)].map(|one| ended(one, Tally::default()));
        let report = compose(one_lost.into(), Manner::default());
        assert!(report.err.contains("escp: 2 files arrived whole"), "{}", report.err);
        assert_eq!((report.out.as_str(), report.status), ("", 4));
    }
}
