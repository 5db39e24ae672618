//! What the daemon knows of its sessions: who runs, what they counted, how they ended.
//!
//! The broker writes it, the metrics read it. Totals never go back: a worker's page of counters is read
//! while the worker lives and its last values are kept when it is gone, however it ended.

use escp_engine_api::Fault;
use escp_engine_api::placement::Placement;
use escp_ipc::link::SessionEnd;
use escp_sys::counters::{COUNTERS, CounterPage};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Values of the slots of [`CounterPage`]s, indexed by `escp_engine::meter::Counter as usize`.
pub(crate) type Totals = [u64; COUNTERS];

macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every value, in the order of the metrics.
            pub(crate) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The value of the metric's label.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

named! {
    /// How a session ended.
    SessionResult {
        /// Both sides agreed on the end.
        Ended => "ended",
        /// The agent on this host hung up before the end.
        AgentGone => "agent_gone",
        /// The other side gave up.
        PeerAborted => "peer_aborted",
        /// No connection could be made.
        Connect => "connect",
        /// A connection or a process was lost.
        Lost => "lost",
        /// The peer broke the protocol, or data was altered.
        Integrity => "integrity",
        /// This host was short of something, or found a fault of its own.
        Local => "local",
        /// The agent on this host broke the protocol of the socket, or speaks another version.
        Refused => "refused",
        /// The daemon was stopped.
        Stopped => "stopped",
        /// The worker died: killed, or crashed.
        WorkerDied => "worker_died",
    }
}

named! {
    /// Why a local connection got no session.
    TurnedAway {
        /// As many sessions as the daemon may have.
        SessionsTotal => "sessions_total",
        /// As many sessions as one user may have.
        SessionsPerUser => "sessions_per_user",
        /// No worker could be started.
        Unable => "unable",
    }
}

impl From<SessionEnd> for SessionResult {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Agreed => Self::Ended,
            SessionEnd::AgentGone => Self::AgentGone,
            SessionEnd::Refused => Self::Refused,
            SessionEnd::Failed(Fault::PeerAborted) => Self::PeerAborted,
            SessionEnd::Failed(Fault::Connect) => Self::Connect,
            SessionEnd::Failed(Fault::Lost) => Self::Lost,
            SessionEnd::Failed(Fault::Integrity) => Self::Integrity,
            SessionEnd::Failed(Fault::Local) => Self::Local,
        }
    }
}

/// A session that is running.
#[derive(Debug, Clone)]
pub(crate) struct Running {
    /// The local user's id.
    pub(crate) uid: u32,
    /// The worker's process id.
    pub(crate) pid: u32,
    /// When its connection was accepted.
    pub(crate) since: Instant,
    page: Arc<CounterPage>,
    placement: Option<Placement>,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
    strangers: Arc<AtomicU64>,
}

#[derive(Debug)]
struct Book {
    running: BTreeMap<u64, Running>,
    retired: Totals,
    results: BTreeMap<SessionResult, u64>,
    turned_away: BTreeMap<TurnedAway, u64>,
}

impl Default for Book {
    fn default() -> Self {
        Self {
            running: BTreeMap::new(),
            retired: [0; COUNTERS],
            results: BTreeMap::new(),
            turned_away: BTreeMap::new(),
        }
    }
}

impl Ledger {
    /// An empty ledger.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Connections on the data ports refused before proof; the gate counts here.
    pub(crate) fn strangers(&self) -> &Arc<AtomicU64> {
        &self.strangers
    }

    /// The same, as a number.
    pub(crate) fn refused_connections(&self) -> u64 {
        self.strangers.load(Relaxed)
    }

    /// Sessions that are running.
    pub(crate) fn active(&self) -> usize {
        self.book().running.len()
    }

    /// Sessions of one user that are running.
    pub(crate) fn active_of(&self, uid: u32) -> usize {
        self.book().running.values().filter(|running| running.uid == uid).count()
    }

    /// Counters of all sessions there ever were.
    pub(crate) fn totals(&self) -> Totals {
        let book = self.book();
        let mut totals = book.retired;
        book.running.values().for_each(|running| add_page(&mut totals, &running.page));
        totals
    }

    /// Counters of the sessions that are running: which engine kinds are in use, for one.
    pub(crate) fn live_totals(&self) -> Totals {
        let mut totals = [0; COUNTERS];
        self.book().running.values().for_each(|running| add_page(&mut totals, &running.page));
        totals
    }

    /// Sessions that are over, by result; every result is there.
    pub(crate) fn results(&self) -> Vec<(SessionResult, u64)> {
        let book = self.book();
        SessionResult::ALL.iter().map(|key| (*key, book.results.get(key).copied().unwrap_or(0))).collect()
    }

    /// Local connections that got no session, by reason; every reason is there.
    pub(crate) fn turned_away(&self) -> Vec<(TurnedAway, u64)> {
        let book = self.book();
        TurnedAway::ALL.iter().map(|key| (*key, book.turned_away.get(key).copied().unwrap_or(0))).collect()
    }

    /// Counts a local connection that got no session.
    pub(crate) fn turn_away(&self, reason: TurnedAway) {
        *self.book().turned_away.entry(reason).or_default() += 1;
    }

    /// Enters a session under a key of the broker's choice, never used before.
    pub(crate) fn begin(&self, key: u64, uid: u32, pid: u32, page: Arc<CounterPage>) {
        let since = Instant::now();
        self.book().running.insert(key, Running { uid, pid, since, page, placement: None });
    }

    /// Notes where a session's data threads run.
    pub(crate) fn place(&self, key: u64, placement: Placement) {
        if let Some(running) = self.book().running.get_mut(&key) {
            running.placement.get_or_insert(placement);
        }
    }

    /// Sessions that are running, by where their data threads do.
    pub(crate) fn placements(&self) -> BTreeMap<Placement, u64> {
        let mut placements = BTreeMap::new();
        for placement in self.book().running.values().filter_map(|running| running.placement.clone()) {
            *placements.entry(placement).or_default() += 1;
        }
        placements
    }

    /// Closes a session's entry once its process is gone. What it counted stays in the totals.
    pub(crate) fn finish(&self, key: u64, result: SessionResult) -> Option<Running> {
        let mut book = self.book();
        let running = book.running.remove(&key)?;
        add_page(&mut book.retired, &running.page);
        *book.results.entry(result).or_default() += 1;
        Some(running)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A worker may write anything on its page: sums wrap rather than panic.
fn add_page(totals: &mut Totals, page: &CounterPage) {
    for (total, counter) in totals.iter_mut().zip(page.counters()) {
        *total = total.wrapping_add(counter.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_worker_counted_outlives_it() {
        let ledger = Ledger::new();
        let page = Arc::new(CounterPage::new().unwrap());
        ledger.begin(1, 1000, 42, Arc::clone(&page));
        page.counters()[3].store(7, Relaxed);
        assert_eq!((ledger.totals()[3], ledger.live_totals()[3]), (7, 7));
        assert_eq!((ledger.active(), ledger.active_of(1000), ledger.active_of(0)), (1, 1, 0));
        let ended = ledger.finish(1, SessionResult::WorkerDied).unwrap();
        assert_eq!((ended.uid, ended.pid), (1000, 42));
        assert_eq!((ledger.totals()[3], ledger.live_totals()[3], ledger.active()), (7, 0, 0));
        assert!(ledger.results().contains(&(SessionResult::WorkerDied, 1)));
        assert!(ledger.finish(1, SessionResult::Ended).is_none());
        assert!(ledger.results().contains(&(SessionResult::Ended, 0)));
    }

    #[test]
    fn a_page_full_of_nonsense_does_not_panic() {
        let ledger = Ledger::new();
        for key in 0..2 {
            let page = Arc::new(CounterPage::new().unwrap());
            page.counters()[0].store(u64::MAX, Relaxed);
            ledger.begin(key, 0, 0, page);
        }
        assert_eq!(ledger.totals()[0], u64::MAX - 1);
    }
}
