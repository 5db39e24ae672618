//! How this process's memory allocator behaves.

/// Makes all threads allocate from one arena (`M_ARENA_MAX`, mallopt(3)).
///
/// By default every thread gets an arena of its own, and what one thread allocates and another frees stays
/// with the first: a process that hands its work from thread to thread then takes more memory the
/// longer it runs. Call it before the first thread is started. Does nothing without the GNU C library.
pub fn share_one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers and only sets a limit inside the allocator.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
