//! Disks that failed a request a moment ago: reads and writes pass them by until the cluster map knows better, so
//! that they do not wait for the same disk again and again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use engine::cluster::ClusterMap;
use engine::ids::{DiskId, Position, StripeId};
use engine::store::{PutShardError, ReadShardError, ShardPut, ShardStore};

use crate::limits::{SUSPECT_FOR, SUSPECTS_MAX};

/// Which disks failed lately, for reads and for writes: a full disk refuses only these.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    reads: Memory,
    writes: Memory,
}

impl Suspects {
    /// Whether shards can be read from a disk, by the map and by what was seen here.
    pub(crate) fn readable(&self, map: &ClusterMap, disk: DiskId) -> bool {
        map.disk_health(disk).readable() && !self.reads.contains(disk)
    }

    /// Whether shards can be written to it.
    pub(crate) fn writable(&self, map: &ClusterMap, disk: DiskId) -> bool {
        map.disk_health(disk).writable() && !self.writes.contains(disk)
    }
}

#[derive(Debug, Default)]
struct Memory {
    until: Mutex<HashMap<DiskId, Instant>>,
}

impl Memory {
    /// Remembers that a disk failed.
    fn report(&self, disk: DiskId) {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        if until.len() >= SUSPECTS_MAX {
            until.retain(|_disk, until| *until > now);
        }
        if until.len() < SUSPECTS_MAX || until.contains_key(&disk) {
            until.insert(disk, now + SUSPECT_FOR);
        }
    }

    /// Whether a disk failed lately.
    fn contains(&self, disk: DiskId) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(&disk).is_some_and(|until| *until > Instant::now())
    }
}

/// A store that reports disks that fail.
pub(crate) struct WatchedStore<S> {
    inner: Arc<S>,
    suspects: Arc<Suspects>,
}

impl<S> WatchedStore<S> {
    pub(crate) fn new(inner: Arc<S>, suspects: Arc<Suspects>) -> Self {
        Self { inner, suspects }
    }
}

impl<S: ShardStore> ShardStore for WatchedStore<S> {
    async fn put_shard(&self, put: ShardPut) -> Result<(), PutShardError> {
        let disk = put.disk;
        let result = self.inner.put_shard(put).await;
        match &result {
            Err(PutShardError::Unavailable { .. }) => {
                self.suspects.reads.report(disk);
                self.suspects.writes.report(disk);
            }
            Err(PutShardError::DiskRefuses { .. }) => self.suspects.writes.report(disk),
            Err(PutShardError::StaleEpoch { .. }) | Ok(()) => {}
        }
        result
    }

    async fn read_shard(
        &self,
        disk: DiskId,
        stripe: StripeId,
        position: Position,
        offset: u32,
        length: u32,
    ) -> Result<Bytes, ReadShardError> {
        let result = self.inner.read_shard(disk, stripe, position, offset, length).await;
        if let Err(ReadShardError::Unavailable { .. }) = &result {
            self.suspects.reads.report(disk);
            self.suspects.writes.report(disk);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_failed_is_suspect_and_others_are_not() {
        let suspects = Memory::default();
        suspects.report(DiskId::from_bytes([1; 16]));
        assert!(suspects.contains(DiskId::from_bytes([1; 16])));
        assert!(!suspects.contains(DiskId::from_bytes([2; 16])));
    }

    #[test]
    fn the_memory_is_bounded() {
        let suspects = Memory::default();
        for number in 0..SUSPECTS_MAX + 100 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&number.to_be_bytes());
            suspects.report(DiskId::from_bytes(bytes));
        }
        assert!(suspects.until.lock().unwrap().len() <= SUSPECTS_MAX);
    }
}
