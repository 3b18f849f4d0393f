//! Keeps a metadata disk from running full: a log or a database that meets ENOSPC stops its groups for good, and what
//! stops all replicas stops the cluster, reads included.
//!
//! Invariants:
//! - Below the reserve this node takes no commands; reads, votes and what another leader replicates go on.
//! - A short leader hands its groups over, to one voter after another, so that one full disk does not stop writes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::statvfs;
use tokio_util::sync::CancellationToken;

use crate::raft::group::GroupHandle;

/// How often the file system is asked.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(500);
/// How often a short leader tries to hand a group over.
const HAND_OVER_INTERVAL: Duration = Duration::from_secs(5);
/// Kept back: this part of the disk, but not more than so much.
const RESERVE_PART: u64 = 10;
const RESERVE_BYTES_MAX: u64 = 512 << 20;

/// Whether the node is short of space.
#[derive(Debug, Default)]
pub(crate) struct SpaceGate {
    short: AtomicBool,
}

impl SpaceGate {
    /// Whether commands are to be refused.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }
}

/// What is kept back on a disk of that size.
fn reserve_bytes(capacity_bytes: u64) -> u64 {
    (capacity_bytes / RESERVE_PART).min(RESERVE_BYTES_MAX)
}

/// Whether a disk with so much left is short; one that is short already must have an eighth of the reserve to spare.
fn is_short(capacity_bytes: u64, free_bytes: u64, short: bool) -> bool {
    let reserve = reserve_bytes(capacity_bytes);
    free_bytes < reserve + if short { reserve / 8 } else { 0 }
}

fn sample(directory: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(directory)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// Watches the disk until `stop`.
pub(crate) async fn watch(
    directory: PathBuf,
    gate: Arc<SpaceGate>,
    groups: Vec<GroupHandle>,
    stop: CancellationToken,
) {
    let mut handed_over: Option<Instant> = None;
    let mut turn = 0;
    loop {
        let path = directory.clone();
        // A file system that does not answer is not short: its groups find out by themselves.
        if let Ok(Ok((capacity_bytes, free_bytes))) = tokio::task::spawn_blocking(move || sample(&path)).await
        {
            let before = gate.is_short();
            let short = is_short(capacity_bytes, free_bytes, before);
            gate.short.store(short, Ordering::Relaxed);
            if short && !before {
                tracing::error!(
                    directory = %directory.display(), free_bytes, capacity_bytes,
                    "the metadata disk is nearly full: no commands are taken here until there is room"
                );
            } else if before && !short {
                tracing::info!(free_bytes, "the metadata disk has room again");
            }
            if short && handed_over.is_none_or(|last| last.elapsed() >= HAND_OVER_INTERVAL) {
                handed_over = Some(Instant::now());
                turn += 1;
                for group in groups.iter().filter(|group| group.is_leader()) {
                    group.hand_over(turn).await;
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(SAMPLE_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_short_below_its_reserve_and_until_there_is_room_to_spare() {
        let capacity = 1000 << 20;
        assert!(!is_short(capacity, 101 << 20, false));
        assert!(is_short(capacity, 99 << 20, false));
        assert!(is_short(capacity, 105 << 20, true));
        assert!(!is_short(capacity, 115 << 20, true));
    }

    #[test]
    fn large_disks_keep_no_more_back_than_the_bound() {
        assert_eq!(reserve_bytes(1 << 40), RESERVE_BYTES_MAX);
        assert_eq!(reserve_bytes(100 << 20), 10 << 20);
    }
}
