//! What the control task remembers about time, and about what was counted before it.

use crate::meter::Counter;
use crate::shared::Shared;
use escp_engine_api::{Counters, Direction, Progress};
use std::collections::HashMap;

/// The user is told after so much silence, and again every 5 s.
pub(crate) const TELL_AFTER_MS: u64 = 10_000;

/// What the control task remembers about time.
pub(crate) struct Clock {
    pub(crate) heard: u64,
    pub(crate) said: u64,
    pub(crate) told: u64,
    pub(crate) connected: bool,
    /// Records acknowledged per stream.
    pub(crate) acknowledged: HashMap<u16, u64>,
    pub(crate) last_progress: Progress,
    /// Counters may be on a page that counted before.
    base: Counters,
}

impl Clock {
    pub(crate) fn new(shared: &Shared) -> Self {
        Self {
            heard: 0,
            said: 0,
            told: 0,
            connected: false,
            acknowledged: HashMap::new(),
            last_progress: Progress::default(),
            base: totals(shared),
        }
    }

    pub(crate) fn heard(&mut self, shared: &Shared) {
        self.heard = shared.now();
    }

    pub(crate) fn said(&mut self, shared: &Shared) {
        self.said = shared.now();
    }

    pub(crate) fn connected(&mut self, shared: &Shared) {
        self.connected = true;
        self.heard(shared);
        self.said(shared);
    }

    /// This session's totals so far.
    pub(crate) fn counters(&self, shared: &Shared) -> Counters {
        let now = totals(shared);
        Counters {
            bytes_network: now.bytes_network - self.base.bytes_network,
            bytes_disk: now.bytes_disk - self.base.bytes_disk,
            bytes_compressed: now.bytes_compressed - self.base.bytes_compressed,
            direct_fallbacks: now.direct_fallbacks - self.base.direct_fallbacks,
        }
    }
}

fn totals(shared: &Shared) -> Counters {
    let meter = &shared.meter;
    let (network, disk, compressed) = match shared.options.direction {
        Direction::Send => (Counter::BytesNetworkOut, Counter::BytesDiskRead, Counter::BytesCompressedOut),
        Direction::Receive => {
            (Counter::BytesNetworkIn, Counter::BytesDiskWritten, Counter::BytesCompressedIn)
        }
    };
    Counters {
        bytes_network: meter.get(network),
        bytes_disk: meter.get(disk),
        bytes_compressed: meter.get(compressed),
        direct_fallbacks: meter.get(Counter::DirectFallbacks),
    }
}
