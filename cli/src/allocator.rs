//! How the memory of processes that go on for long is kept. Elsewhere than with glibc all of it does nothing.

/// From this size on an allocation is a mapping of its own, which goes back to the system as soon as it is freed: no
/// buffer of a chunk is that large.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES_MIN: i32 = 8 * 1024 * 1024;
/// So much free memory at an arena's end is kept for the next buffers.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const FREE_BYTES_KEPT: i32 = 16 * 1024 * 1024;
/// So many threads of a program in the background allocate without waiting for one another.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const HEAPS_MAX: i32 = 2;

/// For a server: keeps the memory of buffers for the buffers that come after them. By itself the allocator gives the
/// megabytes of a chunk back and asks for them again with the next one, and the system clears every page of it each time.
pub(crate) fn keep_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        set(libc::M_MMAP_THRESHOLD, MAPPED_BYTES_MIN);
        set(libc::M_TRIM_THRESHOLD, FREE_BYTES_KEPT);
    }
}

/// For a program in the background of somebody's machine: few heaps, so that what one thread freed serves the others. By
/// itself the allocator makes one for each thread, up to eight for each processor.
pub(crate) fn share_heaps() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    set(libc::M_ARENA_MAX, HEAPS_MAX);
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set(parameter: i32, value: i32) {
    #[expect(unsafe_code, reason = "nothing that is safe tells the allocator")]
    // SAFETY: it takes two numbers, and may be called at any time.
    let taken = unsafe { libc::mallopt(parameter, value) };
    if taken == 0 {
        tracing::debug!(parameter, value, "the allocator does not take a parameter");
    }
}
