//! What this process may hold open, and what follows for a session.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::time::Duration;

/// Descriptors kept for what is still to come: threads that open files, the resolver, logs.
const RESERVED: u64 = 16;
/// Taken for open where the kernel does not show it: sockets, rings, ssh.
const USUALLY_OPEN: u64 = 112;
/// A file holds one descriptor, which an embedded engine shares; a second is kept for directories.
const PER_ENTRY: u64 = 2;
/// Files a second that distance shall not keep from moving. An entry takes two round trips from its offer to the
/// credit for another.
const FILES_PER_SECOND: u64 = 40_000;
/// Enough entries under way to keep all threads of both hosts busy where there is no distance: more would not be
/// faster, and take memory.
const NEAR_ENTRIES: u64 = 1024;
/// What a session's memory is bounded by: at 100 ms still as many files a second as above.
const MOST_ENTRIES: u64 = 8192;
/// One that is moved and one that is opened meanwhile: with fewer descriptors a process is beyond help.
const FEWEST_ENTRIES: u64 = 2;

/// Raises the soft limit of open descriptors to the hard one and says how many entries a session may have
/// under way, over a way that is `round_trip` long. To be asked when engine and streams are up, which is when their
/// descriptors are open.
pub(crate) fn entries_under_way(round_trip: Duration) -> u64 {
    (spare() / PER_ENTRY).min(worth_having(round_trip)).max(FEWEST_ENTRIES)
}

/// Entries under way that keep a way full.
fn worth_having(round_trip: Duration) -> u64 {
    let micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    let covering = micros.saturating_mul(2 * FILES_PER_SECOND) / 1_000_000;
    covering.clamp(NEAR_ENTRIES, MOST_ENTRIES)
}

/// How deep a tree may be: each level holds a descriptor.
pub(crate) fn deepest_tree() -> usize {
    usize::try_from(spare() / PER_ENTRY).unwrap_or(usize::MAX).clamp(8, 16_384)
}

/// Descriptors that this process may still open.
fn spare() -> u64 {
    let open = std::fs::read_dir("/proc/self/fd").map_or(USUALLY_OPEN, |open| open.count() as u64);
    descriptors().saturating_sub(open.saturating_add(RESERVED))
}

fn descriptors() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            limit.current = limit.maximum;
        }
    }
    limit.current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_asks_for_entries_and_memory_bounds_them() {
        let worth = |millis| worth_having(Duration::from_millis(millis));
        assert_eq!(worth(0), NEAR_ENTRIES);
        assert_eq!(worth(10), NEAR_ENTRIES);
        assert_eq!(worth(20), 1600);
        assert_eq!(worth(50), 4000);
        assert_eq!(worth(100), 8000);
        assert_eq!(worth(1000), MOST_ENTRIES);
        assert_eq!(worth_having(Duration::MAX), MOST_ENTRIES);
    }
}
