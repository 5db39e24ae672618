//! Counters in memory that outlive the process that counts.
//!
//! A worker counts in a page that its broker mapped too: when the worker is killed, nothing it counted is
//! lost, and no message is needed per count.

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

/// Counters of one page.
pub const COUNTERS: usize = 64;
const PAGE_LEN: usize = COUNTERS * size_of::<AtomicU64>();

/// A page of counters, shared with every process that maps the same memory file.
#[derive(Debug)]
pub struct CounterPage {
    counters: NonNull<[AtomicU64; COUNTERS]>,
    memory: OwnedFd,
}

// SAFETY: the page is mapped for as long as the value lives, and holds only atomics, which any thread and
// any process may touch at any time.
unsafe impl Send for CounterPage {}
// SAFETY: as above.
unsafe impl Sync for CounterPage {}

impl CounterPage {
    /// Makes a page of zeros.
    ///
    /// # Errors
    /// Those of memfd_create(2) and mmap(2).
    pub fn new() -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let memory = rustix::fs::memfd_create("escp-counters", flags)?;
        rustix::fs::ftruncate(&memory, PAGE_LEN as u64)?;
        // With the size sealed, no holder of the descriptor can make an access fault.
        rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Self::map(memory)
    }

    /// Maps the page behind a descriptor of [`CounterPage::memory`] that was passed to this process.
    ///
    /// # Errors
    /// `InvalidInput` when it is not such a page; those of mmap(2).
    pub fn map(memory: OwnedFd) -> io::Result<Self> {
        let seals = rustix::fs::fcntl_get_seals(&memory)?;
        let size = rustix::fs::fstat(&memory)?.st_size;
        if !seals.contains(SealFlags::SHRINK) || usize::try_from(size) != Ok(PAGE_LEN) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a sealed page of counters"));
        }
        // SAFETY: a fresh shared mapping at an address of the kernel's choice aliases nothing of ours; the
        // size is sealed, so every byte of it stays backed.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                PAGE_LEN,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &memory,
                0,
            )
        }?;
        let counters = NonNull::new(address.cast())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "mapped at address 0"))?;
        Ok(Self { counters, memory })
    }

    /// The memory file, to pass it on.
    #[must_use]
    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// All counters.
    #[must_use]
    pub fn counters(&self) -> &[AtomicU64; COUNTERS] {
        // SAFETY: mapped, page-aligned, PAGE_LEN bytes of zeros or counts, unmapped only on drop; AtomicU64
        // has no invalid bit pattern and allows concurrent access from anywhere.
        unsafe { self.counters.as_ref() }
    }
}

impl Drop for CounterPage {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no reference outlives `self`.
        let unmapped = unsafe { rustix::mm::munmap(self.counters.as_ptr().cast(), PAGE_LEN) };
        debug_assert!(unmapped.is_ok());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn two_mappings_of_one_page_see_each_other() {
        let first = CounterPage::new().unwrap();
        let second = CounterPage::map(first.memory().try_clone_to_owned().unwrap()).unwrap();
        first.counters()[3].fetch_add(7, Relaxed);
        assert_eq!(second.counters()[3].load(Relaxed), 7);
        drop(first);
        assert_eq!(second.counters()[3].load(Relaxed), 7);
    }

    #[test]
    fn refuses_what_is_not_a_sealed_page() {
        let memory = rustix::fs::memfd_create("other", MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&memory, PAGE_LEN as u64).unwrap();
        assert_eq!(CounterPage::map(memory).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
