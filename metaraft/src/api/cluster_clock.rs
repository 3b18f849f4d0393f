//! The cluster's time, for whoever makes requests: this machine's own clock may be off by days.
//!
//! One for the process: it is learned from each answer of the metadata cluster, and goes on by the monotonic clock.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::app::LogTime;
use crate::log_clock::own_wall_ms;

/// The latest that was told, and when.
static LEARNED: Mutex<Option<(LogTime, Instant)>> = Mutex::new(None);

/// The cluster tells its time.
pub(crate) fn learn(time: LogTime) {
    if time.wall_ms != 0 {
        *LEARNED.lock().unwrap_or_else(PoisonError::into_inner) = Some((time, Instant::now()));
    }
}

/// The cluster's time by now; by this machine's clock as long as it has told none.
#[must_use]
pub fn now() -> LogTime {
    let learned = *LEARNED.lock().unwrap_or_else(PoisonError::into_inner);
    learned.map_or_else(|| LogTime::at(own_wall_ms()), |(time, at)| later(time, at.elapsed()))
}

fn later(time: LogTime, elapsed: Duration) -> LogTime {
    let elapsed_ms = u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    LogTime {
        time_ms: time.time_ms.saturating_add(elapsed_ms),
        wall_ms: time.wall_ms.saturating_add(elapsed_ms),
    }
}
