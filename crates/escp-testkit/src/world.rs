//! Two hosts and the way between them.

use crate::daemon::{Daemon, DaemonOptions};
use crate::network::Network;
use crate::proxy::Proxy;
use crate::run::Run;
use crate::scratch::{Scratch, give};
use crate::sshd::{Sshd, SshdOptions};
use crate::users::{User, Users, users};
use crate::wan::{self, Link, Wan};
use crate::{Checked, Trouble, programs};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

/// Where a host's engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// In the agent's own process: no daemon answers.
    Embedded,
    /// In an escpd.
    Daemon,
}

/// What a world is to have.
#[derive(Debug, Clone)]
pub struct Plan {
    near: Host,
    far: Host,
    apart: bool,
    distance: Option<Link>,
    sshd: SshdOptions,
    config: String,
    under: Vec<String>,
}

/// Data ports of the far side: its daemon's, or those an embedded engine tries.
pub const FAR_PORTS: (u16, u16) = (1232, 1242);
/// Data ports of the near side's daemon.
pub const NEAR_PORTS: (u16, u16) = (1252, 1262);
const FAR_METRICS: u16 = 9232;
const NEAR_METRICS: u16 = 9252;

/// Two hosts, their users and what runs on them. All of it goes when this is dropped.
#[derive(Debug)]
pub struct World {
    // In the order in which it must go.
    /// The near host's daemon, if planned.
    pub near_daemon: Option<Daemon>,
    /// The far host's daemon, if planned.
    pub far_daemon: Option<Daemon>,
    /// The sshd of the far host.
    pub sshd: Sshd,
    /// What lies between the hosts, if they are apart.
    pub proxy: Option<Proxy>,
    /// The way between the hosts, if there is a distance.
    pub wan: Option<Wan>,
    /// The near host's network.
    pub near_network: Network,
    /// The far host's network; the same one unless the hosts are apart.
    pub far_network: Option<Network>,
    /// Where the programs lie that every user may run.
    pub programs: PathBuf,
    /// The near user's own directory; nobody else may enter it.
    pub near: PathBuf,
    /// The far user's own directory; nobody else may enter it.
    pub far: PathBuf,
    /// Who takes part.
    pub users: Users,
    /// Everything else, removed last.
    pub scratch: Scratch,
}

impl Default for Plan {
    fn default() -> Self {
        Self::new(Host::Embedded, Host::Embedded)
    }
}

impl Plan {
    /// Both hosts on one network, engines as given.
    #[must_use]
    pub fn new(near: Host, far: Host) -> Self {
        Self {
            near,
            far,
            apart: false,
            distance: None,
            sshd: SshdOptions::default(),
            config: String::new(),
            under: Vec::new(),
        }
    }

    /// Gives each host a network of its own; a [`Proxy`] that a test can tamper with lies between them.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Gives each host a network of its own, and this between them. See [`crate::need_wan!`].
    #[must_use]
    pub fn over(mut self, link: Link) -> Self {
        self.distance = Some(link);
        self
    }

    /// Adds lines to sshd_config.
    #[must_use]
    pub fn sshd_line(mut self, line: &str) -> Self {
        self.sshd.lines.push(line.to_owned());
        self
    }

    /// Lets the far user log in with [`crate::sshd::PASSWORD`] and, as a second factor, with the same again; not
    /// with a key.
    #[must_use]
    pub fn passwords(mut self) -> Self {
        self.sshd.passwords = true;
        self
    }

    /// Adds a variable to every session on the far side.
    #[must_use]
    pub fn far_variable(mut self, name: &str, value: &str) -> Self {
        self.sshd.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The daemons' configuration.
    #[must_use]
    pub fn config(mut self, yaml: &str) -> Self {
        yaml.clone_into(&mut self.config);
        self
    }

    /// Runs the daemons under another program, such as `prlimit --memlock=8388608`.
    #[must_use]
    pub fn daemons_under(mut self, words: &[&str]) -> Self {
        self.under = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Makes the world.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(mut self) -> Checked<World> {
        let programs = programs::installed()?;
        let users = users()?;
        let scratch = Scratch::new()?;
        let near = scratch.directory("near", Some(&users.near), 0o700)?;
        let far = scratch.directory("far", Some(&users.far), 0o700)?;
        let near_network = Network::new()?;
        let apart = self.apart || self.distance.is_some();
        let far_network = if apart { Some(Network::new()?) } else { None };
        let on_far = far_network.as_ref().unwrap_or(&near_network);

        let wan = match (&far_network, self.distance) {
            (Some(far), Some(link)) => Some(Wan::join(&near_network, far, link)?),
            _ => None,
        };
        self.sshd.address = wan.is_some().then_some(wan::FAR);
        let near_daemon = self.daemon(self.near, "near", &programs, &near_network, &scratch, &users)?;
        let far_daemon = self.daemon(self.far, "far", &programs, on_far, &scratch, &users)?;
        let far_socket = far_daemon.as_ref().map_or_else(|| no_socket(&scratch), |d| d.socket.clone());
        self.sshd.environment.push(("ESCP_SOCKET".to_owned(), far_socket.to_string_lossy().into_owned()));

        let directory = scratch.directory("ssh", None, 0o755)?;
        let sshd = Sshd::start(&directory, on_far, &users.near, &users.far, &self.sshd)?;
        let proxy = match &far_network {
            Some(far) if self.apart => Some(Proxy::start(&near_network, far, sshd.port, FAR_PORTS)?),
            _ => None,
        };
        Ok(World {
            near_daemon,
            far_daemon,
            sshd,
            proxy,
            wan,
            near_network,
            far_network,
            programs,
            near,
            far,
            users,
            scratch,
        })
    }

    fn daemon(
        &self,
        host: Host,
        name: &str,
        programs: &Path,
        network: &Network,
        scratch: &Scratch,
        users: &Users,
    ) -> Checked<Option<Daemon>> {
        if host == Host::Embedded {
            return Ok(None);
        }
        let directory = scratch.directory(&format!("{name}-daemon"), Some(&users.daemon), 0o755)?;
        let (ports, metrics_port) =
            if name == "near" { (NEAR_PORTS, NEAR_METRICS) } else { (FAR_PORTS, FAR_METRICS) };
        let options =
            DaemonOptions { ports, metrics_port, config: self.config.clone(), under: self.under.clone() };
        Daemon::start(&programs.join("escpd"), &directory, network, &users.daemon, &options).map(Some)
    }
}

/// A path where no daemon listens.
fn no_socket(scratch: &Scratch) -> PathBuf {
    scratch.path().join("no-daemon.sock")
}

impl World {
    /// A world with both engines as given.
    ///
    /// # Errors
    /// When a part does not come up.
    pub fn start(near: Host, far: Host) -> Checked<Self> {
        Plan::new(near, far).start()
    }

    /// `escp` as the near user, with the options that reach this world's sshd and daemons; the test adds the
    /// rest.
    #[must_use]
    pub fn escp(&self) -> Run<'_> {
        self.escp_with(&self.programs.join("escp"))
    }

    /// As [`World::escp`], with another program as the far agent.
    #[must_use]
    pub fn escp_with(&self, far_program: &Path) -> Run<'_> {
        let socket = self.near_daemon.as_ref().map_or_else(|| no_socket(&self.scratch), |d| d.socket.clone());
        self.on_near(self.programs.join("escp"))
            .env("ESCP_SOCKET", socket)
            .arg("-F")
            .arg(&self.sshd.client_config)
            .arg("-D")
            .arg(far_program)
    }

    /// The system's scp as the near user, with the options that reach this world's sshd.
    #[must_use]
    pub fn scp(&self) -> Run<'_> {
        self.on_near("scp").arg("-F").arg(&self.sshd.client_config)
    }

    /// Any program as the near user, on the near host's network.
    #[must_use]
    pub fn on_near(&self, program: impl AsRef<OsStr>) -> Run<'_> {
        Run::new(program, Some(&self.users.near)).network(&self.near_network)
    }

    /// Any program as the far user, on the far host's network.
    #[must_use]
    pub fn on_far(&self, program: impl AsRef<OsStr>) -> Run<'_> {
        Run::new(program, Some(&self.users.far)).network(self.far_network())
    }

    /// The network of the far host.
    #[must_use]
    pub fn far_network(&self) -> &Network {
        self.far_network.as_ref().unwrap_or(&self.near_network)
    }

    /// `far:PATH` for a path below the far user's directory.
    #[must_use]
    pub fn remote(&self, below: &str) -> String {
        format!("far:{}", self.far.join(below).display())
    }

    /// Hands everything in the near user's directory to that user; call it after making sources there.
    ///
    /// # Errors
    /// The file system's.
    pub fn own_near(&self) -> Checked {
        give(&self.near, &self.users.near)
    }

    /// Hands everything in the far user's directory to that user.
    ///
    /// # Errors
    /// The file system's.
    pub fn own_far(&self) -> Checked {
        give(&self.far, &self.users.far)
    }

    /// The proxy of a world whose hosts are apart.
    ///
    /// # Errors
    /// When they are not.
    pub fn proxy(&self) -> Checked<&Proxy> {
        self.proxy.as_ref().ok_or_else(|| Trouble::new("the hosts of this world are not apart"))
    }

    /// The way of a world whose hosts are [`Plan::over`] a distance.
    ///
    /// # Errors
    /// When there is none.
    pub fn wan(&self) -> Checked<&Wan> {
        self.wan.as_ref().ok_or_else(|| Trouble::new("there is no distance in this world"))
    }

    /// Both daemons that run.
    pub fn daemons(&self) -> impl Iterator<Item = &Daemon> {
        self.near_daemon.iter().chain(self.far_daemon.iter())
    }

    /// Processes of this world's programs other than the daemons themselves: agents and workers.
    #[must_use]
    pub fn leftovers(&self) -> Vec<crate::processes::Process> {
        let daemons: Vec<u32> = self.daemons().map(Daemon::pid).collect();
        let uids = [self.users.near.uid, self.users.far.uid, self.users.daemon.uid];
        let scratch = self.scratch.path().to_string_lossy().into_owned();
        crate::processes::all()
            .into_iter()
            .filter(|process| !daemons.contains(&process.pid))
            .filter(|process| {
                let of_daemon = daemons.contains(&process.parent);
                let of_user = crate::processes::status(process.pid, "Uid").is_ok_and(|line| {
                    line.split_whitespace()
                        .next()
                        .is_some_and(|uid| uids.iter().any(|u| u.to_string() == uid))
                });
                of_daemon || (of_user && self.belongs(process.pid, &scratch))
            })
            .collect()
    }

    /// Whether a process was started by this world: its command line or environment names the scratch
    /// directory.
    fn belongs(&self, pid: u32, scratch: &str) -> bool {
        ["cmdline", "environ"].iter().any(|file| {
            std::fs::read(format!("/proc/{pid}/{file}"))
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains(scratch))
        })
    }

    /// Insists that, within `patience`, no agent, worker or ssh of this world is left.
    ///
    /// # Errors
    /// With those that are.
    #[track_caller]
    pub fn expect_nothing_running(&self, patience: std::time::Duration) -> Checked {
        let mut left = Vec::new();
        let gone = crate::run::wait_until("every process of the session to end", patience, || {
            left = self.leftovers();
            left.is_empty()
        });
        gone.map_err(|_| Trouble::new(format!("still running after {patience:?}: {left:#?}")))
    }

    /// One user's view: the user and directory on that side.
    #[must_use]
    pub fn side(&self, far: bool) -> (&User, &Path) {
        if far { (&self.users.far, &self.far) } else { (&self.users.near, &self.near) }
    }
}
