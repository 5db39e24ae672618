//! `escp --server`: the far agent, on standard input and output.

use crate::engines;
use crate::logging::Verbosity;
use crate::signals::Stop;
use escp_agent::escape::{escaped, foreign_text};
use escp_agent::far::{self, FarSettings};
use escp_agent::link::{Observer, SessionError};
use escp_agent::status;
use escp_agent::tally::FailedFile;
use escp_config::{Config, Engine};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::unix::pipe;

/// Serves one session; returns the exit status.
pub(crate) async fn run(config: Config, socket: Option<PathBuf>, verbosity: &Verbosity, stop: &Stop) -> u8 {
    match serve(config, socket, verbosity, stop).await {
        Ok(status) => status,
        // Nobody is at the other end who could be told.
        Err(error) if error.status == status::USAGE => {
            tracing::error!("{}", error.text);
            error.status
        }
        Err(error) => {
            // The near side has been told and tells its user; this is for logs and for curious hands.
            tracing::info!("{}", error.text);
            error.status
        }
    }
}

async fn serve(
    config: Config,
    socket: Option<PathBuf>,
    verbosity: &Verbosity,
    stop: &Stop,
) -> Result<u8, SessionError> {
    let pipes = pipes().map_err(|error| SessionError {
        status: status::USAGE,
        text: format!("--server is started by escp on another host, through ssh ({error})"),
    })?;
    let connection = std::env::var("SSH_CONNECTION").unwrap_or_default();
    let settings = FarSettings {
        address: far::address_of_connection(&connection),
        from_here: far::is_from_here(&connection),
        ports: (config.ports.first, config.ports.last),
        cpus: config.cpus().unwrap_or_default(),
        rate_limit: config.limits.rate_per_session,
        memory: config.limits.memory_per_session,
        posix_only: config.engine == Engine::Posix,
    };
    let engine = async || engines::open(socket).await;
    let verbose = |level| verbosity.set(level);
    let session = far::serve(pipes, engine, settings, stop.hang_up(), verbose, Arc::new(Remarks));
    stop.guard(session).await.map(|tally| tally.status())
}

/// Standard input and output as pipes that can be waited for. sshd provides pipes or a socket pair.
fn pipes() -> io::Result<(pipe::Receiver, pipe::Sender)> {
    let nonblocking = |fd: OwnedFd| -> io::Result<OwnedFd> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        Ok(fd)
    };
    let input = nonblocking(io::stdin().as_fd().try_clone_to_owned()?)?;
    let output = nonblocking(io::stdout().as_fd().try_clone_to_owned()?)?;
    Ok((pipe::Receiver::from_owned_fd_unchecked(input)?, pipe::Sender::from_owned_fd_unchecked(output)?))
}

/// Nobody watches here: the near side shows what happens.
struct Remarks;

impl Observer for Remarks {
    fn scanned(&self, _files: u64, _bytes: u64, _complete: bool) {}

    fn moved(&self, _bytes: u64, _files: u64) {}

    fn published(&self, path: &dyn Fn() -> Vec<u8>) {
        tracing::debug!("done: {}", escaped(&path()));
    }

    fn failed(&self, failure: &FailedFile) {
        tracing::info!("failed: {}", crate::report::failure(failure));
    }

    fn silent(&self, seconds: u32, stage: &str) {
        tracing::info!("no word from the near side for {seconds} s ({stage})");
    }

    fn note(&self, text: &str) {
        tracing::info!("{}", foreign_text(text, 500));
    }

    fn remark(&self, text: &str) {
        tracing::warn!("{}", foreign_text(text, 500));
    }
}
