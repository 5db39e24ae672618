//! Which worker a proven connection belongs to.

use escp_crypto::RouteKey;
use escp_engine::AcceptedLane;
use escp_engine::gate::Routes;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc;

/// Sessions that accept lanes, by id.
#[derive(Debug, Default)]
pub(crate) struct RouteTable {
    routes: Mutex<HashMap<[u8; 16], Route>>,
}

#[derive(Debug)]
struct Route {
    /// The broker's key of the worker, and the user it works for.
    worker: u64,
    uid: u32,
    key: RouteKey,
    lanes: mpsc::Sender<AcceptedLane>,
}

impl RouteTable {
    /// Enters a session of a worker. A session belongs to whoever named it first, for as long as it lasts.
    ///
    /// # Errors
    /// One sentence for the user when the id is taken, or the worker has a session already.
    pub(crate) fn register(
        &self,
        worker: u64,
        uid: u32,
        session: [u8; 16],
        key: RouteKey,
        lanes: mpsc::Sender<AcceptedLane>,
    ) -> Result<(), String> {
        let mut routes = self.lock();
        if routes.values().any(|route| route.worker == worker) {
            return Err("this connection to escpd has a session already".to_owned());
        }
        match routes.entry(session) {
            Entry::Vacant(vacant) => {
                vacant.insert(Route { worker, uid, key, lanes });
                Ok(())
            }
            Entry::Occupied(taken) => {
                if taken.get().uid != uid {
                    tracing::warn!(uid, owner = taken.get().uid, "a user named another user's session");
                }
                // The same words whoever it belongs to: who else runs what is nobody's business.
                Err("escpd has a session of that id already".to_owned())
            }
        }
    }

    /// Takes a worker's session out.
    pub(crate) fn remove(&self, worker: u64) {
        self.lock().retain(|_, route| route.worker != worker);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Routes for RouteTable {
    fn find(&self, session: &[u8; 16]) -> Option<RouteKey> {
        self.lock().get(session).map(|route| route.key.clone())
    }

    fn deliver(&self, session: &[u8; 16], lane: AcceptedLane) -> bool {
        // A worker that does not take its lanes must not hold up the gate.
        self.lock().get(session).is_some_and(|route| route.lanes.try_send(lane).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn lane() -> AcceptedLane {
        AcceptedLane { packet: [0; 64], socket: File::open("/dev/null").unwrap().into() }
    }

    #[test]
    fn a_session_belongs_to_who_named_it_first() {
        let table = RouteTable::default();
        let (lanes, mut arrived) = mpsc::channel(1);
        let register = |worker, uid, session, key| {
            table.register(worker, uid, [session; 16], RouteKey::from_bytes([key; 32]), lanes.clone())
        };
        register(1, 1000, 7, 1).unwrap();
        let own = register(2, 1000, 7, 2).unwrap_err();
        let foreign = register(3, 1001, 7, 3).unwrap_err();
        assert_eq!(own, foreign);
        assert!(register(1, 1000, 8, 1).is_err());
        assert_eq!(table.find(&[7; 16]).unwrap().expose(), &[1; 32]);
        assert!(table.find(&[8; 16]).is_none());

        assert!(table.deliver(&[7; 16], lane()));
        assert!(!table.deliver(&[7; 16], lane()), "full");
        assert!(!table.deliver(&[8; 16], lane()), "unknown");
        assert!(arrived.try_recv().is_ok());
        table.remove(1);
        assert!(table.find(&[7; 16]).is_none());
        register(2, 1001, 7, 2).unwrap();
    }
}
