//! The gate before the data ports: strangers stay outside, and never keep a session out.
//!
//! Whoever connects has a few seconds to say 64 bytes that name a session and prove it by the session's
//! route key. Whoever does not is closed without a byte, and nothing tells why: a malformed packet, an
//! unknown session and a wrong proof take the same path and cost the same HMAC. Connections that have
//! proven nothing yet are bounded in number; at the bound the oldest goes, so newcomers always get their
//! turn. Whether a nonce was used before is the session's to know, not the gate's.

use crate::AcceptedLane;
use escp_crypto::RouteKey;
use escp_proto::first_packet::{FIRST_PACKET_LEN, FirstPacket};
use escp_sys::congestion;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

/// Time between two log lines about refused connections.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Pause after an error of accept(2), which is nearly always a lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bounds on what strangers may hold.
#[derive(Debug, Clone, Copy)]
pub struct AcceptLimits {
    /// Connections that have not proven anything yet, over all addresses; at least 1.
    pub unproven_total: usize,
    /// The same for one address (IPv4), or one /64 network (IPv6); at least 1. One host opens all streams
    /// of all its sessions from one address, up to 257 a session.
    pub unproven_per_address: usize,
    /// Time from accept(2) to the last byte of the first packet.
    pub first_packet_timeout: Duration,
}

impl Default for AcceptLimits {
    fn default() -> Self {
        Self {
            unproven_total: 4096,
            unproven_per_address: 1024,
            // A little under 5 s, so that a stranger is gone within 5 s as seen from outside.
            first_packet_timeout: Duration::from_millis(4800),
        }
    }
}

/// What the gate knows of sessions.
pub trait Routes: Send + Sync + 'static {
    /// The routing key of a session, if it is open and accepts lanes.
    fn find(&self, session: &[u8; 16]) -> Option<RouteKey>;

    /// Hands a proven connection to its session, in blocking mode. `false` when the session is gone or has
    /// no room; the connection is closed then.
    fn deliver(&self, session: &[u8; 16], lane: AcceptedLane) -> bool;
}

/// Accepts connections on `listeners` until the future is dropped, which also closes every connection that
/// was not delivered. `refused` counts the connections that were closed without being delivered.
///
/// Must run inside a tokio runtime. A listener that cannot be used is logged and left out.
pub async fn accept_lanes(
    listeners: Vec<std::net::TcpListener>,
    routes: Arc<dyn Routes>,
    limits: AcceptLimits,
    refused: Arc<AtomicU64>,
) {
    let gate = Arc::new(Gate {
        routes,
        limits,
        refused,
        // Verifying costs the same whether the session exists or not.
        nobody: RouteKey::from_bytes([0x5a; 32]),
        waiting: Mutex::new(Waiting::default()),
        log: Mutex::new(Log::default()),
    });
    let _closes_all = CloseOnDrop(Arc::clone(&gate));
    let mut loops = JoinSet::new();
    for listener in listeners {
        congestion::before_accepting(&listener);
        let usable = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
        match usable {
            Ok(listener) => {
                loops.spawn(accept_on(listener, Arc::clone(&gate)));
            }
            Err(error) => tracing::error!(%error, "a data port cannot be listened on"),
        }
    }
    while loops.join_next().await.is_some() {}
}

struct Gate {
    routes: Arc<dyn Routes>,
    limits: AcceptLimits,
    refused: Arc<AtomicU64>,
    nobody: RouteKey,
    waiting: Mutex<Waiting>,
    log: Mutex<Log>,
}

/// Ends the handshakes under way when the gate's future is dropped: they are tasks of their own.
struct CloseOnDrop(Arc<Gate>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        let mut waiting = lock(&self.0.waiting);
        waiting.closed = true;
        for (_, task) in std::mem::take(&mut waiting.tasks).into_values() {
            task.abort();
        }
    }
}

async fn accept_on(listener: TcpListener, gate: Arc<Gate>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => admit(&gate, stream, network(peer.ip())),
            Err(error) if passing(&error) => {}
            Err(error) => {
                // Out of descriptors, most likely: the longest-waiting stranger gives its own up.
                tracing::warn!(%error, "cannot accept a connection on a data port");
                if lock(&gate.waiting).evict_oldest() {
                    gate.refuse(None);
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of accept(2) that belong to the connection that was being accepted.
fn passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, NetworkDown, NetworkUnreachable};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | NetworkDown | NetworkUnreachable
    )
}

/// Starts the handshake of a new connection and makes room for it.
fn admit(gate: &Arc<Gate>, stream: TcpStream, from: IpAddr) {
    // Whatever is sealed later is written whole; waiting for more would only delay it.
    let _ = stream.set_nodelay(true);
    let deadline = tokio::time::Instant::now() + gate.limits.first_packet_timeout;
    let mut waiting = lock(&gate.waiting);
    if waiting.closed {
        return;
    }
    let mut evicted = 0;
    if waiting.count_of(from) >= gate.limits.unproven_per_address.max(1) && waiting.evict_oldest_of(from) {
        evicted += 1;
    }
    if waiting.tasks.len() >= gate.limits.unproven_total.max(1) && waiting.evict_oldest() {
        evicted += 1;
    }
    // The lock is held over the spawn, so the task cannot leave before it was entered.
    let ticket = waiting.next_ticket;
    let task = tokio::spawn(handshake(Arc::clone(gate), stream, from, ticket, deadline));
    waiting.enter(from, task.abort_handle());
    drop(waiting);
    for _ in 0..evicted {
        gate.refuse(None);
    }
}

/// Reads and proves one first packet.
async fn handshake(
    gate: Arc<Gate>,
    mut stream: TcpStream,
    from: IpAddr,
    ticket: u64,
    deadline: tokio::time::Instant,
) {
    let mut packet = [0_u8; FIRST_PACKET_LEN];
    let read = tokio::time::timeout_at(deadline, stream.read_exact(&mut packet)).await;
    // Already evicted, and counted as refused then: the abort is on its way.
    if !lock(&gate.waiting).leave(ticket) {
        return;
    }
    let session = matches!(read, Ok(Ok(_))).then(|| gate.prove(&packet)).flatten();
    let delivered = session.is_some_and(|session| {
        detach(stream).is_ok_and(|socket| gate.routes.deliver(&session, AcceptedLane { packet, socket }))
    });
    if !delivered {
        gate.refuse(Some(from));
    }
}

/// Takes the socket out of the runtime, in blocking mode: io_uring would not wait on a non-blocking one.
fn detach(stream: TcpStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

impl Gate {
    /// The session whose key proves this packet.
    fn prove(&self, packet: &[u8; FIRST_PACKET_LEN]) -> Option<[u8; 16]> {
        let first = FirstPacket::decode(packet).ok()?;
        let key = self.routes.find(&first.session);
        let known = key.is_some();
        let proven = FirstPacket::proven(first.stream, &first.session, &first.nonce);
        let verified = key.as_ref().unwrap_or(&self.nobody).verify(&[&proven], &first.proof).is_ok();
        (known & verified).then_some(first.session)
    }

    fn refuse(&self, from: Option<IpAddr>) {
        self.refused.fetch_add(1, Relaxed);
        if let Some(count) = lock(&self.log).due(Instant::now()) {
            let last = from.map(tracing::field::display);
            tracing::info!(count, last, "connections refused before proof");
        }
    }
}

/// Connections that have proven nothing yet, oldest first.
#[derive(Default)]
struct Waiting {
    tasks: BTreeMap<u64, (IpAddr, AbortHandle)>,
    by_address: HashMap<IpAddr, BTreeSet<u64>>,
    next_ticket: u64,
    closed: bool,
}

impl Waiting {
    fn enter(&mut self, from: IpAddr, task: AbortHandle) {
        self.tasks.insert(self.next_ticket, (from, task));
        self.by_address.entry(from).or_default().insert(self.next_ticket);
        self.next_ticket += 1;
    }

    /// Takes a connection off the list; `false` when it is not on it.
    fn leave(&mut self, ticket: u64) -> bool {
        self.remove(ticket).is_some()
    }

    fn count_of(&self, from: IpAddr) -> usize {
        self.by_address.get(&from).map_or(0, BTreeSet::len)
    }

    fn evict_oldest_of(&mut self, from: IpAddr) -> bool {
        let oldest = self.by_address.get(&from).and_then(|tickets| tickets.first().copied());
        oldest.is_some_and(|ticket| self.evict(ticket))
    }

    fn evict_oldest(&mut self) -> bool {
        let oldest = self.tasks.keys().next().copied();
        oldest.is_some_and(|ticket| self.evict(ticket))
    }

    fn evict(&mut self, ticket: u64) -> bool {
        let Some(task) = self.remove(ticket) else { return false };
        // Aborting drops the task's future, and with it the socket.
        task.abort();
        true
    }

    fn remove(&mut self, ticket: u64) -> Option<AbortHandle> {
        let (from, task) = self.tasks.remove(&ticket)?;
        if let Some(tickets) = self.by_address.get_mut(&from) {
            tickets.remove(&ticket);
            if tickets.is_empty() {
                self.by_address.remove(&from);
            }
        }
        Some(task)
    }
}

/// One line per [`LOG_INTERVAL`], with what was not said since the last one.
#[derive(Default)]
struct Log {
    last: Option<Instant>,
    unsaid: u64,
}

impl Log {
    fn due(&mut self, now: Instant) -> Option<u64> {
        self.unsaid += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < LOG_INTERVAL) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Whom a per-address bound counts together: an IPv4 address, or the /64 network that one IPv6 host is
/// given whole.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
