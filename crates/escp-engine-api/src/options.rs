//! What is settled before a session's first byte.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroize;

/// Smallest block size, in bytes: below it, per-record cost dominates (256 KiB already costs 20 % more
/// CPU than 1 MiB).
pub const MIN_BLOCK_SIZE: u32 = 256 * 1024;
/// Largest block size, in bytes: a record's length field has 24 bits.
pub const MAX_BLOCK_SIZE: u32 = 8 * 1024 * 1024;
/// Largest number of data streams of one session.
pub const MAX_STREAMS: u16 = 256;

/// Longest name of a congestion control, in bytes: Linux has room for a NUL behind it (`TCP_CA_NAME_MAX`).
pub const MAX_CONGESTION: usize = 15;

/// Names a session: 128 random bits chosen by the near agent. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SessionId(pub [u8; 16]);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({self})")
    }
}

/// A session's 256-bit master secret. Wiped when dropped, never printed.
#[derive(Clone, Zeroize, Serialize, Deserialize)]
#[zeroize(drop)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Which end of the control channel an agent is: roles of the key schedule. Independent of who dials and
/// of who sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Side {
    /// The end that started ssh.
    Near,
    /// The end that ssh started.
    Far,
}

impl Side {
    /// The other end.
    #[must_use]
    pub fn peer(self) -> Self {
        match self {
            Self::Near => Self::Far,
            Self::Far => Self::Near,
        }
    }
}

/// Which way file data flows, seen from this engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// This engine reads files and sends.
    Send,
    /// This engine receives and writes files.
    Receive,
}

/// How an engine reaches disks and sockets. Chosen once per job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum EngineKind {
    /// `io_uring` through tokio-uring. The default.
    Uring,
    /// Plain system calls, where io_uring is refused.
    Posix,
    /// Memory to memory: the network and the ciphers are real, files are not touched.
    Dummy,
}

impl EngineKind {
    /// Every kind, in the order of the metrics.
    pub const ALL: [Self; 3] = [Self::Uring, Self::Posix, Self::Dummy];

    /// The name on the command line, in the configuration and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Posix => "posix",
            Self::Dummy => "dummy",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| format!("unknown I/O engine '{text}' (known: uring, posix, dummy)"))
    }
}

/// Where an engine may listen for the session's lanes. A daemon ignores the ports: it has its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listen {
    /// First port to try.
    pub first_port: u16,
    /// Last port to try. When the whole range is taken, an embedded engine takes any free port.
    pub last_port: u16,
}

/// A job: one session's fixed parameters, given with [`crate::Command::Open`].
///
/// Both engines of a session must be opened with the same `session`, `secret`, `block_size`, and with
/// opposite `side` and `direction`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobOptions {
    /// The session's name, on the wire in the first packet of each stream.
    pub session: SessionId,
    /// The master secret both agents computed.
    pub secret: Secret,
    /// Which end of the control channel this is.
    pub side: Side,
    /// Which way file data flows.
    pub direction: Direction,
    /// How to reach disks and sockets. `Uring` becomes `Posix` by itself where io_uring is refused.
    pub kind: EngineKind,
    /// Accept lanes here (an engine of the far agent); `None` when the agent dials them all.
    pub listen: Option<Listen>,
    /// Data streams to expect beside stream 0, 1 to [`MAX_STREAMS`].
    pub streams: u16,
    /// Plain bytes of a full block, [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`], a multiple of 4096.
    pub block_size: u32,
    /// Blocks in flight per stream, 2 to 64.
    pub depth: u16,
    /// Compress file blocks where it pays, at this zstd level or a lower one.
    pub compress: Option<i32>,
    /// Compute and compare CRC-64/NVME of every block and file.
    pub checksum: bool,
    /// Make file data durable (fdatasync, or one syncfs for a batch of small files) before reporting it.
    pub durable: bool,
    /// Send at most this many bits per second, over all streams.
    pub rate_limit: Option<u64>,
    /// TCP congestion control of all streams, as the kernel calls it (TCP_CONGESTION, tcp(7)); `None`: the
    /// host's own.
    pub congestion: Option<String>,
    /// CPUs the data threads may run on; empty: all of the process's.
    pub cpus: Vec<u16>,
}

impl JobOptions {
    /// A job with the usual parameters: io_uring, four streams that the agent dials, four blocks of 2 MiB in flight
    /// on each, checked and durable, as fast as can be.
    #[must_use]
    pub fn new(session: SessionId, secret: Secret, side: Side, direction: Direction) -> Self {
        Self {
            session,
            secret,
            side,
            direction,
            kind: EngineKind::Uring,
            listen: None,
            streams: 4,
            block_size: 2 << 20,
            depth: 4,
            compress: None,
            checksum: true,
            durable: true,
            rate_limit: None,
            congestion: None,
            cpus: Vec::new(),
        }
    }
}
