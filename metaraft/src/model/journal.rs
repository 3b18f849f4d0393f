//! Whose a journal's numbers are: which leader issued which, so that two histories that share numbers can be told apart.

use serde::{Deserialize, Serialize};

/// A leader's term, as the process that led in it knows it. Whoever goes back to an older state begins another one, also
/// under a term of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reign {
    /// The Raft term.
    pub term: u64,
    /// Drawn at random by the leader's process; 0 = by software that drew none.
    pub mark: u64,
}

/// Numbers of a journal that were issued in one reign: from the first one to the next run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JournalRun {
    /// The first number.
    pub first: u64,
    /// In which reign.
    pub reign: Reign,
}

/// What somebody has seen of a journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The latest number that they rely on.
    pub number: u64,
    /// Runs up to that number, the latest first, at most [`RUNS_TOLD_MAX`]; empty: it is older than the record of runs.
    /// `None`: whoever gave this place knew no runs.
    pub runs: Option<Vec<JournalRun>>,
}

/// Runs that go with a place in a journal: so many reigns may have begun between the point at which two histories part
/// and that place, and the point is still found.
pub const RUNS_TOLD_MAX: usize = 8;
