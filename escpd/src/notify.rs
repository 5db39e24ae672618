//! What the service manager is told, sd_notify(3). Without one, every call does nothing.
//!
//! A notification that cannot be sent is logged and forgotten: the daemon's work does not depend on it.

use sd_notify::NotifyState;
use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// Time that is asked for beside the grace period: to end sessions that would not end by themselves.
const STOP_MARGIN: Duration = Duration::from_secs(10);

/// The daemon listens.
pub(crate) fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// The configuration is being read again; [`ready`] follows.
pub(crate) fn reloading() {
    let now = NotifyState::monotonic_usec_now().ok();
    tell(&[Some(NotifyState::Reloading), now].into_iter().flatten().collect::<Vec<_>>());
}

/// The daemon stops within `grace`, so the manager should not run out of patience before.
pub(crate) fn stopping(grace: Duration, status: &str) {
    let needed = u32::try_from((grace + STOP_MARGIN).as_micros()).unwrap_or(u32::MAX);
    tell(&[
        NotifyState::Stopping,
        NotifyState::ExtendTimeoutUsec(needed),
        NotifyState::Status(&one_line(status)),
    ]);
}

/// What `systemctl status` shows.
pub(crate) fn status(status: &str) {
    tell(&[NotifyState::Status(&one_line(status))]);
}

/// How often [`alive`] is to be called, if the manager watches at all: twice in its interval.
pub(crate) fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|interval| interval / 2)
}

/// The daemon's main loop goes round.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// Gives listening sockets to the manager, which hands them to the next daemon under `name`: so a restart
/// of the service refuses no connection. `name` has no colon and no control character, and at most 255 bytes.
///
/// # Errors
/// The manager cannot be told; the sockets then end with this process.
pub(crate) fn keep(name: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    // The manager would forget a socket at the first hang-up it polls; a listening one has none to wait for.
    let stored = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&stored, sockets)
}

/// Takes back what [`keep`] stored under `name`: the next daemon does not get it.
pub(crate) fn forget(name: &str) {
    tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("the service manager was not told {states:?}: {error}");
    }
}

/// A line end would begin another assignment.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line() {
        assert_eq!(one_line("3 sessions\nREADY=1"), "3 sessions READY=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        // The test's own environment may belong to a service; then nothing is proved here.
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            ready("up");
            reloading();
            stopping(Duration::from_secs(1), "bye");
            assert_eq!(watchdog(), None);
            assert!(keep("tcp", &[]).is_ok());
        }
    }
}
