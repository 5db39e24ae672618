//! The agent's end.

use crate::channel::{Channel, FrameBuffer};
use crate::frame::{decode_event, encode_command};
use crate::hello::{Hello, VERSION};
use escp_engine_api::{Command, EngineHandle, EnginePort, Event, Failure, Fault, engine_pair};
use escp_sys::seqpacket;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// How long a daemon may take to accept and to start a worker.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// How long to wait for a place in the daemon's queue of connections.
const QUEUE_TRIES: u32 = 50;
const QUEUE_PAUSE: Duration = Duration::from_millis(20);

/// Why there is no session with a daemon. Each text is one sentence for the user.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there.
    #[error("no escpd at {}: {source}", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
    /// This user may not use the socket.
    #[error("no right to use escpd's socket {}", path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon is of another version.
    #[error("the escpd at {} is of release {daemon}, this escp of {ours}", path.display())]
    Version {
        /// The socket.
        path: PathBuf,
        /// The daemon's release and the version of its frames.
        daemon: String,
        /// Ours.
        ours: String,
    },
    /// The daemon turned this session away.
    #[error("{0}")]
    Refused(String),
    /// The daemon, or what listens in its place, did not behave.
    #[error("escpd at {} cannot be talked to: {source}", path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// Opens a session with the daemon that listens at `path`, and returns an engine like any other. Must be
/// called on a tokio runtime with I/O and time enabled, which must go on running for the engine to work.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(path: &Path) -> Result<EngineHandle, ConnectError> {
    let broken = |source| ConnectError::Broken { path: path.to_owned(), source };
    let channel = Channel::new(queue_up(path).await?).map_err(broken)?;
    let mut buffer = FrameBuffer::new();
    match timeout(HELLO_TIMEOUT, channel.receive(&mut buffer)).await {
        Err(_) => return Err(broken(io::Error::new(io::ErrorKind::TimedOut, "it does not answer"))),
        Ok(Err(error)) => return Err(broken(error)),
        Ok(Ok(None)) => return Err(broken(io::Error::other("it hung up without a word"))),
        Ok(Ok(Some(_no_descriptors))) => {}
    }
    let invalid = |error| broken(io::Error::new(io::ErrorKind::InvalidData, error));
    match Hello::decode(buffer.frame()).map_err(invalid)? {
        Hello::Refused(why) => return Err(ConnectError::Refused(why)),
        theirs if theirs == Hello::ours() => {}
        Hello::Welcome { version, release } => {
            let shown = |release: &str, version| format!("{release} (socket protocol {version})");
            let path = path.to_owned();
            let ours = shown(env!("CARGO_PKG_VERSION"), VERSION);
            return Err(ConnectError::Version { path, daemon: shown(&release, version), ours });
        }
    }
    channel.send(&Hello::ours().encode(), &[]).await.map_err(broken)?;
    let (handle, port) = engine_pair();
    tokio::spawn(carry(channel, buffer, port));
    Ok(handle)
}

async fn queue_up(path: &Path) -> Result<OwnedFd, ConnectError> {
    let mut tries = 0;
    loop {
        let source = match seqpacket::connect(path) {
            Ok(socket) => return Ok(socket),
            Err(error) => error,
        };
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock if tries < QUEUE_TRIES => tries += 1,
            io::ErrorKind::PermissionDenied => return Err(ConnectError::Permission { path }),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                return Err(ConnectError::Absent { path, source });
            }
            _ => return Err(ConnectError::Broken { path, source }),
        }
        sleep(QUEUE_PAUSE).await;
    }
}

/// Carries commands and events until a final event, or until the agent dropped both its queues. Then the
/// connection closes, which ends the session in the daemon too.
async fn carry(channel: Channel, mut buffer: FrameBuffer, port: EnginePort) {
    let EnginePort { mut commands, events } = port;
    let forward = async {
        match forward_commands(&channel, &mut commands).await {
            // The other direction learns how the session ended; only an agent that left both ends it here.
            None => {
                events.closed().await;
                None
            }
            failure => failure,
        }
    };
    let failure = tokio::select! {
        failure = forward => failure,
        failure = forward_events(&channel, &mut buffer, &events) => failure,
    };
    if let Some(failure) = failure {
        let _ = events.send(Event::Failed(failure)).await;
    }
}

/// `None` when the agent's queue or the connection closed.
async fn forward_commands(channel: &Channel, commands: &mut mpsc::Receiver<Command>) -> Option<Failure> {
    let local = |text| Some(Failure { fault: Fault::Local, text });
    while let Some(command) = commands.recv().await {
        let frames = match encode_command(command) {
            Ok(frames) => frames,
            Err(error) => return local(format!("a command does not fit escpd's socket: {error}")),
        };
        for outgoing in frames {
            match channel.send(&outgoing.frame, &outgoing.borrowed()).await {
                Ok(()) => {}
                Err(error) if hung_up(&error) => return None,
                Err(error) => return local(format!("cannot hand on to escpd: {error}")),
            }
        }
    }
    None
}

fn hung_up(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Ends with the session: `None` when its final event was forwarded.
async fn forward_events(
    channel: &Channel,
    buffer: &mut FrameBuffer,
    events: &mpsc::Sender<Event>,
) -> Option<Failure> {
    loop {
        let descriptors = match channel.receive(buffer).await {
            Ok(Some(descriptors)) => descriptors,
            Ok(None) => {
                let text =
                    "escpd's worker ended before the session did: killed, or crashed (its log may say why)";
                return Some(Failure { fault: Fault::Lost, text: text.to_owned() });
            }
            Err(error) => {
                let text = format!("lost the connection to escpd: {error}");
                return Some(Failure { fault: Fault::Lost, text });
            }
        };
        let event = match decode_event(buffer.frame(), descriptors.len()) {
            Ok(event) => event,
            Err(error) => {
                let text = format!("escpd said what this escp cannot read: {error}");
                return Some(Failure { fault: Fault::Local, text });
            }
        };
        let last = is_final(&event);
        // An agent that dropped its queue of events may still send commands.
        let _ = events.send(event).await;
        if last {
            return None;
        }
    }
}

pub(crate) fn is_final(event: &Event) -> bool {
    matches!(event, Event::Ended { .. } | Event::Failed(_))
}
