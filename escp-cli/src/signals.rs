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

/// A session's way to be stopped.
pub(crate) struct Stop {
    /// Raised by signals, and by a lost control channel.
    pub(crate) hang_up: watch::Sender<Option<HangUp>>,
    /// Set when there is no more time for good order.
    abandon: watch::Receiver<bool>,
}

/// Starts to listen.
///
/// # Errors
/// Those of sigaction(2).
pub(crate) fn listen() -> io::Result<Stop> {
    let hang_up = watch::Sender::new(None);
    let (say_abandon, abandon) = watch::channel(false);
    let mut signals =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let stop = hang_up.clone();
    tokio::spawn(async move {
        let (status, text) = next(&mut signals).await;
        raise(&stop, HangUp { status, text: text.into() });
        tokio::select! {
            _ = next(&mut signals) => {}
            () = tokio::time::sleep(ORDERLY) => {}
        }
        say_abandon.send_replace(true);
    });
    Ok(Stop { hang_up, abandon })
}

async fn next((interrupt, terminate, hangup): &mut (Signal, Signal, Signal)) -> (u8, &'static str) {
    tokio::select! {
        _ = interrupt.recv() => (status::INTERRUPTED, "interrupted"),
        _ = terminate.recv() => (status::TERMINATED, "terminated"),
        _ = hangup.recv() => (status::HUNG_UP, "the terminal hung up"),
    }
}

impl Stop {
    /// The signal that came, as the end of a session; `None` while there was none.
    pub(crate) fn by_signal(&self) -> Option<SessionError> {
        let said = self.hang_up.borrow().clone()?;
        let HangUp { status, text } = said;
        status::graver(status, status::INTEGRITY).then_some(SessionError { status, text })
    }

    /// Waits for a signal.
    pub(crate) async fn signalled(&self) -> SessionError {
        let mut hang_up = self.hang_up.subscribe();
        loop {
            if let Some(error) = self.by_signal() {
                return error;
            }
            if hang_up.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Runs a session that stops by itself when `hang_up` is raised; gives it up when it takes too long to.
    pub(crate) async fn guard<T>(
        &self,
        session: impl Future<Output = Result<T, SessionError>>,
    ) -> Result<T, SessionError> {
        let mut abandon = self.abandon.clone();
        let ended = tokio::select! {
            ended = session => ended,
            Ok(_) = abandon.wait_for(|abandon| *abandon) => Err(SessionError {
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
