//! Which zstd level to use now, or none: the choice that moves the most plain bytes a second.
//!
//! Nothing here has a clock or touches a socket: it is fed with what was sent, when, and how busy the network
//! was meanwhile, and asked for a level. It climbs: from the choice in use it tries a neighbour for a moment
//! and stays there only if more plain bytes went out, whatever it was that held them up (this CPU, the
//! network, the receiver or its disk). How busy the network was says which neighbour to try first; what was
//! seen before says which is not worth a try; and each try that failed doubles the time until the next.

use std::time::{Duration, Instant};

/// Levels worth trying, from the cheapest. Those between them differ too little to be told apart.
const LADDER: [i32; 8] = [-5, 1, 3, 6, 9, 12, 15, 19];
/// The level that a session starts with: whoever asks for compression has a reason to.
const START: i32 = 1;
/// A choice is judged by what it moved in so much time,
const WINDOW: Duration = Duration::from_millis(30);
/// and by no fewer records than these,
const RECORDS: u32 = 6;
/// unless they hold so many bytes: a choice on trial that does not pay costs them all.
const BYTES: f64 = 6.0 * 1_048_576.0;
/// What a dearer choice must gain to be kept. Above what the two ends of a window can be off.
const GAIN: f64 = 1.04;
/// What a cheaper choice may lose and be kept all the same.
const LOSS: f64 = 0.97;
/// A gain that needs no second look.
const CLEAR: f64 = 1.25;
/// From this part of the time with data in flight on, it is the network that the sender waits for.
const BUSY: f64 = 0.7;
/// Below this, compressing is so much slower than the network that none at all is tried first.
const IDLE: f64 = 0.3;
/// The cheapest level is at most so many times as fast as the one after it.
const CHEAPEST: f64 = 2.5;
/// How long a choice that did not pay is left alone, at first and at last.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(64));

/// A choice: 0 sends data as it is, `n` compresses with the ladder's n-th level.
pub(crate) type Rung = usize;
const RAW: Rung = 0;

/// One record that is with the kernel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// What it was made with.
    pub(crate) rung: Rung,
    /// Bytes of files in it.
    pub(crate) plain: usize,
    /// What became of them.
    pub(crate) wire: usize,
}

/// The choices of one data thread; see the module's page.
#[derive(Debug)]
pub(crate) struct Adapt {
    ladder: Vec<i32>,
    at: Rung,
    window: Window,
    /// What each choice did when it was last in use.
    memory: Vec<Option<Memory>>,
    trial: Option<Trial>,
}

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    records: u32,
    plain: f64,
    wire: f64,
    /// Time with data in flight, and the time it was taken from, over all lanes.
    busy: Duration,
    watched: Duration,
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
    pub(crate) fn new(highest: i32) -> Self {
        let mut ladder: Vec<i32> = LADDER.into_iter().filter(|level| *level < highest).collect();
        ladder.push(highest);
        let start = ladder.iter().position(|level| *level >= START).unwrap_or(ladder.len() - 1) + 1;
        let memory = vec![None; ladder.len() + 1];
        Self { ladder, at: start, window: Window::default(), memory, trial: None }
    }

    /// What to do with the next record.
    pub(crate) fn rung(&self) -> Rung {
        self.at
    }

    /// The level of a choice; `None`: send it as it is.
    pub(crate) fn level(&self, rung: Rung) -> Option<i32> {
        rung.checked_sub(1).and_then(|index| self.ladder.get(index).copied())
    }

    /// A lane had data in flight for `busy` of the last `watched`.
    pub(crate) fn watched(&mut self, busy: Duration, watched: Duration) {
        if self.window.since.is_some() {
            self.window.busy += busy.min(watched);
            self.window.watched += watched;
        }
    }

    /// There was nothing to send: what was going on says nothing about the network.
    pub(crate) fn start_over(&mut self) {
        self.window = Window::default();
    }

    /// A record went out.
    #[expect(clippy::cast_precision_loss, reason = "a record is far below 2^53 bytes")]
    pub(crate) fn sent(&mut self, record: Sent, now: Instant) {
        let Some(since) = self.window.since.filter(|_| record.rung == self.at) else {
            // The first of its kind: time counts from its end.
            self.window = Window { since: (record.rung == self.at).then_some(now), ..Window::default() };
            return;
        };
        let window = &mut self.window;
        window.records += 1;
        window.plain += record.plain as f64;
        window.wire += record.wire as f64;
        let spent = now.saturating_duration_since(since);
        let few = window.records < RECORDS && window.plain < BYTES;
        if spent < WINDOW || few || window.plain == 0.0 {
            return;
        }
        let seconds = spent.as_secs_f64();
        let busy = if window.watched.is_zero() {
            1.0
        } else {
            window.busy.as_secs_f64() / window.watched.as_secs_f64()
        };
        let seen = Seen { plain: window.plain / seconds, wire: window.wire / seconds, busy };
        self.window = Window { since: Some(now), ..Window::default() };
        self.judge(seen, now);
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
}

#[cfg(test)]
#[path = "adapt_tests.rs"]
mod tests;
