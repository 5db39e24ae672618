//! Distance: two networks joined by a way with delay, rate, a queue, loss, flipped bits and partitions.
//!
//! Each network gets a TUN device with segmentation offload, so that the kernel hands over packets of up to
//! 64 KiB and takes them as they are; a thread for each direction carries them across. Loss, queues and flips
//! therefore deal with what the sender's kernel made one packet, which is up to 45 segments on a wire.

mod forward;
mod packet;

use crate::network::Network;
use crate::{Checked, Trouble, run};
use forward::{Direction, forward};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Address of the near host on the way.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Address of the far host on the way.
pub const FAR: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The interface, in each network.
const DEVICE: &str = "wan0";
/// Packets the interface queues for the forwarder; more than any window makes, so that only [`Link::queue`]
/// drops.
const DEVICE_QUEUE: &str = "10000";
/// Largest socket buffers in bytes, for 10 Gb/s at 100 ms over four streams.
const BUFFERS: u64 = 64 << 20;

/// One direction of the way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// From one host to the other: half a round trip.
    pub delay: Duration,
    /// Bits per second; `None`: what the machine can carry.
    pub rate: Option<u64>,
    /// Bytes that may wait for their turn where there is a rate; what comes beyond is dropped.
    pub queue: u64,
    /// The part of all packets that is lost, 0 to 1.
    pub loss: f64,
    /// The part of all packets with data in which a bit is flipped, 0 to 1.
    pub flips: f64,
    /// Flips are such that TCP's checksum still fits.
    pub flips_fit_checksum: bool,
    /// Nothing passes.
    pub cut: bool,
}

impl Link {
    /// One direction of a way that is `round_trip` long. The queue holds what is on the way at full rate.
    #[must_use]
    pub fn new(round_trip: Duration, rate: Option<u64>) -> Self {
        let in_flight = u128::from(rate.unwrap_or(0)) / 8 * round_trip.as_micros() / 1_000_000;
        Self {
            delay: round_trip / 2,
            rate,
            queue: u64::try_from(in_flight).unwrap_or(u64::MAX).max(1 << 20),
            loss: 0.0,
            flips: 0.0,
            flips_fit_checksum: false,
            cut: false,
        }
    }
}

/// What became of the packets of both directions so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Carried across, flipped ones included.
    pub carried: u64,
    /// Lost by [`Link::loss`].
    pub lost: u64,
    /// Dropped because the queue was full, here or in a device.
    pub overflowed: u64,
    /// With a bit flipped.
    pub flipped: u64,
    /// Dropped by [`Link::cut`].
    pub cut: u64,
}

/// A way between two networks. It goes when it is dropped.
#[derive(Debug)]
pub struct Wan {
    to_far: Arc<Direction>,
    to_near: Arc<Direction>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// Why there can be no [`Wan`] on this machine, if so.
#[must_use]
pub fn missing() -> Option<String> {
    if !crate::users::is_root() {
        return Some("needs root (network namespaces, TUN devices)".into());
    }
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    opened.err().map(|error| format!("needs TUN devices: /dev/net/tun: {error}"))
}

impl Wan {
    /// Joins two networks; both directions are as `link` says. Socket buffers may grow to 64 MiB in both.
    ///
    /// # Errors
    /// Where [`missing`] says so, and when an interface cannot be set up.
    pub fn join(near: &Network, far: &Network, link: Link) -> Checked<Self> {
        let (at_near, at_far) = (Arc::new(device(near, NEAR)?), Arc::new(device(far, FAR)?));
        for network in [near, far] {
            network.set("net/ipv4/tcp_rmem", &format!("4096 131072 {BUFFERS}"))?;
            network.set("net/ipv4/tcp_wmem", &format!("4096 16384 {BUFFERS}"))?;
            // What one connection learned about the way would change how the next one starts.
            network.set("net/ipv4/tcp_no_metrics_save", "1")?;
        }
        let over = Arc::new(AtomicBool::new(false));
        let mut wan = Self {
            to_far: Arc::new(Direction::new(link)),
            to_near: Arc::new(Direction::new(link)),
            over,
            threads: Vec::new(),
        };
        wan.start("wan-to-far", &at_near, &at_far, &Arc::clone(&wan.to_far))?;
        wan.start("wan-to-near", &at_far, &at_near, &Arc::clone(&wan.to_near))?;
        Ok(wan)
    }

    fn start(&mut self, name: &str, from: &Arc<OwnedFd>, to: &Arc<OwnedFd>, way: &Arc<Direction>) -> Checked {
        let (from, to, way, over) =
            (Arc::clone(from), Arc::clone(to), Arc::clone(way), Arc::clone(&self.over));
        let thread = std::thread::Builder::new().name(name.to_owned());
        self.threads.push(thread.spawn(move || forward(&from, &to, &way, &over))?);
        Ok(())
    }

    /// Changes both directions, from now on.
    pub fn change(&self, change: impl Fn(&mut Link)) {
        self.change_to_far(&change);
        self.change_to_near(&change);
    }

    /// Changes the direction to the far host.
    pub fn change_to_far(&self, change: impl Fn(&mut Link)) {
        change(&mut self.to_far.link());
    }

    /// Changes the direction to the near host.
    pub fn change_to_near(&self, change: impl Fn(&mut Link)) {
        change(&mut self.to_near.link());
    }

    /// What became of the packets so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let (a, b) = (self.to_far.counts(), self.to_near.counts());
        Counts {
            carried: a.carried + b.carried,
            lost: a.lost + b.lost,
            overflowed: a.overflowed + b.overflowed,
            flipped: a.flipped + b.flipped,
            cut: a.cut + b.cut,
        }
    }
}

impl Drop for Wan {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A TUN device with an address, up.
fn device(network: &Network, address: Ipv4Addr) -> Checked<OwnedFd> {
    let ip = run::program("ip")?;
    let device = network.inside(|| escp_sys::tun::open(DEVICE))?;
    let device = device.map_err(|error| Trouble::new(format!("no TUN device can be made: {error}")))?;
    let address = format!("{address}/24");
    for words in [
        &["address", "add", &address, "dev", DEVICE][..],
        &["link", "set", DEVICE, "up", "txqueuelen", DEVICE_QUEUE],
    ] {
        run::Run::new(&ip, None).network(network).args(words).succeed()?;
    }
    Ok(device)
}

#[cfg(test)]
mod tests;
