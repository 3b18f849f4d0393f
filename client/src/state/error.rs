//! Why the state cannot be read or written.

use rusqlite::ErrorCode;

/// Why the state failed. Variants differ where the session's next move differs.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file is damaged: build it anew.
    #[error("the state is damaged: {0}")]
    Damaged(String),
    /// The disk that holds it is full: free some room.
    #[error("the disk that holds the state is full")]
    Full,
    /// Written by a later version of the software: use that one.
    #[error(
        "the state has format {found}, and this version of keepstone knows {known} at most: use a newer one"
    )]
    Newer {
        /// As it says.
        found: i64,
        /// The latest known.
        known: i64,
    },
    /// Something else uses the file, or it cannot be read or written.
    #[error("the state cannot be used: {0}")]
    Unusable(String),
}

impl From<rusqlite::Error> for StateError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged(error.to_string()),
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(_) => Self::Unusable(error.to_string()),
            // A column that is not of its type or not what this code writes.
            None => Self::Damaged(error.to_string()),
        }
    }
}
