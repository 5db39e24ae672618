//! A worker: the process of one session.
//!
//! It is this program started again by the broker, with a channel to the broker as its standard input, and
//! gives up every right before it reads a byte. It ends with its session, its agent or its broker.

use crate::ledger::SessionResult;
use crate::logging::{self, Logging};
use escp_config::{Config, Limits};
use escp_engine::pace::Pace;
use escp_engine::{AcceptedLane, Host, LaneSource, Registration};
use escp_engine_api::placement::Placement;
use escp_engine_api::{COMMAND_QUEUE, Command, EngineHandle};
use escp_ipc::link::{self, SessionEnd, Start, ToBroker, ToWorker};
use escp_ipc::{Channel, FrameBuffer, ServeEnd};
use escp_sys::counters::CounterPage;
use escp_sys::process;
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

/// The program's first argument when it is a worker.
pub(crate) const ARGUMENT: &str = "worker";

/// How long the broker may take to say what to do.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an engine whose session is over may take to tell its peer and to let go of everything.
const FAREWELL: Duration = Duration::from_millis(2500);
const FAREWELL_LOOK: Duration = Duration::from_millis(5);
/// Lanes that may wait for the engine.
const LANES: usize = 512;

/// Runs a worker of the broker whose process id is `parent`.
pub(crate) fn main(parent: Option<&OsStr>) -> ExitCode {
    match prepare(parent).and_then(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("a worker ends: {error}");
            // The log may not be open yet.
            let _ = writeln!(io::stderr(), "escpd worker: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Gives up what a worker must not have, while there is one thread; returns the channel to the broker.
fn prepare(parent: Option<&OsStr>) -> io::Result<OwnedFd> {
    process::forbid_dumping()?;
    process::forbid_new_privileges()?;
    process::drop_capabilities()?;
    process::close_on_exec_from(3)?;
    let by_hand = || io::Error::other("escpd starts its workers itself");
    let parent = parent.and_then(OsStr::to_str).and_then(|text| text.parse().ok()).ok_or_else(by_hand)?;
    process::die_with_parent(parent)?;
    process::raise_descriptor_limit()?;
    process::raise_locked_memory_limit()?;
    io::stdin().as_fd().try_clone_to_owned()
}

fn work(channel: OwnedFd) -> io::Result<()> {
    // One thread for control, on which nothing waits for a file system: passed descriptors are looked at without asking
    // a server, and closed elsewhere.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(session(channel));
    // What still hangs ends with the process.
    runtime.shutdown_background();
    done
}

async fn session(channel: OwnedFd) -> io::Result<()> {
    let channel = Channel::new(channel)?;
    let mut buffer = FrameBuffer::new();
    let Assignment { start, agent, page, pace, logging } = assignment(&channel, &mut buffer).await?;
    let page = Arc::new(page);
    let (register, registrations) = mpsc::channel(1);
    let (lane_sender, lanes) = mpsc::channel(LANES);
    let (stop, stopped) = oneshot::channel();
    let (placed, placement) = oneshot::channel();
    let engine = escp_engine::spawn(Host {
        lanes: LaneSource::Routed { ports: start.ports.clone(), register, lanes },
        counters: Some(Arc::clone(&page)),
        daemon: true,
        memory: Some(start.memory),
        pace: Some(pace),
        placed: Some(placed),
    });
    let errands = Errands { registrations, lanes: lane_sender, stop: Some(stop), placement, logging };
    let end = tokio::select! {
        end = escp_ipc::serve(agent, bounded(engine, start, stopped)) => end,
        error = errands.run(&channel, &mut buffer) => return Err(error),
    };
    let ended = SessionEnd::from(&end);
    let result = SessionResult::from(ended);
    match &end {
        ServeEnd::Failed(failure) => tracing::info!(result = result.name(), "session failed: {failure}"),
        ServeEnd::Refused(why) => tracing::warn!(result = result.name(), "session ended: {why}"),
        ServeEnd::Ended { files } => tracing::debug!(files, "session ended"),
        ServeEnd::AgentGone => tracing::debug!("the agent hung up"),
    }
    let told = link::to_broker(&channel, &ToBroker::Ended(ended)).await;
    if timeout(FAREWELL, released(&page)).await.is_err() {
        tracing::debug!("the engine holds on to something; ending without it");
    }
    told
}

/// Waits until the engine, all its threads included, counts no more.
async fn released(page: &Arc<CounterPage>) {
    while Arc::strong_count(page) > 1 {
        sleep(FAREWELL_LOOK).await;
    }
}

/// What the broker started this worker for.
struct Assignment {
    start: Start,
    agent: OwnedFd,
    page: CounterPage,
    pace: Pace,
    logging: Logging,
}

async fn assignment(channel: &Channel, buffer: &mut FrameBuffer) -> io::Result<Assignment> {
    let message = timeout(START_TIMEOUT, link::from_broker(channel, buffer)).await;
    let unasked = || io::Error::other("escpd does not say what to do");
    let Some((ToWorker::Start(mut start), descriptors)) = message.map_err(|_| unasked())?? else {
        return Err(unasked());
    };
    let [agent, memory, pace] = <[OwnedFd; 3]>::try_from(descriptors).map_err(|_| unasked())?;
    let page = CounterPage::map(memory)?;
    let pace = Pace::new(Arc::new(CounterPage::map(pace)?));
    let log = logging::from_choice(std::mem::take(&mut start.log));
    let logging = Logging::start(&log).map_err(io::Error::other)?;
    Ok(Assignment { start: *start, agent, page, pace, logging })
}

/// What goes on between broker and engine.
struct Errands {
    registrations: mpsc::Receiver<Registration>,
    lanes: mpsc::Sender<AcceptedLane>,
    stop: Option<oneshot::Sender<String>>,
    placement: oneshot::Receiver<Placement>,
    logging: Logging,
}

impl Errands {
    /// Goes on until the broker is gone.
    async fn run(mut self, channel: &Channel, buffer: &mut FrameBuffer) -> io::Error {
        let mut asked = VecDeque::new();
        let mut unplaced = true;
        loop {
            let message = tokio::select! {
                Some(Registration { session, route_key, done }) = self.registrations.recv() => {
                    asked.push_back(done);
                    let route_key = escp_engine_api::Secret(route_key);
                    let register = ToBroker::Register { session, route_key };
                    match link::to_broker(channel, &register).await {
                        Ok(()) => continue,
                        Err(error) => return error,
                    }
                }
                placement = &mut self.placement, if unplaced => {
                    unplaced = false;
                    // A session that ends before its first data connection has none.
                    let Ok(placement) = placement else { continue };
                    match link::to_broker(channel, &ToBroker::Placed(placement)).await {
                        Ok(()) => continue,
                        Err(error) => return error,
                    }
                }
                message = link::from_broker(channel, buffer) => message,
            };
            match message {
                Ok(Some((ToWorker::Registered(answer), _))) => {
                    // Answers come in the order of the questions; an engine that left needs none.
                    let _ = asked.pop_front().map(|done| done.send(answer));
                }
                Ok(Some((ToWorker::Lane(first, second), sockets))) => {
                    let mut packet = [0; 64];
                    packet.iter_mut().zip(first.into_iter().chain(second)).for_each(|(to, from)| *to = from);
                    for socket in sockets {
                        // Without room it is closed, and dialled again.
                        let _ = self.lanes.try_send(AcceptedLane { packet, socket });
                    }
                }
                Ok(Some((ToWorker::Log(choice), _))) => {
                    let level = logging::from_choice(choice).level;
                    if let Err(error) = self.logging.reopen() {
                        tracing::error!("{error}; the old file stays in use");
                    }
                    self.logging.set_level(level);
                    tracing::debug!("logging as the configuration says now");
                }
                Ok(Some((ToWorker::Stop(reason), _))) => {
                    let _ = self.stop.take().map(|stop| stop.send(reason));
                }
                Ok(Some((ToWorker::Start(_), _))) => return io::Error::other("escpd says to start twice"),
                Ok(None) => return io::Error::new(io::ErrorKind::BrokenPipe, "escpd is gone"),
                Err(error) => return error,
            }
        }
    }
}

/// The engine behind this host's limits: whatever the agent asks for, it gets no more than the
/// configuration allows. A reason that comes over `stopped` aborts the session.
fn bounded(engine: EngineHandle, start: Start, stopped: oneshot::Receiver<String>) -> EngineHandle {
    let EngineHandle { commands: to, events } = engine;
    let (commands, mut from) = mpsc::channel(COMMAND_QUEUE);
    tokio::spawn(async move {
        let mut stopped = std::pin::pin!(stopped);
        let mut may_stop = true;
        loop {
            let command = tokio::select! {
                command = from.recv() => match command {
                    Some(command) => within(command, &start),
                    None => return,
                },
                reason = &mut stopped, if may_stop => {
                    may_stop = false;
                    match reason {
                        Ok(reason) => Command::Abort { reason },
                        Err(_) => continue,
                    }
                }
            };
            if to.send(command).await.is_err() {
                return;
            }
        }
    });
    EngineHandle { commands, events }
}

fn within(command: Command, start: &Start) -> Command {
    let Command::Open(mut options) = command else { return command };
    let limits = Limits { memory_per_session: start.memory, ..Config::default().limits };
    options.depth = limits.depth(options.streams, options.block_size, options.depth);
    options.rate_limit = [options.rate_limit, start.rate].into_iter().flatten().min();
    options.cpus.clone_from(&start.cpus);
    Command::Open(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::{Direction, JobOptions, Secret, SessionId, Side, engine_pair};

    fn start() -> Start {
        let config = Config::default();
        Start {
            log: logging::to_choice(&config.log),
            ports: Vec::new(),
            cpus: vec![3],
            memory: 128 << 20,
            rate: Some(1_000_000),
        }
    }

    fn options() -> Box<JobOptions> {
        let (session, secret) = (SessionId([1; 16]), Secret([2; 32]));
        let usual = JobOptions::new(session, secret, Side::Near, Direction::Send);
        Box::new(JobOptions { depth: 64, cpus: vec![0, 1], ..usual })
    }

    #[test]
    fn an_agent_gets_no_more_than_the_configuration_allows() {
        let opened = |options| match within(Command::Open(options), &start()) {
            Command::Open(options) => (options.depth, options.rate_limit, options.cpus),
            other => panic!("{other:?}"),
        };
        assert_eq!(opened(options()), (16, Some(1_000_000), vec![3]));
        let modest = JobOptions { depth: 2, rate_limit: Some(5), ..*options() };
        assert_eq!(opened(Box::new(modest)), (2, Some(5), vec![3]));
    }

    #[tokio::test]
    async fn stopping_aborts_and_hanging_up_passes_through() {
        let (engine, mut port) = engine_pair();
        let (stop, stopped) = oneshot::channel();
        let handle = bounded(engine, start(), stopped);
        handle.commands.send(Command::DropFiles(vec![1])).await.unwrap();
        assert!(matches!(port.commands.recv().await, Some(Command::DropFiles(_))));
        stop.send("stopped".to_owned()).unwrap();
        assert!(matches!(port.commands.recv().await, Some(Command::Abort { reason }) if reason == "stopped"));
        drop(handle);
        assert!(port.commands.recv().await.is_none());
        assert!(port.events.is_closed());
    }
}
