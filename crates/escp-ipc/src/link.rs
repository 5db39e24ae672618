//! What escpd's broker and worker say to each other, over a channel that only the two have.
//!
//! One packet is one message, as postcard writes it. Both are processes of one program, so there is no version.

use crate::frame::{bound, from_postcard};
use crate::{Channel, FrameBuffer, FrameError, MAX_FRAME, ServeEnd};
use escp_engine_api::placement::Placement;
use escp_engine_api::{Fault, Secret};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use zeroize::Zeroizing;

/// Most CPUs, or NUMA nodes, that a worker may name: as many as the kernel's own largest NR_CPUS.
pub const MAX_CPUS: usize = 8192;

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
    /// The bytes of its frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when no frame can carry it.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, FrameError> {
        encode(self)
    }

    /// Reads a frame that came with `descriptors` descriptors.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn decode(frame: &[u8], descriptors: usize) -> Result<Self, FrameError> {
        let message: Self = from_postcard(frame)?;
        match message.descriptors() {
            need if need == descriptors => Ok(message),
            need => Err(FrameError::Descriptors { got: descriptors, need }),
        }
    }

    /// How many descriptors come along.
    fn descriptors(&self) -> usize {
        match self {
            Self::Start(_) => 3,
            Self::Lane(..) => 1,
            Self::Registered(_) | Self::Log(_) | Self::Stop(_) => 0,
        }
    }
}

impl ToBroker {
    /// The bytes of its frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when no frame can carry it.
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, FrameError> {
        encode(self)
    }

    /// Reads a frame that came with `descriptors` descriptors. A worker is not trusted.
    ///
    /// # Errors
    /// [`FrameError`]
    pub fn decode(frame: &[u8], descriptors: usize) -> Result<Self, FrameError> {
        if descriptors != 0 {
            return Err(FrameError::Descriptors { got: descriptors, need: 0 });
        }
        let message = from_postcard(frame)?;
        if let Self::Placed(Placement { nodes, cpus, .. }) = &message {
            // They are kept while the session lasts, and shown as labels of a metric.
            bound("a list of NUMA nodes", nodes.len(), MAX_CPUS)?;
            bound("a list of CPUs", cpus.len(), MAX_CPUS)?;
        }
        Ok(message)
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
    channel.send(&message.encode().map_err(io::Error::other)?, descriptors).await
}

/// Sends to the broker.
///
/// # Errors
/// Those of [`Channel::send`].
pub async fn to_broker(channel: &Channel, message: &ToBroker) -> io::Result<()> {
    channel.send(&message.encode().map_err(io::Error::other)?, &[]).await
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
    let message = ToWorker::decode(buffer.frame(), descriptors.len());
    buffer.wipe();
    Ok(Some((message.map_err(invalid)?, descriptors)))
}

/// Receives from a worker; `None` when it is gone.
///
/// # Errors
/// `InvalidData` for what is no message; those of [`Channel::receive`].
pub async fn from_worker(channel: &Channel, buffer: &mut FrameBuffer) -> io::Result<Option<ToBroker>> {
    let Some(descriptors) = channel.receive(buffer).await? else { return Ok(None) };
    let message = ToBroker::decode(buffer.frame(), descriptors.len());
    buffer.wipe();
    message.map(Some).map_err(invalid)
}

fn invalid(error: FrameError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    // Room for all of it at once: growing would leave copies of a key behind.
    let mut frame = Zeroizing::new(vec![0; MAX_FRAME]);
    let too_large =
        |_| FrameError::TooLarge { what: "a frame that needs", got: MAX_FRAME + 1, limit: MAX_FRAME };
    let length = postcard::to_slice(message, &mut frame).map_err(too_large)?.len();
    frame.truncate(length);
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use escp_engine_api::placement::Reason;
    use escp_sys::seqpacket;
    use proptest::prelude::*;
    use std::os::fd::AsFd;

    fn register() -> ToBroker {
        ToBroker::Register { session: [7; 16], route_key: Secret([8; 32]) }
    }

    proptest! {
        #[test]
        fn no_frame_is_read_as_what_it_is_not(
            frame in prop::collection::vec(any::<u8>(), 0..200),
            kind in 0_u8..6,
            keep in 0_usize..200,
        ) {
            // Bytes of no kind, of each kind, and a message that is cut or goes on.
            for frame in [&frame[..], &[&[kind][..], &frame].concat()] {
                if let Ok(message) = ToBroker::decode(frame, 0) {
                    let again = message.encode().unwrap();
                    prop_assert_eq!(ToBroker::decode(&again, 0).unwrap().encode().unwrap(), again);
                }
                for descriptors in 0..4 {
                    let Ok(message) = ToWorker::decode(frame, descriptors) else { continue };
                    let again = message.encode().unwrap();
                    prop_assert_eq!(ToWorker::decode(&again, descriptors).unwrap().encode().unwrap(), again);
                }
            }
            let whole = register().encode().unwrap();
            let cut = whole.get(..keep).unwrap_or(&whole);
            prop_assert_eq!(ToBroker::decode(cut, 0).is_ok(), cut.len() == whole.len());
            let longer = [&whole[..], &frame[..frame.len().min(1)]].concat();
            prop_assert_eq!(ToBroker::decode(&longer, 0).is_ok(), frame.is_empty());
        }
    }

    #[test]
    fn a_worker_is_not_believed_to_run_on_more_than_there_can_be() {
        let placed = |nodes: usize, cpus: usize| {
            let of = |count| vec![9; count];
            let placement = Placement { reason: Reason::Mask, nodes: of(nodes), cpus: of(cpus) };
            ToBroker::decode(&ToBroker::Placed(placement).encode().unwrap(), 0)
        };
        assert!(placed(MAX_CPUS, MAX_CPUS).is_ok());
        for (nodes, cpus) in [(MAX_CPUS + 1, 1), (1, MAX_CPUS + 1)] {
            assert!(matches!(placed(nodes, cpus), Err(FrameError::TooLarge { limit: MAX_CPUS, .. })));
        }
    }

    #[test]
    fn the_number_of_descriptors_must_be_the_one_due() {
        let frame = register().encode().unwrap();
        assert_eq!(ToBroker::decode(&frame, 1).unwrap_err(), FrameError::Descriptors { got: 1, need: 0 });
        let lane = ToWorker::Lane([1; 32], [2; 32]).encode().unwrap();
        assert!(ToWorker::decode(&lane, 1).is_ok());
        assert_eq!(ToWorker::decode(&lane, 0).unwrap_err(), FrameError::Descriptors { got: 0, need: 1 });
        assert!(ToWorker::Stop("x".repeat(MAX_FRAME)).encode().is_err());
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
        let ended = ToBroker::Ended(SessionEnd::Agreed).encode().unwrap();
        worker.send(&ended, &[worker.as_fd()]).await.unwrap();
        assert!(from_worker(&broker, &mut buffer).await.is_err());
    }
}
