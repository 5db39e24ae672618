//! Network namespaces: hosts of a test's own, with no way out.

use crate::{Checked, Trouble};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A network namespace with nothing but a loopback interface. It goes when the last process or socket in it
/// and this value are gone.
#[derive(Debug)]
pub struct Network {
    /// `None`: the namespace the test itself runs in.
    handle: Option<File>,
}

impl Network {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel refuses; it needs root.
    pub fn new() -> Checked<Self> {
        let ours = std::fs::metadata("/proc/self/ns/net")?.ino();
        // Something must be in a namespace until a descriptor holds it.
        let mut holder = Command::new("unshare")
            .args(["--net", "sleep", "60"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let path = format!("/proc/{}/ns/net", holder.id());
        let deadline = Instant::now() + Duration::from_secs(20);
        let handle = loop {
            let file = File::open(&path)?;
            if file.metadata()?.ino() != ours {
                break file;
            }
            if Instant::now() > deadline || holder.try_wait()?.is_some() {
                return Err(Trouble::new("unshare --net made no network namespace"));
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        holder.kill()?;
        holder.wait()?;
        let network = Self { handle: Some(handle) };
        let up = network.inside(|| Command::new("ip").args(["link", "set", "lo", "up"]).status())??;
        if !up.success() {
            return Err(Trouble::new("cannot bring the loopback interface up"));
        }
        Ok(network)
    }

    /// The namespace the test itself runs in.
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self { handle: None }
    }

    /// Sets a variable of the kernel that each namespace has its own of, such as `net/ipv4/tcp_rmem`.
    ///
    /// # Errors
    /// When the kernel has no such variable, or refuses the value.
    pub fn set(&self, variable: &str, value: &str) -> Checked {
        let written = self.inside(|| std::fs::write(format!("/proc/sys/{variable}"), value))?;
        written.map_err(|error| Trouble::new(format!("{variable} = {value}: {error}")))
    }

    /// Runs `work` inside: sockets it makes and processes it starts belong to the namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Checked<T> {
        let Some(handle) = &self.handle else { return Ok(work()) };
        // A thread of its own: entering a namespace is a thread's affair, and this one has none to go back to.
        std::thread::scope(|scope| {
            let name = crate::test_name();
            let thread = std::thread::Builder::new().name(name).spawn_scoped(scope, || {
                move_into_link_name_space(handle.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })?;
            match thread.join() {
                Ok(outcome) => outcome,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Has the loopback interface take only `rate` (in the words of tc(8): `1gbit`), both directions together,
    /// until the value is dropped.
    ///
    /// # Errors
    /// When the kernel lacks the token bucket filter, or refuses.
    pub fn slowed_to(&self, rate: &str) -> Checked<Slowed<'_>> {
        // A burst of a few segments as large as the interface takes, and a queue of 20 ms as switches have.
        let words = ["add", "dev", "lo", "root", "tbf", "rate", rate, "burst", "256kb", "latency", "20ms"];
        self.qdisc(&words)?;
        Ok(Slowed(self))
    }

    fn qdisc(&self, words: &[&str]) -> Checked {
        let output = self.inside(|| Command::new("tc").arg("qdisc").args(words).output())??;
        if output.status.success() {
            return Ok(());
        }
        Err(Trouble::new(format!("tc qdisc: {}", String::from_utf8_lossy(&output.stderr).trim())))
    }
}

/// A network that is slow; see [`Network::slowed_to`].
#[derive(Debug)]
pub struct Slowed<'a>(&'a Network);

impl Drop for Slowed<'_> {
    fn drop(&mut self) {
        // A namespace of a test's own takes its filter along; only that of this machine would stay slow.
        let _ = self.0.qdisc(&["del", "dev", "lo", "root"]);
    }
}
