//! What a session tells those who watch it. Plain values: as of one moment, cheap to print as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::config::Limits;

/// Files listed as waiting, at most; the rest is counted.
pub const WAITING_LISTED_MAX: usize = 1_000;

/// What confirms that a folder is meant to be empty.
pub const DELETES_ALL: &str = "all";

/// A session as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The local folder.
    pub root: PathBuf,
    /// The remote folder.
    pub remote_path: String,
    /// What it is doing.
    pub phase: Phase,
    /// More about the phase, in words; may be empty.
    pub message: String,
    /// Whether the gateway answers.
    pub online: bool,
    /// Whether it was told to pause.
    pub paused: bool,
    /// Whether the local folder is watched; else it is only scanned at intervals.
    pub watching: bool,
    /// Files, folders and symlinks that both sides agree on.
    pub agreed_count: u64,
    /// Those that are not the same on both sides yet.
    pub pending_count: u64,
    /// Those of them that nothing is done about now.
    pub waiting_count: u64,
    /// Which they are, and why; the first [`WAITING_LISTED_MAX`].
    pub waiting: Vec<Waiting>,
    /// What is on disk and not kept in sync, and why; the first [`WAITING_LISTED_MAX`].
    pub skipped: Vec<Waiting>,
    /// Files, folders and symlinks that are ignored: what is in an ignored folder is not counted by itself.
    pub ignored_count: u64,
    /// Deletes that wait for a confirmation; 0 = none.
    pub deletes_to_confirm: u64,
    /// What tells just these from others, for who confirms them; [`DELETES_ALL`] for a folder that is empty and was
    /// not; else empty.
    pub deletes_shown: String,
    /// Transfers under way.
    pub transfers: Vec<Transfer>,
    /// To the server, since the start.
    pub up: Traffic,
    /// From the server, since the start.
    pub down: Traffic,
    /// Bandwidth limits.
    pub limits: Limits,
    /// Folders that are not kept on this device.
    pub excluded: Vec<String>,
}

/// What a session is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It opens its state and connects.
    Starting,
    /// It looks at the local folder, or lists the remote one.
    Looking,
    /// It makes both sides the same.
    Syncing,
    /// Both sides agree.
    UpToDate,
    /// Both sides agree but for what waits.
    Waiting,
    /// It was told to pause.
    Paused,
    /// The gateway does not answer; it tries again by itself.
    Offline,
    /// It has ended and will do nothing more; the message says why.
    Stopped,
}

/// Something that waits or is left out, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Waiting {
    /// Its path below the root.
    pub path: String,
    /// Why, in words.
    pub why: String,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// A file on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// Its path below the root.
    pub path: String,
    /// Which way.
    pub direction: Direction,
    /// Bytes of it that are done: moved, or found to be there already.
    pub bytes_done: u64,
    /// Its size.
    pub bytes_total: u64,
}

/// Sums of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Files done.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of content that went over the line for them.
    pub bytes_on_wire: u64,
    /// Of those, in the last seconds, per second.
    pub bytes_per_second: u64,
}

/// Something that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogEntry {
    /// Counts up.
    pub number: u64,
    /// When, milliseconds since 1970.
    pub time_ms: u64,
    /// What.
    pub what: Done,
    /// Its path below the root; after it was done.
    pub path: String,
    /// More: where it was before, why it failed; may be empty.
    pub detail: String,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Done {
    /// A file went to the server.
    FileUp,
    /// A file came from the server.
    FileDown,
    /// Made, changed or moved on the server.
    RemoteChanged,
    /// Deleted on the server.
    RemoteDeleted,
    /// Made, changed or moved here.
    LocalChanged,
    /// Moved to the local trash.
    LocalDeleted,
    /// Two edits of one file: both are kept, the path is the conflicted copy's.
    Conflict,
    /// Something could not be done.
    Failed,
    /// About the session as a whole.
    Session,
}

impl Done {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::FileUp,
        Self::FileDown,
        Self::RemoteChanged,
        Self::RemoteDeleted,
        Self::LocalChanged,
        Self::LocalDeleted,
        Self::Conflict,
        Self::Failed,
        Self::Session,
    ];

    /// The stable word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::FileUp => "file-up",
            Self::FileDown => "file-down",
            Self::RemoteChanged => "remote-changed",
            Self::RemoteDeleted => "remote-deleted",
            Self::LocalChanged => "local-changed",
            Self::LocalDeleted => "local-deleted",
            Self::Conflict => "conflict",
            Self::Failed => "failed",
            Self::Session => "session",
        }
    }
}

/// What a session that has nothing more to do came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quiet {
    /// A complete scan was made that could read all that is to be kept in sync, all of the server's changes are known,
    /// and local, remote and synced are the same.
    pub agreed: bool,
    /// Else: what is not, or could not be read, and why.
    pub waiting: Vec<Waiting>,
}
