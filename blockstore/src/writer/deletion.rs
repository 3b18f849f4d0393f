//! Deletions: by request, of what was stored anew, and those that a crash cut short. See the writer's header for
//! what is on disk after each step.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use super::{Authority, DeleteRefused, Writer};
use crate::extent::{punch_hole, sync};
use crate::index::{IndexBatch, IndexError, Row};
use crate::locks::locked;
use crate::record::{ExtentNumber, Head, ShardName, Stamp, record_bytes};

impl Writer {
    /// Deletes shards, if `authority` is as new as what the disk knows; else none of them.
    pub(super) fn delete(
        &mut self,
        names: &[ShardName],
        authority: &Authority,
    ) -> Result<u64, DeleteRefused> {
        if let Some(reason) = self.core.refuses_writes() {
            return Err(DeleteRefused::Disk(reason));
        }
        self.check_authority(names, authority).map_err(DeleteRefused::Stale)?;
        self.raise_authority(authority).map_err(DeleteRefused::Disk)?;
        let unique: BTreeSet<ShardName> = names.iter().copied().collect();
        let mut rows = Vec::new();
        for name in unique {
            match self.core.index.row(name) {
                Ok(row) => rows.extend(row.map(|row| (name, row))),
                Err(error) => {
                    self.core.index_failed(&error);
                    return Err(DeleteRefused::Disk(error.to_string()));
                }
            }
        }
        self.delete_rows(&rows).map_err(DeleteRefused::Disk)?;
        Ok(rows.len() as u64)
    }

    pub(super) fn delete_rows(&mut self, rows: &[(ShardName, Row)]) -> Result<(), String> {
        if rows.is_empty() {
            return Ok(());
        }
        self.bury(rows)?;
        let mut batch = IndexBatch::default();
        let batch = self.remove_rows(&mut batch, rows).map(|()| batch);
        self.commit(batch, true)?;
        self.give_back(rows);
        Ok(())
    }

    /// Finishes a deletion that a crash cut short.
    pub(super) fn forget(&mut self, name: ShardName, row: &Row) {
        match self.core.index.row(name) {
            Ok(Some(now)) if now == *row => drop(self.delete_rows(&[(name, *row)])),
            Ok(_changed) => {}
            Err(error) => self.core.index_failed(&error),
        }
    }

    /// Takes rows out of the index and out of the figures of their extents.
    pub(super) fn remove_rows(
        &mut self,
        batch: &mut IndexBatch,
        rows: &[(ShardName, Row)],
    ) -> Result<(), IndexError> {
        for (name, row) in rows {
            batch.remove(*name, row);
            self.unreadable.remove(name);
            self.totals.shards = self.totals.shards.saturating_sub(1);
            let figures = self.extents.entry(row.place.extent).or_default();
            figures.shards = figures.shards.saturating_sub(1);
            batch.set_extent(row.place.extent, Some(figures))?;
        }
        Ok(())
    }

    /// Puts tombstones over records and syncs them.
    pub(super) fn bury(&self, rows: &[(ShardName, Row)]) -> Result<(), String> {
        let stamp = Stamp { sequence: self.totals.sequence, durable_bytes: 0 };
        let mut files = BTreeMap::new();
        let mut all = || -> io::Result<()> {
            for (name, row) in rows {
                let file = match self.core.extents.file(row.place.extent) {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                // Beyond the end of a truncated extent there is nothing to bury.
                if row.place.offset < file.metadata()?.len() {
                    let tombstone = Head::Tombstone(row.header(*name));
                    self.core.extents.write_tombstone(&file, row.place, stamp, &tombstone)?;
                    files.insert(row.place.extent, file);
                }
            }
            files.values().try_for_each(|file| sync(file))
        };
        all().map_err(|error| {
            self.core.fence(&format!("a deletion could not be made durable: {error}"));
            error.to_string()
        })
    }

    /// Gives the space of deleted records back. A failure costs space, nothing else.
    ///
    /// With the disk's last record goes what tells how many there were: then that is written down first.
    pub(super) fn give_back(&mut self, rows: &[(ShardName, Row)]) {
        if rows.iter().any(|(_, row)| self.last == Some(row.place))
            && let Err(error) = locked(&self.core.logbook).raise_floor(self.totals.sequence)
        {
            tracing::warn!(%error, "the space of deleted records is not given back: the count is not written down");
            return;
        }
        let touched: BTreeSet<ExtentNumber> = rows.iter().map(|(_, row)| row.place.extent).collect();
        for (_, row) in rows {
            if let Ok(file) = self.core.extents.file(row.place.extent)
                && let Err(error) = punch_hole(&file, row.place.offset, record_bytes(row.payload_length))
            {
                tracing::debug!(%error, extent = %row.place.extent, "no hole was punched");
            }
        }
        for extent in touched {
            self.unlink_if_dead(extent);
            self.core.measure_extent(extent);
        }
    }

    /// Removes an extent in which nothing lives any more.
    pub(super) fn unlink_if_dead(&mut self, extent: ExtentNumber) {
        let dead =
            self.extents.get(&extent).is_some_and(|figures| figures.shards == 0 && !figures.unreadable);
        let active = self.active.as_ref().is_some_and(|active| active.extent == extent);
        if !dead || active {
            return;
        }
        self.extents.remove(&extent);
        let mut batch = IndexBatch::default();
        let batch = batch.set_extent(extent, None).map(|()| batch);
        if self.commit(batch, false).is_err() {
            return;
        }
        if let Err(error) = self.core.extents.remove(extent) {
            tracing::warn!(%error, %extent, "an empty extent was not removed");
        }
    }
}
