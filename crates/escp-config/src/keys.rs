//! The table of keys: one definition of each.

use crate::value::{
    assign, block_size, duration, log_target, metrics_address, number, off, off_or, one_of, rate, size,
    socket_path, yes_or_no,
};
use crate::{
    Config, CpuMask, Engine, LogFormat, LogLevel, MAX_STREAMS, NodeMask, format_duration, format_rate,
    format_size,
};

/// A key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// The full name; a dot stands between a section and its keys.
    pub name: &'static str,
    /// What it accepts, in a few words.
    pub values: &'static str,
    /// Who reads it.
    pub reader: Reader,
    /// When a change counts for a daemon that runs.
    pub applies: Applies,
    /// What it means, for the administrator.
    pub meaning: &'static str,
    pub(crate) set: fn(&mut Config, &str) -> Result<(), String>,
    get: fn(&Config) -> String,
}

/// Which programs read a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    /// `escp`, for the sessions it starts, and `escp --server`.
    Cli,
    /// `escpd`.
    Daemon,
    /// Both.
    Both,
}

/// When a changed value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applies {
    /// The daemon takes it over on SIGHUP.
    AtOnce,
    /// The daemon needs a restart.
    Restart,
    /// The daemon does not read it: it counts for the next `escp`.
    NextRun,
}

impl Key {
    /// The value that `config` has for this key, written as the file would write it.
    #[must_use]
    pub fn value(&self, config: &Config) -> String {
        (self.get)(config)
    }
}

impl Reader {
    /// For the reference table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cli => "escp",
            Self::Daemon => "escpd",
            Self::Both => "both",
        }
    }
}

impl Applies {
    /// For the reference table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AtOnce => "reload",
            Self::Restart => "restart",
            Self::NextRun => "next run",
        }
    }
}

/// Every key, in the order of the reference.
pub static KEYS: &[Key] = &[
    Key {
        name: "ports",
        values: "`PORT` or `FIRST-LAST`, at most 256",
        reader: Reader::Both,
        applies: Applies::Restart,
        meaning: "TCP ports for file data. escpd listens on those of them that are free and needs at least \
                  one; without a daemon, escp takes the first free one. Open them in the firewall.",
        set: |c, v| assign(&mut c.ports, v.parse()),
        get: |c| c.ports.to_string(),
    },
    Key {
        name: "socket",
        values: "absolute path, at most 107 bytes",
        reader: Reader::Both,
        applies: Applies::Restart,
        meaning: "Unix socket on which escpd serves the users of this host, and where escp looks for it. A \
                  systemd socket unit must name the same path.",
        set: |c, v| assign(&mut c.socket, socket_path(v)),
        get: |c| c.socket.display().to_string(),
    },
    Key {
        name: "metrics",
        values: "`ADDRESS:PORT` or `off`",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "Where escpd serves /metrics and /healthz over plain HTTP. Whoever reaches it can read it: \
                  keep it on loopback, or behind a firewall or an authenticating proxy.",
        set: |c, v| assign(&mut c.metrics, metrics_address(v)),
        get: |c| off_or(c.metrics, |address| address.to_string()),
    },
    Key {
        name: "cpumask",
        values: "hexadecimal mask or `all`",
        reader: Reader::Both,
        applies: Applies::AtOnce,
        meaning: "CPUs that data threads may run on; the lowest bit is CPU 0. CPUs that this host lacks are \
                  ignored. Unless this or nodemask is set, they run on the NUMA node of the network card that a \
                  session uses. A new value counts for new sessions.",
        set: |c, v| assign(&mut c.cpumask, CpuMask::parse(v)),
        get: |c| c.cpumask.to_string(),
    },
    Key {
        name: "nodemask",
        values: "hexadecimal mask or `all`",
        reader: Reader::Both,
        applies: Applies::AtOnce,
        meaning: "NUMA nodes whose CPUs data threads may run on; the lowest bit is node 0. Choose the node \
                  of the network card. With cpumask, a CPU must be in both.",
        set: |c, v| assign(&mut c.nodemask, NodeMask::parse(v)),
        get: |c| c.nodemask.to_string(),
    },
    Key {
        name: "streams",
        values: "1 to 256",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "TCP connections for file data of one transfer; -t on the command line. Between two ends on one \
                  machine, which share its cores, escp takes at most one for each core, and as many blocks in \
                  flight in all; -t is always taken as it is.",
        set: |c, v| assign(&mut c.streams, number(v, 1..=MAX_STREAMS)),
        get: |c| c.streams.to_string(),
    },
    Key {
        name: "depth",
        values: "2 to 64",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "Blocks in flight per stream. A transfer takes at most streams x depth x block_size of \
                  memory on each side.",
        set: |c, v| assign(&mut c.depth, number(v, 2..=64)),
        get: |c| c.depth.to_string(),
    },
    Key {
        name: "block_size",
        values: "256K to 8M, a multiple of 4K",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "Most bytes read, sealed, sent and written at a time; --blocksize on the command line.",
        set: |c, v| assign(&mut c.block_size, block_size(v)),
        get: |c| format_size(c.block_size.into()),
    },
    Key {
        name: "engine",
        values: "`uring` or `posix`",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "How disks and sockets are reached; --ioengine on the command line. uring becomes posix by \
                  itself where the kernel refuses io_uring.",
        set: |c, v| assign(&mut c.engine, one_of(v, &[("uring", Engine::Uring), ("posix", Engine::Posix)])),
        get: |c| c.engine.name().to_owned(),
    },
    Key {
        name: "compress",
        values: "highest zstd level, 1 to 19, or `off`",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "Compress file data where it pays; -C on the command line. The level follows what the network \
                  waits for, up to this one; over a network that is faster than compressing, data travels as it \
                  is.",
        set: |c, v| assign(&mut c.compress, off(v, |v| number(v, 1..=19))),
        get: |c| off_or(c.compress, |level| level.to_string()),
    },
    Key {
        name: "durable",
        values: "`yes` or `no`",
        reader: Reader::Cli,
        applies: Applies::NextRun,
        meaning: "Wait until file data is on stable storage before a file gets its final name. With no, as \
                  with --no-fsync, a power loss just after the transfer may cost files reported good.",
        set: |c, v| assign(&mut c.durable, yes_or_no(v)),
        get: |c| if c.durable { "yes" } else { "no" }.to_owned(),
    },
    Key {
        name: "limits.sessions",
        values: "1 to 4096",
        reader: Reader::Daemon,
        applies: Applies::AtOnce,
        meaning: "Sessions at a time. A user over the limit is told so, and escp ends with status 3.",
        set: |c, v| assign(&mut c.limits.sessions, number(v, 1..=4096)),
        get: |c| c.limits.sessions.to_string(),
    },
    Key {
        name: "limits.sessions_per_uid",
        values: "1 to 4096",
        reader: Reader::Daemon,
        applies: Applies::AtOnce,
        meaning: "Sessions of one user at a time.",
        set: |c, v| assign(&mut c.limits.sessions_per_uid, number(v, 1..=4096)),
        get: |c| c.limits.sessions_per_uid.to_string(),
    },
    Key {
        name: "limits.memory_per_session",
        values: "16M to 64G",
        reader: Reader::Both,
        applies: Applies::AtOnce,
        meaning: "Buffer memory of one session, in escpd or in an engine of escp's own. A transfer that asks for \
                  more gets fewer blocks in flight, and smaller ones unless it names their size; escpd refuses one \
                  of which not even two blocks per stream fit. LimitMEMLOCK of the unit should hold this for all \
                  sessions together.",
        set: |c, v| assign(&mut c.limits.memory_per_session, size(v, (16 << 20)..=(64 << 30))),
        get: |c| format_size(c.limits.memory_per_session),
    },
    Key {
        name: "limits.rate_per_session",
        values: "bits per second, 1M to 10T, or `off`",
        reader: Reader::Both,
        applies: Applies::AtOnce,
        meaning: "The most a session of this host may send, through escpd or an engine of escp's own. A new value \
                  counts for new sessions.",
        set: |c, v| assign(&mut c.limits.rate_per_session, off(v, rate)),
        get: |c| off_or(c.limits.rate_per_session, format_rate),
    },
    Key {
        name: "limits.rate_per_uid",
        values: "bits per second, 1M to 10T, or `off`",
        reader: Reader::Daemon,
        applies: Applies::AtOnce,
        meaning: "The most all sessions of one user may send together through escpd; they share it evenly. A new \
                  value counts for sessions that are running, too.",
        set: |c, v| assign(&mut c.limits.rate_per_uid, off(v, rate)),
        get: |c| off_or(c.limits.rate_per_uid, format_rate),
    },
    Key {
        name: "limits.unproven",
        values: "16 to 65536",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "TCP connections that have not yet proved they belong to a session. At the limit the oldest \
                  is closed, so strangers never lock users out.",
        set: |c, v| assign(&mut c.limits.unproven, number(v, 16..=65536)),
        get: |c| c.limits.unproven.to_string(),
    },
    Key {
        name: "limits.unproven_per_address",
        values: "1 to 65536",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "The same for one peer address (IPv4) or /64 network (IPv6). Keep it well above streams + 1, \
                  the connections that one transfer opens at once.",
        set: |c, v| assign(&mut c.limits.unproven_per_address, number(v, 1..=65536)),
        get: |c| c.limits.unproven_per_address.to_string(),
    },
    Key {
        name: "first_packet_timeout",
        values: "1s to 60s",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "How long a new TCP connection may take to prove that it belongs to a session.",
        set: |c, v| assign(&mut c.first_packet_timeout, duration(v, 1..=60)),
        get: |c| format_duration(c.first_packet_timeout),
    },
    Key {
        name: "grace_period",
        values: "0s to 1h",
        reader: Reader::Daemon,
        applies: Applies::AtOnce,
        meaning: "How long running sessions may go on after SIGTERM. A second SIGTERM ends them at once.",
        set: |c, v| assign(&mut c.grace_period, duration(v, 0..=3600)),
        get: |c| format_duration(c.grace_period),
    },
    Key {
        name: "log.level",
        values: "`error`, `warn`, `info`, `debug` or `trace`",
        reader: Reader::Daemon,
        applies: Applies::AtOnce,
        meaning: "The least severe events that are logged.",
        set: |c, v| assign(&mut c.log.level, one_of(v, &LogLevel::ALL.map(|level| (level.name(), level)))),
        get: |c| c.log.level.name().to_owned(),
    },
    Key {
        name: "log.format",
        values: "`text` or `json`",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "Lines for people, or one JSON object a line. The journal has fields of its own.",
        set: |c, v| {
            assign(&mut c.log.format, one_of(v, &[("text", LogFormat::Text), ("json", LogFormat::Json)]))
        },
        get: |c| if c.log.format == LogFormat::Json { "json" } else { "text" }.to_owned(),
    },
    Key {
        name: "log.target",
        values: "`stderr`, `journald` or an absolute path",
        reader: Reader::Daemon,
        applies: Applies::Restart,
        meaning: "Where log lines go. A file is opened again on SIGHUP, after it was rotated.",
        set: |c, v| assign(&mut c.log.target, log_target(v)),
        get: |c| c.log.target.to_string(),
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_reads_back_what_it_writes() {
        for key in KEYS {
            let mut config = Config::default();
            let value = key.value(&config);
            (key.set)(&mut config, &value).unwrap_or_else(|reason| panic!("{}: {reason}", key.name));
            assert_eq!(config, Config::default(), "{}", key.name);
        }
    }

    #[test]
    fn every_key_is_written_into_its_own_field() {
        let others = [
            ("ports", "2000-2001"),
            ("socket", "/tmp/s"),
            ("metrics", "off"),
            ("cpumask", "3"),
            ("nodemask", "1"),
            ("streams", "256"),
            ("depth", "2"),
            ("block_size", "8M"),
            ("engine", "posix"),
            ("compress", "3"),
            ("durable", "no"),
            ("limits.sessions", "1"),
            ("limits.sessions_per_uid", "2"),
            ("limits.memory_per_session", "1G"),
            ("limits.rate_per_session", "10G"),
            ("limits.rate_per_uid", "2G"),
            ("limits.unproven", "16"),
            ("limits.unproven_per_address", "3"),
            ("first_packet_timeout", "1500ms"),
            ("grace_period", "0s"),
            ("log.level", "trace"),
            ("log.format", "json"),
            ("log.target", "/var/log/escpd.log"),
        ];
        assert_eq!(others.len(), KEYS.len());
        for (name, value) in others {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            let mut config = Config::default();
            (key.set)(&mut config, value).unwrap();
            let changes = Config::default().changes(&config);
            assert_eq!(changes.len(), 1, "{name}");
            assert_eq!((changes[0].key, changes[0].to.as_str()), (name, value));
        }
    }

    #[test]
    fn values_out_of_range_or_of_another_form_are_refused() {
        for (name, value) in [
            ("ports", "1242-1232"),
            ("socket", "run/escpd.sock"),
            ("metrics", "9232"),
            ("metrics", "127.0.0.1:0"),
            ("cpumask", "0"),
            ("nodemask", "xyz"),
            ("streams", "0"),
            ("streams", "257"),
            ("streams", "+4"),
            ("depth", "1"),
            ("block_size", "128K"),
            ("block_size", "16M"),
            ("block_size", "1000000"),
            ("engine", "dummy"),
            ("compress", "20"),
            ("compress", "yes"),
            ("durable", "maybe"),
            ("limits.sessions", "-1"),
            ("limits.memory_per_session", "1M"),
            ("limits.rate_per_session", "9"),
            ("limits.rate_per_uid", "9"),
            ("first_packet_timeout", "0"),
            ("grace_period", "2h"),
            ("log.level", "verbose"),
            ("log.format", "xml"),
            ("log.target", "escpd.log"),
        ] {
            let key = KEYS.iter().find(|key| key.name == name).unwrap();
            let reason = (key.set)(&mut Config::default(), value).unwrap_err();
            assert!(reason.contains(value), "{name}: {reason}");
        }
    }
}
