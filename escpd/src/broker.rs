//! The broker: accepts, limits, starts workers, routes lanes to them, and ends in good order.
//!
//! One thread, which the kernel ties the lives of the workers to. It never reads from an agent, never sees
//! a session's secret, and holds no file of a user.

use crate::http;
use crate::ledger::{Ledger, TurnedAway};
use crate::listen::{self, ListenError, LocalSocket, Passed};
use crate::logging::{self, Logging};
use crate::metrics::Numbers;
use crate::notify;
use crate::paces::Paces;
use crate::reload::{self, Reloaded};
use crate::routes::RouteTable;
use crate::session::{Hall, Phase, Session};
use escp_config::{Config, Log};
use escp_engine::gate::{AcceptLimits, accept_lanes};
use escp_ipc::Listener;
use escp_ipc::link::Start;
use escp_sys::{process, seqpacket};
use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, sleep, sleep_until, timeout};

/// Pause after an error of accept(2), which is nearly always a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long workers may take to end once they are told to; a little more than until they are killed.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What a broker starts from.
pub(crate) struct Setup {
    /// What holds until the first reload.
    pub(crate) config: Config,
    /// The file it came from, as given with --config.
    pub(crate) file: Option<PathBuf>,
    /// Puts what the command line decided into a configuration.
    pub(crate) overrides: Box<dyn Fn(&mut Config)>,
    /// The log.
    pub(crate) logging: Logging,
    /// What the service manager passed.
    pub(crate) passed: Passed,
}

/// The sockets of a daemon.
struct Sockets {
    local: LocalSocket,
    ports: BTreeMap<u16, TcpListener>,
    metrics: Option<TcpListener>,
}

impl Sockets {
    fn open(passed: &mut Passed, config: &Config) -> Result<Self, ListenError> {
        passed.report();
        // The local socket first: a daemon that serves there has the ports, too, and is what to complain about.
        let local = LocalSocket::open(passed, &config.socket)?;
        let ports = listen::data_ports(passed, config.ports)?;
        let metrics = config.metrics.map(listen::metrics).transpose()?;
        Ok(Self { local, ports, metrics })
    }
}

/// Serves until it is told to stop. On the main thread, which has to live as long as the workers.
///
/// # Errors
/// One sentence: what cannot be listened on, or what the kernel refuses at the start.
pub(crate) fn run(mut setup: Setup) -> Result<(), String> {
    let sockets = Sockets::open(&mut setup.passed, &setup.config).map_err(|error| error.to_string())?;
    // A port below 1024 may have needed one.
    process::drop_capabilities().map_err(|error| format!("cannot give up capabilities: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let done = runtime.block_on(async {
        let broker = Broker::new(setup, sockets).map_err(|error| format!("cannot start: {error}"))?;
        broker.serve().await;
        Ok(())
    });
    // A worker that cannot be killed must not keep the broker.
    runtime.shutdown_background();
    done
}

struct Broker {
    setup: Setup,
    /// What local users connect to, and the file it lies at; `None` once the daemon drains.
    local: Option<(Listener, LocalSocket)>,
    ports: Vec<u16>,
    hall: Hall,
    paces: Paces,
    phase: watch::Sender<Phase>,
    log: watch::Sender<Log>,
    draining: Arc<AtomicBool>,
    sessions: JoinSet<()>,
    services: JoinSet<()>,
    next_key: u64,
    signals: Signals,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

enum Happened {
    Connection(io::Result<OwnedFd>),
    Stop,
    Reload,
    SessionOver,
    WatchdogDue,
    GraceOver,
}

impl Broker {
    fn new(setup: Setup, sockets: Sockets) -> io::Result<Self> {
        let Sockets { local, ports, metrics } = sockets;
        let (phase, watched) = watch::channel(Phase::Serving);
        let (log, watched_log) = watch::channel(setup.config.log.clone());
        let ledger = Ledger::new();
        let routes = Arc::new(RouteTable::default());
        let draining = Arc::new(AtomicBool::new(false));
        let numbers: Vec<u16> = ports.keys().copied().collect();
        let listener = Listener::new(local.as_fd().try_clone_to_owned()?)?;
        let mut services = JoinSet::new();
        let limits = AcceptLimits {
            unproven_total: setup.config.limits.unproven,
            unproven_per_address: setup.config.limits.unproven_per_address,
            first_packet_timeout: setup.config.first_packet_timeout,
        };
        let listeners = ports.into_values().collect();
        services.spawn(accept_lanes(listeners, routes.clone(), limits, Arc::clone(ledger.strangers())));
        if let Some(listener) = metrics {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let site = Arc::new(Numbers::new(Arc::clone(&ledger), Arc::clone(&draining)));
            services.spawn(http::serve(listener, site));
        }
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        };
        Ok(Self {
            paces: Paces::new(setup.config.limits.rate_per_uid),
            setup,
            local: Some((listener, local)),
            ports: numbers,
            hall: Hall { ledger, routes, phase: watched, log: watched_log },
            phase,
            log,
            draining,
            sessions: JoinSet::new(),
            services,
            next_key: 0,
            signals,
        })
    }

    async fn serve(mut self) {
        let mut watchdog = notify::watchdog().map(tokio::time::interval);
        let socket = self.local.as_ref().map(|(_, socket)| socket.path()).unwrap_or_default();
        tracing::info!(ports = ?self.ports, socket = %socket.display(), "escpd is ready");
        notify::ready(&self.status());
        let mut grace_end = None;
        loop {
            if grace_end.is_some() && self.sessions.is_empty() {
                break;
            }
            match self.next(&mut watchdog, grace_end).await {
                Happened::Connection(Ok(connection)) => self.admit(connection),
                Happened::Connection(Err(error)) => {
                    tracing::warn!(%error, "cannot accept a local connection");
                    sleep(ACCEPT_PAUSE).await;
                }
                Happened::Reload => self.reload(),
                Happened::SessionOver if grace_end.is_some() => notify::status(&self.waiting()),
                Happened::SessionOver => {}
                Happened::WatchdogDue => notify::alive(),
                Happened::Stop if grace_end.is_none() => grace_end = Some(self.drain()),
                Happened::Stop => {
                    tracing::warn!("told to stop a second time");
                    break;
                }
                Happened::GraceOver => break,
            }
        }
        self.finish().await;
    }

    async fn next(&mut self, watchdog: &mut Option<Interval>, grace_end: Option<Instant>) -> Happened {
        let tick = async {
            match watchdog {
                Some(interval) => drop(interval.tick().await),
                None => std::future::pending().await,
            }
        };
        let grace = async {
            match grace_end {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let connection = async {
            match &self.local {
                Some((listener, _)) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            connection = connection => Happened::Connection(connection),
            _ = self.signals.terminate.recv() => Happened::Stop,
            _ = self.signals.interrupt.recv() => Happened::Stop,
            _ = self.signals.hang_up.recv() => Happened::Reload,
            Some(_) = self.sessions.join_next() => {
                self.paces.tell_sessions(self.sessions.len());
                Happened::SessionOver
            }
            () = tick => Happened::WatchdogDue,
            () = grace => Happened::GraceOver,
        }
    }

    /// Gives a local connection its worker, or a sentence why there is none.
    fn admit(&mut self, connection: OwnedFd) {
        let uid = match seqpacket::peer(&connection) {
            Ok(peer) => peer.uid,
            Err(error) => return tracing::warn!(%error, "a local connection's user is not known"),
        };
        if let Some((reason, why)) = self.objection(uid) {
            return self.turn_away(&connection, uid, reason, &why);
        }
        self.next_key += 1;
        match Session::start(&self.hall, self.next_key, uid, connection, self.paces.of(uid)) {
            Ok(session) => {
                self.sessions.spawn(session.run(self.hall.clone(), self.start()));
                self.paces.tell_sessions(self.sessions.len());
            }
            Err((error, connection)) => {
                tracing::error!(uid, %error, "cannot start a worker");
                let why = format!("escpd cannot start a worker process: {error}");
                self.turn_away(&connection, uid, TurnedAway::Unable, &why);
            }
        }
    }

    fn objection(&self, uid: u32) -> Option<(TurnedAway, String)> {
        let (limits, ledger) = (&self.setup.config.limits, &self.hall.ledger);
        if ledger.active_of(uid) >= limits.sessions_per_uid {
            let why = format!(
                "this user has {} sessions with escpd, as many as one user may (limits.sessions_per_uid)",
                limits.sessions_per_uid
            );
            return Some((TurnedAway::SessionsPerUser, why));
        }
        if ledger.active() >= limits.sessions {
            let why = format!("escpd has {} sessions, as many as it may (limits.sessions)", limits.sessions);
            return Some((TurnedAway::SessionsTotal, why));
        }
        None
    }

    fn turn_away(&self, connection: &OwnedFd, uid: u32, reason: TurnedAway, why: &str) {
        tracing::info!(uid, reason = reason.name(), "a local connection got no session");
        self.hall.ledger.turn_away(reason);
        escp_ipc::refuse(connection, why);
    }

    fn start(&self) -> Start {
        let config = &self.setup.config;
        Start {
            log: logging::to_choice(&config.log),
            ports: self.ports.clone(),
            // Checked when the configuration was taken.
            cpus: config.cpus().unwrap_or_default(),
            memory: config.limits.memory_per_session,
            rate: config.limits.rate_per_session,
        }
    }

    fn reload(&mut self) {
        notify::reloading();
        let setup = &mut self.setup;
        let reloaded = reload::read(setup.file.as_deref(), &setup.overrides, &setup.config);
        let said = reloaded.announce(&setup.logging);
        if let Reloaded::Taken { config, .. } = reloaded {
            self.paces.change(config.limits.rate_per_uid);
            setup.config = *config;
        }
        // Also when nothing of it changed: a log file may have been rotated.
        self.log.send_replace(setup.config.log.clone());
        notify::ready(&format!("{}; {said}", self.status()));
    }

    fn status(&self) -> String {
        format!("serving on {} TCP ports", self.ports.len())
    }

    /// Takes no new session; returns when those that are left have to end.
    ///
    /// Who comes to a socket that the service manager holds waits there for the next daemon; one of this daemon's
    /// own goes now, so that nobody waits for one that may never come. The data ports stay: sessions that are
    /// left still dial.
    fn drain(&mut self) -> Instant {
        let grace = self.setup.config.grace_period;
        self.local = None;
        self.draining.store(true, Relaxed);
        let _ = self.phase.send(Phase::Draining);
        tracing::info!(
            sessions = self.sessions.len(),
            seconds = grace.as_secs_f64(),
            "stopping; sessions may end by themselves"
        );
        notify::stopping(grace, &self.waiting());
        Instant::now() + grace
    }

    fn waiting(&self) -> String {
        format!("stopping; {} sessions are left", self.sessions.len())
    }

    /// Ends what is left: told first, killed soon after.
    async fn finish(mut self) {
        if !self.sessions.is_empty() {
            tracing::warn!(sessions = self.sessions.len(), "ending the sessions that are left");
        }
        let _ = self.phase.send(Phase::Stopping);
        let again = async {
            tokio::select! {
                _ = self.signals.terminate.recv() => {}
                _ = self.signals.interrupt.recv() => {}
            }
        };
        let rest = async { while self.sessions.join_next().await.is_some() {} };
        let rest = timeout(LAST_WAIT, rest);
        tokio::select! {
            _ = rest => {}
            () = again => drop(self.phase.send(Phase::Killing)),
        }
        let _ = timeout(LAST_WAIT, async { while self.sessions.join_next().await.is_some() {} }).await;
        self.services.abort_all();
        tracing::info!("escpd has stopped");
    }
}
