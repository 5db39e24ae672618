//! The escp data-transfer daemon.
//!
//! One program in two roles. The *broker* ([`broker`]) is what the service manager starts: it accepts
//! local connections and data connections, and starts a *worker* ([`worker`]) for each session, a process
//! of its own without any right, in which the engine runs.

mod broker;
mod http;
mod ledger;
mod listen;
mod logging;
mod metrics;
mod notify;
mod paces;
mod reload;
mod routes;
mod session;
mod worker;

use clap::Parser;
use escp_config::{Config, LogTarget, PortRange};
use escp_sys::process;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Moves files for the users of this host: keeps the engine of escp running, so that transfers share one
/// set of ports, limits and metrics. Runs as an unprivileged user of its own; files are opened by escp as
/// the user who owns the transfer.
#[derive(Debug, Parser)]
#[command(name = "escpd", version)]
struct Arguments {
    /// Read this configuration instead of /etc/escp.conf
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve local users on this Unix socket
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Take file data on those of these TCP ports that are free
    #[arg(long, value_name = "FIRST-LAST")]
    ports: Option<PortRange>,
    /// Serve /metrics and /healthz on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<SocketAddr>,
    /// Log to standard error, whatever the configuration says
    #[arg(long)]
    foreground: bool,
    /// Say what is wrong with the configuration, and exit
    #[arg(long)]
    check_config: bool,
}

/// What the command line decides over the configuration.
#[derive(Debug, Clone)]
struct Overrides {
    socket: Option<PathBuf>,
    ports: Option<PortRange>,
    metrics: Option<SocketAddr>,
    foreground: bool,
}

impl Overrides {
    fn apply(&self, config: &mut Config) {
        if let Some(socket) = &self.socket {
            config.socket.clone_from(socket);
        }
        config.ports = self.ports.unwrap_or(config.ports);
        config.metrics = self.metrics.or(config.metrics);
        if self.foreground {
            config.log.target = LogTarget::Stderr;
        }
    }
}

/// Exit status of a configuration or command line that cannot be used.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    escp_sys::heap::share_one_arena();
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == worker::ARGUMENT) {
        return worker::main(arguments.next().as_deref());
    }
    let Arguments { config: file, socket, ports, metrics, foreground, check_config } = Arguments::parse();
    if check_config {
        let checked = reload::check(file.as_deref(), &mut io::stdout());
        return checked.map_or(ExitCode::FAILURE, ExitCode::from);
    }
    if process::effective_uid() == 0 {
        let why = "escpd does not run as root: it needs no right at all. Start it as a user of its own \
                   (systemd/escpd.service does, or: setpriv --reuid escp --regid escp --clear-groups escpd)";
        return complain(why, USAGE);
    }
    let overrides = Overrides { socket, ports, metrics, foreground };
    match daemon(file, overrides) {
        Ok(()) => ExitCode::SUCCESS,
        Err((why, status)) => complain(&why, status),
    }
}

fn daemon(file: Option<PathBuf>, overrides: Overrides) -> Result<(), (String, u8)> {
    let passed = listen::Passed::take();
    let mut config = Config::load(file.as_deref()).map_err(|error| (error.to_string(), USAGE))?;
    overrides.apply(&mut config);
    config.cpus().map_err(|error| (error.to_string(), USAGE))?;
    harden().map_err(|error| (format!("cannot give up what is not needed: {error}"), 1))?;
    let logging = logging::Logging::start(&config.log).map_err(|error| (error.to_string(), 1))?;
    let overrides = Box::new(move |config: &mut Config| overrides.apply(config));
    let setup = broker::Setup { config, file, overrides, logging, passed };
    broker::run(setup).map_err(|error| (error, 1))
}

/// What holds for the broker and, through it, for its workers: nothing is inherited but what was passed on
/// purpose, and nothing that is executed gains a right.
fn harden() -> io::Result<()> {
    process::close_on_exec_from(3)?;
    process::forbid_dumping()?;
    process::forbid_new_privileges()?;
    process::raise_descriptor_limit()?;
    process::raise_locked_memory_limit()?;
    Ok(())
}

fn complain(why: &str, status: u8) -> ExitCode {
    // With standard error closed there is nobody to tell.
    let _ = writeln!(io::stderr(), "escpd: {why}");
    ExitCode::from(status)
}
