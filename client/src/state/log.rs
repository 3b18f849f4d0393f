//! What was done, for people: the latest of it.

use rusqlite::params;

use super::database::State;
use super::error::StateError;
use super::row::{signed, unsigned};
use crate::sync::status::{Done, LogEntry};

/// Entries kept.
const LOG_MAX: i64 = 20_000;
/// Entries that may be too many before the oldest go.
const LOG_SLACK: i64 = 1_000;

impl State {
    /// Adds entries and numbers them.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn log(&mut self, entries: &mut [LogEntry]) -> Result<(), StateError> {
        if entries.is_empty() {
            return Ok(());
        }
        self.transaction(|state| {
            let (first, last): (Option<i64>, Option<i64>) = state.connection.query_row(
                "SELECT (SELECT MIN(number) FROM log), (SELECT MAX(number) FROM log)",
                [],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?;
            let mut next = last.unwrap_or(0);
            let mut statement = state.connection.prepare_cached(
                "INSERT INTO log (number, time_ms, what, path, detail) VALUES (?, ?, ?, ?, ?)",
            )?;
            for entry in entries {
                next += 1;
                entry.number = unsigned(next);
                statement.execute(params![
                    next,
                    signed(entry.time_ms),
                    number_of(entry.what),
                    entry.path,
                    entry.detail
                ])?;
            }
            if next - first.unwrap_or(next) > LOG_MAX + LOG_SLACK {
                let mut statement = state.connection.prepare_cached("DELETE FROM log WHERE number <= ?")?;
                statement.execute([next - LOG_MAX])?;
            }
            Ok(())
        })
    }

    /// The latest entries, oldest first.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn log_tail(&self, count: usize) -> Result<Vec<LogEntry>, StateError> {
        let mut statement = self.connection.prepare_cached(
            "SELECT number, time_ms, what, path, detail FROM log ORDER BY number DESC LIMIT ?",
        )?;
        let rows = statement.query_map([i64::try_from(count).unwrap_or(i64::MAX)], |row| {
            Ok(LogEntry {
                number: unsigned(row.get(0)?),
                time_ms: unsigned(row.get(1)?),
                what: what_of(row.get(2)?),
                path: row.get(3)?,
                detail: row.get(4)?,
            })
        })?;
        let entries: Result<Vec<_>, _> = rows.collect();
        let mut entries = entries?;
        entries.reverse();
        Ok(entries)
    }
}

fn number_of(what: Done) -> i64 {
    match what {
        Done::FileUp => 1,
        Done::FileDown => 2,
        Done::RemoteChanged => 3,
        Done::RemoteDeleted => 4,
        Done::LocalChanged => 5,
        Done::LocalDeleted => 6,
        Done::Conflict => 7,
        Done::Failed => 8,
        Done::Session => 9,
    }
}

fn what_of(number: i64) -> Done {
    Done::ALL.into_iter().find(|what| number_of(*what) == number).unwrap_or(Done::Session)
}
