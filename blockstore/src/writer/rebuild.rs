//! Rebuilding the index while the disk is held: it was found damaged, and the extents know everything that it knew.

use super::Writer;
use crate::recovery::{self, Task};
use crate::scan::ScanError;

impl Writer {
    /// Makes the index anew and brings the disk back. Until then the disk refuses what is asked of it.
    pub(super) fn rebuild_index(&mut self) {
        let disk = self.core.extents.owner().disk;
        tracing::warn!(%disk, "the index is rebuilt from the extents");
        if self.seal_active().is_err() {
            return;
        }
        self.core.index.take_out();
        let task = Task {
            verify_all: false,
            unreadable_places_max: self.core.unreadable_places_max,
            stopping: &self.core.stopping,
        };
        let core = &self.core;
        let rebuilt = recovery::open_index(&core.path, &core.extents, &core.logbook, task);
        match rebuilt {
            Ok(index) => {
                self.core.index.put_in(index);
                match self.load() {
                    Ok(()) => self.core.index_rebuilt(),
                    Err(error) => self.core.suspend(&error.to_string()),
                }
            }
            Err(ScanError::Stopped) => tracing::info!(%disk, "the next start goes on rebuilding the index"),
            Err(ScanError::Write(error)) => self.core.fence(&format!("a write failed: {error}")),
            Err(error) => self.core.suspend(&error.to_string()),
        }
    }
}
