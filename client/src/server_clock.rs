//! The server's time, for request ids: a client's own clock may be off by days.
//!
//! Invariants:
//! - Once learned, the time goes on by the monotonic clock. What sets the wall clock or stops the monotonic one (a sleep
//!   of the machine) makes them disagree, and the time is learned anew.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// So much may the two clocks disagree.
const DRIFT_MAX: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
struct Learned {
    server_ms: u64,
    wall_ms: u64,
    at: Instant,
}

/// What is known of the server's time.
#[derive(Debug, Default)]
pub(crate) struct ServerClock(Mutex<Option<Learned>>);

/// This machine's clock, milliseconds since 1970.
pub(crate) fn wall_ms() -> u64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Learned {
    fn now_ms(&self, wall_ms: u64, now: Instant) -> Option<u64> {
        let elapsed_ms = millis(now.duration_since(self.at));
        let expected = self.wall_ms.saturating_add(elapsed_ms);
        let agrees = wall_ms.abs_diff(expected) <= millis(DRIFT_MAX);
        agrees.then(|| self.server_ms.saturating_add(elapsed_ms))
    }
}

impl ServerClock {
    /// The server's time by now, if it is known.
    pub(crate) fn now_ms(&self) -> Option<u64> {
        let learned = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        learned?.now_ms(wall_ms(), Instant::now())
    }

    pub(crate) fn learn(&self, server_ms: u64) {
        let learned = Learned { server_ms, wall_ms: wall_ms(), at: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(learned);
    }

    /// The server did not take its time for its own.
    pub(crate) fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_servers_time_goes_on_whatever_this_clock_says() {
        let at = Instant::now();
        let learned = Learned { server_ms: 1_000_000, wall_ms: 500, at };
        assert_eq!(learned.now_ms(5_500, at + Duration::from_secs(5)), Some(1_005_000));
        let set_right = learned.now_ms(1_005_000, at + Duration::from_secs(5));
        assert_eq!(set_right, None, "the clock was set: learned anew");
    }
}
