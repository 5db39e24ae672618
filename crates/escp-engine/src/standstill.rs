//! Says when data stands still though there is work, and on whom it waits.

use crate::clock::TELL_AFTER_MS;
use crate::shared::{LaneState, Shared};
use escp_engine_api::{Direction, Progress, Side, Stage};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What a lane may carry in that time without any progress: a few keepalives.
const IDLE_BYTES: u64 = 1024;

/// What is remembered between two looks.
#[derive(Debug, Default)]
pub(crate) struct Standstill {
    /// When data last moved, in milliseconds of the session.
    moved: u64,
    /// How far it was then.
    progress: u64,
    /// What the kernel had moved at the first look that saw no progress.
    wire: Option<u64>,
    told: bool,
}

impl Standstill {
    /// Looks at a session whose peer is alive; what its user is to be told, if anything.
    pub(crate) fn look(&mut self, shared: &Shared, now: u64, progress: &Progress) -> Option<String> {
        let lanes = shared.lanes();
        let progress = progress.counters.bytes_disk + progress.counters.bytes_compressed + progress.files;
        let why = why(shared, &lanes);
        if progress != self.progress || why.is_none() {
            self.progress = progress;
            return self.moves(now);
        }
        // On a slow way a block takes long.
        let wire = lanes.iter().map(|lane| lane.moved()).sum::<u64>();
        let start = *self.wire.get_or_insert(wire);
        if wire.saturating_sub(start) > IDLE_BYTES * lanes.len() as u64 {
            return self.moves(now);
        }
        let still = now.saturating_sub(self.moved);
        if self.told || still < TELL_AFTER_MS + a_blocks_time(shared) {
            return None;
        }
        self.told = true;
        why.map(|why| format!("nothing has moved for {} s: {why}", still / 1000))
    }

    /// Counts no time in which the peer is silent: that is said elsewhere.
    pub(crate) fn rest(&mut self, now: u64) {
        self.moved = now;
        self.wire = None;
    }

    /// Data moves, or none is there to move.
    fn moves(&mut self, now: u64) -> Option<String> {
        let still = now.saturating_sub(std::mem::replace(&mut self.moved, now)) / 1000;
        self.wire = None;
        std::mem::take(&mut self.told).then(|| format!("it goes on after {still} s"))
    }
}

/// How long a rate limit may hold a block back.
fn a_blocks_time(shared: &Shared) -> u64 {
    let bits = u64::from(shared.options.block_size) * 8;
    shared.options.rate_limit.map_or(0, |rate| (2 * 1000 * bits).div_ceil(rate.max(1)))
}

/// On whom the session waits; `None` when there is nothing to do here, or when it is the other side's to say.
fn why(shared: &Shared, lanes: &[Arc<LaneState>]) -> Option<&'static str> {
    let at = |stage| lanes.iter().any(|lane| lane.stage() == stage);
    if at(Stage::Write) {
        return Some("the disk here does not take what came");
    } else if at(Stage::Read) {
        return Some("the disk here does not give what is to be sent");
    } else if shared.settling.load(Relaxed) > 0 {
        return Some("the disk here does not make durable what was written");
    } else if shared.options.side == Side::Far {
        // Everything else is on the near side or between, which the near side sees as well.
        return None;
    }
    let unsettled = |lane: &Arc<LaneState>| lane.acknowledged.load(Relaxed) < lane.records.load(Relaxed);
    match shared.options.direction {
        Direction::Send if at(Stage::Send) => {
            Some("the other side takes no more; its disk or the network is slow")
        }
        Direction::Send if lanes.iter().any(unsettled) => {
            Some("the other side has yet to write what was sent")
        }
        Direction::Receive if shared.files.any() => {
            Some("the other side sends nothing; its disk or the network is slow")
        }
        Direction::Send | Direction::Receive => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Meter;
    use escp_engine_api::{EngineKind, JobOptions, Secret, SessionId};
    use escp_sys::counters::CounterPage;

    fn shared(rate_limit: Option<u64>) -> Shared {
        let (session, secret) = (SessionId([1; 16]), Secret([2; 32]));
        let usual = JobOptions::new(session, secret, Side::Near, Direction::Receive);
        let meter = Meter::new(Arc::new(CounterPage::new().unwrap()));
        let (over, _) = tokio::sync::mpsc::unbounded_channel();
        Shared::new(JobOptions { rate_limit, ..usual }, EngineKind::Uring, meter, None, over)
    }

    fn files(files: u64) -> Progress {
        Progress { files, ..Progress::default() }
    }

    #[test]
    fn a_standstill_is_said_once_and_its_end_too() {
        let (shared, mut standstill) = (shared(None), Standstill::default());
        assert_eq!(standstill.look(&shared, 60_000, &files(0)), None, "nothing is to be done");
        shared.settling.fetch_add(1, Relaxed);
        assert_eq!(standstill.look(&shared, 69_900, &files(0)), None);
        let said = standstill.look(&shared, 70_000, &files(0)).unwrap();
        assert_eq!(said, "nothing has moved for 10 s: the disk here does not make durable what was written");
        assert_eq!(standstill.look(&shared, 90_000, &files(0)), None, "said once");
        assert_eq!(standstill.look(&shared, 95_000, &files(1)).unwrap(), "it goes on after 35 s");
        assert_eq!(standstill.look(&shared, 100_000, &files(2)), None);
        assert_eq!(standstill.look(&shared, 109_000, &files(2)), None, "less than 10 s");
        standstill.rest(109_000);
        assert_eq!(standstill.look(&shared, 118_000, &files(2)), None, "the peer was silent until 109 s");
        assert!(standstill.look(&shared, 119_000, &files(2)).is_some(), "a standstill of its own");
    }

    #[test]
    fn a_rate_limit_is_no_standstill() {
        // 2 MiB in 16.8 s.
        let (shared, mut standstill) = (shared(Some(1_000_000)), Standstill::default());
        shared.settling.fetch_add(1, Relaxed);
        assert_eq!(standstill.look(&shared, 40_000, &files(0)), None);
        assert!(standstill.look(&shared, 44_000, &files(0)).is_some());
    }
}
