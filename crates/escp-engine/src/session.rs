//! The control task of one session: commands in, events out, stream 0 in between.

use crate::clock::Clock;
use crate::control_stream::{ControlStream, Inbound};
use crate::finish::{finish_files, let_go};
use crate::intake;
use crate::lane::{self, HandshakeError, ProvenLane};
use crate::listen::{Lanes, listen};
use crate::meter::{Counter, Meter};
use crate::pipeline::LaneError;
use crate::placement;
use crate::shared::Shared;
use crate::standstill::Standstill;
use crate::way::{self, Watch};
use crate::worker::{LaneKey, LaneOver, NewLane, Workers, resolve};
use crate::{AcceptedLane, Host};
use escp_crypto::MasterSecret;
use escp_engine_api::placement::{Placement, Reason};
use escp_engine_api::{
    Command, Direction, EngineKind, EnginePort, Event, Failure, Fault, FileReport, JobOptions, Lane, Opened,
    PEER_GAVE_UP, Summary,
};
use escp_proto::message::{EngineMessage, Message};
use escp_proto::stream::PeerRole;
use escp_sys::counters::CounterPage;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

/// How often acknowledgements, progress and deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// Reports that wait for the agent; beyond it, finished files wait.
const REPORT_QUEUE: usize = 16;
/// How long the last words to the peer may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// One session.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    pub(crate) events: mpsc::Sender<Event>,
    pub(crate) control: Option<ControlStream>,
    master: MasterSecret,
    workers: Workers,
    placed: Option<oneshot::Sender<Placement>>,
    streams_seen: HashSet<u16>,
    nonces_seen: HashSet<[u8; 16]>,
    pub(crate) lanes_up: u16,
    pub(crate) lanes_over: u16,
    pub(crate) summary: Option<Summary>,
    pub(crate) end_sent: bool,
    pub(crate) peer_end: Option<Summary>,
    /// An agent message that waits for room on stream 0; no command is taken meanwhile.
    stalled: Option<Message>,
    pub(crate) clock: Clock,
    pub(crate) watch: Watch,
    pub(crate) standstill: Standstill,
    /// A lane was lost; the peer's own reason on stream 0 may be on its way and is waited for a moment.
    pub(crate) loss: Option<(Instant, LaneError)>,
}

/// Queues that end at the control task.
struct Queues {
    over: mpsc::UnboundedReceiver<LaneOver>,
    reports: mpsc::Receiver<Vec<FileReport>>,
    proven: mpsc::Receiver<(u16, Result<ProvenLane, HandshakeError>)>,
    proven_tx: mpsc::Sender<(u16, Result<ProvenLane, HandshakeError>)>,
    lanes: Lanes,
}

/// Runs a session from its first command to its last event.
pub(crate) async fn run(host: Host, mut port: EnginePort) {
    let Some(command) = port.commands.recv().await else { return };
    let opened = match command {
        Command::Open(options) => Session::open(*options, host, &port).await,
        _ => Err(Failure { fault: Fault::Local, text: "the agent did not open the session first".into() }),
    };
    let last = match opened {
        Ok((mut session, mut queues)) => {
            let over = session.serve(&mut port, &mut queues).await;
            session.close(over).await
        }
        Err(failure) => Some(Event::Failed(failure)),
    };
    if let Some(event) = last {
        // An agent that is gone wants no last word.
        let _ = port.events.send(event).await;
    }
}

/// How serving ended.
enum Over {
    /// Both sides agreed.
    Agreed,
    /// See [`Shared::failure`].
    Failed,
    /// The agent hung up; nobody wants an event.
    AgentGone,
}

impl Session {
    async fn open(options: JobOptions, host: Host, port: &EnginePort) -> Result<(Self, Queues), Failure> {
        intake::check_options(&options)?;
        intake::check_memory(&options, host.memory)?;
        way::check_congestion(options.congestion.as_deref())?;
        let (kind, kind_reason) = resolve(options.kind);
        let local = |what: &str, error: std::io::Error| Failure {
            fault: Fault::Local,
            text: format!("{what}: {}", crate::files::describe(&error)),
        };
        let page = match host.counters {
            Some(page) => page,
            None => Arc::new(CounterPage::new().map_err(|e| local("no memory for counters", e))?),
        };
        let meter = Meter::new(page);
        meter.add(session_counter(kind), 1);
        let master = MasterSecret::from_bytes(options.secret.0);
        let route_key = master.route_key(&options.session.0);
        let lanes = listen(host.lanes, options.listen.as_ref(), options.session.0, route_key).await?;
        let (file_over, files_over) = mpsc::unbounded_channel();
        let (lane_over, over) = mpsc::unbounded_channel();
        let (report, reports) = mpsc::channel(REPORT_QUEUE);
        let (proven_tx, proven) = mpsc::channel(usize::from(options.streams) + 1);
        let shared = Arc::new(Shared::new(options, kind, meter, host.pace, file_over));
        let workers =
            Workers::start(&shared, &lane_over).map_err(|e| local("no data thread can be started", e))?;
        tokio::spawn(finish_files(Arc::clone(&shared), files_over, report));
        let opened = Opened {
            kind,
            kind_reason,
            ports: lanes.ports.clone(),
            port_note: lanes.note.clone(),
            daemon: host.daemon,
        };
        let gone = |_| Failure { fault: Fault::Local, text: "the agent is gone".into() };
        port.events.send(Event::Opened(opened)).await.map_err(gone)?;
        let session = Self {
            clock: Clock::new(&shared),
            watch: Watch::default(),
            standstill: Standstill::default(),
            shared,
            events: port.events.clone(),
            control: None,
            master,
            workers,
            placed: host.placed,
            streams_seen: HashSet::new(),
            nonces_seen: HashSet::new(),
            lanes_up: 0,
            lanes_over: 0,
            summary: None,
            end_sent: false,
            peer_end: None,
            stalled: None,
            loss: None,
        };
        Ok((session, Queues { over, reports, proven, proven_tx, lanes }))
    }

    async fn serve(&mut self, port: &mut EnginePort, queues: &mut Queues) -> Over {
        let shared = Arc::clone(&self.shared);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if shared.is_failed() {
                return Over::Failed;
            }
            if self.try_end() {
                return Over::Agreed;
            }
            let outbound = self.control.as_ref().map(|control| control.outbound.clone());
            tokio::select! {
                () = shared.failing.notified() => {}
                command = port.commands.recv(), if self.stalled.is_none() => match command {
                    Some(command) => self.command(command, queues),
                    None => return Over::AgentGone,
                },
                Some(lane) = queues.lanes.accepted.recv() => self.accepted(lane, queues),
                Some((stream, result)) = queues.proven.recv() => self.proven(stream, result).await,
                permit = room(outbound), if self.stalled.is_some() => {
                    if let (Some(permit), Some(message)) = (permit, self.stalled.take()) {
                        permit.send(message);
                        self.clock.said(&shared);
                    }
                }
                inbound = next_inbound(&mut self.control) => self.inbound(inbound).await,
                Some(over) = queues.over.recv() => self.lane_over(over),
                Some(reports) = queues.reports.recv() => self.emit(Event::Files(reports)).await,
                _ = tick.tick() => self.tick().await,
            }
        }
    }

    pub(crate) async fn emit(&self, event: Event) {
        // A closed queue shows in the command queue too, and is acted upon there.
        let _ = self.events.send(event).await;
    }

    fn command(&mut self, command: Command, queues: &Queues) {
        let shared = &self.shared;
        match command {
            Command::Open(_) => shared.fail(Fault::Local, "the agent opened the session twice"),
            Command::AddLane(lane) => self.dialled(lane, queues),
            Command::AddFiles(files) => intake::add_files(shared, files),
            Command::Schedule(extents) => intake::schedule(shared, &extents),
            Command::Scheduled => shared.plan.close(),
            Command::DropFiles(numbers) => intake::drop_files(shared, &numbers),
            Command::Message(bytes) => self.stalled = Some(Message::Agent(bytes)),
            Command::Finish(summary) => {
                self.summary = Some(summary);
                shared.plan.close();
            }
            Command::Abort { reason } => {
                shared.fail(Fault::Local, reason);
            }
        }
    }

    fn dialled(&self, lane: Lane, queues: &Queues) {
        let (shared, master, proven) =
            (Arc::clone(&self.shared), self.master.clone(), queues.proven_tx.clone());
        tokio::spawn(async move {
            let result = lane::introduce(&shared, &master, lane.stream, lane.socket).await;
            let _ = proven.send((lane.stream, result)).await;
        });
    }

    fn accepted(&mut self, lane: AcceptedLane, queues: &Queues) {
        // A nonce counts once per session: a recorded connection that is played again stops here.
        let nonce = std::array::from_fn(|i| lane.packet[24 + i]);
        let stream = u16::from_be_bytes([lane.packet[6], lane.packet[7]]);
        if !self.nonces_seen.insert(nonce) || self.streams_seen.contains(&stream) {
            tracing::warn!(stream, "a connection that claims a stream in use was refused");
            self.shared.meter.add(Counter::ErrorsNetwork, 1);
            return;
        }
        if stream > self.shared.options.streams {
            tracing::warn!(stream, "a connection that claims a stream beyond the agreed ones was refused");
            return;
        }
        let (shared, master, proven) =
            (Arc::clone(&self.shared), self.master.clone(), queues.proven_tx.clone());
        self.streams_seen.insert(stream);
        tokio::spawn(async move {
            let result = lane::answer(&shared, &master, lane.packet, lane.socket).await;
            let _ = proven.send((stream, result)).await;
        });
    }

    async fn proven(&mut self, stream: u16, result: Result<ProvenLane, HandshakeError>) {
        let lane = match result {
            Ok(lane) => lane,
            Err(error) => {
                let text = format!("stream {stream} did not come up: {error}");
                self.shared.fail(Fault::Connect, text);
                return;
            }
        };
        if stream == 0 {
            let peer = match self.shared.options.direction {
                Direction::Send => PeerRole::Receiver,
                Direction::Receive => PeerRole::Sender,
            };
            self.control = Some(ControlStream::start(lane, peer));
        } else if let Err(error) = self.admit(lane).await {
            let text = format!("stream {stream} did not come up: {}", crate::files::describe(&error));
            self.shared.fail(Fault::Local, text);
            return;
        } else {
            self.lanes_up += 1;
        }
        if self.control.is_some() && self.lanes_up == self.shared.options.streams {
            self.clock.connected(&self.shared);
            self.emit(Event::Connected { round_trip: way::round_trip(&self.shared) }).await;
        }
    }

    async fn admit(&mut self, lane: ProvenLane) -> std::io::Result<()> {
        let (socket, state, sealer, opener) = lane::admit(&self.shared, lane)?;
        self.place(&socket).await;
        let key = match self.shared.options.direction {
            Direction::Send => LaneKey::Seal(sealer),
            Direction::Receive => LaneKey::Open(opener),
        };
        self.workers.give(NewLane { socket, state, key });
        Ok(())
    }

    /// Decides where data threads run, by the first data lane.
    async fn place(&mut self, socket: &std::net::TcpStream) {
        if self.shared.placement.get().is_some() {
            return;
        }
        let placement = placement::decide(&self.shared.options.cpus, socket, Path::new("/sys"));
        if placement.reason != Reason::Nothing {
            self.emit(Event::Note(placement.to_string())).await;
        }
        if let Some(placed) = self.placed.take() {
            // Whoever asked may have left.
            let _ = placed.send(placement.clone());
        }
        let _ = self.shared.placement.set(placement);
    }

    fn lane_over(&mut self, over: LaneOver) {
        match over.result {
            Ok(()) => self.lanes_over += 1,
            Err(error) if error.fault == Fault::Lost && self.loss.is_none() => {
                self.loss = Some((Instant::now(), error));
            }
            Err(error) => self.shared.fail(error.fault, error.text),
        }
    }

    /// Ends the session on all sides and says how it ended.
    async fn close(mut self, over: Over) -> Option<Event> {
        if matches!(over, Over::AgentGone) {
            self.shared.fail(Fault::PeerAborted, "the other side's agent is gone");
        }
        let failure = self.shared.failure();
        if let Some(ControlStream { outbound, writer, .. }) = self.control.take() {
            if let Some(failure) = failure.as_ref().filter(|f| !self.peer_knows(f)) {
                let status = status_of(failure.fault);
                let message = EngineMessage::Abort { status, reason: failure.text.clone() };
                // No room means that the peer does not listen.
                let _ = outbound.try_send(Message::Engine(message));
            }
            drop(outbound);
            let _ = tokio::time::timeout(FAREWELL, writer).await;
        }
        let files = self.shared.files.take_all().into_iter().chain(self.shared.plan.take_all());
        let_go(files.collect());
        match (over, failure) {
            (Over::AgentGone, _) => None,
            (_, Some(failure)) => Some(Event::Failed(failure)),
            (_, None) => {
                self.note_depths().await;
                let files = self.summary.unwrap_or_default().files;
                Some(Event::Ended { files, counters: self.clock.counters(&self.shared) })
            }
        }
    }

    fn peer_knows(&self, failure: &Failure) -> bool {
        failure.text.starts_with(PEER_GAVE_UP)
    }

    async fn note_depths(&self) {
        for lane in self.shared.lanes() {
            let (disk, beside) = (lane.peak_disk.load(Relaxed), lane.peak_beside.load(Relaxed));
            let (stream, fixed) = (lane.stream, lane.fixed.load(Relaxed));
            let text = format!(
                "stream {stream}: up to {disk} disk operations outstanding, {beside} of them beside one on the \
                 network; {fixed} on registered buffers"
            );
            self.emit(Event::Note(text)).await;
        }
    }

    async fn inbound(&mut self, inbound: Inbound) {
        self.clock.heard(&self.shared);
        match inbound {
            Inbound::Message(Message::Agent(bytes)) => self.emit(Event::Message(bytes)).await,
            Inbound::Message(Message::Engine(message)) => self.engine_message(message),
            Inbound::Over(error) => {
                // The writing half stays, to tell the peer why: what cannot be read may still be answered.
                self.shared.fail(error.fault, error.text);
            }
        }
    }
}

fn session_counter(kind: EngineKind) -> Counter {
    match kind {
        EngineKind::Uring => Counter::SessionsUring,
        EngineKind::Posix => Counter::SessionsPosix,
        EngineKind::Dummy => Counter::SessionsDummy,
    }
}

/// The exit status a failure here calls for on the other side.
fn status_of(fault: Fault) -> u8 {
    match fault {
        Fault::Connect => 3,
        Fault::Integrity => 5,
        Fault::Lost | Fault::Local | Fault::PeerAborted => 4,
    }
}

async fn next_inbound(control: &mut Option<ControlStream>) -> Inbound {
    match control {
        Some(control) => control.inbound.recv().await.unwrap_or_else(|| Inbound::Over(LaneError::closed())),
        None => std::future::pending().await,
    }
}

async fn room(outbound: Option<mpsc::Sender<Message>>) -> Option<mpsc::OwnedPermit<Message>> {
    match outbound {
        Some(outbound) => outbound.reserve_owned().await.ok(),
        None => std::future::pending().await,
    }
}
