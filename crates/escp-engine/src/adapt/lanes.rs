//! One climber for all lanes of a session: what one has learnt helps the others, and nothing is tried twice.
//!
//! A lane counts what it sends in a tally of its own, and otherwise reads two words per record that are written once
//! in a window. Whoever finds that the window is over takes the lock, sums the tallies up and judges.

use super::{Adapt, Rung, Totals};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The choices of one session.
#[derive(Debug)]
pub(crate) struct SharedAdapt {
    pub(super) ladder: Arc<[i32]>,
    /// The choice in use.
    rung: AtomicUsize,
    /// When it may be judged next, in microseconds after `begin`.
    due: AtomicU64,
    begin: Instant,
    judge: Mutex<Judge>,
}

#[derive(Debug)]
pub(super) struct Judge {
    pub(super) adapt: Adapt,
    tallies: Vec<Arc<Tally>>,
}

/// What one lane has sent since it began; see [`Totals`]. On cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Tally {
    records: AtomicU64,
    plain: AtomicU64,
    wire: AtomicU64,
    busy: AtomicU64,
    watched: AtomicU64,
}

/// A lane's hand on the choices of its session.
#[derive(Debug)]
pub(crate) struct LaneAdapt {
    shared: Arc<SharedAdapt>,
    tally: Arc<Tally>,
    /// What the record on its way is made with.
    pub(super) rung: Rung,
    /// And what the one before it was made with.
    before: Rung,
}

impl SharedAdapt {
    /// Starts with a low level; never goes above `highest`. No time it is told lies before `begin`.
    pub(crate) fn new(highest: i32, begin: Instant) -> Self {
        let adapt = Adapt::new(highest);
        Self {
            ladder: Arc::clone(&adapt.ladder),
            rung: AtomicUsize::new(adapt.at),
            due: AtomicU64::new(0),
            begin,
            judge: Mutex::new(Judge { adapt, tallies: Vec::new() }),
        }
    }

    /// One more lane, which makes its records with what the session has learnt so far.
    pub(crate) fn join(self: &Arc<Self>) -> LaneAdapt {
        let tally = Arc::new(Tally::default());
        self.judge().tallies.push(Arc::clone(&tally));
        LaneAdapt { shared: Arc::clone(self), tally, rung: self.rung(), before: self.rung() }
    }

    pub(super) fn rung(&self) -> Rung {
        self.rung.load(Relaxed)
    }

    /// The level of a choice; `None`: a record is sent as it is.
    pub(super) fn level(&self, rung: Rung) -> Option<i32> {
        rung.checked_sub(1).and_then(|index| self.ladder.get(index).copied())
    }

    fn micros(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begin).as_micros()).unwrap_or(u64::MAX)
    }

    pub(super) fn judge(&self) -> MutexGuard<'_, Judge> {
        self.judge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start_over(&self, now: Instant) {
        let mut judge = self.judge();
        let totals = judge.totals();
        let due = judge.adapt.start_over(totals, now);
        self.due.store(self.micros(due), Relaxed);
    }

    fn look(&self, now: Instant) {
        // Whoever holds it is about to judge the same.
        let Ok(mut judge) = self.judge.try_lock() else { return };
        let (totals, lanes) = (judge.totals(), judge.tallies.len() as u64);
        let due = judge.adapt.look(totals, lanes, now);
        self.rung.store(judge.adapt.at, Relaxed);
        self.due.store(self.micros(due), Relaxed);
    }
}

impl Judge {
    /// A lane may count a record meanwhile, and appear with a part of it: too little to matter.
    fn totals(&self) -> Totals {
        let sum = |count: fn(&Tally) -> &AtomicU64| {
            self.tallies.iter().fold(0, |sum: u64, tally| sum.wrapping_add(count(tally).load(Relaxed)))
        };
        Totals {
            records: sum(|tally| &tally.records),
            plain: sum(|tally| &tally.plain),
            wire: sum(|tally| &tally.wire),
            busy: sum(|tally| &tally.busy),
            watched: sum(|tally| &tally.watched),
        }
    }
}

impl LaneAdapt {
    /// What to make the next record with; `None`: send it as it is.
    pub(crate) fn level(&mut self) -> Option<i32> {
        self.rung = self.shared.rung();
        self.shared.level(self.rung)
    }

    /// The lane had data in flight for `busy` of the last `watched`.
    pub(crate) fn watched(&self, busy: Duration, watched: Duration) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.tally.busy.fetch_add(nanos(busy.min(watched)), Relaxed);
        self.tally.watched.fetch_add(nanos(watched), Relaxed);
    }

    /// The record made last, of so many bytes of files, is with the kernel as so many bytes.
    pub(crate) fn sent(&mut self, plain: usize, wire: usize, now: Instant) {
        self.tally.records.fetch_add(1, Relaxed);
        self.tally.plain.fetch_add(plain as u64, Relaxed);
        self.tally.wire.fetch_add(wire as u64, Relaxed);
        let before = std::mem::replace(&mut self.before, self.rung);
        if self.rung != self.shared.rung() || self.rung != before {
            // A choice before the one in use took its part of the time: its record was the one just sent, or the one
            // that the socket had to get rid of for this one.
            self.start_over(now);
        } else if self.shared.micros(now) >= self.shared.due.load(Relaxed) {
            self.shared.look(now);
        }
    }

    /// What went out until now says nothing about the choice in use.
    pub(crate) fn start_over(&self, now: Instant) {
        self.shared.start_over(now);
    }
}
