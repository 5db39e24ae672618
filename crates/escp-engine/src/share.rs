//! How large blocks may be, so that those that are worked on at a time stay in the processors' cache.
//!
//! A block that plain calls read or write, from memory or into it, is sealed, checked and copied by the same core one
//! after the other: while it is in cache, each of that costs less. Blocks that a disk reads or writes come and go past
//! the cache, and large ones suit it.

use crate::pace::Pace;
use crate::placement::cores;
use escp_engine_api::JobOptions;

/// Bytes of blocks in work for each core. Of 16 streams on two cores, with 512 KiB each, a GiB takes 0.39 CPU-s, with
/// 2 MiB 0.45; of two streams, 0.36 with 2 MiB and 0.38 with 512 KiB (docs/decisions/0009-on-one-machine.md).
const PER_CORE: u64 = 4 << 20;
/// Smaller blocks cost more than the cache gives back.
const LEAST: u64 = 512 << 10;

/// A session's part of the cache.
#[derive(Debug)]
pub(crate) struct Share {
    /// What knows of the host's other sessions.
    pace: Option<Pace>,
    streams: u64,
    cache: u64,
    block_size: u64,
}

impl Share {
    pub(crate) fn new(pace: Option<Pace>, job: &JobOptions) -> Self {
        let cache = PER_CORE * cores(&job.cpus) as u64;
        Self { pace, streams: job.streams.max(1).into(), cache, block_size: job.block_size.into() }
    }

    /// The session's block size.
    pub(crate) fn whole(&self) -> u64 {
        self.block_size
    }

    /// Bytes of a block that should stay in cache now: a power of two, or the session's block size. The other sessions
    /// are taken to be like this one.
    pub(crate) fn in_cache(&self) -> u64 {
        let sessions = self.pace.as_ref().map_or(1, Pace::sessions);
        let share = self.cache / self.streams.saturating_mul(sessions);
        self.block_size.min(1 << share.max(LEAST).ilog2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::{Direction, Secret, SessionId, Side};
    use escp_sys::counters::CounterPage;
    use std::sync::Arc;

    fn job(streams: u16, block_size: u32) -> JobOptions {
        let usual = JobOptions::new(SessionId([1; 16]), Secret([2; 32]), Side::Near, Direction::Send);
        JobOptions { streams, block_size, cpus: vec![0, 1], ..usual }
    }

    #[test]
    fn streams_share_the_cache() {
        let blocks =
            [1, 2, 4, 6, 8, 16, 256].map(|streams| Share::new(None, &job(streams, 2 << 20)).in_cache());
        assert_eq!(blocks.map(|block| block >> 10), [2048, 2048, 2048, 1024, 1024, 512, 512]);
        // Never more than was agreed on.
        let share = Share::new(None, &job(1, 256 << 10));
        assert_eq!((share.in_cache(), share.whole()), (256 << 10, 256 << 10));
    }

    #[test]
    fn so_do_sessions_while_they_last() {
        let pace = Pace::new(Arc::new(CounterPage::new().unwrap()));
        let share = Share::new(Some(pace.clone()), &job(2, 2 << 20));
        let mut block = |sessions| {
            pace.tell_sessions(sessions);
            share.in_cache() >> 10
        };
        assert_eq!([0, 1, 2, 3, 8, 1].map(&mut block), [2048, 2048, 2048, 1024, 512, 2048]);
        // Whatever is on the page.
        assert_eq!(block(usize::MAX), 512);
    }
}
