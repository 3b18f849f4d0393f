//! Waiting for a condition, with a deadline: nothing here sleeps for a result.

use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Looks at `condition` until it gives a value.
///
/// # Errors
/// If `deadline` passes first; the message names `what` was waited for.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        anyhow::ensure!(started.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(POLL_INTERVAL);
    }
}
