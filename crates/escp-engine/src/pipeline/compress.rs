//! Compressing records, where it pays.

use crate::adapt::LaneAdapt;
use crate::net::Socket;
use std::io;
use std::time::{Duration, Instant};
use zstd::bulk::Compressor;

/// A record is sent compressed if that saves at least this part of it.
const WORTH: usize = 16;
/// Of a record that follows one which did not shrink, first so much is tried,
const SAMPLE: usize = 8 << 10;
/// with this level.
const SAMPLE_LEVEL: i32 = 1;
/// One in so many of them is tried whole, whatever its sample says.
const WHOLE_EVERY: u32 = 64;
/// How often the kernel is asked how busy a connection was.
const WATCH: Duration = Duration::from_millis(10);
/// With nothing to send for longer than this, what was seen so far is no measure.
const PAUSE: Duration = Duration::from_millis(50);

/// The compressing of one lane.
pub(crate) struct Compression {
    adapt: LaneAdapt,
    compressor: Compressor<'static>,
    level: i32,
    sampler: Compressor<'static>,
    scratch: Vec<u8>,
    /// Records in a row that did not shrink.
    failed: u32,
    watched: Option<(Instant, Duration)>,
}

impl Compression {
    pub(crate) fn new(adapt: LaneAdapt) -> io::Result<Self> {
        Ok(Self {
            adapt,
            compressor: Compressor::new(SAMPLE_LEVEL)?,
            level: SAMPLE_LEVEL,
            sampler: Compressor::new(SAMPLE_LEVEL)?,
            scratch: vec![0; most(SAMPLE)],
            failed: 0,
            watched: None,
        })
    }

    /// Compresses `plain` into `into` if the network waits for less, and if it shrinks. Returns its length
    /// then.
    pub(crate) fn compress(&mut self, plain: &[u8], into: &mut [u8]) -> Option<usize> {
        let level = self.adapt.level()?;
        if self.failed > 0 && !self.failed.is_multiple_of(WHOLE_EVERY) && !self.sample_shrinks(plain) {
            self.failed = self.failed.wrapping_add(1);
            return None;
        }
        if level != self.level {
            self.compressor.set_compression_level(level).ok()?;
            self.level = level;
        }
        let into = into.get_mut(..most(plain.len()))?;
        // An error means that it does not fit.
        let shrunk = self.compressor.compress_to_buffer(plain, into).ok();
        self.failed = if shrunk.is_some() { 0 } else { self.failed.wrapping_add(1) };
        shrunk
    }

    /// A look at the middle of a record: what is compressed or encrypted already is so everywhere.
    fn sample_shrinks(&mut self, plain: &[u8]) -> bool {
        let start = (plain.len() / 2).saturating_sub(SAMPLE / 2);
        let sample = plain.get(start..plain.len().min(start + SAMPLE)).unwrap_or_default();
        let Some(into) = self.scratch.get_mut(..most(sample.len())) else { return true };
        self.sampler.compress_to_buffer(sample, into).is_ok()
    }

    /// The record made last went out with `wire` bytes for `plain`, after waiting for the session's rate.
    pub(crate) fn sent(&mut self, plain: usize, wire: usize, waited: Duration, socket: &Socket) {
        let now = Instant::now();
        if self.watched.is_none_or(|(at, _)| now.saturating_duration_since(at) >= WATCH)
            && let Ok(busy) = socket.sending_time()
        {
            if let Some((at, before)) = self.watched {
                self.adapt.watched(busy.saturating_sub(before), now.saturating_duration_since(at));
            }
            self.watched = Some((now, busy));
        }
        // A session's own rate is a network that is busy.
        self.adapt.watched(waited, waited);
        self.adapt.sent(plain, wire, now);
    }

    /// The lane had nothing to send for so long.
    pub(crate) fn idled(&mut self, time: Duration) {
        // A short pause is how fast the files come; a long one says nothing about any choice.
        if time >= PAUSE {
            self.watched = None;
            self.adapt.start_over(Instant::now());
        }
    }
}

/// Most bytes that are worth sending in place of `length`.
fn most(length: usize) -> usize {
    length - length / WORTH
}
