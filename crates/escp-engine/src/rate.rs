//! A limit on what a session sends, over all its streams.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far ahead of the rate a burst may run. Long enough that a timer's granularity (1 ms) does not show,
/// short enough that a rate of a second is kept.
const BURST: Duration = Duration::from_millis(50);

/// Paces records to a number of bits per second.
#[derive(Debug)]
pub(crate) struct RateLimit {
    bytes_per_second: Option<f64>,
    /// When everything admitted so far will have been due.
    due: Mutex<Option<Instant>>,
}

impl RateLimit {
    pub(crate) fn new(bits_per_second: Option<u64>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a rate need not be exact to the bit")]
        let bytes_per_second = bits_per_second.map(|bits| (bits as f64 / 8.0).max(1.0));
        Self { bytes_per_second, due: Mutex::new(None) }
    }

    /// Admits `bytes`, and says how long to wait before sending them.
    pub(crate) fn admit(&self, bytes: u64, now: Instant) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        #[expect(clippy::cast_precision_loss, reason = "a record is far below 2^53 bytes")]
        let cost = Duration::from_secs_f64(bytes as f64 / rate);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let start = due.unwrap_or(now).max(now.checked_sub(BURST).unwrap_or(now));
        *due = Some(start + cost);
        (start + cost).saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_over_time_and_no_credit_is_saved_up() {
        let limit = RateLimit::new(Some(8_000_000));
        let start = Instant::now();
        let mut now = start;
        for _ in 0..100 {
            now += limit.admit(10_000, now);
        }
        let spent = now - start;
        assert!(spent >= Duration::from_millis(930) && spent <= Duration::from_millis(1000), "{spent:?}");
        // After ten idle seconds, a second's worth still takes nearly a second.
        now += Duration::from_secs(10);
        let wait = limit.admit(1_000_000, now);
        assert!(wait >= Duration::from_millis(940), "{wait:?}");
    }

    #[test]
    fn no_limit_never_waits() {
        assert_eq!(RateLimit::new(None).admit(u64::MAX, Instant::now()), Duration::ZERO);
    }
}
