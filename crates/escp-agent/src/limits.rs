//! What this process may hold open, and what follows for a session.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Descriptors kept for everything else: sockets, rings, ssh, directories being walked.
const RESERVED: u64 = 128;
/// A file holds one descriptor of the agent and one of an embedded engine; a third is kept for directories.
const PER_ENTRY: u64 = 3;
/// More than this many entries under way would only take memory: at 100 ms of distance it still means
/// 10,000 files a second.
const MOST_ENTRIES: u64 = 2048;
/// The protocol works with fewer, but a process with so few descriptors is beyond help.
const FEWEST_ENTRIES: u64 = 16;

/// Raises the soft limit of open descriptors to the hard one and says how many entries a session may have
/// under way.
pub(crate) fn entries_under_way() -> u64 {
    let limit = descriptors();
    (limit.saturating_sub(RESERVED) / PER_ENTRY).clamp(FEWEST_ENTRIES, MOST_ENTRIES)
}

/// How deep a tree may be: each level holds a descriptor.
pub(crate) fn deepest_tree() -> usize {
    usize::try_from(descriptors().saturating_sub(RESERVED) / PER_ENTRY)
        .unwrap_or(usize::MAX)
        .clamp(16, 16_384)
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
