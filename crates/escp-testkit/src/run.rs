//! Running a program as a user, with a deadline, and looking at what it did.

use crate::clock::Stopwatch;
use crate::network::Network;
use crate::users::User;
use crate::{Checked, Trouble, interruption};
use rustix::process::{Pid, Signal, kill_process};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a program may run unless the test says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A program about to be run.
#[derive(Debug)]
pub struct Run<'a> {
    command: Command,
    network: Option<&'a Network>,
    patience: Duration,
}

/// A program that ran to its end.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it took, without the time for which the machine stood still.
    pub took: Duration,
    pub(crate) shown: String,
}

/// A program that runs. Killed when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    start: Stopwatch,
    patience: Duration,
    shown: String,
}

impl<'a> Run<'a> {
    /// `program` as `user` (this process's own user if `None`), in an almost empty environment.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>, user: Option<&User>) -> Self {
        let mut command = Command::new(program);
        command.env_clear().stdin(Stdio::null()).current_dir("/");
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").env("LANG", "C.UTF-8");
        if let Some(user) = user {
            command.env("HOME", &user.home).env("USER", &user.name).env("LOGNAME", &user.name);
            if crate::users::is_root() {
                command.uid(user.uid).gid(user.gid);
            }
        }
        Self { command, network: None, patience: PATIENCE }
    }

    /// Runs it in a network namespace.
    #[must_use]
    pub fn network(mut self, network: &'a Network) -> Self {
        self.network = Some(network);
        self
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Sets its working directory.
    #[must_use]
    pub fn directory(mut self, path: &Path) -> Self {
        self.command.current_dir(path);
        self
    }

    /// Gives it a standard input.
    #[must_use]
    pub fn stdin(mut self, input: impl Into<Stdio>) -> Self {
        self.command.stdin(input);
        self
    }

    /// Runs it under another program, such as `strace -f -o FILE`: the arguments come before its own name.
    #[must_use]
    pub fn under(self, wrapper: impl AsRef<OsStr>, arguments: &[&str]) -> Self {
        let inner = self.command;
        let mut command = Command::new(wrapper);
        command.args(arguments).arg(inner.get_program()).args(inner.get_args());
        command.env_clear().stdin(Stdio::null());
        command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(directory) = inner.get_current_dir() {
            command.current_dir(directory);
        }
        Self { command, network: self.network, patience: self.patience }
    }

    /// As [`Run::under`], where `user` runs wrapper and program.
    #[must_use]
    pub fn as_user(mut self, user: &User) -> Self {
        if crate::users::is_root() {
            self.command.uid(user.uid).gid(user.gid);
        }
        self
    }

    /// How long it may take before it is killed and the test fails.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(mut self) -> Checked<Running> {
        // Files, not pipes: nobody has to drain them, and a grandchild that keeps one open hangs nobody.
        let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
        self.command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
        self.launch(stdout, stderr)
    }

    /// Starts it with `terminal` for its standard streams.
    pub(crate) fn start_on(mut self, terminal: OwnedFd) -> Checked<Running> {
        self.command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
        self.launch(tempfile::tempfile()?, tempfile::tempfile()?)
    }

    fn launch(self, stdout: File, stderr: File) -> Checked<Running> {
        interruption::check()?;
        let shown = shown(&self.command);
        let mut command = self.command;
        let start = Stopwatch::start();
        let spawned = match self.network {
            Some(network) => network.inside(|| command.spawn())?,
            None => command.spawn(),
        };
        let child = spawned.map_err(|error| Trouble::new(format!("cannot run {shown}: {error}")))?;
        Ok(Running { child, stdout, stderr, start, patience: self.patience, shown })
    }

    /// Runs it to its end with its output where ours goes, for a person to watch.
    ///
    /// # Errors
    /// When it cannot be started or fails.
    pub fn show(self) -> Checked<Duration> {
        let start = Instant::now();
        let mut running = self.launch(tempfile::tempfile()?, tempfile::tempfile()?)?;
        let status = running.status(Duration::MAX)?;
        let took = start.elapsed();
        if status.success() { Ok(took) } else { Err(Trouble::new(format!("{}: {status}", running.shown))) }
    }

    /// Runs it to its end, whatever that is.
    ///
    /// # Errors
    /// When it cannot be started, or runs longer than it may.
    pub fn end(self) -> Checked<Outcome> {
        self.start()?.end()
    }

    /// Runs it to its end, which must be success.
    ///
    /// # Errors
    /// With what it printed, when it fails.
    #[track_caller]
    pub fn succeed(self) -> Checked<Outcome> {
        self.end()?.expect_status(0)
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> Checked {
        send_signal(self.pid(), signal)
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel cannot tell.
    pub fn is_running(&mut self) -> Checked<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Whether it has run longer than it may.
    pub(crate) fn is_late(&self) -> bool {
        self.start.elapsed() > self.patience
    }

    /// What it has written to standard error so far.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn stderr(&mut self) -> Checked<String> {
        whole(&mut self.stderr)
    }

    /// What it has written to standard output so far.
    ///
    /// # Errors
    /// When it cannot be read back.
    pub fn stdout(&mut self) -> Checked<String> {
        whole(&mut self.stdout)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it runs longer than it may; it is killed then.
    pub fn end(mut self) -> Checked<Outcome> {
        let status = self.status(self.patience)?;
        Ok(Outcome {
            status,
            stdout: whole(&mut self.stdout)?,
            stderr: whole(&mut self.stderr)?,
            took: self.start.elapsed(),
            shown: self.shown.clone(),
        })
    }

    /// Waits for its end, no longer than `patience` or until this process is interrupted.
    fn status(&mut self, patience: Duration) -> Checked<ExitStatus> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            interruption::check()?;
            if self.start.elapsed() > patience {
                let (out, err) = (self.stdout()?, self.stderr()?);
                return Err(Trouble::new(format!(
                    "{} still runs after {patience:?}\n--- stdout\n{out}\n--- stderr\n{err}",
                    self.shown
                )));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// The exit status as a shell tells it: 128 and the signal's number for a killed program.
    #[must_use]
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Insists on an exit status.
    ///
    /// # Errors
    /// With all it printed, when it is another.
    #[track_caller]
    pub fn expect_status(self, status: i32) -> Checked<Self> {
        if self.code() == status {
            return Ok(self);
        }
        Err(Trouble::new(format!("expected exit status {status}\n{}", self.told())))
    }

    /// Insists on a text in standard error.
    ///
    /// # Errors
    /// With all it printed, when the text is not there.
    #[track_caller]
    pub fn expect_stderr(self, text: &str) -> Checked<Self> {
        if self.stderr.contains(text) {
            return Ok(self);
        }
        Err(Trouble::new(format!("expected '{text}' in standard error\n{}", self.told())))
    }

    /// The whole story, for a failure's text.
    #[must_use]
    pub fn told(&self) -> String {
        format!(
            "{}\nended with {} after {:.1} s\n--- stdout\n{}\n--- stderr\n{}",
            self.shown,
            self.code(),
            self.took.as_secs_f32(),
            self.stdout,
            self.stderr
        )
    }
}

/// Sends a signal to any process.
///
/// # Errors
/// When it is gone.
pub fn send_signal(pid: u32, signal: Signal) -> Checked {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| Trouble::new("no such pid"))?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until `ready` says so.
///
/// # Errors
/// When it does not within `patience`, with `what` was waited for.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, mut ready: impl FnMut() -> bool) -> Checked {
    let start = Stopwatch::start();
    while !ready() {
        if start.elapsed() > patience {
            return Err(Trouble::new(format!("waited {patience:?} in vain: {what}")));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The first of `places` that is a file.
///
/// # Errors
/// When none is.
pub fn program(name: &str) -> Checked<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| Trouble::new(format!("{name} is not installed; cargo xtask test says how")))
}

fn whole(file: &mut File) -> Checked<String> {
    // Through a second offset: the program writes where this one's shared offset stands.
    let mut bytes = Vec::new();
    let mut copy = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(file)))?;
    copy.seek(SeekFrom::Start(0))?;
    copy.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn shown(command: &Command) -> String {
    let mut words = vec![command.get_program().to_os_string()];
    words.extend(command.get_args().map(OsString::from));
    words.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
