//! SIGINT, SIGTERM and SIGHUP: the first stops the session in good order, the second at once.

use escp_agent::control::raise;
use escp_agent::link::{HangUp, SessionError};
use escp_agent::status;
use std::io;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

/// How long the orderly way may take: removing temporary files, telling the other side.
const ORDERLY: Duration = Duration::from_secs(5);
/// ssh, in the same foreground group, gets Ctrl-C too and may be noticed first.
const RACE: Duration = Duration::from_millis(250);

/// The way to stop what runs.
pub(crate) struct Stop {
    /// The signal that came.
    signal: watch::Receiver<Option<HangUp>>,
    /// Set when there is no more time for good order.
    abandon: watch::Receiver<bool>,
}

/// Starts to listen.
///
/// # Errors
/// Those of sigaction(2).
pub(crate) fn listen() -> io::Result<Stop> {
    let (say_signal, signal_said) = watch::channel(None);
    let (say_abandon, abandon) = watch::channel(false);
    let mut signals =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    tokio::spawn(async move {
        let (status, text) = next(&mut signals).await;
        say_signal.send_replace(Some(HangUp { status, text: text.into() }));
        tokio::select! {
            _ = next(&mut signals) => {}
            () = tokio::time::sleep(ORDERLY) => {}
        }
        say_abandon.send_replace(true);
    });
    Ok(Stop { signal: signal_said, abandon })
}

async fn next((interrupt, terminate, hangup): &mut (Signal, Signal, Signal)) -> (u8, &'static str) {
    tokio::select! {
        _ = interrupt.recv() => (status::INTERRUPTED, "interrupted"),
        _ = terminate.recv() => (status::TERMINATED, "terminated"),
        _ = hangup.recv() => (status::HUNG_UP, "the terminal hung up"),
    }
}

impl Stop {
    /// A session's way to be stopped: raised by a signal, and by a lost control channel of this session alone.
    pub(crate) fn hang_up(&self) -> watch::Sender<Option<HangUp>> {
        let hang_up = watch::Sender::new(None);
        let (raised, mut signal) = (hang_up.clone(), self.signal.clone());
        tokio::spawn(async move {
            if let Ok(Some(said)) = signal.wait_for(Option::is_some).await.map(|said| said.clone()) {
                raise(&raised, said);
            }
        });
        hang_up
    }

    /// The signal that came, as the end of a session; `None` while there was none.
    pub(crate) fn by_signal(&self) -> Option<SessionError> {
        let HangUp { status, text } = self.signal.borrow().clone()?;
        Some(SessionError { status, text })
    }

    /// Waits for a signal.
    pub(crate) async fn signalled(&self) -> SessionError {
        let mut signal = self.signal.clone();
        // Nobody is left to say so only when the program ends.
        if signal.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
        match self.by_signal() {
            Some(error) => error,
            None => std::future::pending().await,
        }
    }

    /// Waits until there is no more time for good order: for a second signal, or for some seconds after the first.
    pub(crate) async fn abandoned(&self) {
        let mut abandon = self.abandon.clone();
        // Nobody is left to say so only when the program ends.
        if abandon.wait_for(|abandon| *abandon).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs a session that stops by itself when `hang_up` is raised; gives it up when it takes too long to.
    pub(crate) async fn guard<T>(
        &self,
        session: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        let ended = tokio::select! {
            ended = session => ended,
            () = self.abandoned() => Err(SessionError {
                status: status::LOST,
                text: "gave up waiting for the session to stop".into(),
            }),
        };
        match ended {
            Err(error) if [status::CONNECT, status::LOST].contains(&error.status) => {
                let _ = tokio::time::timeout(RACE, self.signalled()).await;
                Err(self.by_signal().unwrap_or(error))
            }
            ended => ended,
        }
    }
}
