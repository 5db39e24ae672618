//! Time that passes only while the machine runs.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Between two looks at the clock.
const TICK: Duration = Duration::from_millis(10);
/// What one look adds at most. A busy machine wakes a sleeper well within this; one that stands still does not.
const MOST: Duration = Duration::from_millis(200);

/// Measures how long something takes, without the time for which the whole machine stood still: virtual machines
/// are stopped for seconds now and then, which says nothing about the program under test.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    start: Duration,
}

impl Stopwatch {
    /// Starts measuring.
    #[must_use]
    pub fn start() -> Self {
        Self { start: now() }
    }

    /// The time since the start, exact to some 10 ms.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        now().saturating_sub(self.start)
    }
}

/// Time since the first call that this process could have run in.
fn now() -> Duration {
    static MICROS: OnceLock<&'static AtomicU64> = OnceLock::new();
    let micros = MICROS.get_or_init(|| {
        let micros: &AtomicU64 = Box::leak(Box::default());
        std::thread::spawn(|| tick(micros));
        micros
    });
    Duration::from_micros(micros.load(Relaxed))
}

fn tick(micros: &AtomicU64) {
    let mut last = Instant::now();
    loop {
        std::thread::sleep(TICK);
        let spent = last.elapsed();
        last += spent;
        micros.fetch_add(u64::try_from(spent.min(MOST).as_micros()).unwrap_or(0), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Stopwatch;
    use std::time::{Duration, Instant};

    #[test]
    fn it_runs_with_the_clock_and_never_before_it() {
        let watch = Stopwatch::start();
        let start = Instant::now();
        while watch.elapsed() < Duration::from_millis(300) {
            std::thread::sleep(Duration::from_millis(5));
            assert!(start.elapsed() < Duration::from_secs(30), "it stands still");
        }
        assert!(start.elapsed() >= Duration::from_millis(280), "{:?}", start.elapsed());
    }
}
