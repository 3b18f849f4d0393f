//! The memory of requests: an id is applied once, and a repetition gives the first answer, if it asks for the same.
//!
//! Invariants:
//! - An outcome is kept at least as long as its request would be taken: what is too old to be remembered is refused.
//! - A request's time may be by the wall clock or by the log, whichever way the two differ: no clock that was wrong, and
//!   no log that runs behind or ahead, keeps one from being taken that was made by a clock that is right.
//! - Each command removes a bounded number of what has become too old, the same on every replica.

use engine::ids::RequestId;

use super::journal;
use super::keys::{self, Table};
use super::rows::SumsRow;
use super::txn::{MARK_MEMORY_MS, load};
use crate::app::LogTime;
use crate::kv::{KeyRange, Read, Txn};
use crate::model::codec;
use crate::model::command::StepError;
use crate::model::request_key::Payload;
use crate::model::{REQUEST_AHEAD_MS, REQUEST_MEMORY_MS};

/// Rows of each kind that one command removes at most, and bytes of them (but at least one row).
const SWEEP_ROWS_MAX: usize = 64;
pub(super) const SWEEP_BYTES_MAX: usize = 1024 * 1024;

/// How long nothing need be looked for after nothing more was found.
const SWEEP_PAUSE_MS: u64 = 1000;

/// Before when outcomes are too old to be kept: requests of then are taken neither by the log's time nor by the wall's.
fn floor_ms(sums: &SumsRow, time: LogTime) -> u64 {
    let floor_ms = time.time_ms.min(time.wall_ms).saturating_sub(REQUEST_MEMORY_MS);
    floor_ms.max(sums.requests_floor_ms)
}

/// Whether a request of which nothing is remembered is too old for that, or too far ahead to have been made.
pub(super) fn out_of_time(txn: &Txn<'_>, request: RequestId, time: LogTime) -> bool {
    // A row that cannot be decoded is reported by the command that follows.
    let sums = load::<SumsRow>(txn, &keys::group_sums()).ok().flatten().unwrap_or_default();
    let made_ms = request.time_ms();
    let of_today = |now_ms: u64| {
        let oldest_ms = now_ms.saturating_sub(REQUEST_MEMORY_MS);
        (oldest_ms..=now_ms.saturating_add(REQUEST_AHEAD_MS)).contains(&made_ms)
    };
    made_ms < sums.requests_floor_ms || !(of_today(time.time_ms) || of_today(time.wall_ms))
}

/// The first answer to a request, encoded, or why there is none for this repetition: it asks for something else.
pub(super) fn remembered(
    txn: &Txn<'_>,
    request: RequestId,
    payload: Payload,
) -> Option<Result<Vec<u8>, StepError>> {
    let row = txn.get(&keys::request(request))?;
    // A row that is too short is nobody's.
    Some(match row.split_at_checked(Payload::LENGTH) {
        Some((asked, outcome)) if asked == payload.0 => Ok(outcome.to_vec()),
        _ => Err(StepError::RequestReused),
    })
}

/// Keeps the answer to a request, behind what it asked for.
pub(super) fn remember(txn: &mut Txn<'_>, request: RequestId, payload: Payload, outcome: &[u8]) {
    txn.put(&keys::request(request), [payload.0.as_slice(), outcome].concat());
}

/// Removes some of what is too old.
pub(super) fn sweep(txn: &mut Txn<'_>, time: LogTime) {
    let time_ms = time.time_ms;
    let key = keys::group_sums();
    // A row that cannot be decoded is reported by the command that follows.
    let Ok(sums) = load::<SumsRow>(txn, &key).map(Option::unwrap_or_default) else { return };
    if time_ms < sums.sweep_ms {
        return;
    }
    let requests_floor_ms = floor_ms(&sums, time);
    let requests_end = keys::requests_from(requests_floor_ms);
    let requests = KeyRange::between(&keys::table(Table::Request), &requests_end);
    let (requests, more_requests) = txn.keys_within(&requests, SWEEP_ROWS_MAX, SWEEP_BYTES_MAX);
    let marks_end = keys::expiries_from(time_ms.saturating_sub(MARK_MEMORY_MS));
    let marks = KeyRange::between(&keys::table(Table::Expiry), &marks_end);
    let (marks, more_marks) = txn.keys_within(&marks, SWEEP_ROWS_MAX, SWEEP_BYTES_MAX);
    for key in &requests {
        txn.delete(key);
    }
    for key in &marks {
        if let Some(marked) = keys::expiry_marked(key) {
            txn.delete(marked);
        }
        txn.delete(key);
    }
    let more_tombstones = journal::prune(txn, time_ms);
    let done = !more_requests && !more_marks && !more_tombstones;
    let sweep_ms = if done { time_ms.saturating_add(SWEEP_PAUSE_MS) } else { sums.sweep_ms };
    txn.put(&key, codec::encode(&SumsRow { sweep_ms, requests_floor_ms, ..sums }));
}
