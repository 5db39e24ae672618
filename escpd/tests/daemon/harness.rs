//! A daemon of a test's own, running as a user without rights.

use escp_engine_api::{
    Command, Direction, EngineHandle, EngineKind, Event, Extent, ExtentKind, FileCheck, FileSpec, JobOptions,
    Lane, Listen, Opened, Secret, SessionId, Side, Summary,
};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Program, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The daemon's user where the test may choose one: no account has it.
pub(crate) const DAEMON_UID: u32 = 64_991;
/// Another user.
pub(crate) const OTHER_UID: u32 = 64_992;

pub(crate) const SOON: Duration = Duration::from_secs(20);
const BLOCK: u32 = 256 * 1024;

/// Whether the test may start processes as other users.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A copy of the program at a place that every user reaches.
pub(crate) fn reachable(directory: &Path, program: &Path) -> PathBuf {
    let copy = directory.join(program.file_name().unwrap());
    fs::copy(program, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

/// A program started without any right, as `uid` where the test may choose.
pub(crate) fn powerless(uid: u32, program: &Path) -> Program {
    if !is_root() {
        return Program::new(program);
    }
    let mut command = Program::new("setpriv");
    let id = uid.to_string();
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set=-all", "--"]);
    command.arg(program);
    command
}

pub(crate) struct Daemon {
    pub(crate) directory: TempDir,
    pub(crate) socket: PathBuf,
    pub(crate) ports: (u16, u16),
    pub(crate) metrics: SocketAddr,
    child: Option<Child>,
    _reserved: UdpSocket,
}

impl Daemon {
    /// Prepares everything but the process.
    pub(crate) fn prepared(config: &str) -> Self {
        let directory = TempDir::with_prefix("escpd-").unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let run = directory.path().join("run");
        fs::create_dir(&run).unwrap();
        if is_root() {
            chown(&run, Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
        }
        fs::write(directory.path().join("escp.conf"), config).unwrap();
        reachable(directory.path(), Path::new(env!("CARGO_BIN_EXE_escpd")));
        let (first, reserved) = free_ports(4);
        let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, first + 3));
        let socket = run.join("escpd.sock");
        Self { socket, ports: (first, first + 2), metrics, child: None, directory, _reserved: reserved }
    }

    /// A running daemon.
    pub(crate) fn start(config: &str) -> Self {
        let mut daemon = Self::prepared(config);
        daemon.launch(daemon.command());
        daemon
    }

    pub(crate) fn command(&self) -> Program {
        let mut command = powerless(DAEMON_UID, &self.directory.path().join("escpd"));
        command.args(self.arguments()).env_remove("NOTIFY_SOCKET");
        command
    }

    pub(crate) fn arguments(&self) -> Vec<String> {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let (first, last) = self.ports;
        vec![
            "--foreground".to_owned(),
            "--config".to_owned(),
            path(&self.directory.path().join("escp.conf")),
            "--socket".to_owned(),
            path(&self.socket),
            "--ports".to_owned(),
            format!("{first}-{last}"),
            "--metrics".to_owned(),
            self.metrics.to_string(),
        ]
    }

    /// Starts it and waits until it serves.
    pub(crate) fn launch(&mut self, mut command: Program) {
        let log = fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        until("escpd serves", || {
            assert!(self.child.as_mut().unwrap().try_wait().unwrap().is_none(), "{}", self.log());
            http(self.metrics, "/healthz").is_some()
        });
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        kill(self.pid(), signal);
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("escpd ends", || {
            status = self.child.as_mut().unwrap().try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.as_mut().unwrap().try_wait().unwrap().is_some()
    }

    /// Process ids of its workers.
    pub(crate) fn workers(&self) -> Vec<u32> {
        let pid = self.pid();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }

    /// A sample of the metrics.
    pub(crate) fn metric(&self, sample: &str) -> u64 {
        let page = http(self.metrics, "/metrics").unwrap();
        let line =
            page.lines().find_map(|line| line.strip_prefix(sample)).unwrap_or_else(|| panic!("{page}"));
        line.trim().parse().unwrap()
    }

    pub(crate) async fn connect(&self) -> EngineHandle {
        escp_ipc::connect(&self.socket).await.unwrap_or_else(|error| panic!("{error}; {}", self.log()))
    }

    /// A session that listens, opened.
    pub(crate) async fn far(&self, session: u8, direction: Direction, kind: EngineKind) -> Party {
        let listen = Some(Listen { first_port: 0, last_port: 0 });
        open(self.connect().await, JobOptions { listen, ..options(session, Side::Far, direction, kind) })
            .await
    }

    /// The other end of it, here too, and both connected.
    pub(crate) async fn pair(&self, session: u8, kind: EngineKind) -> (Party, Party) {
        let mut far = self.far(session, Direction::Receive, kind).await;
        let options = options(session, Side::Near, Direction::Send, kind);
        let streams = options.streams;
        let mut near = open(self.connect().await, options).await;
        for stream in 0..=streams {
            let port = far.opened.ports[usize::from(stream) % far.opened.ports.len()];
            let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap().into();
            near.engine.commands.send(Command::AddLane(Lane { stream, socket })).await.unwrap();
        }
        for party in [&mut near, &mut far] {
            let event = party.next().await;
            assert!(matches!(event, Event::Connected { .. }), "{event:?}; {}", self.log());
        }
        (near, far)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!("--- the daemon's log\n{}", self.log());
        }
    }
}

/// One end of a session.
pub(crate) struct Party {
    pub(crate) engine: EngineHandle,
    pub(crate) opened: Opened,
}

impl Party {
    pub(crate) async fn next(&mut self) -> Event {
        next(&mut self.engine).await
    }

    pub(crate) async fn add(&self, number: u64, size: u64, file: OwnedFd) {
        let spec = FileSpec { number, size, direct_alignment: 0, in_memory: false, sparse: false };
        self.engine.commands.send(Command::AddFiles(vec![(spec, Some(file.into()))])).await.unwrap();
    }

    /// Has the other side's agent told that the files added so far are ready, as agents do.
    pub(crate) async fn announce(&self, other: &mut Self) {
        self.engine.commands.send(Command::Message(b"ready".to_vec())).await.unwrap();
        loop {
            match other.next().await {
                Event::Message(message) => return assert_eq!(message, b"ready"),
                Event::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
    }

    pub(crate) async fn send_whole(&self, file: u64, length: u64) {
        let extent = Extent { file, offset: 0, length, kind: ExtentKind::Data };
        self.engine.commands.send(Command::Schedule(vec![extent])).await.unwrap();
    }

    /// Waits for the report on one file.
    pub(crate) async fn reported(&mut self) -> FileCheck {
        loop {
            match self.next().await {
                Event::Files(reports) => return *reports[0].outcome.as_ref().unwrap(),
                Event::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        }
    }

    pub(crate) async fn finish(&self, files: u64) {
        let summary = Summary { files, list_hash: [5; 32] };
        self.engine.commands.send(Command::Finish(summary)).await.unwrap();
    }

    /// Waits for the final event.
    pub(crate) async fn last(&mut self) -> Event {
        loop {
            let event = self.next().await;
            if matches!(event, Event::Ended { .. } | Event::Failed(_)) {
                return event;
            }
        }
    }
}

pub(crate) async fn next(engine: &mut EngineHandle) -> Event {
    tokio::time::timeout(SOON, engine.events.recv()).await.expect("no event came").expect("the queue closed")
}

/// Opens a job that must be accepted.
pub(crate) async fn open(mut engine: EngineHandle, options: JobOptions) -> Party {
    engine.commands.send(Command::Open(Box::new(options))).await.unwrap();
    match next(&mut engine).await {
        Event::Opened(opened) => Party { engine, opened },
        other => panic!("not opened: {other:?}"),
    }
}

pub(crate) fn options(session: u8, side: Side, direction: Direction, kind: EngineKind) -> JobOptions {
    let (id, secret) = (SessionId([session; 16]), Secret([session ^ 0xff; 32]));
    JobOptions { kind, streams: 2, block_size: BLOCK, ..JobOptions::new(id, secret, side, direction) }
}

/// Waits for something that has to happen.
pub(crate) fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Whether a process is there and is not a corpse.
pub(crate) fn lives(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with(['Z', 'X']))
}

/// The value of a line of /proc/PID/status.
pub(crate) fn status(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
    line.trim().to_owned()
}

fn http(address: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(SOON)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: escpd\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer)
}

/// The first of some TCP ports that nobody uses: below the range the kernel takes ports of dialling sockets from,
/// else another test's connection could have one of them. Other tests keep away from them as long as the UDP
/// socket of that number lives.
fn free_ports(count: u16) -> (u16, UdpSocket) {
    // Tests of one process, and of others, begin at different places.
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let turn = std::process::id().wrapping_mul(97) + NEXT.fetch_add(1, Relaxed);
        let first = 18_000 + u16::try_from(turn % 1500).unwrap() * 8;
        let Ok(reserved) = UdpSocket::bind((Ipv4Addr::LOCALHOST, first)) else { continue };
        if (first..first + count).all(|port| TcpListener::bind(("::", port)).is_ok()) {
            return (first, reserved);
        }
    }
}
