//! The rate of each user, which that user's workers keep together, and how many sessions there are in all.

use escp_engine::pace::Pace;
use escp_sys::counters::CounterPage;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

/// The pages of users with sessions.
#[derive(Debug, Default)]
pub(crate) struct Paces {
    rate: Option<u64>,
    sessions: usize,
    pages: BTreeMap<u32, Weak<CounterPage>>,
}

impl Paces {
    /// With this many bits per second for each user.
    pub(crate) fn new(rate: Option<u64>) -> Self {
        Self { rate, sessions: 0, pages: BTreeMap::new() }
    }

    /// The page of a user, for as long as somebody holds it: each of the user's sessions.
    ///
    /// # Errors
    /// Those of [`CounterPage::new`].
    pub(crate) fn of(&mut self, uid: u32) -> io::Result<Arc<CounterPage>> {
        self.pages.retain(|_, page| page.strong_count() > 0);
        if let Some(page) = self.pages.get(&uid).and_then(Weak::upgrade) {
            return Ok(page);
        }
        let page = Arc::new(CounterPage::new()?);
        let pace = Pace::new(Arc::clone(&page));
        pace.limit(self.rate);
        pace.tell_sessions(self.sessions);
        self.pages.insert(uid, Arc::downgrade(&page));
        Ok(page)
    }

    /// Changes the rate, of sessions that are running too.
    pub(crate) fn change(&mut self, rate: Option<u64>) {
        self.rate = rate;
        self.running().for_each(|pace| pace.limit(rate));
    }

    /// Tells every session how many there are now.
    pub(crate) fn tell_sessions(&mut self, count: usize) {
        self.sessions = count;
        self.running().for_each(|pace| pace.tell_sessions(count));
    }

    fn running(&self) -> impl Iterator<Item = Pace> {
        self.pages.values().filter_map(Weak::upgrade).map(Pace::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn a_users_sessions_share_a_page_and_a_reload_reaches_it() {
        let rate = |page: &CounterPage| page.counters()[0].load(Relaxed);
        let mut paces = Paces::new(Some(8_000_000));
        let (first, second, other) = (paces.of(1).unwrap(), paces.of(1).unwrap(), paces.of(2).unwrap());
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        assert_eq!((rate(&first), rate(&other)), (1_000_000, 1_000_000));
        paces.change(None);
        assert_eq!((rate(&first), rate(&other)), (0, 0));
        let sessions = |page: &CounterPage| page.counters()[2].load(Relaxed);
        paces.tell_sessions(3);
        assert_eq!((sessions(&first), sessions(&other), sessions(&paces.of(3).unwrap())), (3, 3, 3));
        drop((first, second, other));
        paces.change(Some(16_000_000));
        assert_eq!(rate(&paces.of(1).unwrap()), 2_000_000);
        assert_eq!(paces.pages.len(), 1);
    }
}
