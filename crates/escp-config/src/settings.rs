//! The settings, typed, with their defaults.

use crate::{Applies, ConfigError, CpuMask, KEYS, NodeMask, PortRange, load, mask};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Smallest block size in bytes; the engine's own bound.
pub const MIN_BLOCK_SIZE: u32 = 256 * 1024;
/// Largest block size in bytes; the engine's own bound.
pub const MAX_BLOCK_SIZE: u32 = 8 * 1024 * 1024;
/// Most data streams of one session; the engine's own bound.
pub const MAX_STREAMS: u16 = 256;

/// Everything `/etc/escp.conf` can say. What each field means stands once, in [`KEYS`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Key `cpumask`. Use [`Config::cpus`] for the CPUs that this host really has.
    pub cpumask: CpuMask,
    /// Key `nodemask`. Use [`Config::cpus`] for the CPUs of these nodes.
    pub nodemask: NodeMask,
    /// Key `ports`.
    pub ports: PortRange,
    /// Key `socket`.
    pub socket: PathBuf,
    /// Key `metrics`; `None` for `off`.
    pub metrics: Option<SocketAddr>,
    /// Key `streams`, 1 to [`MAX_STREAMS`].
    pub streams: u16,
    /// Key `depth`, blocks, 2 to 64.
    pub depth: u16,
    /// Key `block_size`, bytes, [`MIN_BLOCK_SIZE`] to [`MAX_BLOCK_SIZE`], a multiple of 4096.
    pub block_size: u32,
    /// Key `engine`.
    pub engine: Engine,
    /// Key `compress`: the highest zstd level, 1 to 19; `None` for `off`.
    pub compress: Option<i32>,
    /// Key `durable`.
    pub durable: bool,
    /// Keys below `limits`.
    pub limits: Limits,
    /// Keys below `log`.
    pub log: Log,
    /// Key `grace_period`.
    pub grace_period: Duration,
    /// Key `first_packet_timeout`.
    pub first_packet_timeout: Duration,
}

/// The keys below `limits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Key `limits.sessions`.
    pub sessions: usize,
    /// Key `limits.sessions_per_uid`.
    pub sessions_per_uid: usize,
    /// Key `limits.unproven`.
    pub unproven: usize,
    /// Key `limits.unproven_per_address`.
    pub unproven_per_address: usize,
    /// Key `limits.memory_per_session`, bytes.
    pub memory_per_session: u64,
    /// Key `limits.rate_per_session`, bits per second; `None` for `off`.
    pub rate_per_session: Option<u64>,
    /// Key `limits.rate_per_uid`, bits per second; `None` for `off`.
    pub rate_per_uid: Option<u64>,
}

/// The keys below `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Key `log.level`.
    pub level: LogLevel,
    /// Key `log.format`.
    pub format: LogFormat,
    /// Key `log.target`.
    pub target: LogTarget,
}

/// How to reach disks and sockets. The names are those of the command line and of the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// io_uring, or plain system calls where the kernel refuses it.
    Uring,
    /// Plain system calls.
    Posix,
}

/// The least severe events that are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Only what needs an administrator.
    Error,
    /// What may need one.
    Warn,
    /// Sessions and their ends, reloads.
    Info,
    /// Every decision about a session.
    Debug,
    /// Every message.
    Trace,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One line for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Where log lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogTarget {
    /// Standard error, which systemd hands to the journal.
    Stderr,
    /// The journal's own socket, with fields.
    Journald,
    /// This file, opened again at a reload.
    File(PathBuf),
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cpumask: CpuMask::default(),
            nodemask: NodeMask::default(),
            ports: PortRange::DEFAULT,
            socket: PathBuf::from("/run/escp/escpd.sock"),
            // 1232 with 8000 added: easy to remember beside the data ports, below every ephemeral range.
            metrics: Some(SocketAddr::from(([127, 0, 0, 1], 9232))),
            streams: 4,
            depth: 8,
            block_size: 2 * 1024 * 1024,
            engine: Engine::Uring,
            compress: None,
            durable: true,
            limits: Limits {
                sessions: 64,
                sessions_per_uid: 16,
                unproven: 4096,
                unproven_per_address: 1024,
                memory_per_session: 256 * 1024 * 1024,
                rate_per_session: None,
                rate_per_uid: None,
            },
            log: Log { level: LogLevel::Info, format: LogFormat::Text, target: LogTarget::Stderr },
            grace_period: Duration::from_secs(30),
            // Under the 5 s that a stranger is promised to be gone in, as seen from outside.
            first_packet_timeout: Duration::from_millis(4800),
        }
    }
}

impl Config {
    /// Reads the configuration: `path` if given, else [`crate::DEFAULT_PATH`].
    ///
    /// # Errors
    /// A file that was asked for and is missing; a file that cannot be read; anything in it that is not
    /// understood. A missing default file is no error.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        load::read(path)
    }

    /// Reads a configuration from text; errors name `file`.
    ///
    /// # Errors
    /// Anything that is not understood.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        load::parse(text).map_err(|error| error.file(file))
    }

    /// The CPUs that `cpumask` and `nodemask` together leave of those online here, in order. Empty: all of
    /// the process's own.
    ///
    /// # Errors
    /// Masks that leave none.
    pub fn cpus(&self) -> Result<Vec<u16>, ConfigError> {
        mask::expand(&self.cpumask, &self.nodemask, Path::new("/sys/devices/system"))
            .map_err(|(key, reason)| ConfigError::new(reason).key(key))
    }

    /// This configuration with the values of `new` for every key that a running daemon takes over at once.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        let mut merged = self.clone();
        for key in KEYS.iter().filter(|key| key.applies == Applies::AtOnce) {
            // A value that `new` holds was accepted when it was set, and reads back as it was written.
            let taken = (key.set)(&mut merged, &key.value(new));
            debug_assert!(taken.is_ok(), "{}: {taken:?}", key.name);
        }
        merged
    }

    /// What differs in `new`, in the order of [`KEYS`].
    #[must_use]
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        KEYS.iter()
            .map(|key| Change {
                key: key.name,
                from: key.value(self),
                to: key.value(new),
                applies: key.applies,
            })
            .filter(|change| change.from != change.to)
            .collect()
    }
}

impl Limits {
    /// Blocks in flight per stream that keep a session inside `memory_per_session`: `wanted`, or as many as
    /// fit, but never below the 2 that overlap disk and network.
    #[must_use]
    pub fn depth(&self, streams: u16, block_size: u32, wanted: u16) -> u16 {
        let per_step = u64::from(streams.max(1)) * u64::from(block_size.max(1));
        let fits = u16::try_from(self.memory_per_session / per_step).unwrap_or(u16::MAX);
        wanted.min(fits).max(2)
    }

    /// The block size of a session that leaves the choice to this host: `wanted`, or halved until two blocks per stream
    /// fit into `memory_per_session`, or the smallest there is.
    #[must_use]
    pub fn block_size(&self, streams: u16, wanted: u32) -> u32 {
        let mut block_size = wanted;
        while 2 * u64::from(streams) * u64::from(block_size) > self.memory_per_session
            && block_size > MIN_BLOCK_SIZE
        {
            block_size = (block_size / 2).next_multiple_of(4096).max(MIN_BLOCK_SIZE);
        }
        block_size
    }
}

/// One key that differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key's full name.
    pub key: &'static str,
    /// Its value before.
    pub from: String,
    /// Its value now.
    pub to: String,
    /// When the new value counts.
    pub applies: Applies,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.key, self.from.escape_debug(), self.to.escape_debug())
    }
}

impl Engine {
    /// The name in the configuration, on the command line and in metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Posix => "posix",
        }
    }
}

impl LogLevel {
    /// Every level, the gravest first.
    pub const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl fmt::Display for LogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stderr => f.write_str("stderr"),
            Self::Journald => f.write_str("journald"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_keeps_a_session_inside_its_memory() {
        let limits = Config::default().limits;
        assert_eq!(limits.depth(4, 1 << 20, 16), 16);
        assert_eq!(limits.depth(32, 1 << 20, 16), 8);
        assert_eq!(limits.depth(256, 8 << 20, 64), 2);
        assert_eq!(limits.depth(0, 0, 64), 64);
    }

    #[test]
    fn blocks_shrink_until_many_streams_fit() {
        let limits = Config::default().limits;
        assert_eq!(limits.block_size(4, 2 << 20), 2 << 20);
        assert_eq!(limits.block_size(64, 2 << 20), 2 << 20);
        assert_eq!(limits.block_size(65, 2 << 20), 1 << 20);
        assert_eq!(limits.block_size(256, 2 << 20), 512 << 10);
        let least = Limits { memory_per_session: 16 << 20, ..limits };
        assert_eq!(least.block_size(256, 2 << 20), MIN_BLOCK_SIZE);
    }

    #[test]
    fn changes_name_key_values_and_when_they_apply() {
        let old = Config::default();
        let mut new = old.clone();
        assert!(old.changes(&new).is_empty());
        new.log.level = LogLevel::Debug;
        new.ports = PortRange { first: 2000, last: 2000 };
        let changes = old.changes(&new);
        let said: Vec<String> = changes.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["ports: 1232-1242 -> 2000", "log.level: info -> debug"]);
        assert_eq!(changes[0].applies, Applies::Restart);
        assert_eq!(changes[1].applies, Applies::AtOnce);

        let reloaded = old.reloaded(&new);
        assert_eq!((reloaded.log.level, reloaded.ports), (LogLevel::Debug, PortRange::DEFAULT));
        assert_eq!(reloaded.changes(&new).len(), 1);
    }
}
