//! What a session is told when it starts.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::connection::ConnectOptions;
use crate::local::root::RootId;
use crate::path::RemotePath;

/// How often the whole folder is scanned if nothing is said.
pub const SCAN_INTERVAL_DEFAULT: Duration = Duration::from_secs(30 * 60);

/// What the local folder is expected to be. A disk that is not mounted leaves an empty folder, which must not be taken
/// for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Whatever it is: one that was never kept the same is made so.
    MayBeNew,
    /// One that was kept the same before.
    Existing,
    /// This one.
    Root(RootId),
}

/// What is kept the same with what, and how.
#[derive(Clone, Debug)]
pub struct SyncConfig {
    /// The local folder. It must exist.
    pub root: PathBuf,
    /// What that folder is.
    pub expected: Expected,
    /// The remote folder. It is made if it is not there.
    pub remote_path: RemotePath,
    /// Where the state is kept; absent: `ROOT/.keepstone`.
    pub state_dir: Option<PathBuf>,
    /// How the gateway is reached, with the device's token.
    pub connect: ConnectOptions,
    /// Whose conflicted copies they are; absent: the device's name.
    pub name: Option<String>,
    /// Bandwidth.
    pub limits: Limits,
    /// When deletes wait for a confirmation.
    pub delete_guard: DeleteGuard,
    /// What becomes of deletes that wait for a confirmation, the first time that some do.
    pub on_deletes: Option<OnDeletes>,
    /// Time from one scan of everything to the next.
    pub scan_interval: Duration,
}

impl SyncConfig {
    /// With defaults for all but what has none.
    #[must_use]
    pub fn new(root: PathBuf, remote_path: RemotePath, connect: ConnectOptions) -> Self {
        Self {
            root,
            expected: Expected::MayBeNew,
            remote_path,
            state_dir: None,
            connect,
            name: None,
            limits: Limits::default(),
            delete_guard: DeleteGuard::default(),
            on_deletes: None,
            scan_interval: SCAN_INTERVAL_DEFAULT,
        }
    }
}

/// How much of the line may be used in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rate {
    /// All of it.
    #[default]
    Unlimited,
    /// So many bytes a second.
    BytesPerSecond(u64),
    /// 80% of what is measured.
    Auto,
}

/// Bandwidth in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// To the server.
    pub up: Rate,
    /// From the server.
    pub down: Rate,
}

/// What was decided beforehand of deletes that wait for a confirmation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OnDeletes {
    /// Those that were shown as this go ahead; others wait on.
    Confirm(String),
    /// They are undone.
    BringBack,
}

/// More deletes at once than either of the two wait for a confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeleteGuard {
    /// So many files.
    pub count_max: u64,
    /// So many of a hundred of all files.
    pub percent_max: u32,
}

impl Default for DeleteGuard {
    fn default() -> Self {
        Self { count_max: 1_000, percent_max: 50 }
    }
}
