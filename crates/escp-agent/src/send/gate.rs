//! Holds the walk back until the receiver takes more.

use std::sync::{Condvar, Mutex, PoisonError};

/// How many things the walk may have found so far.
#[derive(Debug, Default)]
pub(super) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// In total, since the start. Never falls.
    allowed: u64,
    closed: bool,
}

impl Gate {
    /// Allows `total` things since the start.
    pub(super) fn allow(&self, total: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if total > state.allowed {
            state.allowed = total;
            self.changed.notify_all();
        }
    }

    /// Ends the walk.
    pub(super) fn close(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.changed.notify_all();
    }

    /// What is allowed now; `None` when the walk is to end.
    pub(super) fn allowed(&self) -> Option<u64> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        (!state.closed).then_some(state.allowed)
    }

    /// Waits until more than `found` things are allowed, and says how many; `None` when the walk is to end.
    pub(super) fn wait_beyond(&self, found: u64) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while !state.closed && state.allowed <= found {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        (!state.closed).then_some(state.allowed)
    }
}
