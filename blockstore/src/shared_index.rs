//! The index as a disk's threads share it: there, or gone while it is rebuilt.
//!
//! Invariant: what takes the index out waits for all who look into it, and from then on everybody is told that it is
//! being rebuilt; so no two databases are ever open in one directory.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use engine::ids::{Epoch, VolumeId};

use crate::index::{ExtentFigures, Index, IndexBatch, IndexError, Row, ScrubCursor, Totals};
use crate::record::{ExtentNumber, Place, ShardName};

/// See the module.
pub(crate) struct SharedIndex(RwLock<Option<Index>>);

impl SharedIndex {
    pub(crate) fn new(index: Index) -> Self {
        Self(RwLock::new(Some(index)))
    }

    fn with<T>(&self, look: impl FnOnce(&Index) -> Result<T, IndexError>) -> Result<T, IndexError> {
        // A panic while looking leaves the database as it was.
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        look(held.as_ref().ok_or(IndexError::Rebuilding)?)
    }

    /// Closes the index, once nobody looks into it.
    pub(crate) fn take_out(&self) {
        let index = self.0.write().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(index) = &index {
            index.stop();
        }
        drop(index);
    }

    /// Puts one in place.
    pub(crate) fn put_in(&self, index: Index) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(index);
    }

    pub(crate) fn row(&self, name: ShardName) -> Result<Option<Row>, IndexError> {
        self.with(|index| index.row(name))
    }

    pub(crate) fn is_damaged(&self, name: ShardName) -> Result<bool, IndexError> {
        self.with(|index| index.is_damaged(name))
    }

    pub(crate) fn unreadable(&self, count_max: usize) -> Result<Vec<ShardName>, IndexError> {
        self.with(|index| index.unreadable(count_max))
    }

    pub(crate) fn totals(&self) -> Result<Totals, IndexError> {
        self.with(Index::totals)
    }

    pub(crate) fn scrub_cursor(&self) -> Result<ScrubCursor, IndexError> {
        self.with(Index::scrub_cursor)
    }

    pub(crate) fn list(
        &self,
        after: Option<ShardName>,
        count_max: usize,
    ) -> Result<Vec<(ShardName, Row)>, IndexError> {
        self.with(|index| index.list(after, count_max))
    }

    pub(crate) fn list_by_place(
        &self,
        after: Place,
        count_max: usize,
    ) -> Result<Vec<(Place, ShardName)>, IndexError> {
        self.with(|index| index.list_by_place(after, count_max))
    }

    pub(crate) fn epochs(&self) -> Result<BTreeMap<VolumeId, Epoch>, IndexError> {
        self.with(Index::epochs)
    }

    pub(crate) fn extents(&self) -> Result<BTreeMap<ExtentNumber, ExtentFigures>, IndexError> {
        self.with(Index::extents)
    }

    pub(crate) fn commit(&self, batch: IndexBatch, synced: bool) -> Result<(), IndexError> {
        self.with(|index| index.commit(batch, synced))
    }

    /// Ends RocksDB's background work.
    pub(crate) fn stop(&self) {
        if let Some(index) = self.0.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            index.stop();
        }
    }

    #[cfg(test)]
    pub(crate) fn flush(&self) {
        self.with(Index::flush).unwrap();
    }
}
