//! Scrubbing: every indexed record is read from the medium and verified, in the order in which it lies there.
//!
//! Invariants:
//! - A record that cannot be read is damaged like one that does not verify; the scrub goes on behind it.
//! - A record counts as damaged only if the index still leads to it after it failed.
//! - The buffer is fixed ([`crate::reader::PIECE_BYTES`]), and the index is read a page at a time.
//! - The background scrub reads at most its rate, and goes on after a restart where it was. When its next pass is due is
//!   counted in time that the disk was served: a clock that jumps neither puts a pass off nor begins those of all disks
//!   at once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use engine::store::ShardLoss;
use tokio::sync::{mpsc, oneshot};

use crate::config::ScrubConfig;
use crate::disk_core::Core;
use crate::index::{IndexError, Row};
use crate::reader::{ReadFault, verify_record};
use crate::record::{Place, ShardName, record_bytes};
use crate::writer::Work;

const PAGE_COUNT: usize = 256;

/// The background scrub notes where it is after so many bytes.
const CURSOR_BYTES: u64 = 64 * 1024 * 1024;

/// How often an idle background scrub looks whether the next pass is due.
const IDLE: Duration = Duration::from_secs(60);

/// An idle background scrub notes how long it has waited after so long.
const IDLE_NOTED: Duration = Duration::from_secs(3600);

/// One record, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) place: Place,
    pub(crate) bytes: u64,
    pub(crate) damaged: bool,
}

/// How a scrub of one disk ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ScrubEnd {
    /// Every record was checked.
    Complete,
    /// It was told to stop.
    Stopped,
    /// The disk is out of service, for this reason.
    Refused(String),
}

/// Tells the writer that the record of a row is damaged or unreadable, and waits until that is counted. Blocks.
pub(crate) fn report_damage(work: &mpsc::Sender<Work>, name: ShardName, row: Row, loss: ShardLoss) {
    let (answer, counted) = oneshot::channel();
    let unreadable = loss == ShardLoss::Unreadable;
    let told = work.blocking_send(Work::MarkDamaged { name, row, unreadable, answer });
    if told.is_ok() && counted.blocking_recv().is_err() {
        tracing::debug!("the node stopped before a damaged shard was counted; it will be found again");
    }
}

/// Has the writer finish a deletion that a crash cut short, and waits until it has. Blocks.
pub(crate) fn finish_deletion(work: &mpsc::Sender<Work>, name: ShardName, row: Row) {
    let (answer, finished) = oneshot::channel();
    if work.blocking_send(Work::Forget { name, row, answer }).is_ok() && finished.blocking_recv().is_err() {
        tracing::debug!("the node stopped before a deletion was finished; it will be met again");
    }
}

/// Checks one record; `None` if it is there no more.
fn check(
    core: &Core,
    work: &mpsc::Sender<Work>,
    name: ShardName,
    place: Place,
) -> Result<Option<Checked>, String> {
    let index_failed = |error: IndexError| {
        core.index_failed(&error);
        error.to_string()
    };
    let row = match core.index.row(name).map_err(index_failed)? {
        Some(row) if row.place == place => row,
        _moved => return Ok(None),
    };
    let bytes = record_bytes(row.payload_length);
    match verify_record(&core.extents, name, &row) {
        Ok(()) => Ok(Some(Checked { place, bytes, damaged: false })),
        Err(ReadFault::Gone) => {
            finish_deletion(work, name, row);
            Ok(None)
        }
        Err(fault @ (ReadFault::Damaged(_) | ReadFault::Io(_))) => {
            if core.index.row(name).map_err(index_failed)? != Some(row) {
                return Ok(None);
            }
            report_damage(work, name, row, fault.loss());
            Ok(Some(Checked { place, bytes, damaged: true }))
        }
    }
}

/// Checks every record behind `after`, and calls `each` with it until that answers false. Blocks.
pub(crate) fn scrub_disk(
    core: &Core,
    work: &mpsc::Sender<Work>,
    after: Place,
    stopping: &AtomicBool,
    mut each: impl FnMut(Checked) -> bool,
) -> ScrubEnd {
    let mut after = after;
    loop {
        if let Some(reason) = core.refuses_reads() {
            return ScrubEnd::Refused(reason);
        }
        let page = match core.index.list_by_place(after, PAGE_COUNT) {
            Ok(page) => page,
            Err(error) => {
                core.index_failed(&error);
                return ScrubEnd::Refused(error.to_string());
            }
        };
        let Some((last, _)) = page.last() else { return ScrubEnd::Complete };
        after = *last;
        for (place, name) in page {
            if stopping.load(Ordering::Relaxed) {
                return ScrubEnd::Stopped;
            }
            match check(core, work, name, place) {
                Ok(Some(checked)) if !each(checked) => return ScrubEnd::Stopped,
                Ok(_checked_or_gone) => {}
                Err(reason) => return ScrubEnd::Refused(reason),
            }
        }
    }
}

/// The background scrub of one disk: runs until `stop` is dropped, and rests while the disk is out of service.
pub(crate) fn scrub_for_ever(
    core: &Core,
    work: &mpsc::Sender<Work>,
    config: &ScrubConfig,
    stopping: &AtomicBool,
    stop: &Receiver<()>,
) {
    let Ok(mut cursor) = core.index.scrub_cursor() else { return };
    let interval_ms = u64::try_from(config.interval.as_millis()).unwrap_or(u64::MAX);
    let mut next = Countdown::new(cursor.next_in_ms.min(interval_ms), Instant::now());
    loop {
        if cursor.checked == Place::default() {
            let mut noted = Instant::now();
            while next.left_ms(Instant::now()) > 0 {
                if stop.recv_timeout(IDLE) != Err(RecvTimeoutError::Timeout) {
                    cursor.next_in_ms = next.left_ms(Instant::now());
                    drop(work.blocking_send(Work::SetScrubCursor(cursor)));
                    return;
                }
                if noted.elapsed() >= IDLE_NOTED {
                    noted = Instant::now();
                    cursor.next_in_ms = next.left_ms(noted);
                    drop(work.blocking_send(Work::SetScrubCursor(cursor)));
                }
            }
            next = Countdown::new(interval_ms, Instant::now());
        }
        let mut pace = Pace::new(config.bytes_per_second);
        let mut noted_bytes = 0;
        let end = scrub_disk(core, work, cursor.checked, stopping, |checked| {
            noted_bytes += checked.bytes;
            cursor.checked = checked.place;
            cursor.next_in_ms = next.left_ms(Instant::now());
            if noted_bytes >= CURSOR_BYTES {
                noted_bytes = 0;
                drop(work.blocking_send(Work::SetScrubCursor(cursor)));
            }
            pace.wait(checked.bytes, stop)
        });
        if end == ScrubEnd::Complete {
            cursor.checked = Place::default();
        }
        cursor.next_in_ms = next.left_ms(Instant::now());
        drop(work.blocking_send(Work::SetScrubCursor(cursor)));
        match end {
            ScrubEnd::Complete => {}
            ScrubEnd::Stopped => return,
            // It may serve again: once its index is rebuilt.
            ScrubEnd::Refused(_) if stop.recv_timeout(IDLE) == Err(RecvTimeoutError::Timeout) => {}
            ScrubEnd::Refused(_) => return,
        }
    }
}

/// Counts time down that passes here, by the monotonic clock.
struct Countdown {
    left_ms: u64,
    since: Instant,
}

impl Countdown {
    fn new(left_ms: u64, now: Instant) -> Self {
        Self { left_ms, since: now }
    }

    fn left_ms(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.since).as_millis();
        self.left_ms.saturating_sub(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

/// Holds a reader to a rate.
struct Pace {
    bytes_per_second: u64,
    began: Instant,
    bytes: u64,
}

impl Pace {
    fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), began: Instant::now(), bytes: 0 }
    }

    /// Waits as long as `bytes` should take; false if told to stop meanwhile.
    fn wait(&mut self, bytes: u64, stop: &Receiver<()>) -> bool {
        self.bytes += bytes;
        let due_ms = self.bytes.saturating_mul(1000) / self.bytes_per_second;
        let due = Duration::from_millis(due_ms).saturating_sub(self.began.elapsed());
        stop.recv_timeout(due) == Err(RecvTimeoutError::Timeout)
    }
}

#[cfg(test)]
mod tests;
