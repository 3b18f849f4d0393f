//! The server went back to an older state: what was known of it is of a history that is not its own any more.
//!
//! Two histories have a beginning in common, up to a number that the server tells. What was said of an entry within it
//! still holds as an earlier state of both sides. What was said later is void, and so is the entry's id: it may have been
//! issued again, for something else. What is on the disk stays as it is, and nothing that the server lacks is a delete.
//!
//! Invariants:
//! - A node keeps its entry's id only if the id was issued in the common beginning.
//! - `synced` of a node is a state that both sides have had, or it is empty.
//! - Once the listing anew is whole, no node is in `synced` that is not on both sides: so nothing is planned as a delete.

use std::mem::discriminant;

use super::database::State;
use super::error::StateError;
use super::reached::Reached;
use super::row::{id, signed, unsigned};
use super::trees::Side;
use crate::planner::model::{Kind, NodeId, ROOT};
use crate::planner::went_back::{Bond, bond};

/// One more than the number up to which both histories are the same, from when the server's return was noticed until its
/// tree was listed anew.
const WENT_BACK: &str = "went_back";
/// What the history that was known before was followed by: its cursor, and what its answers proved.
const FORMER_CURSOR: &str = "former_cursor";
const FORMER_SEEN: &str = "former_seen";
/// The remote folder's number when it was found.
const ROOT_SEQUENCE: &str = "root_sequence";

/// Under which number something was said of an entry. None: a listing that broke off has not told of it anew; that does not
/// matter if it was found to be of the common beginning before (`again`).
fn said(sequence: u64, again: bool) -> Option<u64> {
    (sequence > 0 || again).then_some(sequence)
}

/// A place in the history that was known before the server went back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FormerPlace {
    /// The cursor; may be empty.
    pub cursor: Vec<u8>,
    /// What answers to this device proved beyond it; may be empty.
    pub seen: Vec<u8>,
    /// Up to which number that history and the server's are the same, as the server last said.
    pub common: u64,
}

impl State {
    /// Whether the server went back, and its tree has not been listed anew since; up to which number both of its histories
    /// are the same.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn went_back(&self) -> Result<Option<u64>, StateError> {
        Ok(unsigned(self.number(WENT_BACK)?.unwrap_or(0)).checked_sub(1))
    }

    /// From when the server's return was noticed until its tree was listed anew: where it was followed to before. It may
    /// go back once more meanwhile, and have less in common with that.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn former_place(&self) -> Result<Option<FormerPlace>, StateError> {
        let Some(common) = self.went_back()? else { return Ok(None) };
        let cursor = self.bytes(FORMER_CURSOR)?.unwrap_or_default();
        let seen = self.bytes(FORMER_SEEN)?.unwrap_or_default();
        Ok(Some(FormerPlace { cursor, seen, common }))
    }

    /// Remembers the number that the remote folder had when it was found.
    pub(super) fn remember_root(&self, sequence: u64) -> Result<(), StateError> {
        self.set_number(ROOT_SEQUENCE, signed(sequence))
    }

    /// Forgets what was known of the server beyond `common`, the number up to which both of its histories are the same,
    /// and has its tree listed anew. Nothing may be under way.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing was forgotten.
    pub fn forget_history(&mut self, common: u64) -> Result<(), StateError> {
        self.transaction(|state| {
            let before = state.went_back()?;
            let common = before.map_or(common, |before| before.min(common));
            if before.is_none() {
                let cursor = state.bytes("cursor")?.unwrap_or_default();
                state.set_bytes(FORMER_CURSOR, &cursor)?;
                let seen = state.answered()?.map(|answered| answered.proof).unwrap_or_default();
                state.set_bytes(FORMER_SEEN, &seen)?;
            }
            state.set_number(WENT_BACK, signed(common.saturating_add(1)))?;
            state.connection.execute_batch(
                "CREATE TABLE IF NOT EXISTS former \
                     (entry INTEGER PRIMARY KEY, node INTEGER NOT NULL, agreed INTEGER NOT NULL); \
                 CREATE TABLE IF NOT EXISTS former_excluded (path TEXT PRIMARY KEY); \
                 DELETE FROM uploads; DELETE FROM deleted; DELETE FROM arrivals WHERE node <> 1 OR gone = 0;",
            )?;
            state.forget_excluded(common, before.is_some())?;
            for node in state.ids("SELECT id FROM nodes WHERE id <> 1 AND entry IS NOT NULL", &[])? {
                let Some(facts) = state.remote_facts(node)? else { continue };
                if bond(common, said(facts.sequence, before.is_some())) == Bond::Void {
                    state.unbind(node, facts.entry)?;
                }
            }
            state.forget_one_sided()?;
            let root_sequence = state.number(ROOT_SEQUENCE)?.map(unsigned);
            if bond(common, root_sequence) == Bond::Void {
                state.set_remote_facts(ROOT, None)?;
            }
            state.follow_from(&Reached::default())?;
            state.set_number("batch_open", 1)?;
            state.forget_answered()?;
            state.note_reset()
        })
    }

    /// Takes from a node all that is known of it on the server, its id included.
    fn unbind(&self, node: NodeId, entry: u64) -> Result<(), StateError> {
        let synced = self.synced(node)?;
        let agreed = synced.is_some() && synced == self.side(Side::Remote, node)?;
        self.set_remote_facts(node, None)?;
        self.set_side(Side::Remote, node, None)?;
        if synced.is_some() {
            self.set_synced(node, None)?;
        }
        if self.side(Side::Local, node)?.is_some() {
            self.connection
                .prepare_cached("INSERT OR REPLACE INTO former (entry, node, agreed) VALUES (?, ?, ?)")?
                .execute([signed(entry), id(node), i64::from(agreed)])?;
        }
        Ok(())
    }

    /// Empties `synced` where not both sides are there: that one of them is not may be of the other history.
    fn forget_one_sided(&self) -> Result<(), StateError> {
        let one_sided = self.ids(
            "SELECT DISTINCT node FROM differences WHERE kind IS NULL AND node <> 1 AND \
             EXISTS (SELECT 1 FROM nodes WHERE id = node AND kind IS NOT NULL)",
            &[],
        )?;
        for node in one_sided {
            if self.synced(node)?.is_some() {
                self.set_synced(node, None)?;
            }
        }
        Ok(())
    }

    /// Keeps folders that are excluded by ids that may be others' by now, by their paths alone.
    fn forget_excluded(&self, common: u64, again: bool) -> Result<(), StateError> {
        for (entry, path) in self.excluded()? {
            let node = self.node_of_entry(entry)?;
            let facts = node.map(|node| self.remote_facts(node)).transpose()?.flatten();
            let known = facts.and_then(|facts| said(facts.sequence, again));
            if bond(common, known) == Bond::Void {
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO former_excluded (path) VALUES (?)")?
                    .execute([path])?;
                self.connection
                    .prepare_cached("DELETE FROM excluded WHERE entry = ?")?
                    .execute([signed(entry)])?;
                self.note_exclusion_list(false)?;
            }
        }
        Ok(())
    }

    /// The server's tree is listed anew: finds again, by what was said of them in the common beginning, the nodes whose ids
    /// were forgotten. All others are matched by the plan, by their places and contents. Only where all that the server
    /// had said was here as well is what it says now an earlier state of both sides; else that may be what was never here.
    pub(super) fn rejoin(&self, common: u64) -> Result<(), StateError> {
        self.forget_one_sided()?;
        let mut joined = Vec::new();
        for (entry, node, agreed) in self.former()? {
            let Some(told) = self.node_of_entry(entry)? else { continue };
            let Some(facts) = self.remote_facts(told)? else { continue };
            let apart = told != node && self.side(Side::Remote, node)?.is_none();
            let remote = self.side(Side::Remote, told)?;
            let local = self.side(Side::Local, node)?;
            if let (Some(remote), Some(local)) = (remote, local)
                && apart
                && bond(common, Some(facts.sequence)) == Bond::Holds
                && discriminant(&remote.kind) == discriminant(&local.kind)
            {
                self.link(node, told)?;
                if agreed {
                    joined.push(node);
                }
            }
        }
        // Once all folders are joined: what is in them names them.
        for node in joined {
            let told = self.side(Side::Remote, node)?;
            self.set_synced(node, told)?;
        }
        let mut statement = self.connection.prepare("SELECT path FROM former_excluded")?;
        let paths: Result<Vec<String>, _> = statement.query_map([], |row| row.get(0))?.collect();
        for path in paths? {
            let Some(node) = self.node_at_path(Side::Remote, &path)? else { continue };
            let folder = self.side(Side::Remote, node)?.is_some_and(|value| value.kind == Kind::Folder);
            if let Some(facts) = self.remote_facts(node)?.filter(|_facts| folder && node != ROOT) {
                self.connection
                    .prepare_cached("INSERT OR REPLACE INTO excluded (entry, path) VALUES (?, ?)")?
                    .execute(rusqlite::params![signed(facts.entry), path])?;
            }
        }
        drop(statement);
        self.connection.execute_batch("DELETE FROM former; DELETE FROM former_excluded;")?;
        self.set_bytes(FORMER_CURSOR, &[])?;
        self.set_bytes(FORMER_SEEN, &[])?;
        self.set_number(WENT_BACK, 0)
    }

    fn former(&self) -> Result<Vec<(u64, NodeId, bool)>, StateError> {
        let mut statement =
            self.connection.prepare("SELECT entry, node, agreed FROM former ORDER BY node")?;
        let rows = statement
            .query_map([], |row| Ok((unsigned(row.get(0)?), NodeId(unsigned(row.get(1)?)), row.get(2)?)))?;
        let rows: Result<Vec<_>, _> = rows.collect();
        Ok(rows?)
    }
}
