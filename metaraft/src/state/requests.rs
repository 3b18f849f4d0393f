//! The memory of requests: an id is applied once, and a repetition gives the first answer.
//!
//! Invariants:
//! - An outcome is kept at least as long as its request would be taken: what is too old to be remembered is refused.
//! - Each command removes a bounded number of what has become too old, the same on every replica.

use engine::ids::RequestId;

use super::journal;
use super::keys::{self, Table};
use super::rows::SumsRow;
use super::txn::{MARK_MEMORY_MS, load};
use crate::kv::{KeyRange, Read, Txn};
use crate::model::codec;
use crate::model::{REQUEST_AHEAD_MS, REQUEST_MEMORY_MS};

/// Rows of each kind that one command removes at most.
const SWEEP_ROWS_MAX: usize = 64;

/// How long nothing need be looked for after nothing more was found.
const SWEEP_PAUSE_MS: u64 = 1000;

/// Whether the request is too old to be remembered, or too far ahead to have been made.
pub(super) fn out_of_time(request: RequestId, time_ms: u64) -> bool {
    let made_ms = request.time_ms();
    made_ms < time_ms.saturating_sub(REQUEST_MEMORY_MS) || made_ms > time_ms.saturating_add(REQUEST_AHEAD_MS)
}

/// The first answer to a request, encoded.
pub(super) fn remembered(txn: &Txn<'_>, request: RequestId) -> Option<Vec<u8>> {
    txn.get(&keys::request(request))
}

/// Keeps the answer to a request.
pub(super) fn remember(txn: &mut Txn<'_>, request: RequestId, outcome: Vec<u8>) {
    txn.put(&keys::request(request), outcome);
}

/// Removes some of what is too old.
pub(super) fn sweep(txn: &mut Txn<'_>, time_ms: u64) {
    let key = keys::group_sums();
    // A row that cannot be decoded is reported by the command that follows.
    let Ok(sums) = load::<SumsRow>(txn, &key).map(Option::unwrap_or_default) else { return };
    if time_ms < sums.sweep_ms {
        return;
    }
    let requests_end = keys::requests_from(time_ms.saturating_sub(REQUEST_MEMORY_MS));
    let requests = txn.scan(&KeyRange::between(&keys::table(Table::Request), &requests_end), SWEEP_ROWS_MAX);
    let marks_end = keys::expiries_from(time_ms.saturating_sub(MARK_MEMORY_MS));
    let marks = txn.scan(&KeyRange::between(&keys::table(Table::Expiry), &marks_end), SWEEP_ROWS_MAX);
    for (key, _) in &requests {
        txn.delete(key);
    }
    for (key, _) in &marks {
        if let Some(marked) = keys::expiry_marked(key) {
            txn.delete(marked);
        }
        txn.delete(key);
    }
    let more_tombstones = journal::prune(txn, time_ms);
    if requests.len() < SWEEP_ROWS_MAX && marks.len() < SWEEP_ROWS_MAX && !more_tombstones {
        let sums = SumsRow { sweep_ms: time_ms.saturating_add(SWEEP_PAUSE_MS), ..sums };
        txn.put(&key, codec::encode(&sums));
    }
}
