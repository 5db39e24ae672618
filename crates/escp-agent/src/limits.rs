//! What this process may hold open, and what follows for a session.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors kept for what is still to come: threads that open files, the resolver, logs.
const RESERVED: u64 = 16;
/// Taken for open where the kernel does not show it: sockets, rings, ssh.
const USUALLY_OPEN: u64 = 112;
/// A file holds one descriptor, which an embedded engine shares; a second is kept for directories.
const PER_ENTRY: u64 = 2;
/// More than this many entries under way would only take memory: an entry takes two round trips from its offer to
/// the credit for another, so that at 100 ms of distance this still means 40,000 files a second.
const MOST_ENTRIES: u64 = 8192;
/// One that is moved and one that is opened meanwhile: with fewer descriptors a process is beyond help.
const FEWEST_ENTRIES: u64 = 2;

/// Raises the soft limit of open descriptors to the hard one and says how many entries a session may have
/// under way. To be asked when engine and streams are up, which is when their descriptors are open.
pub(crate) fn entries_under_way() -> u64 {
    (spare() / PER_ENTRY).clamp(FEWEST_ENTRIES, MOST_ENTRIES)
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
