//! A running escpd of a test's own.

use crate::clock::Stopwatch;
use crate::network::Network;
use crate::run::{Run, Running};
use crate::users::User;
use crate::{Checked, Trouble, processes};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How to run a daemon.
#[derive(Debug, Clone)]
pub struct DaemonOptions {
    /// Its data ports, first and last.
    pub ports: (u16, u16),
    /// Its metrics port on 127.0.0.1.
    pub metrics_port: u16,
    /// Its configuration, as YAML; empty for the defaults.
    pub config: String,
    /// A program and arguments to run it under, such as `prlimit --memlock=8388608`.
    pub under: Vec<String>,
}

/// A running daemon. Killed when dropped, with its workers.
#[derive(Debug)]
pub struct Daemon {
    /// Its Unix socket.
    pub socket: PathBuf,
    /// Its metrics address.
    pub metrics: SocketAddr,
    running: Running,
}

impl Daemon {
    /// Starts `escpd` as `user`; its files lie in `directory`, which that user must be able to write.
    ///
    /// # Errors
    /// With its log, when it does not come up.
    pub fn start(
        escpd: &Path,
        directory: &Path,
        network: &Network,
        user: &User,
        options: &DaemonOptions,
    ) -> Checked<Self> {
        let socket = directory.join("escpd.sock");
        let config = directory.join("escp.conf");
        std::fs::write(&config, &options.config)?;
        let metrics = SocketAddr::from(([127, 0, 0, 1], options.metrics_port));
        let (first, last) = options.ports;
        let mut run = Run::new(escpd, Some(user))
            .network(network)
            .arg("--foreground")
            .arg("--config")
            .arg(&config)
            .arg("--socket")
            .arg(&socket)
            .args(["--ports", &format!("{first}-{last}"), "--metrics", &metrics.to_string()])
            .patience(Duration::from_secs(600));
        if let Some((wrapper, arguments)) = options.under.split_first() {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            run = run.under(wrapper, &arguments).as_user(user);
        }
        let mut running = run.start()?;
        let start = Stopwatch::start();
        loop {
            if !running.is_running()? || start.elapsed() > Duration::from_secs(20) {
                return Err(Trouble::new(format!("escpd did not come up:\n{}", running.stderr()?)));
            }
            // Not by connecting to the socket: that would count as a session.
            if socket.exists() && network.inside(|| get(metrics, "/healthz"))?.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { socket, metrics, running })
    }

    /// The broker's process id (the wrapper's, if it runs under one that stays).
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Process ids of its workers, one per session.
    #[must_use]
    pub fn workers(&self) -> Vec<u32> {
        processes::descendants(self.pid())
    }

    /// The process itself.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// What it has logged.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&mut self) -> Checked<String> {
        self.running.stderr()
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// When it does not answer, or not with 200.
    pub fn scrape(&self, network: &Network) -> Checked<String> {
        network.inside(|| get(self.metrics, "/metrics"))?
    }

    /// One sample of `/metrics`: the sum over all lines of `name` whose labels hold each of `labels`.
    ///
    /// # Errors
    /// As [`Daemon::scrape`].
    pub fn metric(&self, network: &Network, name: &str, labels: &[&str]) -> Checked<f64> {
        Ok(sum(&self.scrape(network)?, name, labels))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Workers outlive a killed broker long enough to disturb the next test's look at the processes.
        for pid in self.workers() {
            let _ = crate::run::send_signal(pid, rustix::process::Signal::KILL);
        }
    }
}

/// The sum of a metric's samples.
#[must_use]
pub fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with(['{', ' ']))
        .filter(|rest| labels.iter().all(|label| rest.contains(label)))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// Fetches a page over HTTP.
///
/// # Errors
/// When nobody answers, or not with 200.
pub fn get(address: SocketAddr, path: &str) -> Checked<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| Trouble::new("not HTTP"))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(Trouble::new(format!("{path}: {head}")));
    }
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return unchunk(body);
    }
    Ok(body.to_owned())
}

fn unchunk(mut body: &str) -> Checked<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").ok_or_else(|| Trouble::new("a chunk without a size"))?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).ok_or_else(|| Trouble::new("a chunk is cut"))?);
        body = rest.get(size + 2..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::sum;

    #[test]
    fn samples_are_summed_by_name_and_label() {
        let text = "# TYPE a counter\na{x=\"1\",y=\"2\"} 3\na{x=\"1\"} 4\na_b{x=\"1\"} 50\na 1\n";
        assert_eq!(sum(text, "a", &["x=\"1\""]), 7.0);
        assert_eq!(sum(text, "a", &[]), 8.0);
        assert_eq!(sum(text, "b", &[]), 0.0);
    }
}
