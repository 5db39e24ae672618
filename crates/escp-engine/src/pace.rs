//! A rate that sessions in several processes share: those of one user, in a daemon. And how many sessions share the
//! host, whosever they are.

use escp_sys::counters::CounterPage;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// Slots of the page: bytes a second (0: no limit), when all that was admitted will have been due, in nanoseconds of
/// the monotonic clock, which is the same for all processes of a host, and sessions on the host.
const RATE: usize = 0;
const DUE: usize = 1;
const SESSIONS: usize = 2;
/// How far ahead of the rate a burst may run, as for a session's own.
const BURST: u64 = 50_000_000;
/// Nobody is told to wait longer for those before it, whatever is on the page: far more than a record of every
/// session takes at the lowest rate.
const AT_MOST: u64 = 3_600_000_000_000;

/// The pace of one user, on a page of its own that all its sessions map.
#[derive(Debug, Clone)]
pub struct Pace(Arc<CounterPage>);

impl Pace {
    /// Takes a page of zeros, or one that others use for the same.
    #[must_use]
    pub fn new(page: Arc<CounterPage>) -> Self {
        Self(page)
    }

    /// Changes the rate, for everybody and at once; `None` for no limit.
    pub fn limit(&self, bits_per_second: Option<u64>) {
        let bytes = bits_per_second.map_or(0, |bits| (bits / 8).max(1));
        self.0.counters()[RATE].store(bytes, Relaxed);
        // What was admitted at the old rate is not held against the new one.
        self.0.counters()[DUE].store(0, Relaxed);
    }

    /// Says how many sessions the host has now, to whom that may concern.
    pub fn tell_sessions(&self, count: usize) {
        self.0.counters()[SESSIONS].store(count as u64, Relaxed);
    }

    /// How many sessions the host has now, at least this one.
    pub(crate) fn sessions(&self) -> u64 {
        self.0.counters()[SESSIONS].load(Relaxed).max(1)
    }

    /// Whether there is a limit now.
    pub(crate) fn is_limited(&self) -> bool {
        self.0.counters()[RATE].load(Relaxed) != 0
    }

    /// Admits `bytes`: returns how long to wait before sending them.
    pub(crate) fn admit(&self, bytes: u64) -> Duration {
        self.admit_at(bytes, now())
    }

    fn admit_at(&self, bytes: u64, now: u64) -> Duration {
        let counters = self.0.counters();
        let rate = counters[RATE].load(Relaxed);
        if rate == 0 {
            return Duration::ZERO;
        }
        let cost = u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX);
        let mut due = counters[DUE].load(Relaxed);
        loop {
            // Nothing is saved up; and nobody, with whatever is on the page, waits for ever.
            let from = due.clamp(now.saturating_sub(BURST), now.saturating_add(AT_MOST));
            let next = from.saturating_add(cost);
            match counters[DUE].compare_exchange_weak(due, next, Relaxed, Relaxed) {
                Ok(_) => return Duration::from_nanos(next.saturating_sub(now)),
                Err(other) => due = other,
            }
        }
    }
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(now.tv_sec).saturating_mul(1_000_000_000).saturating_add(part(now.tv_nsec))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn two() -> (Pace, Pace) {
        let page = CounterPage::new().unwrap();
        let other = CounterPage::map(page.memory().try_clone_to_owned().unwrap()).unwrap();
        (Pace::new(Arc::new(page)), Pace::new(Arc::new(other)))
    }

    #[test]
    fn two_mappings_share_one_rate() {
        let (a, b) = two();
        a.limit(Some(8_000_000));
        let (mut now_a, mut now_b) = (SECOND, SECOND);
        for _ in 0..50 {
            now_a += u64::try_from(a.admit_at(10_000, now_a).as_nanos()).unwrap();
            now_b += u64::try_from(b.admit_at(10_000, now_b).as_nanos()).unwrap();
        }
        // A million bytes at a million a second, less the burst.
        let spent = now_a.max(now_b) - SECOND;
        assert!((SECOND - BURST - 20_000_000..=SECOND).contains(&spent), "{spent}");
        assert!(now_a.abs_diff(now_b) <= 10_000_000);
    }

    #[test]
    fn a_new_rate_counts_at_once_and_no_limit_never_waits() {
        let (a, b) = two();
        assert!(!b.is_limited());
        assert_eq!(a.admit_at(u64::MAX, SECOND), Duration::ZERO);
        a.limit(Some(8_000));
        assert!(b.is_limited());
        assert!(b.admit_at(1000, 10 * SECOND) >= Duration::from_millis(900));
        a.limit(None);
        assert_eq!(b.admit_at(1 << 40, 10 * SECOND), Duration::ZERO);
        // Nothing is saved up in a pause.
        a.limit(Some(8_000));
        assert!(b.admit_at(1000, 1000 * SECOND) >= Duration::from_millis(900));
    }

    #[test]
    fn a_page_full_of_nonsense_holds_nobody_for_ever() {
        let (a, _) = two();
        a.0.counters()[DUE].store(u64::MAX, Relaxed);
        a.0.counters()[RATE].store(u64::MAX, Relaxed);
        assert!(a.admit_at(1 << 20, SECOND) <= Duration::from_nanos(AT_MOST + 1));
        a.0.counters()[RATE].store(1, Relaxed);
        let _ = a.admit_at(u64::MAX, u64::MAX);
    }
}
