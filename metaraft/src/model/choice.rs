//! What the steps of commands may be told to choose between.

use engine::ids::VersionId;
use serde::{Deserialize, Serialize};

/// What must be at the target for a commit to go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Base {
    /// Nothing.
    Absent,
    /// A file with this current version.
    Version(VersionId),
    /// Nothing or a file, whichever version.
    Any,
}

/// What to do with an entry that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnExisting {
    /// Refuse: [`StepError::AlreadyExists`].
    Refuse,
    /// If it is a folder and a folder was asked for, answer with it.
    TakeFolder,
    /// If both are symlinks, point it elsewhere.
    ReplaceSymlink,
}

/// Which earlier versions of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VersionChoice {
    /// These: up to [`super::QUERY_ITEMS_MAX`], and not the current one.
    Listed(Vec<VersionId>),
    /// All but the newest: so many, 1 to [`super::QUERY_ITEMS_MAX`], the current one counted.
    AllButNewest(u32),
    /// Those that were committed before this time, up to the first one that was not.
    Before {
        /// Milliseconds since 1970, by the leaders' clocks.
        time_ms: u64,
    },
}

/// How many upload sessions of a namespace there may be that have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenUploadsMax {
    /// Sessions.
    pub sessions: u64,
    /// Entries of their chunk lists together.
    pub list_entries: u64,
}
