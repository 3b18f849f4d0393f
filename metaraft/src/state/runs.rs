//! The runs of a journal: which of its numbers were issued in which leader's reign.
//!
//! A metadata cluster that goes back to an older state (a restored copy of its disks, a machine that was rolled back)
//! issues numbers, ids of entries and versions again, for other things. Whoever has followed the journal further than to
//! the point of return knows of a history that is not this one's, even if the numbers agree by now. The runs tell.
//!
//! Invariants:
//! - Runs are ascending, no two neighbours are of one reign, and each number since the record began is of the last run
//!   that begins at it or before.
//! - At most [`RUNS_MAX`] are kept; of a number before the oldest one that is kept nothing can be said.
//! - A number that is said to be common to two histories was issued by both for the same change.

use engine::ids::NamespaceId;

use super::keys;
use super::rows::RunsRow;
use super::txn::{Group, decode_row, load};
use crate::kv::{KeyRange, Read};
use crate::model::command::StepError;
use crate::model::journal::{JournalRun, RUNS_TOLD_MAX, Seen};
use crate::model::outcome::StepOutcome;

/// Runs of one journal that are kept.
const RUNS_MAX: u32 = 1024;

/// What somebody's place in a journal is to the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum History {
    /// It lies on it.
    Same,
    /// It does not. Up to this number both are the same; 0 if that is not known.
    Parted(u64),
}

impl Group<'_, '_> {
    /// Notes in whose reign a journal's next number is issued.
    pub(super) fn note_run(&mut self, namespace: NamespaceId, number: u64) -> Result<(), StepError> {
        if self.run_noted == Some(namespace) {
            return Ok(());
        }
        let key = keys::journal_runs(namespace);
        let known: Option<RunsRow> = self.get(&key)?;
        let reign = self.reign;
        let latest = JournalRun { first: number, reign };
        match known {
            Some(known) if known.latest.reign == reign => {}
            None if reign.mark == 0 => {}
            None => {
                self.put(&keys::journal_run(namespace, number), &latest);
                self.put(&key, &RunsRow { latest, begun: number, count: 1 });
            }
            Some(known) => {
                self.put(&keys::journal_run(namespace, number), &latest);
                let full = known.count >= RUNS_MAX;
                if full && let Some(oldest) = self.first_key(&keys::journal_run_all(namespace)) {
                    self.delete(&oldest);
                }
                let count = if full { known.count } else { known.count + 1 };
                self.put(&key, &RunsRow { latest, count, ..known });
            }
        }
        self.run_noted = Some(namespace);
        Ok(())
    }

    /// Refuses what rests on another history of a journal than its own.
    pub(super) fn journal_guard(
        &mut self,
        namespace: NamespaceId,
        seen: &Seen,
    ) -> Result<StepOutcome, StepError> {
        let present = self.namespace(namespace)?.sequence;
        match history(self.rows(), namespace, present, seen)? {
            History::Same => {
                let known: Option<RunsRow> = self.get(&keys::journal_runs(namespace))?;
                Ok(StepOutcome::JournalAt { number: present, run: known.map(|known| known.latest) })
            }
            History::Parted(_) => Err(StepError::Changed {
                what: "the server's history, which went back to an older state,".to_owned(),
            }),
        }
    }
}

/// The runs up to a number, the latest first, at most [`RUNS_TOLD_MAX`].
pub(super) fn runs_to(
    rows: &impl Read,
    namespace: NamespaceId,
    number: u64,
) -> Result<Vec<JournalRun>, StepError> {
    let end = keys::journal_run(namespace, number.saturating_add(1));
    let range = KeyRange::between(&keys::journal_run_all(namespace), &end);
    rows.scan_reverse(&range, RUNS_TOLD_MAX).iter().map(|(key, bytes)| decode_row(key, bytes)).collect()
}

/// Whether what somebody has seen of a journal is of its own history. It is at `present`.
pub(super) fn history(
    rows: &impl Read,
    namespace: NamespaceId,
    present: u64,
    seen: &Seen,
) -> Result<History, StepError> {
    let Some(told) = &seen.runs else {
        // Of before runs were recorded.
        return Ok(if seen.number > present { History::Parted(0) } else { History::Same });
    };
    let Some(newest) = told.first() else {
        let known: Option<RunsRow> = load(rows, &keys::journal_runs(namespace))?;
        let recorded = known.is_some_and(|known| known.begun <= seen.number);
        return Ok(if seen.number > present || recorded { History::Parted(0) } else { History::Same });
    };
    let mut told_to = seen.number;
    for run in told {
        if let Some(to) = end_of_run(rows, namespace, present, *run)? {
            let common = told_to.min(to);
            let same = run == newest && common == seen.number;
            return Ok(if same { History::Same } else { History::Parted(common) });
        }
        told_to = run.first.saturating_sub(1);
    }
    Ok(History::Parted(0))
}

/// The last number of a run, if the journal has it.
fn end_of_run(
    rows: &impl Read,
    namespace: NamespaceId,
    present: u64,
    run: JournalRun,
) -> Result<Option<u64>, StepError> {
    let key = keys::journal_run(namespace, run.first);
    if load::<JournalRun>(rows, &key)? != Some(run) {
        return Ok(None);
    }
    let later = rows.scan(&KeyRange::prefix_after(&keys::journal_run_all(namespace), &key), 1);
    let next: Option<JournalRun> = later.first().map(|(key, bytes)| decode_row(key, bytes)).transpose()?;
    Ok(Some(next.map_or(present, |next| next.first.saturating_sub(1))))
}
