//! Ctrl-C, SIGTERM and a closed terminal, for a task that has to tidy up before it ends.

use crate::{Checked, Trouble};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::signal::unix::{SignalKind, signal};

static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on SIGINT, SIGTERM and SIGHUP do not end this process. They end what a [`crate::run::Run`] runs, with an
/// error, and nothing new is run; so the task ends by itself, and everything it holds is dropped.
///
/// # Errors
/// When the signals cannot be caught.
pub fn catch() -> Checked {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut signals = {
        let _inside = runtime.enter();
        [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()]
            .into_iter()
            .map(signal)
            .collect::<Result<Vec<_>, _>>()?
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(std::future::poll_fn(|context| {
            let any = signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if any { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        }));
        ASKED.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}

/// Whether one of them came.
#[must_use]
pub fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// # Errors
/// When one of them came.
#[track_caller]
pub(crate) fn check() -> Checked {
    if asked() { Err(Trouble::new("interrupted")) } else { Ok(()) }
}
