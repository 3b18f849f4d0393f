//! One cluster at a time: the tests of one binary run on threads, and ten processes each are enough for two cores.

use std::sync::{Mutex, MutexGuard, PoisonError};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Waits until no other test of this process holds the guard. A test that failed while holding it does not fail the
/// next one.
pub fn serial() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}
