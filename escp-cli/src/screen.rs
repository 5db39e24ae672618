//! What a person sees while files move: a progress bar on a terminal, nothing elsewhere.

use crate::figures::{Figures, counted, duration, grouped, size};
use escp_agent::escape::{escaped, foreign_text};
use escp_agent::link::Observer;
use escp_agent::tally::{FailedFile, Tally};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the bar is drawn.
const TICK: Duration = Duration::from_millis(100);
/// The time over which the rate shown is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(3);
/// How often silence is reported where there is no bar.
const SILENCE_EVERY: u32 = 60;

/// The progress of a session. Its methods never wait for the terminal, except those that print.
pub(crate) struct Screen {
    bar: ProgressBar,
    draw: bool,
    quiet: bool,
    figures: Figures,
    state: Mutex<State>,
    ended: AtomicBool,
    bytes: AtomicU64,
    files: AtomicU64,
}

#[derive(Default)]
struct State {
    /// When the first file was found or moved; nothing is drawn before.
    begun: Option<Instant>,
    found_files: u64,
    found_bytes: u64,
    found_all: bool,
    silence: Option<String>,
    said_silence: Option<u32>,
    failures: Tally,
    samples: VecDeque<(Instant, u64)>,
}

impl Screen {
    /// Nothing is drawn before the first file; nothing at all with `quiet` or without a terminal.
    pub(crate) fn new(quiet: bool, bits: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        // The text is cut to the width of the terminal, whatever that is at the moment.
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            bar.set_style(style);
        }
        Self {
            bar,
            draw: !quiet && std::io::stderr().is_terminal(),
            quiet,
            figures: Figures { bits },
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
        }
    }

    /// The same for the next session, with nothing moved and nothing drawn. What goes [beside](Self::beside_bar) the
    /// bar of either goes beside both.
    pub(crate) fn renewed(&self) -> Self {
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
        self.bar.set_message("");
        self.bar.reset();
        Self {
            bar: self.bar.clone(),
            draw: self.draw,
            quiet: self.quiet,
            figures: self.figures,
            state: Mutex::default(),
            ended: AtomicBool::new(false),
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
        }
    }

    /// Starts the thread that draws: a terminal may stop taking output (Ctrl-S), and must not stop the
    /// session by it.
    pub(crate) fn start_drawing(self: &Arc<Self>) {
        if !self.draw {
            return;
        }
        let screen = Arc::clone(self);
        let drawing = move || {
            let mut shown = false;
            while !screen.ended.load(Ordering::Acquire) {
                std::thread::sleep(TICK);
                let line = screen.line(Instant::now());
                let Some(line) = line.filter(|_| in_foreground()) else { continue };
                if !std::mem::replace(&mut shown, true) {
                    screen.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(20));
                }
                if !screen.ended.load(Ordering::Acquire) {
                    screen.bar.set_message(line);
                }
            }
        };
        if let Err(error) = std::thread::Builder::new().name("escp-progress".into()).spawn(drawing) {
            tracing::debug!("no progress bar: {error}");
        }
    }

    /// Removes the bar for good.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.bar.finish_and_clear();
    }

    /// Prints beside the bar.
    pub(crate) fn beside_bar<R>(&self, print: impl FnOnce() -> R) -> R {
        if self.draw { self.bar.suspend(print) } else { print() }
    }

    /// How long files have been moving, and the failures reported so far: what is known when a session
    /// ends without its tally.
    pub(crate) fn so_far(&self) -> (Duration, Tally) {
        let state = self.state();
        let mut tally = state.failures.clone();
        tally.files = self.files.load(Ordering::Relaxed).saturating_sub(tally.failed);
        tally.bytes = self.bytes.load(Ordering::Relaxed);
        (state.begun.map(|begun| begun.elapsed()).unwrap_or_default(), tally)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bar's text; `None` before there is anything to show.
    fn line(&self, now: Instant) -> Option<String> {
        let (bytes, files) = (self.bytes.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed));
        let mut state = self.state();
        let begun = state.begun?;
        let rate = state.rate(now, bytes);
        let moved = format!(
            "{}  {}  {}",
            self.figures.rate(rate),
            duration(now.saturating_duration_since(begun)),
            if state.found_all {
                format!("{} of {}", grouped(files), counted(state.found_files, "file", "files"))
            } else {
                counted(files, "file", "files")
            }
        );
        let mut line = if state.found_all {
            let total = state.found_bytes;
            let left = total.saturating_sub(bytes);
            let until = match left.checked_div(rate) {
                Some(seconds) if left > 0 => format!("  {} left", duration(Duration::from_secs(seconds))),
                _ => String::new(),
            };
            format!("{} {} of {}  {moved}{until}", gauge(bytes, total), size(bytes), size(total))
        } else {
            format!(
                "scanning: {}, {} found  moved: {}  {moved}",
                counted(state.found_files, "file", "files"),
                size(state.found_bytes),
                size(bytes)
            )
        };
        if let Some(silence) = &state.silence {
            line = format!("{silence}  {line}");
        }
        Some(line)
    }
}

impl State {
    fn begin(&mut self) {
        self.begun.get_or_insert_with(Instant::now);
    }

    /// Bytes a second over the last [`RATE_WINDOW`].
    fn rate(&mut self, now: Instant, bytes: u64) -> u64 {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        let Some((at, before)) = self.samples.front() else { return 0 };
        let millis = now.saturating_duration_since(*at).as_millis();
        u128::from(bytes.saturating_sub(*before))
            .saturating_mul(1000)
            .checked_div(millis)
            .and_then(|rate| u64::try_from(rate).ok())
            .unwrap_or(0)
    }
}

/// `[=====>    ] 51%`.
fn gauge(part: u64, whole: u64) -> String {
    const WIDTH: usize = 20;
    let percent = match (u128::from(part) * 100).checked_div(u128::from(whole)) {
        Some(percent) => usize::try_from(percent).unwrap_or(100).min(100),
        None => 100,
    };
    let filled = percent * WIDTH / 100;
    let head = if filled < WIDTH { ">" } else { "" };
    format!("[{:<WIDTH$}] {percent:>3}%", format!("{}{head}", "=".repeat(filled)))
}

/// Whether this process may write to the terminal without disturbing another one: in the background
/// (Ctrl-Z, bg) it stays silent.
fn in_foreground() -> bool {
    match rustix::termios::tcgetpgrp(std::io::stderr()) {
        Ok(group) => group == rustix::process::getpgrp(),
        // Not our controlling terminal: nobody's shell is there to be disturbed.
        Err(_) => true,
    }
}

impl Observer for Screen {
    fn scanned(&self, files: u64, bytes: u64, complete: bool) {
        let mut state = self.state();
        state.begin();
        (state.found_files, state.found_bytes, state.found_all) = (files, bytes, complete);
    }

    fn moved(&self, bytes: u64, files: u64) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.files.store(files, Ordering::Relaxed);
        let mut state = self.state();
        if bytes > 0 || files > 0 {
            state.begin();
        }
        state.silence = None;
    }

    fn published(&self, path: &dyn Fn() -> Vec<u8>) {
        tracing::debug!("done: {}", escaped(&path()));
    }

    fn failed(&self, failure: &FailedFile) {
        tracing::info!("failed: {}", crate::report::failure(failure));
        self.state().failures.fail(failure.clone());
    }

    fn silent(&self, seconds: u32, stage: &str) {
        let text = format!("no word from the other side for {seconds} s ({stage});");
        let mut state = self.state();
        let due = state.said_silence.is_none_or(|said| seconds < said || seconds >= said + SILENCE_EVERY);
        if due && !self.draw && !self.quiet {
            // Nobody can do anything about a stderr that does not take it.
            let _ = writeln!(std::io::stderr(), "escp: {text} waiting");
            state.said_silence = Some(seconds);
        }
        state.silence = Some(text);
    }

    fn note(&self, text: &str) {
        tracing::info!("{}", foreign_text(text, 500));
    }

    fn remark(&self, text: &str) {
        tracing::warn!("{}", foreign_text(text, 500));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn screen() -> Screen {
        Screen::new(false, false)
    }

    #[test]
    fn nothing_is_shown_before_the_first_file() {
        let screen = screen();
        assert_eq!(screen.line(Instant::now()), None);
        screen.note("engine ready");
        assert_eq!(screen.line(Instant::now()), None);
        screen.scanned(1, 10, false);
        assert!(screen.line(Instant::now()).is_some());
    }

    #[test]
    fn scanning_and_moving_are_told_apart() {
        let screen = screen();
        screen.scanned(12_345, 3 << 30, false);
        screen.moved(1 << 30, 17);
        let line = screen.line(Instant::now()).unwrap();
        assert!(line.starts_with("scanning: 12,345 files, 3.00 GiB found  moved: 1.00 GiB"), "{line}");
        assert!(!line.contains('%'), "no share of a total that is not known: {line}");
        screen.scanned(12_346, 4 << 30, true);
        let line = screen.line(Instant::now()).unwrap();
        assert!(line.starts_with("[=====>              ]  25% 1.00 GiB of 4.00 GiB"), "{line}");
        assert!(line.contains("17 of 12,346 files"), "{line}");
    }

    #[test]
    fn the_rate_is_that_of_the_last_seconds() {
        let mut state = State::default();
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(state.rate(at(0), 0), 0);
        assert_eq!(state.rate(at(1), 100), 100);
        for second in 2..10 {
            state.rate(at(second), 100);
        }
        assert_eq!(state.rate(at(10), 100), 0, "it stalls");
    }

    #[test]
    fn silence_is_shown_until_data_moves_again() {
        let screen = screen();
        screen.scanned(1, 10, true);
        screen.silent(15, "writing");
        assert!(
            screen
                .line(Instant::now())
                .unwrap()
                .starts_with("no word from the other side for 15 s (writing)")
        );
        screen.moved(5, 0);
        assert!(screen.line(Instant::now()).unwrap().starts_with('['));
    }

    #[test]
    fn gauges_end_at_both_ends() {
        assert_eq!(gauge(0, 10), "[>                   ]   0%");
        assert_eq!(gauge(10, 10), "[====================] 100%");
        assert_eq!(gauge(0, 0), "[====================] 100%");
        assert_eq!(gauge(11, 10), "[====================] 100%");
    }
}
