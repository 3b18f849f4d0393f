//! One command's work on one group: typed rows over the transaction, the leader's time, and slot ownership.
//!
//! Invariants:
//! - A row that cannot be decoded refuses the command; it is never taken for an absent one.
//! - Sums and owned slots are read once, changed in memory and written at the end of the command, or not at all.

use engine::ids::{GroupId, NamespaceId, SlotId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::conditional::SeenRows;
use super::keys;
use super::rows::{OwnedSlotsRow, SumsRow};
use super::walks::Walks;
use crate::app::{LogTime, Made};
use crate::kv::{KeyRange, Read, Txn};
use crate::model::codec::{self, DecodeError};
use crate::model::command::StepError;
use crate::model::journal::Reign;
use crate::model::row::NamespaceRow;

/// How long a mark is kept that refuses late steps of an operation. All steps of one are named after one request,
/// and requests are refused once they are older than [`crate::model::REQUEST_MEMORY_MS`]; twice that leaves room
/// for clocks that differ between groups.
pub(super) const MARK_MEMORY_MS: u64 = 2 * crate::model::REQUEST_MEMORY_MS;

/// A command's view of its group.
pub(super) struct Group<'t, 'v> {
    /// Which group.
    pub group: GroupId,
    /// The log's time.
    pub time_ms: u64,
    /// The voters' clocks together: for people.
    pub wall_ms: u64,
    /// In whose reign the command was proposed.
    pub reign: Reign,
    /// The journal whose latest run is known to be of this reign.
    pub run_noted: Option<NamespaceId>,
    /// The group's sums.
    pub sums: SumsRow,
    /// What conditional deletions have read, and how much they and walks have.
    pub seen: SeenRows,
    /// What walks have learned.
    pub walks: Walks,
    txn: &'t mut Txn<'v>,
    owned: OwnedSlotsRow,
    before: (SumsRow, OwnedSlotsRow),
}

fn damaged(key: &[u8], error: &DecodeError) -> StepError {
    let table = key.first().copied().unwrap_or(0);
    tracing::error!(table, error = %error, "a row of the state database cannot be decoded");
    StepError::Invalid { why: format!("a row of table {table} cannot be decoded: {error}") }
}

/// The row at `key`.
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn load<T: DeserializeOwned>(from: &impl Read, key: &[u8]) -> Result<Option<T>, StepError> {
    from.get(key).map(|bytes| decode_row(key, &bytes)).transpose()
}

/// Decodes the row that was found at `key`.
///
/// # Errors
/// If it cannot be decoded.
pub(super) fn decode_row<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StepError> {
    codec::decode(bytes).map_err(|error| damaged(key, &error))
}

/// Something that is not there.
pub(super) fn not_found(what: &str) -> StepError {
    StepError::NotFound { what: what.to_owned() }
}

/// Something that can never be right.
pub(super) fn invalid(why: impl Into<String>) -> StepError {
    StepError::Invalid { why: why.into() }
}

impl<'t, 'v> Group<'t, 'v> {
    /// Begins a command.
    ///
    /// # Errors
    /// If the group's own rows cannot be decoded.
    pub(super) fn begin(group: GroupId, made: Made, txn: &'t mut Txn<'v>) -> Result<Self, StepError> {
        let sums: SumsRow = load(txn, &keys::group_sums())?.unwrap_or_default();
        let owned: OwnedSlotsRow = load(txn, &keys::owned_slots())?.unwrap_or_default();
        let (seen, walks) = (SeenRows::default(), Walks::default());
        let Made { time: LogTime { time_ms, wall_ms }, reign } = made;
        let before = (sums, owned.clone());
        Ok(Self { group, time_ms, wall_ms, reign, run_noted: None, sums, seen, walks, txn, owned, before })
    }

    /// Ends a command that went through.
    pub(super) fn finish(self) {
        let (sums, owned) = self.before;
        if self.sums != sums {
            self.txn.put(&keys::group_sums(), codec::encode(&self.sums));
        }
        if self.owned != owned {
            self.txn.put(&keys::owned_slots(), codec::encode(&self.owned));
        }
    }

    /// Runs some of a command's steps; if they fail, nothing that they did remains.
    pub(super) fn attempt<T>(
        &mut self,
        steps: impl FnOnce(&mut Self) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let (savepoint, sums, owned) = (self.txn.savepoint(), self.sums, self.owned.clone());
        let result = steps(self);
        if result.is_err() {
            // Where nothing was written, the tree is as it was walked.
            if self.txn.savepoint() != savepoint {
                self.walks.forget();
            }
            self.txn.rollback(savepoint);
            self.sums = sums;
            self.owned = owned;
            self.seen.forget();
            self.run_noted = None;
        }
        result
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StepError> {
        load(self.txn, key)
    }

    /// All rows, as this command sees them.
    pub(super) fn rows(&self) -> &Txn<'v> {
        self.txn
    }

    pub(super) fn contains(&self, key: &[u8]) -> bool {
        self.txn.contains(key)
    }

    pub(super) fn put<T: Serialize>(&mut self, key: &[u8], row: &T) {
        self.txn.put(key, codec::encode(row));
    }

    pub(super) fn delete(&mut self, key: &[u8]) {
        self.txn.delete(key);
    }

    /// Up to `limit` rows under `prefix`, in order.
    pub(super) fn scan<T: DeserializeOwned>(&self, prefix: &[u8], limit: usize) -> Result<Vec<T>, StepError> {
        self.scan_range(&KeyRange::prefix(prefix), limit)
    }

    pub(super) fn scan_range<T: DeserializeOwned>(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<T>, StepError> {
        self.txn.scan(range, limit).iter().map(|(key, bytes)| decode_row(key, bytes)).collect()
    }

    /// Up to `limit` rows of `range`, the last one first.
    pub(super) fn scan_range_reverse<T: DeserializeOwned>(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<T>, StepError> {
        self.txn.scan_reverse(range, limit).iter().map(|(key, bytes)| decode_row(key, bytes)).collect()
    }

    /// Up to `limit` rows of `range`, in order, with their keys.
    pub(super) fn scan_keys(&self, range: &KeyRange, limit: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
        self.txn.scan(range, limit)
    }

    /// The key of the first row under `prefix`.
    pub(super) fn first_key(&self, prefix: &[u8]) -> Option<Vec<u8>> {
        self.txn.scan(&KeyRange::prefix(prefix), 1).pop().map(|(key, _)| key)
    }

    /// Leaves a mark at `key` that goes by itself after [`MARK_MEMORY_MS`].
    pub(super) fn mark(&mut self, key: &[u8]) {
        if !self.contains(key) {
            let time_ms = self.time_ms;
            self.put(key, &());
            self.put(&keys::expiry(time_ms, key), &());
        }
    }

    /// Refuses what belongs to another group.
    pub(super) fn own(&self, slot: SlotId) -> Result<(), StepError> {
        if self.owned.contains(slot) { Ok(()) } else { Err(StepError::NotOwner { slot }) }
    }

    /// Takes a run of slots.
    pub(super) fn adopt(&mut self, first: SlotId, last: SlotId) {
        self.owned.add(first, last);
    }

    /// A namespace that this group owns.
    pub(super) fn namespace(&self, namespace: NamespaceId) -> Result<NamespaceRow, StepError> {
        self.own(namespace.slot())?;
        self.get(&keys::namespace(namespace))?.ok_or_else(|| not_found("namespace"))
    }

    pub(super) fn put_namespace(&mut self, namespace: NamespaceId, row: &NamespaceRow) {
        self.put(&keys::namespace(namespace), row);
    }
}
