//! The near end of a session: what the `escp` command does once ssh runs.
//!
//! [`greet`] exchanges hellos and says what is wanted; [`run`] opens the engines on both hosts, connects them and moves the
//! files.

use crate::control::{
    ChannelEnd, ControlError, ControlReader, ControlWriter, Monitor, hung_up, out_of_turn, peer_failure,
};
use crate::dial::{self, Family, HostName, Targets};
use crate::establish::{self, Opening};
use crate::exchange::refused;
use crate::link::{HangUp, Observer, SessionError, TransferOptions};
use crate::receive::{TakenNames, Target, receive_files};
use crate::send::{Source, send_files};
use crate::status;
use crate::tally::Tally;
use escp_crypto::MasterSecret;
use escp_engine_api::{
    Command, Direction, EngineHandle, EngineKind, JobOptions, Lane, PEER_GAVE_UP, Secret, SessionId, Side,
};
use escp_proto::agent::{AgentMessage, Request, Transfer};
use escp_proto::control::{
    ControlMessage, Hello, Job, Listening, MAX_DEPTH, MAX_VERBOSE, MIN_DEPTH, Streams,
};
use escp_proto::{ProtocolError, VERSION};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

/// Time for the far side to open its engine.
const LISTENING_DEADLINE: Duration = Duration::from_secs(30);
/// Time from the last connected lane until both engines know each other.
const CONNECTED_DEADLINE: Duration = Duration::from_secs(15);
/// Time to wait for the host's name to resolve when the far side's own address may not be enough.
const RESOLVE_DEADLINE: Duration = Duration::from_millis(500);
/// Time for the far side's own words to arrive after its engine or ssh broke off.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Time for the far agent to leave after goodbye.
const LEAVE_DEADLINE: Duration = Duration::from_secs(5);

/// What the near side wants done.
#[derive(Debug, Clone)]
pub struct NearJob {
    /// The far host as the user named it, for messages and, if need be, for dialling.
    pub host: String,
    /// What goes where.
    pub transfer: NearTransfer,
    /// How files are to be moved.
    pub options: TransferOptions,
    /// This host's engine.
    pub near_kind: EngineKind,
    /// The far host's engine.
    pub far_kind: EngineKind,
    /// Data streams, 1 to [`escp_engine_api::MAX_STREAMS`].
    pub streams: u16,
    /// Data streams where both ends turn out to be one machine and share its cores.
    pub streams_on_one_machine: u16,
    /// Blocks in flight per stream, 2 to 64.
    pub depth: u16,
    /// Highest zstd level of the sender, if it is to compress.
    pub compress: Option<i32>,
    /// Total bits per second of the sender.
    pub rate_limit: Option<u64>,
    /// TCP congestion control of both hosts, as their kernels call it; `None`: each host's own.
    pub congestion: Option<String>,
    /// CPUs of this host's data threads; empty: all.
    pub cpus: Vec<u16>,
    /// Ports of an embedded far engine, first and last; `None`: as the far host is configured.
    pub far_ports: Option<(u16, u16)>,
    /// Family of addresses for data.
    pub family: Family,
    /// How much the far agent logs to stderr, 0 (errors only) to [`MAX_VERBOSE`].
    pub verbose: u8,
}

/// What goes where, seen from the near side.
#[derive(Debug, Clone)]
pub enum NearTransfer {
    /// From here to the far host.
    Upload {
        /// Files and directories of this host.
        sources: Vec<Source>,
        /// Path on the far host; empty: the home directory.
        target: Vec<u8>,
        /// The target must be an existing directory.
        directory_required: bool,
    },
    /// From the far host to here.
    Download {
        /// Paths or patterns of the far host.
        sources: Vec<Vec<u8>>,
        /// Path on this host.
        target: Vec<u8>,
        /// The target must be an existing directory, however many files the patterns match.
        directory_required: bool,
        /// Names that this session and those with other hosts give there.
        names: TakenNames,
    },
}

/// Why there was no session: the far side never became an escp of a version this one understands.
#[derive(Debug)]
pub enum GreetError {
    /// The channel ended before a hello: ssh failed, or there is no escp. How ssh ended says more.
    Closed,
    /// Something else than escp spoke: the first line of a text, escaped.
    ForeignText(String),
    /// No common version.
    Version(ProtocolError),
    /// No hello within this time.
    Silent(Duration),
    /// Anything else: the protocol was broken.
    Broken(ControlError),
}

/// A control channel after the hellos.
#[derive(Debug)]
pub struct Greeted<R, W> {
    reader: ControlReader<R>,
    writer: ControlWriter<W>,
    session: SessionId,
    master: MasterSecret,
    job: NearJob,
    name: HostName,
}

/// Exchanges hellos. The job leaves with the near one: a round trip earlier than if it were an answer. `deadline` includes
/// whatever ssh asks the user.
///
/// # Errors
/// [`GreetError`].
pub async fn greet<R, W>(
    (reader, writer): (R, W),
    mut job: NearJob,
    deadline: Duration,
) -> Result<Greeted<R, W>, GreetError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (mut reader, mut writer) =
        (ControlReader::new(reader, escp_proto::Side::Near), ControlWriter::new(writer));
    // While ssh logs in: a resolver that is slow, or has never heard of the name, holds up nothing then.
    let name = HostName::look_up(&job.host);
    let random = establish::random_bytes().map_err(|error| GreetError::Broken(error.into()))?;
    let session = establish::random_bytes().map_err(|error| GreetError::Broken(error.into()))?;
    let machine = establish::machine(&session);
    let hello = Hello { lowest: VERSION, highest: VERSION, features: 0, session, random, machine };
    match writer.hello_and_job(&hello, job.control_job()).await {
        // A broken pipe here says less than what can be read: a banner, or nothing.
        Ok(()) | Err(ControlError::Io(_)) => {}
        Err(error) => return Err(GreetError::Broken(error)),
    }
    let (far, far_frame) = reader.hello(deadline).await.map_err(|error| match error {
        ControlError::Closed | ControlError::Io(_) => GreetError::Closed,
        ControlError::Silent(time) => GreetError::Silent(time),
        ControlError::Protocol(ProtocolError::ForeignText { excerpt }) => GreetError::ForeignText(excerpt),
        other => GreetError::Broken(other),
    })?;
    hello.agree(&far).map_err(GreetError::Version)?;
    if far.session != session {
        return Err(GreetError::Broken(ProtocolError::Malformed("hello: another session's id").into()));
    }
    let near_frame = hello.encode_frame();
    let master = MasterSecret::from_hellos(&near_frame, &far_frame, &hello.random, &far.random);
    if hello.shares_machine_with(&far) {
        job.share_one_machine();
    }
    Ok(Greeted { reader, writer, session: SessionId(session), master, job, name })
}

/// Carries the session from the hellos to its agreed end.
///
/// `engine` is called once, to connect to a daemon or to start an embedded engine. Whoever wants the session to
/// stop (a signal) raises `hang_up` (see [`crate::control::raise`]).
///
/// # Errors
/// A [`SessionError`] when the session did not come to its agreed end; the far side has been told.
pub async fn run<R, W, E>(
    greeted: Greeted<R, W>,
    engine: E,
    hang_up: watch::Sender<Option<HangUp>>,
    observer: Arc<dyn Observer>,
) -> Result<Tally, SessionError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
    E: AsyncFnOnce() -> Result<EngineHandle, SessionError>,
{
    let Greeted { mut reader, mut writer, session, master, job, name } = greeted;
    let options = job.engine_options(session, &master);
    drop(master);
    let mut stop = hang_up.subscribe();
    let opened = tokio::select! {
        biased;
        error = hung_up(&mut stop) => Err(error),
        opened = async { tokio::try_join!(
            far_listening(&mut reader, &job.host),
            establish::open(engine, options, &*observer),
        ) } => opened,
    };
    let (listening, opening) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            writer.send_failure(&error).await;
            return Err(error);
        }
    };
    note_listening(&job.host, &listening, &*observer);
    let mut stop_waiting = hang_up.subscribe();
    let mut monitor = Monitor::start(reader, job.host.clone(), hang_up);
    let moved = connect_and_move(opening, (&listening, name), &job, stop, observer).await;
    conclude(moved, &job.host, &mut writer, (&mut monitor, &mut stop_waiting)).await
}

/// Says goodbye, or why not; and prefers what the far side says about a failure to how it looks from here.
async fn conclude<W: AsyncWrite + Unpin>(
    moved: Result<Tally, SessionError>,
    host: &str,
    writer: &mut ControlWriter<W>,
    (monitor, stop): (&mut Monitor, &mut watch::Receiver<Option<HangUp>>),
) -> Result<Tally, SessionError> {
    match moved {
        Ok(tally) => {
            if let Err(error) = writer.send(&ControlMessage::Bye).await {
                tracing::debug!("no goodbye: {error}");
            }
            let end = tokio::select! {
                biased;
                end = monitor.end_within(LEAVE_DEADLINE) => end,
                // All is agreed: whoever wants the session to stop now only wants not to wait.
                _ = hung_up(stop) => monitor.end(),
            };
            match end {
                Some(ChannelEnd::Failed(error)) => Err(error),
                _ => Ok(tally),
            }
        }
        Err(error) => {
            let told = error.text.strip_prefix(PEER_GAVE_UP).map(str::to_owned);
            let mut end = None;
            if told.is_some() || error.status == status::LOST {
                // The far agent knows better, and may be about to say so.
                end = monitor.end_within(LAST_WORDS).await;
            }
            let text = match (told, end) {
                // Each side saw a loss; the one that suffered it knows what it was.
                (None, Some(ChannelEnd::Failed(said))) if said.text == error.text => error.text,
                (None, Some(ChannelEnd::Failed(said))) if said.status == status::LOST => {
                    format!("{}; {}", error.text, said.text)
                }
                (_, Some(ChannelEnd::Failed(said))) => return Err(said),
                (Some(reason), _) => format!("{host}: {reason}"),
                (None, Some(_)) if !error.text.contains(host) => {
                    format!("the connection to {host} was lost: {}", error.text)
                }
                (None, _) => error.text,
            };
            let error = SessionError { status: error.status, text };
            writer.send_failure(&error).await;
            Err(error)
        }
    }
}

impl NearJob {
    /// Takes the streams that one machine serves.
    fn share_one_machine(&mut self) {
        Streams { count: self.streams, depth: self.depth } = self.on_one_machine();
    }

    /// The streams that one machine serves, with as many blocks in flight as all of them would have: the disks are no
    /// nearer to each other.
    fn on_one_machine(&self) -> Streams {
        let in_flight = u32::from(self.streams) * u32::from(self.depth);
        let count = self.streams_on_one_machine;
        let depth = u16::try_from(in_flight / u32::from(count.max(1)));
        Streams { count, depth: depth.unwrap_or(MAX_DEPTH).clamp(MIN_DEPTH, MAX_DEPTH) }
    }

    fn direction(&self) -> Direction {
        match self.transfer {
            NearTransfer::Upload { .. } => Direction::Send,
            NearTransfer::Download { .. } => Direction::Receive,
        }
    }

    fn engine_options(&self, session: SessionId, master: &MasterSecret) -> JobOptions {
        JobOptions {
            session,
            secret: Secret(*master.expose()),
            side: Side::Near,
            direction: self.direction(),
            kind: self.near_kind,
            listen: None,
            streams: self.streams,
            block_size: self.options.block_size,
            depth: self.depth,
            compress: self.compress,
            checksum: self.options.checksum,
            durable: self.options.durable,
            rate_limit: self.rate_limit,
            congestion: self.congestion.clone(),
            cpus: self.cpus.clone(),
        }
    }

    fn control_job(&self) -> Job {
        Job {
            far_sends: self.direction() == Direction::Receive,
            engine: self.far_kind.name().to_owned(),
            streams: Streams { count: self.streams, depth: self.depth },
            streams_on_one_machine: self.on_one_machine(),
            block_size: self.options.block_size,
            compress: self.compress,
            checksum: self.options.checksum,
            durable: self.options.durable,
            rate_limit: self.rate_limit,
            congestion: self.congestion.clone(),
            ports: self.far_ports,
            verbose: self.verbose.min(MAX_VERBOSE),
        }
    }

    fn request(&self) -> Request {
        let transfer = match &self.transfer {
            NearTransfer::Upload { target, directory_required, .. } => {
                Transfer::Upload { target: target.clone(), directory_required: *directory_required }
            }
            NearTransfer::Download { sources, .. } => Transfer::Download { sources: sources.clone() },
        };
        Request {
            transfer,
            recursive: self.options.recursive,
            preserve: self.options.preserve,
            inplace: self.options.inplace,
            durable: self.options.durable,
            direct: self.options.direct,
            checksum: self.options.checksum,
            dummy: self.options.dummy,
        }
    }
}

async fn far_listening<R: AsyncRead + Unpin>(
    reader: &mut ControlReader<R>,
    host: &str,
) -> Result<Listening, SessionError> {
    let lost = |error: ControlError| error.for_session(host);
    match reader.message_within(LISTENING_DEADLINE).await.map_err(lost)? {
        ControlMessage::Listening(listening) => Ok(listening),
        ControlMessage::Failed(failure) => Err(peer_failure(host, &failure)),
        other => Err(lost(out_of_turn(&other))),
    }
}

fn note_listening(host: &str, listening: &Listening, observer: &dyn Observer) {
    let place = if listening.daemon { "in escpd" } else { "embedded" };
    observer.note(&format!("{host}: {} engine {place}", listening.engine));
    listening.notes.iter().for_each(|note| observer.note(&format!("{host}: {note}")));
}

/// From open engines to the agreed end of the transfer.
async fn connect_and_move(
    mut opening: Opening,
    (listening, name): (&Listening, HostName),
    job: &NearJob,
    mut stop: watch::Receiver<Option<HangUp>>,
    observer: Arc<dyn Observer>,
) -> Result<Tally, SessionError> {
    let asked = tokio::select! {
        biased;
        error = hung_up(&mut stop) => Err(error),
        asked = async {
            connect(&mut opening, (listening, name), job, &*observer).await?;
            request(&mut opening, job).await?;
            match job.transfer {
                NearTransfer::Upload { .. } => Ok(0),
                NearTransfer::Download { .. } => accepted(&mut opening, &job.host, &*observer).await,
            }
        } => asked,
    };
    let sources = match asked {
        Ok(sources) => sources,
        Err(error) => return Err(opening.abort(error).await),
    };
    match &job.transfer {
        NearTransfer::Upload { sources, .. } => {
            // What is offered follows the request at once; the answer comes meanwhile.
            let mut link = opening.into_link(stop, false);
            send_files(&mut link, sources.clone(), job.options, observer, &job.host).await
        }
        NearTransfer::Download { sources: asked, target, directory_required, names } => {
            let target = if job.options.dummy {
                Target::dummy()
            } else {
                let (path, required, durable) = (target.clone(), *directory_required, job.options.durable);
                // At least one: 0 would mean an upload.
                let resolve = move || Target::resolve(&path, required, sources.max(1), durable);
                match establish::look(&mut stop, resolve).await.flatten() {
                    Ok(target) => target.requested(asked).beside(names.clone()),
                    Err(error) => return Err(opening.abort(error).await),
                }
            };
            let mut link = opening.into_link(stop, true);
            receive_files(&mut link, target, job.options, observer, &job.host).await
        }
    }
}

/// Dials the lanes, hands them to the engine and waits until both engines know each other.
async fn connect(
    opening: &mut Opening,
    (listening, name): (&Listening, HostName),
    job: &NearJob,
    observer: &dyn Observer,
) -> Result<(), SessionError> {
    let targets = Targets {
        host: job.host.clone(),
        addresses: addresses(name, listening).await,
        ports: listening.ports.clone(),
        family: job.family,
        congestion: job.congestion.as_deref().map(Into::into),
    };
    let lanes = dial::dial(&targets, usize::from(job.streams) + 1).await?;
    observer.note(&format!("{}: {} data connections to {}", job.host, lanes.sockets.len(), lanes.to));
    let to = lanes.to;
    for (stream, socket) in (0..).zip(lanes.sockets) {
        opening.command(Command::AddLane(Lane { stream, socket })).await?;
    }
    timeout(CONNECTED_DEADLINE, opening.connected(observer)).await.map_err(|_| SessionError {
        status: status::CONNECT,
        text: format!(
            "{to} accepts connections, but the engine of this session on {} did not answer there within {} s; \
             does another host or service have that address or port?",
            job.host,
            CONNECTED_DEADLINE.as_secs()
        ),
    })??;
    let round_trip = opening.round_trip();
    if !round_trip.is_zero() {
        observer.note(&format!("{}: a round trip takes {:.1} ms", job.host, round_trip.as_secs_f64() * 1e3));
    }
    Ok(())
}

/// What the far side offers, then what the host's name means here: the far side's own address may not be the
/// one that leads to it.
async fn addresses(name: HostName, listening: &Listening) -> Vec<SocketAddr> {
    let mut all: Vec<_> = listening.addresses.iter().map(|ip| SocketAddr::new(*ip, 0)).collect();
    let patience = if all.is_empty() { dial::DEADLINE } else { RESOLVE_DEADLINE };
    all.extend(name.addresses(patience).await);
    all
}

/// Sends the request and, for a download, what may be offered before the next word.
async fn request(opening: &mut Opening, job: &NearJob) -> Result<(), SessionError> {
    let said = job.request().encode().map_err(|error| SessionError {
        status: status::USAGE,
        text: format!("what was asked for cannot be said to {}: {error}", job.host),
    })?;
    for message in said {
        opening.command(Command::Message(message)).await?;
    }
    match job.direction() {
        Direction::Send => Ok(()),
        Direction::Receive => opening.give_credit().await,
    }
}

/// The answer to the request for a download: the number of its top-level sources.
async fn accepted(opening: &mut Opening, host: &str, observer: &dyn Observer) -> Result<u32, SessionError> {
    match opening.message(observer).await? {
        AgentMessage::Accept(accept) => Ok(accept.sources),
        AgentMessage::Refuse(refusal) => Err(refused(host, &refusal)),
        _ => Err(SessionError {
            status: status::INTEGRITY,
            text: format!("{host} broke the protocol: neither accepted nor refused the request"),
        }),
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod session_tests;
