//! What was typed, judged: a session to start, a session to serve, or a sentence why neither.

use crate::args::{Args, SpeedArgs};
use crate::place::{Login, Place, Remote};
use crate::ssh::SshPlan;
use escp_agent::dial::Family;
use escp_agent::link::TransferOptions;
use escp_agent::near::{NearJob, NearTransfer};
use escp_agent::{Source, TakenNames};
use escp_config::{Config, Engine, PortRange, parse_rate, parse_size};
use escp_engine_api::{EngineKind, MAX_BLOCK_SIZE, MAX_CONGESTION, MAX_STREAMS, MIN_BLOCK_SIZE};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::thread;
use std::time::Duration;

/// Highest zstd level of `-C` where the configuration names none: those above need several times the memory and
/// the time for a few per cent.
const DEFAULT_LEVEL: i32 = 9;
/// Longest path of another host, in bytes (`PATH_MAX`, limits.h).
const MAX_PATH: usize = 4096;
/// How many ports after `--escp_port` are tried where `--escp_portrange` does not say.
const DEFAULT_PORT_COUNT: u16 = 10;
/// Patience with logging in, passwords and second factors included, until the other side's escp speaks.
const LOGIN_DEADLINE: Duration = Duration::from_secs(600);
/// The same where nobody can be asked.
const BATCH_LOGIN_DEADLINE: Duration = Duration::from_secs(180);

/// A session to start.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// How to log in.
    pub(crate) ssh: SshPlan,
    /// Patience with logging in.
    pub(crate) login_deadline: Duration,
    /// What the session is to do.
    pub(crate) job: NearJob,
}

/// Judges the operands and flags: one session for each host, in the order in which they are named.
///
/// # Errors
/// One sentence; the exit status is 2.
pub(crate) fn plan(args: &Args, config: &Config) -> Result<Vec<Plan>, String> {
    refuse_foreign_flags(args)?;
    let kinds = Kinds::parse(args.speed.ioengine.as_deref(), config)?;
    let batch = args.connection.batch;
    let session = |ends: Ends| {
        let login = ends.login.clone();
        let job = job(args, config, &kinds, ends)?;
        Ok(Plan {
            ssh: SshPlan::new(args, login)?,
            login_deadline: if batch { BATCH_LOGIN_DEADLINE } else { LOGIN_DEADLINE },
            job,
        })
    };
    Ends::parse(&args.operands, kinds.dummy()?)?.into_iter().map(session).collect()
}

fn refuse_foreign_flags(args: &Args) -> Result<(), String> {
    let scp = &args.scp;
    if scp.legacy || scp.sftp || !scp.sftp_options.is_empty() {
        let flag = if scp.legacy {
            "-O"
        } else if scp.sftp {
            "-s"
        } else {
            "-X"
        };
        return Err(format!(
            "{flag} chooses between protocols of scp; escp speaks its own, so leave it away"
        ));
    }
    Ok(())
}

/// Which engine each end uses.
struct Kinds {
    sender: EngineKind,
    receiver: EngineKind,
    chosen: bool,
}

impl Kinds {
    fn parse(text: Option<&str>, config: &Config) -> Result<Self, String> {
        let Some(text) = text else {
            let own = match config.engine {
                Engine::Uring => EngineKind::Uring,
                Engine::Posix => EngineKind::Posix,
            };
            return Ok(Self { sender: own, receiver: own, chosen: false });
        };
        let (sender, receiver) = text.split_once("::").unwrap_or((text, text));
        let kind = |name: &str| name.parse().map_err(|error| format!("--ioengine {text}: {error}"));
        Ok(Self { sender: kind(sender)?, receiver: kind(receiver)?, chosen: true })
    }

    /// Whether no files are touched. One side alone cannot do without them.
    fn dummy(&self) -> Result<bool, String> {
        let dummy = |kind| kind == EngineKind::Dummy;
        if dummy(self.sender) == dummy(self.receiver) {
            Ok(dummy(self.sender))
        } else {
            Err("--ioengine: dummy works on both sides or on neither".into())
        }
    }

    /// This host's engine and the other's. Without --ioengine the other host's own configuration decides
    /// what its default means.
    fn near_and_far(&self, sends: bool) -> (EngineKind, EngineKind) {
        match (self.chosen, sends) {
            (false, _) => (self.sender, EngineKind::Uring),
            (true, true) => (self.sender, self.receiver),
            (true, false) => (self.receiver, self.sender),
        }
    }
}

/// What one session is to copy.
struct Ends {
    login: Login,
    host: String,
    transfer: NearTransfer,
}

impl Ends {
    fn parse(operands: &[OsString], dummy: bool) -> Result<Vec<Self>, String> {
        let [sources @ .., target] = operands else {
            return Err("a source and a target are needed; escp --help says how".into());
        };
        if sources.is_empty() {
            return Err("a target is needed behind the source; escp --help says how".into());
        }
        let places = sources.iter().map(|source| place(source)).collect::<Result<Vec<_>, _>>()?;
        let directory_required = sources.len() > 1;
        match place(target)? {
            Place::Remote(target) => {
                let sources =
                    places.into_iter().map(|place| upload_source(place, dummy)).collect::<Result<_, _>>()?;
                let host = target.host_shown();
                let transfer = NearTransfer::Upload { sources, target: target.path, directory_required };
                Ok(vec![Self { login: target.login, host, transfer }])
            }
            Place::Local(target) => download(places, target, directory_required, dummy),
        }
    }
}

/// A source or target, unless no path of the other host is that long.
fn place(text: &OsStr) -> Result<Place, String> {
    let place = Place::parse(text)?;
    if let Place::Remote(remote) = &place
        && remote.path.len() > MAX_PATH
    {
        let (host, length) = (remote.host_shown(), remote.path.len());
        return Err(format!(
            "a path of {host} has {length} bytes; {MAX_PATH} are the most (name a directory on the way)"
        ));
    }
    Ok(place)
}

fn upload_source(place: Place, dummy: bool) -> Result<Source, String> {
    let made_up = match &place {
        Place::Remote(remote) => remote.as_dummy(),
        Place::Local(_) => None,
    };
    match (place, made_up, dummy) {
        (_, Some(name), true) => {
            let size = dummy_size(name.as_bytes())?;
            Ok(Source::Dummy { name: name.into_vec(), size })
        }
        (_, Some(name), false) if dummy_size(name.as_bytes()).is_ok() => {
            Err(format!("{} needs --ioengine dummy", name.display()))
        }
        (Place::Local(path), _, false) => Ok(Source::Path(path.into_vec())),
        (Place::Local(_), _, true) => Err("with --ioengine dummy a source is dummy:SIZE".into()),
        (Place::Remote(_), ..) => {
            Err("copying between two remote hosts is not in this version; copy to this host first".into())
        }
    }
}

fn download(
    places: Vec<Place>,
    target: OsString,
    directory_required: bool,
    dummy: bool,
) -> Result<Vec<Ends>, String> {
    // One session for all that one host has.
    let mut hosts: Vec<(Remote, Vec<Vec<u8>>)> = Vec::new();
    for place in places {
        let Place::Remote(remote) = place else {
            return Err("source and target are both on this host; use cp for that".into());
        };
        let source = if dummy {
            format!("dummy:{}", dummy_size(&remote.path)?).into_bytes()
        } else {
            remote.path.clone()
        };
        match hosts.iter_mut().find(|(first, _)| first.login == remote.login) {
            Some((_, sources)) => sources.push(source),
            None => hosts.push((remote, vec![source])),
        }
    }
    let (target, names) = (target.into_vec(), TakenNames::default());
    let ends = hosts.into_iter().map(|(first, sources)| Ends {
        host: first.host_shown(),
        login: first.login,
        transfer: NearTransfer::Download {
            sources,
            target: target.clone(),
            directory_required,
            names: names.clone(),
        },
    });
    Ok(ends.collect())
}

fn dummy_size(source: &[u8]) -> Result<u64, String> {
    let size = source.strip_prefix(b"dummy:").and_then(|size| std::str::from_utf8(size).ok());
    parse_size(size.ok_or("with --ioengine dummy a source is dummy:SIZE")?)
}

fn job(args: &Args, config: &Config, kinds: &Kinds, ends: Ends) -> Result<NearJob, String> {
    let speed = &args.speed;
    let sends = matches!(ends.transfer, NearTransfer::Upload { .. });
    let (near_kind, far_kind) = kinds.near_and_far(sends);
    let cpus = config.cpus().map_err(|error| error.to_string())?;
    let cores =
        if cpus.is_empty() { thread::available_parallelism().map_or(1, usize::from) } else { cpus.len() };
    let (streams, streams_on_one_machine) = streams(speed.parallel, config.streams, cores)?;
    let block_size = block_size(speed.blocksize.as_deref())?
        .unwrap_or_else(|| config.limits.block_size(streams, config.block_size));
    let depth = match speed.depth {
        Some(depth) if !(2..=64).contains(&depth) => return Err(format!("--depth {depth}: 2 to 64")),
        Some(depth) => depth,
        None => config.limits.depth(streams, block_size, config.depth),
    };
    let allowed = if sends { config.limits.rate_per_session } else { None };
    let rate_limit = [speed.limit.as_deref().map(rate).transpose()?, allowed].into_iter().flatten().min();
    let family = match (args.connection.ipv4, args.connection.ipv6) {
        (true, _) => Family::V4,
        (_, true) => Family::V6,
        _ => Family::Any,
    };
    Ok(NearJob {
        host: ends.host,
        transfer: ends.transfer,
        options: TransferOptions {
            recursive: args.recursive,
            preserve: args.preserve,
            inplace: args.inplace,
            durable: config.durable && !args.no_fsync,
            direct: !speed.nodirect,
            checksum: !args.nochecksum,
            dummy: near_kind == EngineKind::Dummy,
            block_size,
        },
        near_kind,
        far_kind,
        streams,
        streams_on_one_machine,
        depth,
        compress: if args.speed.compress { config.compress.or(Some(DEFAULT_LEVEL)) } else { config.compress },
        rate_limit,
        congestion: congestion(speed.congestion.as_deref())?,
        cpus,
        far_ports: far_ports(speed, config)?,
        family,
        verbose: crate::logging::wanted(&args.messages),
    })
}

/// `--congestion`: whether the kernels know it, they say.
fn congestion(name: Option<&str>) -> Result<Option<String>, String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    match name {
        Some(name) if name.is_empty() || name.len() > MAX_CONGESTION || !name.bytes().all(plain) => {
            Err(format!(
                "--congestion {}: not a name that a kernel has, such as cubic or bbr",
                name.escape_debug()
            ))
        }
        name => Ok(name.map(str::to_owned)),
    }
}

/// Data connections in general, and where both ends share this machine's cores: one for each of them; more would
/// only take turns (docs/decisions/0009-on-one-machine.md).
fn streams(asked: Option<u16>, usual: u16, cores: usize) -> Result<(u16, u16), String> {
    match asked {
        None => Ok((usual, u16::try_from(cores).unwrap_or(u16::MAX).clamp(1, usual))),
        Some(streams) if (1..=MAX_STREAMS).contains(&streams) => Ok((streams, streams)),
        Some(streams) => Err(format!("-t {streams}: 1 to {MAX_STREAMS} data connections are possible")),
    }
}

/// `-l`: Kbit/s, or with a unit bits per second.
fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("-l {}: not a rate (Kbit/s, or like 800M and 10G)", text.escape_debug());
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let bits = if plain {
        text.parse::<u64>().ok().and_then(|kbits| kbits.checked_mul(1000)).ok_or_else(wrong)?
    } else {
        parse_rate(text).map_err(|_| wrong())?
    };
    if bits == 0 { Err(wrong()) } else { Ok(bits) }
}

fn block_size(text: Option<&str>) -> Result<Option<u32>, String> {
    let Some(text) = text else { return Ok(None) };
    let bytes = parse_size(text).map_err(|error| format!("--blocksize: {error}"))?;
    match u32::try_from(bytes) {
        Ok(bytes) if (MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&bytes) && bytes.is_multiple_of(4096) => {
            Ok(Some(bytes))
        }
        _ => Err(format!("--blocksize {}: 256K to 8M, a multiple of 4K", text.escape_debug())),
    }
}

/// First and last port to try on the other host, if this side has a wish.
fn far_ports(speed: &SpeedArgs, config: &Config) -> Result<Option<(u16, u16)>, String> {
    let after = |first: u16, count: u16| (first, first.saturating_add(count));
    match (speed.escp_port, speed.escp_portrange.as_deref()) {
        (None, None) => Ok(None),
        (Some(first), None) => Ok(Some(after(first, DEFAULT_PORT_COUNT))),
        (first, Some(text)) => match text.parse::<u16>() {
            Ok(count) => Ok(Some(after(first.unwrap_or(config.ports.first), count))),
            Err(_) if first.is_none() => {
                let range: PortRange = text.parse().map_err(|error| format!("--escp_portrange: {error}"))?;
                Ok(Some((range.first, range.last)))
            }
            Err(_) => Err("--escp_portrange: with --escp_port give a number of ports".into()),
        },
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
