//! Where chunks may be found in local files, so that they need not be fetched. Only hints: whoever takes bytes from
//! there hashes them, and a hint that proves wrong is dropped.

use engine::ids::ChunkId;
use engine::manifest::ManifestEntry;
use rusqlite::params;

use super::database::State;
use super::error::StateError;
use super::row::{id, signed, unsigned};
use crate::planner::model::NodeId;

/// Hints kept, about: some 30 bytes each.
const HINTS_MAX: i64 = 2_000_000;
/// Places told of one chunk.
const PLACES_MAX: i64 = 4;

/// A place where a chunk may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// In which file.
    pub node: NodeId,
    /// Where its bytes begin.
    pub offset: u64,
}

fn prefix(chunk: &ChunkId) -> i64 {
    let mut first = [0; 8];
    first.copy_from_slice(&chunk.as_bytes()[..8]);
    i64::from_be_bytes(first)
}

impl State {
    /// Remembers where the chunks of a file are. In place of what was known of it before.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn index_chunks(&mut self, node: NodeId, entries: &[ManifestEntry]) -> Result<(), StateError> {
        let held = self.number("chunk_hints")?.unwrap_or(0);
        self.transaction(|state| {
            let mut held = held;
            if held > HINTS_MAX {
                // Any half of them: which are worth keeping is not known.
                held -=
                    i64::try_from(state.connection.execute("DELETE FROM chunks WHERE (prefix & 1) = 0", [])?)
                        .unwrap_or(held);
            }
            let mut statement = state.connection.prepare_cached(
                "INSERT OR REPLACE INTO chunks (prefix, node, offset, size) VALUES (?, ?, ?, ?)",
            )?;
            let mut offset = 0;
            for entry in entries {
                statement.execute(params![
                    prefix(&entry.id),
                    id(node),
                    signed(offset),
                    signed(entry.size)
                ])?;
                offset += entry.size;
                held += 1;
            }
            drop(statement);
            state.set_number("chunk_hints", held)
        })
    }

    /// Where chunks may be: for each, some places.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn find_chunks(&self, entries: &[ManifestEntry]) -> Result<Vec<Vec<ChunkPlace>>, StateError> {
        let mut statement = self
            .connection
            .prepare_cached("SELECT node, offset FROM chunks WHERE prefix = ? AND size = ? LIMIT ?")?;
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            let rows = statement
                .query_map(params![prefix(&entry.id), signed(entry.size), PLACES_MAX], |row| {
                    Ok(ChunkPlace { node: NodeId(unsigned(row.get(0)?)), offset: unsigned(row.get(1)?) })
                })?;
            let places: Result<Vec<_>, _> = rows.collect();
            all.push(places?);
        }
        Ok(all)
    }

    /// Drops hints that proved wrong.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn drop_chunk_hints(&mut self, wrong: &[(ChunkId, ChunkPlace)]) -> Result<(), StateError> {
        if wrong.is_empty() {
            return Ok(());
        }
        self.transaction(|state| {
            let mut statement = state
                .connection
                .prepare_cached("DELETE FROM chunks WHERE prefix = ? AND node = ? AND offset = ?")?;
            for (chunk, place) in wrong {
                statement.execute(params![prefix(chunk), id(place.node), signed(place.offset)])?;
            }
            Ok(())
        })
    }
}
