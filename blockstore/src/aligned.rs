//! Memory that begins on a boundary: what goes past the page cache goes between the disk and such memory.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::locks::locked;
use crate::record::BOUNDARY;

/// Buffers of this size are kept, for whoever asks for at least half of it: a shard of a full 4+2 stripe and its front.
const KEPT_BYTES: usize = 1024 * 1024 + 64 * 1024;

/// Buffers that a pool keeps.
const KEPT_MAX: usize = 16;

/// A buffer that begins on a boundary.
pub(crate) struct Aligned {
    memory: Vec<u8>,
    start: usize,
}

impl Aligned {
    /// A buffer of `length` zeros.
    pub(crate) fn new(length: usize) -> Self {
        let mut memory = vec![0; length + BOUNDARY];
        let start = memory.as_ptr().align_offset(BOUNDARY).min(BOUNDARY);
        memory.truncate(start + length);
        Self { memory, start }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

/// Lends buffers, so that reads neither clear memory nor ask the kernel for it each time.
#[derive(Default)]
pub(crate) struct Pool {
    kept: Mutex<Vec<Aligned>>,
}

impl Pool {
    /// A buffer of at least `length` bytes. What it holds is what its last user left in it.
    pub(crate) fn lend(self: &Arc<Self>, length: usize) -> Lent {
        let pool = (KEPT_BYTES / 2..=KEPT_BYTES).contains(&length).then(|| Arc::clone(self));
        let kept = pool.as_ref().and_then(|pool| locked(&pool.kept).pop());
        let buffer = kept.unwrap_or_else(|| Aligned::new(if pool.is_some() { KEPT_BYTES } else { length }));
        Lent { buffer: Some(buffer), used: 0..0, pool }
    }
}

/// A buffer that goes back to its pool.
pub(crate) struct Lent {
    /// There until it is dropped.
    buffer: Option<Aligned>,
    used: Range<usize>,
    pool: Option<Arc<Pool>>,
}

impl Lent {
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], Aligned::bytes_mut)
    }

    /// Gives `used` of it away; the buffer goes back once nobody has any of it.
    pub(crate) fn freeze(mut self, used: Range<usize>) -> Bytes {
        self.used = used;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.buffer.as_ref().and_then(|buffer| buffer.bytes().get(self.used.clone())).unwrap_or_default()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(pool), Some(buffer)) = (&self.pool, self.buffer.take()) {
            let mut kept = locked(&pool.kept);
            if kept.len() < KEPT_MAX {
                kept.push(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lent_memory_begins_on_a_boundary_and_comes_back_when_nobody_has_it() {
        let pool = Arc::new(Pool::default());
        for length in [KEPT_BYTES / 2, KEPT_BYTES, KEPT_BYTES + 1, 5] {
            let mut lent = pool.lend(length);
            let bytes = lent.bytes_mut();
            assert!(bytes.len() >= length && bytes.as_ptr().align_offset(BOUNDARY) == 0);
            bytes[..5].copy_from_slice(b"abcde");
            let (given, known) = (lent.freeze(1..4), locked(&pool.kept).len());
            let part = given.slice(1..);
            drop(given);
            assert_eq!(locked(&pool.kept).len(), known, "a part of it is in use");
            assert_eq!(part, b"cd".as_slice());
        }
        assert_eq!(
            locked(&pool.kept).len(),
            1,
            "the second one was the first, the others are not of that size"
        );
        let many: Vec<Lent> = (0..2 * KEPT_MAX).map(|_| pool.lend(KEPT_BYTES)).collect();
        drop(many);
        assert_eq!(locked(&pool.kept).len(), KEPT_MAX);
    }
}
