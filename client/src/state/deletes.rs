//! Deletes of files, counted: those that wait, and those that were carried out.

use super::database::State;
use super::error::StateError;
use super::row::unsigned;
use super::trees::Side;
use crate::planner::model::{Kind, NodeId};

/// Deletes that are not carried out yet: files that were on both sides and are gone from one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingDeletes {
    /// Gone from the server, still here.
    pub remote: u64,
    /// Gone from here, still on the server.
    pub local: u64,
}

impl PendingDeletes {
    /// The larger of the two: a mass delete comes from one side.
    #[must_use]
    pub fn max_of_sides(self) -> u64 {
        self.remote.max(self.local)
    }
}

impl State {
    /// Deletes of files that are not carried out yet.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn deletes(&self) -> Result<PendingDeletes, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT COUNT(*) FROM differences d JOIN nodes n ON n.id = d.node \
             WHERE d.tree = ?1 AND d.kind IS NULL AND n.kind = 1 AND (n.remote = 0 OR n.local = 0 OR EXISTS \
             (SELECT 1 FROM differences o WHERE o.node = d.node AND o.tree <> ?1 AND o.kind IS NOT NULL))",
        )?;
        let mut count =
            |side: Side| statement.query_row([side.number()], |row| row.get::<_, i64>(0)).map(unsigned);
        Ok(PendingDeletes { remote: count(Side::Remote)?, local: count(Side::Local)? })
    }

    /// How many files both sides agree on.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn synced_files_count(&self) -> Result<u64, StateError> {
        if let Some(count) = self.files_counted.get() {
            return Ok(count);
        }
        let sql = "SELECT COUNT(*) FROM nodes WHERE kind = 1";
        let count = unsigned(self.connection.query_row(sql, [], |row| row.get(0))?);
        self.files_counted.set(Some(count));
        Ok(count)
    }

    /// How many deletes of files were carried out since the state was opened, on either side.
    #[must_use]
    pub fn deletes_carried_out(&self) -> u64 {
        self.carried_out.get()
    }

    /// Forgets what both sides agreed on, for it was deleted on `side`. Where it was excluded from this device, the
    /// server still has it: that is no delete.
    pub(super) fn forget_deleted(&self, side: Side, node: NodeId) -> Result<(), StateError> {
        let Some(synced) = self.synced(node)? else { return Ok(()) };
        let other = if side == Side::Local { Side::Remote } else { Side::Local };
        if matches!(synced.kind, Kind::File(_)) && self.side(other, node)?.is_none() {
            self.carried_out.set(self.carried_out.get() + 1);
        }
        self.set_synced(node, None)
    }
}
