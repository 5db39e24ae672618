//! What broker and worker say to each other, over a channel that only the two have.

use crate::{Channel, FrameBuffer, MAX_FRAME, ServeEnd};
use escp_engine_api::placement::Placement;
use escp_engine_api::{Fault, Secret};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// From the broker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToWorker {
    /// First. With three descriptors: the agent's connection, and the memory of the pages of counters and of the
    /// user's pace.
    Start(Box<Start>),
    /// The answer to [`ToBroker::Register`].
    Registered(Result<(), String>),
    /// A proven connection, which is the one descriptor, and its first packet in two halves.
    Lane([u8; 32], [u8; 32]),
    /// Log from this level on, and open a log file again.
    Log(LogChoice),
    /// End the session, and tell the peer why.
    Stop(String),
}

/// What a worker needs to know.
#[derive(Debug, Serialize, Deserialize)]
pub struct Start {
    /// How and what to log.
    pub log: LogChoice,
    /// The daemon's TCP ports.
    pub ports: Vec<u16>,
    /// CPUs to run on; empty: all.
    pub cpus: Vec<u16>,
    /// Most bytes of buffers.
    pub memory: u64,
    /// Most bits per second to send.
    pub rate: Option<u64>,
}

/// What a worker logs, and where to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogChoice {
    /// The level's place among all, the gravest first.
    pub level: usize,
    /// As JSON; else as text.
    pub json: bool,
    /// To the journal.
    pub journald: bool,
    /// To this file; without one and without the journal, to standard error.
    pub file: Option<PathBuf>,
}

/// From a worker.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToBroker {
    /// Route the lanes of this session here. Once.
    Register {
        /// The session's id.
        session: [u8; 16],
        /// What proves its first packets.
        route_key: Secret,
    },
    /// Where the session's data threads run. Once, with its first data connection.
    Placed(Placement),
    /// The session is over, and so is this process.
    Ended(SessionEnd),
}

/// How a session ended, as far as its worker can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionEnd {
    /// Both sides agreed on the end.
    Agreed,
    /// The agent hung up before the end.
    AgentGone,
    /// The agent broke the rules of the socket, or is of another version.
    Refused,
    /// The engine gave up.
    Failed(Fault),
}

impl From<&ServeEnd> for SessionEnd {
    fn from(end: &ServeEnd) -> Self {
        match end {
            ServeEnd::Ended { .. } => Self::Agreed,
            ServeEnd::AgentGone => Self::AgentGone,
            ServeEnd::Refused(_) => Self::Refused,
            ServeEnd::Failed(failure) => Self::Failed(failure.fault),
        }
    }
}

impl ToWorker {
    /// How many descriptors come along.
    fn descriptors(&self) -> usize {
        match self {
            Self::Start(_) => 3,
            Self::Lane(..) => 1,
            Self::Registered(_) | Self::Log(_) | Self::Stop(_) => 0,
        }
    }
}

/// Sends to a worker.
///
/// # Errors
/// Those of [`Channel::send`].
pub async fn to_worker(
    channel: &Channel,
    message: &ToWorker,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    debug_assert_eq!(message.descriptors(), descriptors.len());
    channel.send(&encode(message)?, descriptors).await
}

/// Sends to the broker.
///
/// # Errors
/// Those of [`Channel::send`].
pub async fn to_broker(channel: &Channel, message: &ToBroker) -> io::Result<()> {
    channel.send(&encode(message)?, &[]).await
}

/// Receives from the broker; `None` when it is gone.
///
/// # Errors
/// `InvalidData` for what is no message; those of [`Channel::receive`].
pub async fn from_broker(
    channel: &Channel,
    buffer: &mut FrameBuffer,
) -> io::Result<Option<(ToWorker, Vec<OwnedFd>)>> {
    let Some(descriptors) = channel.receive(buffer).await? else { return Ok(None) };
    let message: ToWorker = decode(buffer)?;
    if message.descriptors() != descriptors.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong number of descriptors"));
    }
    Ok(Some((message, descriptors)))
}

/// Receives from a worker; `None` when it is gone. A worker is not trusted.
///
/// # Errors
/// `InvalidData` for what is no message; those of [`Channel::receive`].
pub async fn from_worker(channel: &Channel, buffer: &mut FrameBuffer) -> io::Result<Option<ToBroker>> {
    let Some(descriptors) = channel.receive(buffer).await? else { return Ok(None) };
    let message = decode(buffer)?;
    if !descriptors.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "descriptors where none are due"));
    }
    Ok(Some(message))
}

fn encode<T: Serialize>(message: &T) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut frame = Zeroizing::new(vec![0; MAX_FRAME]);
    let length = postcard::to_slice(message, &mut frame).map_err(io::Error::other)?.len();
    frame.truncate(length);
    Ok(frame)
}

fn decode<T: DeserializeOwned>(buffer: &mut FrameBuffer) -> io::Result<T> {
    let decoded = read(buffer.frame());
    buffer.wipe();
    decoded
}

fn read<T: DeserializeOwned>(frame: &[u8]) -> io::Result<T> {
    match postcard::take_from_bytes(frame) {
        Ok((message, [])) => Ok(message),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a message between broker and worker")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_sys::seqpacket;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    /// What reads as a message can be said again, and is the same then.
    fn holds<T: Serialize + DeserializeOwned + std::fmt::Debug>(frame: &[u8]) {
        let Ok(message) = read::<T>(frame) else { return };
        let again = encode(&message).unwrap();
        assert_eq!(encode(&read::<T>(&again).unwrap()).unwrap(), again, "{message:?}");
    }

    proptest! {
        #[test]
        fn no_frame_is_read_as_what_it_is_not(
            frame in prop::collection::vec(any::<u8>(), 0..200),
            kind in 0_u8..6,
            keep in 0_usize..200,
        ) {
            // Bytes of no kind, of each kind, and a message that is cut or goes on.
            holds::<ToBroker>(&frame);
            holds::<ToWorker>(&frame);
            let led = [&[kind][..], &frame].concat();
            holds::<ToBroker>(&led);
            holds::<ToWorker>(&led);
            let register = ToBroker::Register { session: [7; 16], route_key: Secret([8; 32]) };
            let whole = encode(&register).unwrap();
            let cut = whole.get(..keep).unwrap_or(&whole);
            prop_assert_eq!(read::<ToBroker>(cut).is_ok(), cut.len() == whole.len());
            let longer = [&whole[..], &frame[..frame.len().min(1)]].concat();
            prop_assert_eq!(read::<ToBroker>(&longer).is_ok(), frame.is_empty());
        }
    }

    fn channels() -> (Channel, Channel) {
        let (left, right) = seqpacket::pair().unwrap();
        (Channel::new(left).unwrap(), Channel::new(right).unwrap())
    }

    #[tokio::test]
    async fn messages_survive_the_way_both_ways() {
        let (broker, worker) = channels();
        let mut buffer = FrameBuffer::new();
        let file = Some(PathBuf::from("/var/log/escpd.log"));
        let log = LogChoice { level: 3, json: true, journald: false, file };
        let start =
            Start { log: log.clone(), ports: vec![1232], cpus: vec![0, 5], memory: 1 << 30, rate: Some(7) };
        let message = ToWorker::Start(Box::new(start));
        to_worker(&broker, &message, &[broker.as_fd(), broker.as_fd(), broker.as_fd()]).await.unwrap();
        let (got, descriptors) = from_broker(&worker, &mut buffer).await.unwrap().unwrap();
        let ToWorker::Start(got) = got else { panic!("{got:?}") };
        assert_eq!(descriptors.len(), 3);
        assert_eq!(
            (&got.ports[..], &got.cpus[..], got.memory, got.rate),
            (&[1232][..], &[0, 5][..], 1 << 30, Some(7))
        );
        assert_eq!(got.log, log);

        let register = ToBroker::Register { session: [1; 16], route_key: Secret([2; 32]) };
        to_broker(&worker, &register).await.unwrap();
        let got = from_worker(&broker, &mut buffer).await.unwrap().unwrap();
        assert!(
            matches!(got, ToBroker::Register { session, route_key } if session == [1; 16] && route_key.0 == [2; 32])
        );
        assert!(buffer.frame().is_empty());
        drop(worker);
        assert!(from_worker(&broker, &mut buffer).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_worker_that_talks_nonsense_is_noticed() {
        let (broker, worker) = channels();
        let mut buffer = FrameBuffer::new();
        worker.send(&[0xff; 900], &[]).await.unwrap();
        assert!(from_worker(&broker, &mut buffer).await.is_err());
        let ended = encode(&ToBroker::Ended(SessionEnd::Agreed)).unwrap();
        worker.send(&ended, &[worker.as_fd()]).await.unwrap();
        assert!(from_worker(&broker, &mut buffer).await.is_err());
    }
}
