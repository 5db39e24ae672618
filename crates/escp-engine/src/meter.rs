//! What an engine counts, and where: slots of a [`CounterPage`] that its host may share.

use escp_sys::counters::CounterPage;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// A counter of an engine; its discriminant is its slot in the [`CounterPage`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// Every counter, in slot order.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// A short stable name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// Bytes received on data streams, headers and tags included.
    BytesNetworkIn => "bytes_network_in",
    /// Bytes sent on data streams, headers and tags included.
    BytesNetworkOut => "bytes_network_out",
    /// Bytes read from files.
    BytesDiskRead => "bytes_disk_read",
    /// Bytes written to files, without padding.
    BytesDiskWritten => "bytes_disk_written",
    /// Bytes of file data received, as they travelled: without headers, but for a compressed record of small
    /// files, which counts whole.
    BytesCompressedIn => "bytes_compressed_in",
    /// Bytes of file data sent, likewise.
    BytesCompressedOut => "bytes_compressed_out",
    /// Files read and sent whole.
    FilesSent => "files_sent",
    /// Files received and written whole.
    FilesReceived => "files_received",
    /// Files that failed in the engine.
    FilesFailed => "files_failed",
    /// Files that fell back from O_DIRECT to buffered I/O.
    DirectFallbacks => "direct_fallbacks",
    /// Sessions opened with the uring engine.
    SessionsUring => "sessions_uring",
    /// Sessions opened with the posix engine.
    SessionsPosix => "sessions_posix",
    /// Sessions opened with the dummy engine.
    SessionsDummy => "sessions_dummy",
    /// Errors of disks and file systems.
    ErrorsDisk => "errors_disk",
    /// Lost or refused connections.
    ErrorsNetwork => "errors_network",
    /// Violations of the protocol, forged records and failed checks.
    ErrorsProtocol => "errors_protocol",
}

/// Where the counters live.
#[derive(Debug, Clone)]
pub(crate) struct Meter(Arc<CounterPage>);

impl Meter {
    pub(crate) fn new(page: Arc<CounterPage>) -> Self {
        Self(page)
    }

    pub(crate) fn add(&self, counter: Counter, amount: u64) {
        self.0.counters()[counter as usize].fetch_add(amount, Relaxed);
    }

    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.0.counters()[counter as usize].load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_slot_on_the_page() {
        for (slot, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, slot);
        }
        assert!(Counter::ALL.len() <= escp_sys::counters::COUNTERS);
    }
}
