//! The broker's side of one session: its worker's start, errands and end.

use crate::ledger::{Ledger, SessionResult};
use crate::logging::{self, JOURNAL_STREAM};
use crate::routes::RouteTable;
use escp_config::Log;
use escp_crypto::RouteKey;
use escp_engine::AcceptedLane;
use escp_ipc::link::{self, Start, ToBroker, ToWorker};
use escp_ipc::{Channel, FrameBuffer};
use escp_sys::counters::CounterPage;
use escp_sys::{process, seqpacket};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// Proven connections that may wait for their worker: more than a session has streams.
const LANES: usize = 512;
/// How often it is looked whether a worker outlived its session.
const LOOK: Duration = Duration::from_secs(1);
/// How long a worker may go on after its agent hung up, or after it said that it is done: it hangs on
/// something, a file system most likely.
const OVERTIME: Duration = Duration::from_secs(10);
/// How long a worker has to tell its peer that the daemon stops.
const FAREWELL: Duration = Duration::from_secs(3);
/// How long a killed process may take to disappear before it is worth a line in the log.
const UNKILLABLE: Duration = Duration::from_secs(5);

/// What the daemon is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Sessions come and go.
    Serving,
    /// No new ones.
    Draining,
    /// Those left are to end now.
    Stopping,
    /// At once.
    Killing,
}

/// What every session of a broker works with.
#[derive(Debug, Clone)]
pub(crate) struct Hall {
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) phase: watch::Receiver<Phase>,
    /// Changes with each reload.
    pub(crate) log: watch::Receiver<Log>,
}

/// A session whose worker was started.
#[derive(Debug)]
pub(crate) struct Session {
    key: u64,
    uid: u32,
    pid: u32,
    child: Child,
    channel: Channel,
    /// Kept to see the agent hang up, never read.
    agent: OwnedFd,
    page: Arc<CounterPage>,
    /// The user's; it lives as long as one of the user's sessions.
    pace: Arc<CounterPage>,
}

impl Session {
    /// Starts a worker for a connection and enters it in the ledger. `key` was never used before; `pace` is the
    /// user's page.
    ///
    /// # Errors
    /// No process, memory or descriptors can be had; nothing is left behind then. The connection is given
    /// back.
    pub(crate) fn start(
        hall: &Hall,
        key: u64,
        uid: u32,
        agent: OwnedFd,
        pace: io::Result<Arc<CounterPage>>,
    ) -> Result<Self, (io::Error, OwnedFd)> {
        let parts = || {
            let pace = pace?;
            let page = Arc::new(CounterPage::new()?);
            let (ours, theirs) = seqpacket::pair()?;
            let channel = Channel::new(ours)?;
            let child = worker_command(theirs).spawn()?;
            let pid = child.id().ok_or(io::ErrorKind::NotFound)?;
            Ok((page, pace, channel, child, pid))
        };
        match parts() {
            Ok((page, pace, channel, child, pid)) => {
                hall.ledger.begin(key, uid, pid, Arc::clone(&page));
                Ok(Self { key, uid, pid, child, channel, agent, page, pace })
            }
            Err(error) => Err((error, agent)),
        }
    }

    /// Serves the worker until its process is gone, and closes its entries.
    pub(crate) async fn run(mut self, hall: Hall, start: Start) {
        tracing::info!(session = self.key, uid = self.uid, pid = self.pid, "session started");
        let said = Mutex::new(None);
        let (status, reason) = self.attend(&hall, start, &said).await;
        hall.routes.remove(self.key);
        let said = said.into_inner().unwrap_or_else(PoisonError::into_inner);
        let stopping = *hall.phase.borrow() >= Phase::Stopping;
        let result = match said.or(reason) {
            Some(SessionResult::Ended) => SessionResult::Ended,
            _ if stopping => SessionResult::Stopped,
            known => known.unwrap_or(SessionResult::WorkerDied),
        };
        let Some(entry) = hall.ledger.finish(self.key, result) else { return };
        let (session, uid, pid, result) = (self.key, entry.uid, entry.pid, result.name());
        let seconds = entry.since.elapsed().as_secs_f64();
        match status {
            Ok(status) if !status.success() => {
                tracing::warn!(session, uid, pid, result, seconds, %status, "session over; its worker died");
            }
            _ => tracing::info!(session, uid, pid, result, seconds, "session over"),
        }
    }

    /// Returns how the process ended, and the result if it was the broker's decision.
    async fn attend(
        &mut self,
        hall: &Hall,
        start: Start,
        said: &Mutex<Option<SessionResult>>,
    ) -> (io::Result<ExitStatus>, Option<SessionResult>) {
        let (lanes, waiting_lanes) = mpsc::channel(LANES);
        let (replies, waiting_replies) = mpsc::channel(4);
        let (agent, channel) = (&self.agent, &self.channel);
        let (memory, pace) = (self.page.memory(), self.pace.memory());
        let errands = async {
            let start = ToWorker::Start(Box::new(start));
            let sent = link::to_worker(channel, &start, &[agent.as_fd(), memory, pace]).await;
            match sent {
                Ok(()) => send(channel, waiting_replies, waiting_lanes, hall.clone()).await,
                Err(error) => error,
            }
        };
        let desk = Desk { hall, key: self.key, uid: self.uid, lanes, replies, said };
        let over = tokio::select! {
            status = self.child.wait() => Err(status),
            error = errands => Ok((None, format!("it takes no messages: {error}"))),
            Some(error) = desk.receive(channel) => Ok((None, error)),
            verdict = outlived(agent, hall.phase.clone(), said) => Ok(verdict),
        };
        let (result, reason) = match over {
            Err(status) => {
                // Its last word may still be in the channel.
                let _ = timeout(FAREWELL, desk.receive(channel)).await;
                return (status, None);
            }
            Ok(verdict) => verdict,
        };
        tracing::warn!(session = self.key, pid = self.pid, "killing a worker: {reason}");
        if let Err(error) = process::kill(self.pid) {
            tracing::error!(pid = self.pid, %error, "a worker cannot be killed");
        }
        if let Ok(status) = timeout(UNKILLABLE, self.child.wait()).await {
            return (status, result);
        }
        let pid = self.pid;
        tracing::error!(pid, "a killed worker is stuck in the kernel, on a file system that hangs");
        (self.child.wait().await, result)
    }
}

/// A process of this very program, whatever lies at its path by now.
fn worker_command(channel: OwnedFd) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("escpd")
        .arg(crate::worker::ARGUMENT)
        .arg(std::process::id().to_string())
        .env_clear()
        .envs(std::env::var_os(JOURNAL_STREAM).map(|stream| (JOURNAL_STREAM, stream)))
        .current_dir("/")
        .stdin(Stdio::from(channel))
        .stdout(Stdio::null())
        // A terminal's Ctrl-C is for the broker, which lets its sessions end.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Sends what comes up; returns why it cannot.
async fn send(
    channel: &Channel,
    mut replies: mpsc::Receiver<Result<(), String>>,
    mut lanes: mpsc::Receiver<AcceptedLane>,
    hall: Hall,
) -> io::Error {
    let Hall { mut phase, mut log, .. } = hall;
    let mut told = false;
    loop {
        let (message, descriptor) = tokio::select! {
            Some(reply) = replies.recv() => (ToWorker::Registered(reply), None),
            Some(AcceptedLane { packet, socket }) = lanes.recv() => {
                let half = |from: usize| std::array::from_fn(|at| packet.get(from + at).copied().unwrap_or(0));
                (ToWorker::Lane(half(0), half(32)), Some(socket))
            }
            Ok(()) = log.changed() => (ToWorker::Log(logging::to_choice(&log.borrow_and_update())), None),
            true = reached(&mut phase, Phase::Stopping), if !told => {
                told = true;
                (ToWorker::Stop("escpd was stopped".to_owned()), None)
            }
            // All senders are gone, which the caller notices by itself.
            else => std::future::pending().await,
        };
        let descriptors: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        if let Err(error) = link::to_worker(channel, &message, &descriptors).await {
            if worker_gone(&error) {
                std::future::pending::<()>().await;
            }
            return error;
        }
    }
}

fn worker_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Answers what a worker asks.
struct Desk<'a> {
    hall: &'a Hall,
    key: u64,
    uid: u32,
    lanes: mpsc::Sender<AcceptedLane>,
    replies: mpsc::Sender<Result<(), String>>,
    said: &'a Mutex<Option<SessionResult>>,
}

impl Desk<'_> {
    /// Returns when the worker breaks the rules, and how; `None` when it closed the channel.
    async fn receive(&self, channel: &Channel) -> Option<String> {
        let mut buffer = FrameBuffer::new();
        loop {
            match link::from_worker(channel, &mut buffer).await {
                Ok(Some(ToBroker::Register { session, route_key })) => {
                    let key = RouteKey::from_bytes(route_key.0);
                    let lanes = self.lanes.clone();
                    let answer = self.hall.routes.register(self.key, self.uid, session, key, lanes);
                    // One is registered, so more than a few answers in wait are not an honest worker's.
                    if self.replies.try_send(answer).is_err() {
                        return Some("it asks without waiting for answers".to_owned());
                    }
                }
                Ok(Some(ToBroker::Placed(placement))) => self.hall.ledger.place(self.key, placement),
                Ok(Some(ToBroker::Ended(end))) => {
                    self.said.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(end.into());
                }
                Ok(None) => return None,
                Err(error) => return Some(format!("it breaks the rules: {error}")),
            }
        }
    }
}

/// Waits until a worker should not be there any more, and says why.
async fn outlived(
    agent: &OwnedFd,
    mut phase: watch::Receiver<Phase>,
    said: &Mutex<Option<SessionResult>>,
) -> (Option<SessionResult>, String) {
    let overtime = async {
        let (mut hung_up, mut done) = (None, None);
        let late = |since: &mut Option<Instant>, is: bool| {
            *since = if is { since.or_else(|| Some(Instant::now())) } else { None };
            since.is_some_and(|since| since.elapsed() >= OVERTIME)
        };
        loop {
            sleep(LOOK).await;
            if late(&mut hung_up, has_hung_up(agent)) {
                return (Some(SessionResult::AgentGone), "its agent is gone and it does not end".to_owned());
            }
            if late(&mut done, said.lock().unwrap_or_else(PoisonError::into_inner).is_some()) {
                return (None, "its session is over and it does not end".to_owned());
            }
        }
    };
    let stopped = async {
        reached(&mut phase, Phase::Stopping).await;
        let _ = timeout(FAREWELL, reached(&mut phase, Phase::Killing)).await;
        (Some(SessionResult::Stopped), "escpd stops".to_owned())
    };
    tokio::select! {
        verdict = overtime => verdict,
        verdict = stopped => verdict,
    }
}

/// Waits for a phase; `false` when the broker is gone before it.
async fn reached(phase: &mut watch::Receiver<Phase>, due: Phase) -> bool {
    phase.wait_for(|phase| *phase >= due).await.is_ok()
}

fn has_hung_up(connection: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(connection, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}
