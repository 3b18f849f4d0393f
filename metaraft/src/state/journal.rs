//! The journal's horizon: what is gone is told for a time, then forgotten.
//!
//! Invariants:
//! - A journal row of something deleted has a tombstone at the time it went; one whose entry is back has none that
//!   still hits it, for coming back takes a new number.
//! - A pruned row's number is at most the namespace's `journal pruned`: whoever has seen that number misses nothing.
//! - Each command prunes a bounded number of rows, the same on every replica.

use engine::ids::NamespaceId;

use super::keys::{self, Table};
use super::rows::JournalRow;
use super::txn::{Group, invalid, load};
use crate::app::Notice;
use crate::kv::{Changes, KeyRange, Read, Txn, prefix_end};
use crate::model::codec;
use crate::model::command::StepError;
use crate::model::outcome::StepOutcome;
use crate::model::row::NamespaceRow;
use crate::model::settings::JOURNAL_HORIZON_DEFAULT_MS;

/// Tombstones that one command removes at most.
const PRUNE_ROWS_MAX: usize = 64;

impl Group<'_, '_> {
    /// Notes when the journal row at `sequence` became that of something gone.
    pub(super) fn tombstone(&mut self, namespace: NamespaceId, sequence: u64) {
        let time_ms = self.time_ms;
        self.put(&keys::tombstone(time_ms, namespace, sequence), &());
    }

    pub(super) fn journal_horizon_set(&mut self, horizon_ms: u64) -> Result<StepOutcome, StepError> {
        if horizon_ms == 0 {
            return Err(invalid("a journal keeps what is gone for some time"));
        }
        self.put(&keys::journal_horizon(), &horizon_ms);
        Ok(StepOutcome::Done)
    }
}

/// Removes some of what has been gone for longer than the horizon; tells whether there may be more.
pub(super) fn prune(txn: &mut Txn<'_>, time_ms: u64) -> bool {
    // A row that cannot be decoded is logged, and nothing is pruned.
    let Ok(horizon) = load::<u64>(txn, &keys::journal_horizon()) else { return false };
    let end = keys::tombstones_from(time_ms.saturating_sub(horizon.unwrap_or(JOURNAL_HORIZON_DEFAULT_MS)));
    let rows = txn.scan(&KeyRange::between(&keys::table(Table::Tombstone), &end), PRUNE_ROWS_MAX);
    for (key, _) in &rows {
        if let Some((namespace, sequence)) = keys::tombstone_parts(key) {
            prune_row(txn, namespace, sequence);
        }
        txn.delete(key);
    }
    rows.len() == PRUNE_ROWS_MAX
}

fn prune_row(txn: &mut Txn<'_>, namespace: NamespaceId, sequence: u64) {
    let key = keys::journal(namespace, sequence);
    if !matches!(load::<JournalRow>(txn, &key), Ok(Some(row)) if row.deleted) {
        return;
    }
    let pruned_key = keys::journal_pruned(namespace);
    let Ok(pruned) = load::<u64>(txn, &pruned_key) else { return };
    if pruned.unwrap_or(0) < sequence {
        txn.put(&pruned_key, codec::encode(&sequence));
    }
    txn.delete(&key);
}

/// Which journals have which numbers, of the namespaces whose rows were written; and, each under its id as if that
/// were a namespace's, the accounts of which a device was added or revoked.
pub(super) fn notices(changes: &Changes) -> Vec<Notice> {
    let mut notices = Vec::new();
    for (key, value) in changes_of(changes, keys::namespaces()) {
        let row = value.as_ref().and_then(|value| codec::decode::<NamespaceRow>(value).ok());
        if let (Some(row), Some(namespace)) = (row, keys::namespace_id(key)) {
            notices.push(Notice { namespace, sequence: row.sequence });
        }
    }
    for (key, _row) in changes_of(changes, keys::all_devices()) {
        if let Some(account) = keys::account_of_device(key) {
            notices.push(Notice { namespace: NamespaceId::from_bytes(*account.as_bytes()), sequence: 0 });
        }
    }
    notices
}

fn changes_of(
    changes: &Changes,
    prefix: Vec<u8>,
) -> std::collections::btree_map::Range<'_, Vec<u8>, Option<Vec<u8>>> {
    let end = prefix_end(&prefix).unwrap_or_default();
    changes.range(prefix..end)
}
