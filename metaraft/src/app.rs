//! What a Raft group replicates, seen from consensus: bytes in, bytes out, over a key-value view.
//!
//! Invariants:
//! - Applying is deterministic: no clock, no randomness, no IO but through the transaction. Every replica that has
//!   applied the same commands holds the same keys.
//! - The meaning of commands and keys belongs to the state machine; consensus never looks inside.

use engine::ids::{GroupId, NamespaceId};

use crate::kv::{Changes, Txn, View};

/// A namespace's journal has reached a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Which.
    pub namespace: NamespaceId,
    /// The number.
    pub sequence: u64,
}

/// What a group's replicated state machine does.
pub trait App: Send + Sync + 'static {
    /// Applies one command at the leader's time `time_ms` (milliseconds since 1970; never backwards within a
    /// group) and returns its encoded outcome.
    ///
    /// Everything it writes goes through `txn`; a command that is refused must leave `txn` as it found it (see
    /// [`Txn::attempt`]). Bytes that make no sense are answered by an outcome that says so. Must not panic: the
    /// command is in the log, so it would come again.
    ///
    /// If the store underneath fails to read, `txn` answers as if the keys were absent, and the whole outcome is
    /// thrown away afterwards: so nothing need be checked here, but it must end.
    fn apply(&self, group: GroupId, txn: &mut Txn<'_>, time_ms: u64, command: &[u8]) -> Vec<u8>;

    /// Answers a query on a consistent view of the group. What may be added from outside the view (who was heard
    /// of lately, say) is up to it: queries run only where they are asked.
    fn query(&self, group: GroupId, view: &View<'_>, query: &[u8]) -> Vec<u8>;

    /// What those who watch are to be told of changes that have been applied. Numbers may be told again.
    fn notices(&self, changes: &Changes) -> Vec<Notice> {
        let _nobody_is_told = changes;
        Vec::new()
    }
}
