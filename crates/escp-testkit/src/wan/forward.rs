//! Carrying packets one way.

use super::packet::flip;
use super::{Counts, Link};
use crate::tree::Noise;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The longest packet of IPv4, and its header in front.
const LONGEST: usize = 65_535 + escp_sys::tun::PACKET_HEADER;
/// Packets taken before those that are due are looked at again.
const BATCH: usize = 8;
/// How long at most until the thread notices that it is to end, or that the way changed.
const IDLE: Duration = Duration::from_millis(20);

/// One direction: how it is to be, and what happened.
#[derive(Debug)]
pub(super) struct Direction {
    link: Mutex<Link>,
    carried: AtomicU64,
    lost: AtomicU64,
    overflowed: AtomicU64,
    flipped: AtomicU64,
    cut: AtomicU64,
}

impl Direction {
    pub(super) fn new(link: Link) -> Self {
        Self {
            link: Mutex::new(link),
            carried: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            overflowed: AtomicU64::new(0),
            flipped: AtomicU64::new(0),
            cut: AtomicU64::new(0),
        }
    }

    pub(super) fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            carried: self.carried.load(Relaxed),
            lost: self.lost.load(Relaxed),
            overflowed: self.overflowed.load(Relaxed),
            flipped: self.flipped.load(Relaxed),
            cut: self.cut.load(Relaxed),
        }
    }
}

/// A packet on its way.
struct Packet {
    due: Instant,
    bytes: Box<[u8]>,
    length: usize,
}

/// The wire, and what is on it.
struct Wire<'a> {
    way: &'a Direction,
    /// In the order in which it left, and arrives.
    flying: VecDeque<Packet>,
    /// Buffers to use again, the one used last first: it may still be in cache.
    spare: Vec<Box<[u8]>>,
    /// When the last bit of what was sent so far has left.
    busy_until: Instant,
    noise: Noise,
}

/// Carries packets until `over`.
pub(super) fn forward(from: &OwnedFd, to: &OwnedFd, way: &Direction, over: &AtomicBool) {
    let mut wire = Wire {
        way,
        flying: VecDeque::new(),
        spare: Vec::new(),
        busy_until: Instant::now(),
        noise: Noise::new(1),
    };
    while !over.load(Relaxed) {
        wire.deliver(to);
        let taken = wire.take(from);
        if taken < BATCH {
            let due = wire.flying.front().map(|packet| packet.due);
            let wait = due.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()).min(IDLE));
            wait_for(from, wait);
        }
    }
}

/// Waits until there is a packet, at most so long.
fn wait_for(from: &OwnedFd, wait: Duration) {
    let timeout = Timespec::try_from(wait).ok();
    // An interruption or an error shows again at the next read.
    let _ = poll(&mut [PollFd::new(from, PollFlags::IN)], timeout.as_ref());
}

impl Wire<'_> {
    /// Hands over what is due.
    fn deliver(&mut self, to: &OwnedFd) {
        let now = Instant::now();
        while self.flying.front().is_some_and(|packet| packet.due <= now) {
            let Some(packet) = self.flying.pop_front() else { break };
            let count = match rustix::io::write(to, &packet.bytes[..packet.length]) {
                Ok(_) => &self.way.carried,
                // No memory for it, or the other host's interface is gone.
                Err(_) => &self.way.overflowed,
            };
            count.fetch_add(1, Relaxed);
            self.spare.push(packet.bytes);
        }
    }

    /// Takes packets that leave now, and says how many.
    fn take(&mut self, from: &OwnedFd) -> usize {
        for taken in 0..BATCH {
            let mut bytes = self.spare.pop().unwrap_or_else(|| vec![0; LONGEST].into_boxed_slice());
            let length = match rustix::io::read(from, &mut bytes[..]) {
                Ok(length) => length,
                Err(Errno::INTR) => 0,
                Err(_) => {
                    self.spare.push(bytes);
                    return taken;
                }
            };
            match self.due(&mut bytes[..length]) {
                Some(due) => self.flying.push_back(Packet { due, bytes, length }),
                None => self.spare.push(bytes),
            }
        }
        BATCH
    }

    /// When a packet that leaves now arrives; `None` when it never does.
    fn due(&mut self, packet: &mut [u8]) -> Option<Instant> {
        let link = *self.way.link();
        let now = Instant::now();
        if link.cut {
            self.way.cut.fetch_add(1, Relaxed);
            return None;
        }
        if self.strikes(link.loss) {
            self.way.lost.fetch_add(1, Relaxed);
            return None;
        }
        let left = match link.rate {
            Some(rate) => {
                let starts = self.busy_until.max(now);
                let waiting = (starts - now).as_secs_f64() * rate as f64 / 8.0;
                if waiting > link.queue as f64 {
                    self.way.overflowed.fetch_add(1, Relaxed);
                    return None;
                }
                self.busy_until = starts + Duration::from_secs_f64(packet.len() as f64 * 8.0 / rate as f64);
                self.busy_until
            }
            None => now,
        };
        if self.strikes(link.flips) && flip(packet, link.flips_fit_checksum, &mut self.noise) {
            self.way.flipped.fetch_add(1, Relaxed);
        }
        // A way that became shorter does not let packets overtake.
        let last = self.flying.back().map_or(now, |packet| packet.due);
        Some((left + link.delay).max(last))
    }

    fn strikes(&mut self, chance: f64) -> bool {
        chance > 0.0 && (self.noise.number() >> 11) as f64 / (1_u64 << 53) as f64 <= chance
    }
}
