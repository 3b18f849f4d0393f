//! Keeps a metadata disk from running full: a log or a database that meets ENOSPC stops its groups for good, and what
//! stops all replicas stops the cluster, reads included.
//!
//! Invariants:
//! - Below the reserve this node takes only commands that make room; below a quarter of it, none. Reads, votes and what
//!   another leader replicates go on.
//! - A short leader hands its groups over, to one voter after another, so that one full disk does not stop writes.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
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

/// The part of the reserve that is kept even from what makes room: the database writes before it frees.
const FLOOR_PART: u64 = 4;

/// What the disk has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Everything.
    #[default]
    Enough,
    /// What makes room.
    Reserve,
    /// Nothing.
    None,
}

/// Whether the node is short of space.
#[derive(Debug, Default)]
pub(crate) struct SpaceGate {
    room: AtomicU8,
    free_bytes: AtomicU64,
}

impl SpaceGate {
    /// What may be written.
    pub(crate) fn room(&self) -> Room {
        match self.room.load(Ordering::Relaxed) {
            0 => Room::Enough,
            1 => Room::Reserve,
            _ => Room::None,
        }
    }

    /// Left at the last look.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    fn set(&self, room: Room, free_bytes: u64) {
        let room = match room {
            Room::Enough => 0,
            Room::Reserve => 1,
            Room::None => 2,
        };
        self.room.store(room, Ordering::Relaxed);
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
    }
}

/// What is kept back on a disk of that size.
fn reserve_bytes(capacity_bytes: u64) -> u64 {
    (capacity_bytes / RESERVE_PART).min(RESERVE_BYTES_MAX)
}

/// What a disk with so much left has room for; where it was less, an eighth of the bound must be there to spare.
fn room_of(capacity_bytes: u64, free_bytes: u64, before: Room) -> Room {
    let reserve = reserve_bytes(capacity_bytes);
    let below = |bound: u64, was: bool| free_bytes < bound + if was { bound / 8 } else { 0 };
    if below(reserve / FLOOR_PART, before == Room::None) {
        Room::None
    } else if below(reserve, before != Room::Enough) {
        Room::Reserve
    } else {
        Room::Enough
    }
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
            let before = gate.room();
            let room = room_of(capacity_bytes, free_bytes, before);
            gate.set(room, free_bytes);
            let short = room != Room::Enough;
            if room > before {
                tracing::error!(
                    directory = %directory.display(), free_bytes, capacity_bytes, ?room,
                    "the metadata disk is nearly full: until there is room, only what makes room is taken here, or nothing"
                );
            } else if room < before {
                tracing::info!(free_bytes, ?room, "the metadata disk has more room again");
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
        assert_eq!(room_of(capacity, 101 << 20, Room::Enough), Room::Enough);
        assert_eq!(room_of(capacity, 99 << 20, Room::Enough), Room::Reserve);
        assert_eq!(room_of(capacity, 105 << 20, Room::Reserve), Room::Reserve);
        assert_eq!(room_of(capacity, 115 << 20, Room::Reserve), Room::Enough);
        assert_eq!(room_of(capacity, 24 << 20, Room::Reserve), Room::None);
        assert_eq!(room_of(capacity, 27 << 20, Room::None), Room::None);
        assert_eq!(room_of(capacity, 30 << 20, Room::None), Room::Reserve);
    }

    #[test]
    fn large_disks_keep_no_more_back_than_the_bound() {
        assert_eq!(reserve_bytes(1 << 40), RESERVE_BYTES_MAX);
        assert_eq!(reserve_bytes(100 << 20), 10 << 20);
    }
}
