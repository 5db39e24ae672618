//! The far end of a session: what `escp --server` does under ssh.

use crate::control::{ChannelEnd, ControlError, ControlReader, ControlWriter, Monitor, hung_up};
use crate::establish::{self, Opening};
use crate::link::{HangUp, Observer, SessionError, TransferOptions};
use crate::receive::{Target, receive_files};
use crate::send::{Source, expand_sources, send_files};
use crate::status;
use crate::tally::Tally;
use escp_crypto::MasterSecret;
use escp_engine_api::{
    Direction, EngineHandle, EngineKind, JobOptions, Listen, Opened, PEER_GAVE_UP, Secret, SessionId, Side,
};
use escp_proto::VERSION;
use escp_proto::agent::{Accept, AgentMessage, Refusal, Request, SourceList, Transfer};
use escp_proto::control::{ControlMessage, Hello, Job, Listening, Streams};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::timeout;

/// Time for the near side's hello, and for its job: both are sent at once.
const GREETING_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the near side to dial and for the engines to know each other.
const CONNECTED_DEADLINE: Duration = Duration::from_secs(60);
/// Time for the near side's request after that.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Time for the near side's goodbye after the agreed end.
const GOODBYE_DEADLINE: Duration = Duration::from_secs(10);
/// What the near side is called in messages of this one.
const PEER: &str = "the near side";

/// What the far host adds to a job.
#[derive(Debug, Clone)]
pub struct FarSettings {
    /// The address that ssh came in on; see [`address_of_connection`].
    pub address: Option<IpAddr>,
    /// ssh came from the address that it came in on; see [`is_from_here`].
    pub from_here: bool,
    /// Ports of an embedded engine, first and last, unless the job names others.
    pub ports: (u16, u16),
    /// CPUs of this host's data threads; empty: all.
    pub cpus: Vec<u16>,
    /// Most bits per second this host sends in one session.
    pub rate_limit: Option<u64>,
    /// Bytes of blocks that one session may have in flight.
    pub memory: u64,
    /// This host is configured to do without io_uring.
    pub posix_only: bool,
}

/// The far host's address in `$SSH_CONNECTION`: "client address, client port, server address, server port"
/// (ssh(1)). An address with a scope means nothing to the near host.
///
/// Other addresses of this host are not offered: private bridges have the same ones on many hosts, and the
/// near side knows the host by a name anyway.
#[must_use]
pub fn address_of_connection(ssh_connection: &str) -> Option<IpAddr> {
    ssh_connection.split_ascii_whitespace().nth(2)?.parse().ok()
}

/// Whether `$SSH_CONNECTION` names one address as both ends. Namespaces and forwarded ports make that happen
/// between machines and distances, too, or keep it from happening on one: it is a hint, good for speed alone.
#[must_use]
pub fn is_from_here(ssh_connection: &str) -> bool {
    let mut words = ssh_connection.split_ascii_whitespace();
    words.next().is_some_and(|client| words.nth(1) == Some(client))
}

/// Serves one session: from the near side's hello to the agreed end.
///
/// `engine` is called once, to connect to a daemon or to start an embedded engine. `verbosity` is told how
/// much the near side wants to see on stderr. Whoever wants the session to stop (a signal) raises `hang_up`.
///
/// # Errors
/// A [`SessionError`] when the session did not come to its agreed end; the near side has been told.
pub async fn serve<R, W, E>(
    (reader, writer): (R, W),
    engine: E,
    settings: FarSettings,
    hang_up: watch::Sender<Option<HangUp>>,
    verbosity: impl FnOnce(u8),
    observer: Arc<dyn Observer>,
) -> Result<Tally, SessionError>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin,
    E: AsyncFnOnce() -> Result<EngineHandle, SessionError>,
{
    let (mut reader, mut writer) =
        (ControlReader::new(reader, escp_proto::Side::Far), ControlWriter::new(writer));
    let mut stop = hang_up.subscribe();
    let greeted = tokio::select! {
        biased;
        error = hung_up(&mut stop) => Err(error),
        greeted = greet(&mut reader, &mut writer, settings.from_here) => greeted,
    };
    let greeted = match greeted {
        Ok(greeted) => greeted,
        Err(error) => {
            writer.send_failure(&error).await;
            return Err(error);
        }
    };
    verbosity(greeted.job.verbose);
    let mut monitor = Monitor::start(reader, PEER.into(), hang_up);
    let moved = open_and_move(engine, greeted, settings, &mut writer, stop, observer).await;
    match moved {
        Ok(tally) => {
            // Leaving at once would look like a lost connection to the near side.
            match monitor.end_within(GOODBYE_DEADLINE).await {
                Some(ChannelEnd::Failed(error)) => Err(error),
                _ => Ok(tally),
            }
        }
        Err(error) => {
            // What the near side said itself it need not hear again.
            let said_by_near = error.text.starts_with(PEER_GAVE_UP)
                || matches!(monitor.end_within(Duration::ZERO).await, Some(ChannelEnd::Failed(_)));
            if !said_by_near {
                writer.send_failure(&error).await;
            }
            Err(error)
        }
    }
}

/// What the hellos and the job say.
struct Greeted {
    session: SessionId,
    master: MasterSecret,
    job: Job,
    /// Those of the job that hold between these two ends.
    streams: Streams,
}

/// Hellos and the job.
async fn greet<R, W>(
    reader: &mut ControlReader<R>,
    writer: &mut ControlWriter<W>,
    from_here: bool,
) -> Result<Greeted, SessionError>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let lost = |error: ControlError| error.for_session(PEER);
    let (near, near_frame) = reader.hello(GREETING_DEADLINE).await.map_err(lost)?;
    let random = establish::random_bytes().map_err(|error| lost(error.into()))?;
    let machine = if from_here { establish::machine(&near.session) } else { [0; 16] };
    let hello =
        Hello { lowest: VERSION, highest: VERSION, features: 0, session: near.session, random, machine };
    // Also to a version this one does not speak: the near side then knows what to tell its user.
    let far_frame = writer.hello(&hello).await.map_err(lost)?;
    let version = hello
        .agree(&near)
        .map_err(|error| SessionError { status: status::CONNECT, text: error.to_string() })?;
    if version < near.highest {
        // It said its job before it knew better, and says it again.
        reader.pass_over(GREETING_DEADLINE).await.map_err(lost)?;
    }
    let master = MasterSecret::from_hellos(&near_frame, &far_frame, &near.random, &hello.random);
    match reader.message_within(GREETING_DEADLINE).await.map_err(lost)? {
        ControlMessage::Job(job) => {
            let one_machine = hello.shares_machine_with(&near);
            let streams = if one_machine { job.streams_on_one_machine } else { job.streams };
            Ok(Greeted { session: SessionId(near.session), master, job, streams })
        }
        ControlMessage::Failed(failure) => Err(crate::control::peer_failure(PEER, &failure)),
        other => Err(lost(crate::control::out_of_turn(&other))),
    }
}

/// From the job to the agreed end of the transfer.
async fn open_and_move<W, E>(
    engine: E,
    greeted: Greeted,
    settings: FarSettings,
    writer: &mut ControlWriter<W>,
    mut stop: watch::Receiver<Option<HangUp>>,
    observer: Arc<dyn Observer>,
) -> Result<Tally, SessionError>
where
    W: AsyncWrite + Unpin,
    E: AsyncFnOnce() -> Result<EngineHandle, SessionError>,
{
    let options = engine_options(&greeted, &settings)?;
    let Greeted { job, master, .. } = greeted;
    drop(master);
    let opened = tokio::select! {
        biased;
        error = hung_up(&mut stop) => Err(error),
        opened = establish::open_reported(engine, options) => opened,
    };
    let (mut opening, opened) = opened?;
    let answered = tokio::select! {
        biased;
        error = hung_up(&mut stop) => Err(error),
        answered = async {
            let listening = ControlMessage::Listening(listening(&opened, settings.address));
            writer.send(&listening).await.map_err(|error| error.for_session(PEER))?;
            first_request(&mut opening, &job, &*observer).await
        } => answered,
    };
    let request = match answered {
        Ok(request) => request,
        Err(error) => return Err(opening.abort(error).await),
    };
    let (mut opening, task) = accept(opening, request, &job, &mut stop).await?;
    let options = task.options;
    match task.part {
        Part::Receive(target) => {
            let mut link = opening.into_link(stop, true);
            receive_files(&mut link, target, options, observer, "").await
        }
        Part::Send(sources) => {
            let accepted = Accept { sources: u32::try_from(sources.len()).unwrap_or(u32::MAX) };
            opening.say(&AgentMessage::Accept(accepted)).await?;
            let mut link = opening.into_link(stop, true);
            send_files(&mut link, sources, options, observer, "").await
        }
    }
}

fn engine_options(greeted: &Greeted, settings: &FarSettings) -> Result<JobOptions, SessionError> {
    let Greeted { session, master, job, streams } = greeted;
    let asked: EngineKind =
        job.engine.parse().map_err(|text| SessionError { status: status::CONNECT, text })?;
    let kind = match asked {
        EngineKind::Uring if settings.posix_only => EngineKind::Posix,
        asked => asked,
    };
    let (first_port, last_port) = job.ports.unwrap_or(settings.ports);
    let rate_limit = match (job.rate_limit, settings.rate_limit) {
        (Some(asked), Some(allowed)) => Some(asked.min(allowed)),
        (asked, allowed) => asked.or(allowed),
    };
    Ok(JobOptions {
        session: *session,
        secret: Secret(*master.expose()),
        side: Side::Far,
        direction: if job.far_sends { Direction::Send } else { Direction::Receive },
        kind,
        listen: Some(Listen { first_port, last_port }),
        streams: streams.count,
        block_size: job.block_size,
        depth: depth_within(settings.memory, *streams, job.block_size),
        compress: job.compress,
        checksum: job.checksum,
        durable: job.durable,
        rate_limit,
        congestion: job.congestion.clone(),
        cpus: settings.cpus.clone(),
    })
}

/// Blocks in flight that keep the session inside this host's memory for one, but never below the 2 that
/// overlap disk and network.
fn depth_within(memory: u64, streams: Streams, block_size: u32) -> u16 {
    let per_step = u64::from(streams.count.max(1)) * u64::from(block_size.max(1));
    let fits = u16::try_from(memory / per_step).unwrap_or(u16::MAX);
    streams.depth.min(fits).max(2)
}

fn listening(opened: &Opened, address: Option<IpAddr>) -> Listening {
    let notes = opened.kind_reason.iter().chain(&opened.port_note).cloned().collect();
    Listening {
        addresses: address.into_iter().collect(),
        ports: opened.ports.clone(),
        engine: opened.kind.name().to_owned(),
        daemon: opened.daemon,
        notes,
    }
}

/// Waits for the lanes and for the near agent's request.
async fn first_request(
    opening: &mut Opening,
    job: &Job,
    observer: &dyn Observer,
) -> Result<Request, SessionError> {
    let late = |what: &str, time: Duration| SessionError {
        status: status::CONNECT,
        text: format!("{what} within {} s", time.as_secs()),
    };
    timeout(CONNECTED_DEADLINE, opening.connected(observer))
        .await
        .map_err(|_| late("not all data connections came", CONNECTED_DEADLINE))??;
    if !job.far_sends {
        opening.give_credit().await?;
    }
    timeout(REQUEST_DEADLINE, request(opening, observer))
        .await
        .map_err(|_| late("no request came", REQUEST_DEADLINE))?
}

/// The near agent's request with all its sources.
async fn request(opening: &mut Opening, observer: &dyn Observer) -> Result<Request, SessionError> {
    let broken = |what: &str| SessionError {
        status: status::INTEGRITY,
        text: format!("{PEER} broke the protocol: {what}"),
    };
    let mut list = SourceList::default();
    loop {
        let complete = match opening.message(observer).await? {
            AgentMessage::Sources(sources) => list.add(sources).map(|()| None),
            AgentMessage::Request(request) => std::mem::take(&mut list).complete(request).map(Some),
            _ => return Err(broken("something else came where a request is due")),
        };
        if let Some(request) = complete.map_err(|error| broken(&error.to_string()))? {
            return Ok(request);
        }
    }
}

/// What this side has to do.
struct Task {
    options: TransferOptions,
    part: Part,
}

enum Part {
    Receive(Target),
    Send(Vec<Source>),
}

/// Looks at the request; an upload is accepted here, a download when its sources are counted.
async fn accept(
    mut opening: Opening,
    request: Request,
    job: &Job,
    stop: &mut watch::Receiver<Option<HangUp>>,
) -> Result<(Opening, Task), SessionError> {
    let part = match part(&request, job, stop).await {
        Ok(part) => part,
        Err(error) => {
            let refusal = Refusal { status: error.status, text: error.text.clone() };
            opening.say(&AgentMessage::Refuse(refusal)).await?;
            return Err(error);
        }
    };
    if matches!(part, Part::Receive(_)) {
        opening.say(&AgentMessage::Accept(Accept { sources: 0 })).await?;
    }
    let options = TransferOptions {
        recursive: request.recursive,
        preserve: request.preserve,
        inplace: request.inplace,
        durable: request.durable,
        direct: request.direct,
        checksum: request.checksum,
        dummy: request.dummy,
        block_size: job.block_size,
    };
    Ok((opening, Task { options, part }))
}

async fn part(
    request: &Request,
    job: &Job,
    stop: &mut watch::Receiver<Option<HangUp>>,
) -> Result<Part, SessionError> {
    let contradiction = |what: &str| SessionError {
        status: status::INTEGRITY,
        text: format!("{PEER} broke the protocol: the sealed request and the job differ in {what}"),
    };
    let same = [
        (request.durable == job.durable, "durability"),
        (request.checksum == job.checksum, "checksums"),
        (request.dummy == (job.engine == EngineKind::Dummy.name()), "the engine"),
        (matches!(request.transfer, Transfer::Download { .. }) == job.far_sends, "direction"),
    ];
    if let Some((_, what)) = same.into_iter().find(|(same, _)| !same) {
        return Err(contradiction(what));
    }
    match &request.transfer {
        Transfer::Upload { .. } if request.dummy => Ok(Part::Receive(Target::dummy())),
        Transfer::Upload { target, directory_required } => {
            let (target, required, durable) = (target.clone(), *directory_required, request.durable);
            let resolve = move || Target::resolve(&target, required, 0, durable);
            establish::look(stop, resolve).await?.map(Part::Receive)
        }
        Transfer::Download { sources } if request.dummy => {
            let sources: Option<Vec<_>> = sources.iter().map(|source| dummy_source(source)).collect();
            sources.map(Part::Send).ok_or_else(|| SessionError {
                status: status::USAGE,
                text: "with --ioengine dummy a source is dummy:SIZE".into(),
            })
        }
        Transfer::Download { sources } => {
            let patterns = sources.clone();
            let refused = |text| SessionError { status: status::SOME_FAILED, text };
            establish::look(stop, move || expand_sources(&patterns)).await?.map(Part::Send).map_err(refused)
        }
    }
}

/// `dummy:` and a number of bytes.
fn dummy_source(text: &[u8]) -> Option<Source> {
    let digits = std::str::from_utf8(text.strip_prefix(b"dummy:")?).ok()?;
    Some(Source::Dummy { name: text.to_vec(), size: digits.parse().ok()? })
}
