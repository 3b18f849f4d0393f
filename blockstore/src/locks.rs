//! Locks of this crate are held for a few field accesses and never across a panic, so poisoning carries no meaning.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of an earlier holder.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
