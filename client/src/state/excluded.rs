//! Folders that are not kept on this device, as the list beside the root's marker has them. By the server's ids, so that a rename elsewhere keeps them excluded.

use rusqlite::params;

use super::database::State;
use super::error::StateError;
use super::row::{signed, unsigned};

/// Folders that can be excluded.
pub const EXCLUDED_MAX: usize = 10_000;
/// Set while the list beside the marker is older than what is here.
const LIST_OUTDATED: &str = "excluded_list_outdated";

/// How the list beside the root's marker is to what the state has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExclusionList {
    /// It is right.
    Right,
    /// Ids in it are of a history that the server does not have any more, and the new ones are not known yet.
    Void,
    /// The state has the new ones: it is to be written anew.
    Outdated,
}

impl State {
    /// The excluded folders: the server's id, and the path as it was given.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn excluded(&self) -> Result<Vec<(u64, String)>, StateError> {
        let mut statement =
            self.connection.prepare_cached("SELECT entry, path FROM excluded ORDER BY path")?;
        let rows = statement.query_map([], |row| Ok((unsigned(row.get(0)?), row.get::<_, String>(1)?)))?;
        let rows: Result<Vec<_>, _> = rows.collect();
        Ok(rows?)
    }

    /// Takes these in the place of those that there are.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn set_excluded(&mut self, excluded: &[(u64, String)]) -> Result<(), StateError> {
        self.transaction(|state| {
            state.connection.execute("DELETE FROM excluded", [])?;
            let mut statement = state
                .connection
                .prepare_cached("INSERT OR REPLACE INTO excluded (entry, path) VALUES (?, ?)")?;
            for (entry, path) in excluded {
                statement.execute(params![signed(*entry), path])?;
            }
            Ok(())
        })
    }

    /// Whether the list beside the marker can be gone by.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn exclusion_list(&self) -> Result<ExclusionList, StateError> {
        Ok(match self.number(LIST_OUTDATED)?.unwrap_or(0) {
            0 => ExclusionList::Right,
            _ if self.went_back()?.is_some() => ExclusionList::Void,
            _ => ExclusionList::Outdated,
        })
    }

    /// Notes whether the list beside the marker has what is here.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn note_exclusion_list(&self, is_right: bool) -> Result<(), StateError> {
        self.set_number(LIST_OUTDATED, i64::from(!is_right))
    }

    /// Excludes a folder.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn exclude(&mut self, entry: u64, path: &str) -> Result<(), StateError> {
        self.transaction(|state| {
            let mut statement = state
                .connection
                .prepare_cached("INSERT OR REPLACE INTO excluded (entry, path) VALUES (?, ?)")?;
            statement.execute(params![signed(entry), path])?;
            Ok(())
        })
    }

    /// Includes it again; says whether it was excluded.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn include(&mut self, entry: u64) -> Result<bool, StateError> {
        self.transaction(|state| {
            let mut statement = state.connection.prepare_cached("DELETE FROM excluded WHERE entry = ?")?;
            Ok(statement.execute([signed(entry)])? > 0)
        })
    }
}
