//! Work that a restart goes on with: uploads of large files that were begun, and splits about to rename.

use engine::cutter::Cutter;
use engine::ids::ContentId;
use rusqlite::{OptionalExtension, params};

use super::database::State;
use super::error::StateError;
use super::row::{content_of, cutter_number, cutter_of, id, signed, unsigned};
use crate::local::model::Identity;
use crate::planner::model::NodeId;

/// An upload that was begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UploadBegun {
    /// Of which file.
    pub node: NodeId,
    /// The session's id.
    pub upload_id: Vec<u8>,
    /// The content that its chunk list makes.
    pub content: ContentId,
    /// Bytes.
    pub size: u64,
    /// How it was cut.
    pub cutter: Cutter,
    /// When, milliseconds since 1970.
    pub begun_ms: u64,
}

/// A local copy that is about to be renamed and become a node of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitIntent {
    /// Which it is now.
    pub node: NodeId,
    /// Which it will be.
    pub new_node: NodeId,
    /// The folder it is in.
    pub parent: NodeId,
    /// Its name now.
    pub name_before: String,
    /// Its name then.
    pub name_after: String,
    /// Which object it is.
    pub identity: Identity,
}

impl State {
    /// The upload that was begun of a file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn upload_begun(&self, node: NodeId) -> Result<Option<UploadBegun>, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT upload_id, content, size, cutter, begun_ms FROM uploads WHERE node = ?",
        )?;
        let found = statement
            .query_row([id(node)], |row| {
                Ok(UploadBegun {
                    node,
                    upload_id: row.get(0)?,
                    content: content_of(row.get_ref(1)?.as_blob()?, 1)?,
                    size: unsigned(row.get(2)?),
                    cutter: cutter_of(row.get(3)?, 3)?,
                    begun_ms: unsigned(row.get(4)?),
                })
            })
            .optional()?;
        Ok(found)
    }

    /// Remembers that an upload was begun, in place of an earlier one of the same file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_upload_begun(&mut self, begun: &UploadBegun) -> Result<(), StateError> {
        self.transaction(|state| {
            let mut statement = state.connection.prepare_cached(
                "INSERT OR REPLACE INTO uploads (node, upload_id, content, size, cutter, begun_ms) \
                 VALUES (?, ?, ?, ?, ?, ?)",
            )?;
            statement.execute(params![
                id(begun.node),
                begun.upload_id,
                begun.content.as_bytes(),
                signed(begun.size),
                cutter_number(begun.cutter),
                signed(begun.begun_ms)
            ])?;
            Ok(())
        })
    }

    /// Forgets an upload: it is done, or will not be gone on with.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget_upload(&mut self, node: NodeId) -> Result<(), StateError> {
        self.transaction(|state| {
            state.connection.prepare_cached("DELETE FROM uploads WHERE node = ?")?.execute([id(node)])?;
            Ok(())
        })
    }

    /// Splits that were about to rename, and are not recorded as done.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn split_intents(&self) -> Result<Vec<SplitIntent>, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT node, new_node, parent, name_before, name_after, inode, born FROM splits",
        )?;
        let rows = statement.query_map([], |row| {
            Ok(SplitIntent {
                node: NodeId(unsigned(row.get(0)?)),
                new_node: NodeId(unsigned(row.get(1)?)),
                parent: NodeId(unsigned(row.get(2)?)),
                name_before: row.get(3)?,
                name_after: row.get(4)?,
                identity: Identity { inode: unsigned(row.get(5)?), born_ns: row.get(6)? },
            })
        })?;
        let rows: Result<Vec<_>, _> = rows.collect();
        Ok(rows?)
    }

    /// Writes down that a split is about to rename.
    ///
    /// # Errors
    /// If the file cannot be written; then nothing may be renamed.
    pub fn intend_split(&mut self, intent: &SplitIntent) -> Result<(), StateError> {
        self.transaction(|state| {
            let mut statement = state.connection.prepare_cached(
                "INSERT OR REPLACE INTO splits \
                 (node, new_node, parent, name_before, name_after, inode, born) \
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )?;
            statement.execute(params![
                id(intent.node),
                id(intent.new_node),
                id(intent.parent),
                intent.name_before,
                intent.name_after,
                signed(intent.identity.inode),
                intent.identity.born_ns
            ])?;
            Ok(())
        })
    }

    /// Forgets a split's intent: it was recorded, or nothing was renamed.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn forget_split(&mut self, node: NodeId) -> Result<(), StateError> {
        self.transaction(|state| state.remove_split(node))
    }

    pub(super) fn remove_split(&self, node: NodeId) -> Result<(), StateError> {
        self.connection.prepare_cached("DELETE FROM splits WHERE node = ?")?.execute([id(node)])?;
        Ok(())
    }
}
