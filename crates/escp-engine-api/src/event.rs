//! What an engine reports.

use crate::EngineKind;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// A report from an engine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Event {
    /// The job is open; the answer to [`crate::Command::Open`].
    Opened(Opened),
    /// Stream 0 and every expected data stream is proven and up.
    Connected {
        /// The way's round trip, without what queues on it, as the kernel saw it so far (`tcpi_min_rtt` of
        /// linux/tcp.h); zero where it does not tell.
        round_trip: Duration,
    },
    /// The peer's agent said this. In the order it was said.
    Message(Vec<u8>),
    /// These files are through: read and sent, or written (and durable where asked), or failed.
    Files(Vec<FileReport>),
    /// How far the session is; about ten a second while data moves.
    Progress(Progress),
    /// Nothing came from the peer for this long. Repeated every 5 s.
    Silent {
        /// Whole seconds since the last record of the peer.
        seconds: u32,
        /// Where this engine waits.
        stage: Stage,
    },
    /// Something the user may want to know, for `-v`.
    Note(String),
    /// Both sides agreed on the end. Final.
    Ended {
        /// Files moved, as both sides counted them.
        files: u64,
        /// Totals.
        counters: Counters,
    },
    /// The session is over without an agreed end. Final.
    Failed(Failure),
    /// Something every user should see, because they can mend it.
    Remark(String),
}

/// The job as the engine opened it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// The kind in use (`Uring` may have become `Posix`).
    pub kind: EngineKind,
    /// Why `kind` differs from what was asked for, if it does.
    pub kind_reason: Option<String>,
    /// TCP ports on which lanes are accepted; empty when the engine does not listen.
    pub ports: Vec<u16>,
    /// Only when the listening port is not of the configured range: why.
    pub port_note: Option<String>,
    /// Whether the engine runs in escpd.
    pub daemon: bool,
}

/// What became of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReport {
    /// The file's number.
    pub number: u64,
    /// The check value of the whole file as this engine read it or decrypted it, or why it failed.
    pub outcome: Result<FileCheck, FileError>,
}

/// The check value of a whole file: of its bytes from first to last, where holes count as zeros.
///
/// Agents carry it from engine to engine and compare it; only engines know how it is made. Another algorithm is
/// another variant here, another tag between agent and daemon (whose `VERSION` grows), and another message
/// between agents (docs/PROTOCOL.md, section 9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum FileCheck {
    /// Checksums are off.
    Off,
    /// CRC-64/NVME (NVM Express NVM Command Set Specification 1.0, 5.2.1.3.4).
    Crc64(u64),
}

impl fmt::Display for FileCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("none"),
            Self::Crc64(crc) => write!(f, "CRC-64 {crc:016x}"),
        }
    }
}

/// Why a file failed in the engine. The agent adds host and path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileError {
    /// What was being done.
    pub stage: Stage,
    /// The kernel's error number, 0 if it was not the kernel's.
    pub errno: i32,
    /// One clause, such as "the file is 3 bytes shorter than announced".
    pub text: String,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.stage, self.text)
    }
}

/// A stage of the data path, for errors and for saying where a session waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Taking over the descriptor.
    Accept,
    /// Waiting for something to send, or for the peer's agent.
    Idle,
    /// Reading from disk.
    Read,
    /// Sending to the network.
    Send,
    /// Receiving from the network.
    Receive,
    /// Reserving space.
    Preallocate,
    /// Writing to disk.
    Write,
    /// Cutting the file to its size.
    Truncate,
    /// Making data durable.
    Sync,
    /// Comparing check values.
    Verify,
    /// Given up on request.
    Dropped,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept => "taking over the file",
            Self::Idle => "waiting for files",
            Self::Read => "reading",
            Self::Send => "sending to the network",
            Self::Receive => "receiving from the network",
            Self::Preallocate => "reserving space",
            Self::Write => "writing",
            Self::Truncate => "setting the size",
            Self::Sync => "making data durable",
            Self::Verify => "verifying",
            Self::Dropped => "given up",
        })
    }
}

/// Totals of a session. Bytes of files, never padding.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Bytes of data streams on the wire, headers and tags included.
    pub bytes_network: u64,
    /// Bytes read from or written to files.
    pub bytes_disk: u64,
    /// Bytes of file data as they travelled, without headers; compressed records count whole.
    pub bytes_compressed: u64,
    /// Files that fell back from O_DIRECT to buffered I/O.
    pub direct_fallbacks: u64,
}

/// How far a session is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Totals so far.
    pub counters: Counters,
    /// Files through the engine so far, failed ones included.
    pub files: u64,
}

/// Why a session ended before its agreed end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// Whose fault it is, which decides the exit status.
    pub fault: Fault,
    /// One sentence for the user.
    pub text: String,
}

/// How an engine introduces the reason that the other side gave for ending the session, in a
/// [`Failure`]'s text. Whoever shows the text may name the host instead.
pub const PEER_GAVE_UP: &str = "the other side gave up: ";

/// Whose fault a [`Failure`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// The other side gave up and said why.
    PeerAborted,
    /// No connection could be made: ssh, dialling, the daemon. Exit status 3.
    Connect,
    /// A connection or process was lost. Exit status 4.
    Lost,
    /// The peer broke the protocol, or data was altered. Exit status 5.
    Integrity,
    /// This host: resources, limits, a bug. Exit status 3 before data moved, 4 after.
    Local,
}
