//! Which zstd level to use now, or none: the choice that moves the most plain bytes a second.
//!
//! Nothing here has a clock or touches a socket: it is fed with what was sent, when, and how busy the network
//! was meanwhile, and asked for a level. It climbs: from the choice in use it tries a neighbour for a moment
//! and stays there only if more plain bytes went out, whatever it was that held them up (this CPU, the
//! network, the receiver or its disk). How busy the network was says which neighbour to try first; what was
//! seen before says which is not worth a try; and each try that failed doubles the time until the next.

mod lanes;

pub(crate) use lanes::{LaneAdapt, SharedAdapt};

use std::sync::Arc;
use std::time::{Duration, Instant};

/// Levels worth trying, from the cheapest. Those between them differ too little to be told apart.
const LADDER: [i32; 8] = [-5, 1, 3, 6, 9, 12, 15, 19];
/// The level that a session starts with: whoever asks for compression has a reason to.
const START: i32 = 1;
/// A choice is judged by what it moved in so much time,
const WINDOW: Duration = Duration::from_millis(30);
/// and by no fewer records than these,
const RECORDS: u64 = 6;
/// unless they hold so many bytes: a choice on trial that does not pay costs them all.
const BYTES: u64 = 6 << 20;
/// Where several lanes send, a window begins and ends in the middle of a record of each lane but one: so many of each
/// are waited for in any case.
const RECORDS_EACH: u64 = 2;
/// What a dearer choice must gain to be kept. Above what the two ends of a window can be off.
const GAIN: f64 = 1.04;
/// What a cheaper choice may lose and be kept all the same.
const LOSS: f64 = 0.97;
/// A gain that needs no second look.
const CLEAR: f64 = 1.25;
/// Two rates this close are of the same network.
const SAME: f64 = 1.1;
/// From this part of the time with data in flight on, it is the network that the sender waits for.
const BUSY: f64 = 0.7;
/// Below this, compressing is so much slower than the network that none at all is tried first.
const IDLE: f64 = 0.3;
/// The cheapest level is at most so many times as fast as the one after it.
const CHEAPEST: f64 = 2.5;
/// How long a choice that did not pay is left alone, at first and at last.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(64));

/// A choice: 0 sends data as it is, `n` compresses with the ladder's n-th level.
type Rung = usize;
const RAW: Rung = 0;

/// The choices of one session; see the module's page.
#[derive(Debug)]
struct Adapt {
    ladder: Arc<[i32]>,
    at: Rung,
    window: Option<Window>,
    /// What each choice did when it was last in use.
    memory: Vec<Option<Memory>>,
    trial: Option<Trial>,
}

/// What went out, and how busy the network was meanwhile: sums from the session's begin, so that what a window held
/// is the difference of two of them.
#[derive(Debug, Clone, Copy, Default)]
struct Totals {
    records: u64,
    plain: u64,
    wire: u64,
    /// Nanoseconds with data in flight, and those they were taken from, over all lanes.
    busy: u64,
    watched: u64,
}

#[derive(Debug)]
struct Window {
    since: Instant,
    before: Totals,
}

/// How a choice did, in bytes a second.
#[derive(Debug, Clone, Copy)]
struct Seen {
    plain: f64,
    wire: f64,
    /// The part of the time in which data was in flight.
    busy: f64,
}

#[derive(Debug, Clone, Copy)]
struct Memory {
    seen: Seen,
    at: Instant,
    patience: Duration,
}

/// A choice on trial.
#[derive(Debug)]
struct Trial {
    from: Rung,
    /// Plain bytes a second there.
    before: f64,
    /// Of the first window, when it was not decided by that.
    first: Option<f64>,
}

impl Adapt {
    /// Starts with a low level; never goes above `highest`.
    fn new(highest: i32) -> Self {
        let mut ladder: Vec<i32> = LADDER.into_iter().filter(|level| *level < highest).collect();
        ladder.push(highest);
        let at = ladder.iter().position(|level| *level >= START).unwrap_or(ladder.len() - 1) + 1;
        let memory = vec![None; ladder.len() + 1];
        Self { ladder: ladder.into(), at, window: None, memory, trial: None }
    }

    /// What went out so far says nothing about the choice in use; what goes out from now on does.
    /// Returns when it may be judged.
    fn start_over(&mut self, totals: Totals, now: Instant) -> Instant {
        self.window = Some(Window { since: now, before: totals });
        now + WINDOW
    }

    /// Judges the choice in use, when `lanes` have sent enough with it. Returns when it may be judged next.
    fn look(&mut self, totals: Totals, lanes: u64, now: Instant) -> Instant {
        let Some(window) = &self.window else { return self.start_over(totals, now) };
        let spent = now.saturating_duration_since(window.since);
        let sent = totals.since(&window.before);
        let few = sent.records < lanes * RECORDS_EACH || (sent.records < RECORDS && sent.plain < BYTES);
        if spent < WINDOW || few {
            return window.since + WINDOW;
        }
        self.judge(sent.a_second(spent), now);
        self.start_over(totals, now)
    }

    fn judge(&mut self, seen: Seen, now: Instant) {
        let patience = self.memory[self.at].map_or(PATIENCE.0, |memory| memory.patience);
        self.memory[self.at] = Some(Memory { seen, at: now, patience });
        match self.trial.take() {
            Some(trial) => self.decide(trial, seen.plain),
            None => {
                if let Some(next) = self.candidates(&seen).find(|&rung| self.is_worth_it(rung, &seen, now)) {
                    self.trial = Some(Trial { from: self.at, before: seen.plain, first: None });
                    self.at = next;
                }
            }
        }
    }

    /// Keeps what is on trial, or goes back, or looks once more.
    fn decide(&mut self, trial: Trial, plain: f64) {
        let needed = trial.before * if self.at < trial.from { LOSS } else { GAIN };
        let mean = trial.first.map_or(plain, |first| f64::midpoint(first, plain));
        let kept = match trial.first {
            None if plain >= trial.before * CLEAR => true,
            None if plain >= trial.before * LOSS => {
                self.trial = Some(Trial { first: Some(plain), ..trial });
                return;
            }
            None => false,
            Some(_) => mean >= needed,
        };
        let Some(memory) = self.memory[self.at].as_mut() else { return };
        memory.patience = if kept { PATIENCE.0 } else { (memory.patience * 2).min(PATIENCE.1) };
        if !kept {
            self.at = trial.from;
        }
    }

    /// The neighbours of the choice in use, the likelier first.
    fn candidates(&self, seen: &Seen) -> impl Iterator<Item = Rung> + use<> {
        let (at, top) = (self.at, self.ladder.len());
        // The cheapest levels leave letters as they are; some data shrinks only from level 1 on.
        let up = if at == RAW { [2, 1] } else { [at + 1, top + 1] };
        let down = if seen.busy < IDLE { [RAW, at.saturating_sub(1)] } else { [at.saturating_sub(1), RAW] };
        let (first, second) = if seen.busy >= BUSY { (up, down) } else { (down, up) };
        first.into_iter().chain(second).filter(move |&rung| rung != at && rung <= top)
    }

    /// Whether what is known of a choice does not speak against it.
    fn is_worth_it(&self, rung: Rung, now_seen: &Seen, now: Instant) -> bool {
        // Nothing shrinks what does not shrink now.
        if rung > self.at && self.at != RAW && now_seen.wire > now_seen.plain * 0.95 {
            return false;
        }
        let fresh = |memory: &Memory| now.saturating_duration_since(memory.at) < memory.patience;
        if rung == RAW && self.is_known_to_fill_the_network(now_seen, fresh) {
            return false;
        }
        let Some(memory) = self.memory[rung] else {
            // With the CPU far too slow for the next level, it is too slow for this one.
            let next = self.memory.get(rung + 1).copied().flatten().filter(fresh);
            return !next.is_some_and(|next| {
                rung > self.at && next.seen.busy < BUSY && next.seen.plain * CHEAPEST < now_seen.plain
            });
        };
        let network_is_faster =
            rung < self.at && memory.seen.busy >= BUSY && now_seen.wire > memory.seen.wire * CLEAR;
        network_is_faster || memory.seen.plain > now_seen.plain * CLEAR || !fresh(&memory)
    }

    /// Whether a level that leaves more than the one in use was seen to move fewer plain bytes as just as many on the
    /// network. Then it is the network that holds things up, and it would take data as it is no faster.
    fn is_known_to_fill_the_network(&self, now_seen: &Seen, fresh: impl Fn(&Memory) -> bool) -> bool {
        let cheaper = self.memory.get(RAW + 1..self.at).unwrap_or_default();
        now_seen.wire * CLEAR < now_seen.plain
            && cheaper.iter().flatten().filter(|memory| fresh(memory)).any(|Memory { seen, .. }| {
                seen.plain < now_seen.plain * LOSS
                    && seen.wire < now_seen.wire * SAME
                    && now_seen.wire < seen.wire * SAME
            })
    }
}

impl Totals {
    fn since(&self, before: &Self) -> Self {
        Self {
            records: self.records.wrapping_sub(before.records),
            plain: self.plain.wrapping_sub(before.plain),
            wire: self.wire.wrapping_sub(before.wire),
            busy: self.busy.wrapping_sub(before.busy),
            watched: self.watched.wrapping_sub(before.watched),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "what moves in a window is far below 2^53 bytes")]
    fn a_second(&self, spent: Duration) -> Seen {
        let seconds = spent.as_secs_f64();
        let busy = if self.watched == 0 { 1.0 } else { self.busy as f64 / self.watched as f64 };
        Seen { plain: self.plain as f64 / seconds, wire: self.wire as f64 / seconds, busy }
    }
}

#[cfg(test)]
#[path = "adapt_tests.rs"]
mod tests;
