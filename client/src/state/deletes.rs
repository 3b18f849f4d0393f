//! Deletes of files, counted: those that wait, and those that were carried out.

use super::database::State;
use super::error::StateError;
use super::row::unsigned;
use super::trees::Side;
use crate::planner::model::{Kind, NodeId, ROOT};

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

/// Of what was carried out.
pub(super) const CARRIED_OUT: &str = "deletes_carried_out";

/// Spreads a number over all 64 bits (the last step of SplitMix64).
fn spread(number: u64) -> u64 {
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
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

    /// What tells just these deletes from others: how many they are, and a number made of which they are.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn deletes_shown(&self) -> Result<String, StateError> {
        let mut statement =
            self.connection.prepare_cached("SELECT node, tree FROM differences WHERE kind IS NULL")?;
        let mut rows = statement.query([])?;
        let mut mixed = 0_u64;
        while let Some(row) = rows.next()? {
            let (node, tree): (i64, i64) = (row.get(0)?, row.get(1)?);
            mixed = mixed.wrapping_add(spread(unsigned(node).wrapping_mul(4).wrapping_add(unsigned(tree))));
        }
        Ok(format!("{}-{:08x}", self.deletes()?.max_of_sides(), mixed >> 32))
    }

    /// Undoes deletes that are not carried out yet, on the side that has more of them: what is gone there comes back from
    /// the other one. `emptied`: all of the folder here is gone, though no scan has said so yet. Gives the files.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was changed.
    pub fn bring_back(&mut self, emptied: bool) -> Result<u64, StateError> {
        self.transaction(|state| {
            if emptied {
                for child in state.side_children(Side::Local, ROOT)? {
                    state.remove_below(Side::Local, child)?;
                }
            }
            let pending = state.deletes()?;
            let (side, other) = if pending.local >= pending.remote {
                (Side::Local, Side::Remote)
            } else {
                (Side::Remote, Side::Local)
            };
            let sql = "SELECT node FROM differences WHERE tree = ? AND kind IS NULL";
            let mut files = 0;
            for node in state.ids(sql, &[side.number()])? {
                let Some(synced) = state.synced(node)? else { continue };
                if state.side(other, node)?.is_some() {
                    files += u64::from(matches!(synced.kind, Kind::File(_)));
                    // What both sides do not know to have agreed on is no delete.
                    state.set_synced(node, None)?;
                }
            }
            Ok(files)
        })
    }

    /// How many deletes of files were carried out in the life of the state, on either side.
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
