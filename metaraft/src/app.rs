//! What a Raft group replicates, seen from consensus: bytes in, bytes out, over a key-value view.
//!
//! Invariants:
//! - Applying is deterministic: no clock, no randomness, no IO but through the transaction. Every replica that has
//!   applied the same commands holds the same keys.
//! - The meaning of commands and keys belongs to the state machine; consensus never looks inside.

use engine::ids::{GroupId, NamespaceId};

use crate::kv::{Changes, Txn, View};
use crate::model::journal::Reign;

/// A namespace's journal has reached a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub namespace: NamespaceId,
    /// The number.
    pub sequence: u64,
}

/// When an entry was made, in milliseconds since 1970. Both are the leader's, and the same for every replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTime {
    /// By the log: never backwards within a group, and never faster than time passes, by much. What expires, expires by
    /// this.
    pub time_ms: u64,
    /// By the voters' clocks together: for people, and to judge when a request was made. It may jump and go back.
    pub wall_ms: u64,
}

impl LogTime {
    /// Both alike.
    #[must_use]
    pub fn at(time_ms: u64) -> Self {
        Self { time_ms, wall_ms: time_ms }
    }
}

/// When an entry was made, and in whose reign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// When.
    pub time: LogTime,
    /// In whose reign.
    pub reign: Reign,
}

impl From<LogTime> for Made {
    /// In no reign that is recorded.
    fn from(time: LogTime) -> Self {
        Self { time, reign: Reign::default() }
    }
}

/// A command in the log that this software does not know: a newer one proposed it. Whoever skipped it would no longer
/// hold what the other replicas hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct NotUnderstood {
    /// What is not known.
    pub why: String,
}

/// What a group's replicated state machine does.
pub trait App: Send + Sync + 'static {
    /// Applies one command, made as `made` says, and returns its encoded outcome.
    ///
    /// Everything it writes goes through `txn`; a command that is refused must leave `txn` as it found it (see
    /// [`Txn::attempt`]). Must not panic: the command is in the log, so it would come again.
    ///
    /// If the store underneath fails to read, `txn` answers as if the keys were absent, and the whole outcome is
    /// thrown away afterwards: so nothing need be checked here, but it must end.
    ///
    /// # Errors
    /// If the bytes are not a command that this software knows. The replica stops, for others may know it. (A leader
    /// refuses what it does not know itself before it proposes it: see [`Self::refusal`].)
    fn apply(
        &self,
        group: GroupId,
        txn: &mut Txn<'_>,
        made: Made,
        command: &[u8],
    ) -> Result<Vec<u8>, NotUnderstood>;

    /// The encoded outcome of a command that a leader refuses to propose, judged by its bytes alone; `None` for one
    /// that is to be proposed.
    fn refusal(&self, group: GroupId, command: &[u8]) -> Option<Vec<u8>>;

    /// The encoded outcome of a command that is refused because the disk is at its reserve, and it does not only make
    /// room; `None` if it does only that.
    fn refusal_at_reserve(&self, command: &[u8]) -> Option<Vec<u8>>;

    /// Answers a query on a consistent view of the group. What may be added from outside the view (who was heard
    /// of lately, say) is up to it: queries run only where they are asked.
    fn query(&self, group: GroupId, view: &View<'_>, query: &[u8]) -> Vec<u8>;

    /// Whether a query may take much longer than a look-up: it is answered apart from those then.
    fn may_take_long(&self, query: &[u8]) -> bool {
        let _as_any_other = query;
        false
    }

    /// What those who watch are to be told of changes that have been applied. Numbers may be told again.
    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        let _nobody_is_told = changes;
        Vec::new()
    }
}
