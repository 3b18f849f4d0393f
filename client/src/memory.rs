//! Memory that a large piece of work leaves behind.

/// Gives back to the system what is free: the allocator keeps what many small pieces leave between those that are still
/// in use, some 0.5 KiB for each file of a first synchronisation. Blocks. Elsewhere than with glibc it does nothing.
pub(crate) fn give_back_free() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "nothing that is safe asks the allocator for it")]
    // SAFETY: may be called at any time, from any thread; it only unmaps what nobody has been given.
    let _released = unsafe { libc::malloc_trim(0) };
}
