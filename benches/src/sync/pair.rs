//! Two devices, by whichever program.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use chaos::process::ProcessRef;

/// How long anything may take.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Two devices that keep one folder the same.
pub(crate) trait Pair {
    /// The program.
    fn name(&self) -> &'static str;
    /// The folder of the one that writes.
    fn a(&self) -> &Path;
    /// The folder of the one that is looked at.
    fn b(&self) -> &Path;
    /// Bytes that have left the first device, and come to the second one, with everything around them.
    fn wire_bytes(&self) -> anyhow::Result<(u64, u64)>;
    /// Waits until both say that they have nothing to do.
    fn settle(&self) -> anyhow::Result<()>;
    /// Stops the first device.
    fn stop_a(&mut self) -> anyhow::Result<()>;
    /// Starts it again.
    fn start_a(&mut self) -> anyhow::Result<()>;
    /// The first device's process.
    fn process_a(&self) -> Option<ProcessRef>;
    /// How fast a file goes up, and comes down, without synchronisation, in bytes per second; if there is such a way.
    fn alone(&self, file: &Path) -> anyhow::Result<Option<(f64, f64)>>;
}

/// Looks until it is so, and gives how long that took from `began`.
pub(crate) fn wait(
    what: &str,
    began: Instant,
    interval: Duration,
    mut is_so: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    while !is_so()? {
        ensure!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(interval);
    }
    Ok(began.elapsed())
}
