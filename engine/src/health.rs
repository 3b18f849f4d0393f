//! How each disk behaves, learned from what calls to it became: answered, refused as busy, failed, or given up.
//! Nothing here waits or reads a clock: whoever calls says when things happened, on one clock that never goes back.
//!
//! Invariants:
//! - Reads and writes are judged apart: a disk whose writer hangs may still read.
//! - Busy is not broken: an answer "busy" never makes a disk [`DiskState::Gone`] while others of its calls are answered.
//! - A disk hangs if for [`HealthBounds::hung_after`] there were calls to it and not one was answered, given-up ones
//!   included. That is learned from the first call that waits so long, and held until something answers: work goes
//!   around the disk, and only probes ([`DiskHealth::probes_due`]) ask it.
//! - What is remembered is bounded: [`DISKS_MAX`] disks, [`DELAYS_MAX`] delays each.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::ids::DiskId;

/// Disks that are remembered; of further ones nothing is known.
pub const DISKS_MAX: usize = 16 * 1024;

/// Delays of the latest answers that are remembered, for each disk and kind.
pub const DELAYS_MAX: usize = 16;

/// Delays of the latest reads of all disks together.
const READ_DELAYS_MAX: usize = 256;

/// Fewer reads say nothing about a percentile.
const READ_DELAYS_MIN: usize = 32;

/// After so many reads it is worked out anew what the latest ones took: for each it was a hundredth of a small read's work.
const READS_PER_P99: usize = 16;

/// Calls that follow one another within this time count as one wait: hedged reads, and puts that come again.
const GAP_MAX: Duration = Duration::from_secs(2);

/// How long a disk that failed a call, or refused it, is left alone, unless the cluster map says more.
const FAILED_FOR: Duration = Duration::from_secs(2);

/// How often a disk that hangs is asked whether it still does.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Delays older than this say nothing about now: a disk that was slow is tried again.
const DELAY_AGE_MAX: Duration = Duration::from_secs(30);

/// A disk is slow if the median of its latest delays is this, and this many times the median of all disks' medians.
const SLOW_DELAY_MIN: Duration = Duration::from_millis(250);
const SLOW_FACTOR: u32 = 4;

/// Fewer delays say nothing about a disk.
const SLOW_DELAYS_MIN: usize = 4;

/// What a call asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CallKind {
    /// Bytes of a shard.
    Read,
    /// To store a shard.
    Write,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallEnd {
    /// The disk answered, whatever it said of the shard.
    Answered,
    /// Its queue is full: nothing was tried.
    Busy,
    /// The disk takes none of this kind (full, fenced, missing).
    Refused,
    /// The node did not answer, or said that the disk failed.
    Failed,
    /// The caller did not wait any longer.
    GivenUp,
}

/// What to do with a disk. In order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskState {
    /// Use it.
    Fine,
    /// It answers, late: use others if there are any, and wait for it if there are none.
    Slow,
    /// It failed a moment ago, or hangs: do without it.
    Gone,
}

/// How patient the judgement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthBounds {
    /// Without any answer for so long, while asked, a disk hangs.
    pub hung_after: Duration,
    /// Without any answer for so long, while asked, it is slow.
    pub slow_after: Duration,
}

impl HealthBounds {
    /// Those that fit callers which give a call up after `deadline`: a disk hangs a little before, so that the
    /// first one that gives up finds it known.
    #[must_use]
    pub fn for_deadline(deadline: Duration) -> Self {
        Self { hung_after: deadline * 9 / 10, slow_after: deadline / 4 }
    }
}

/// A disk that hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HungDisk {
    /// Which.
    pub disk: DiskId,
    /// Which calls it does not answer.
    pub kind: CallKind,
    /// Since when it has not answered any.
    pub since: Duration,
}

/// Calls of one kind to one disk.
#[derive(Debug, Default)]
struct Lane {
    pending: u32,
    /// Since when there have been calls, without a longer gap, none of which was answered.
    unanswered_since: Option<Duration>,
    /// When a call last began or ended.
    active: Duration,
    /// Whether it was found to hang, and since when it had not answered.
    hung: Option<Duration>,
    failed_until: Duration,
    probe_after: Duration,
    /// When they ended, and how long they took.
    delays: VecDeque<(Duration, Duration)>,
}

impl Lane {
    fn begin(&mut self, now: Duration) {
        let gap = self.pending == 0 && now.saturating_sub(self.active) > GAP_MAX;
        if gap || self.unanswered_since.is_none() {
            self.unanswered_since = Some(now);
        }
        self.pending = self.pending.saturating_add(1);
        self.active = now;
    }

    fn end(&mut self, now: Duration, began: Duration, end: CallEnd) {
        self.pending = self.pending.saturating_sub(1);
        self.active = now;
        match end {
            CallEnd::Busy | CallEnd::GivenUp => return,
            CallEnd::Answered => {
                self.failed_until = Duration::ZERO;
                self.delays.push_back((now, now.saturating_sub(began)));
                if self.delays.len() > DELAYS_MAX {
                    self.delays.pop_front();
                }
            }
            CallEnd::Refused | CallEnd::Failed => self.failed_until = now + FAILED_FOR,
        }
        self.hung = None;
        self.unanswered_since = (self.pending > 0).then_some(now);
    }

    /// How long it has been asked without any answer.
    fn silence(&self, now: Duration) -> Duration {
        let until = if self.pending > 0 { now } else { self.active };
        self.unanswered_since.map_or(Duration::ZERO, |since| until.saturating_sub(since))
    }

    /// Notes whether it hangs.
    fn look(&mut self, now: Duration, bounds: HealthBounds) {
        if self.hung.is_none() && self.silence(now) >= bounds.hung_after {
            self.hung = self.unanswered_since;
            self.probe_after = now + PROBE_EVERY;
        }
    }

    fn recent(&self, now: Duration) -> impl Iterator<Item = Duration> {
        let recent = self.delays.iter().filter(move |(at, _delay)| now.saturating_sub(*at) <= DELAY_AGE_MAX);
        recent.map(|(_at, delay)| *delay)
    }

    /// The middle of its latest delays, if there are enough.
    fn delay(&self, now: Duration) -> Option<Duration> {
        let mut delays: Vec<Duration> = self.recent(now).collect();
        if delays.len() < SLOW_DELAYS_MIN {
            return None;
        }
        delays.sort_unstable();
        delays.get(delays.len() / 2).copied()
    }

    /// Whether that is `least` or more: what is asked of each disk for each read.
    fn is_delayed(&self, now: Duration, least: Duration) -> bool {
        let (all, below) = self
            .recent(now)
            .fold((0, 0), |(all, below), delay| (all + 1, below + usize::from(delay < least)));
        all >= SLOW_DELAYS_MIN && below <= all / 2
    }
}

/// What is known of all disks.
#[derive(Debug)]
pub struct DiskHealth {
    bounds: HealthBounds,
    lanes: BTreeMap<(CallKind, DiskId), Lane>,
    read_delays: VecDeque<Duration>,
    read_delay_p99: Option<Duration>,
    reads_since_p99: usize,
}

impl DiskHealth {
    /// Of disks of which nothing is known yet.
    #[must_use]
    pub fn new(bounds: HealthBounds) -> Self {
        Self {
            bounds,
            lanes: BTreeMap::new(),
            read_delays: VecDeque::new(),
            read_delay_p99: None,
            reads_since_p99: 0,
        }
    }

    /// Changes the bounds; what was learned stays.
    pub fn set_bounds(&mut self, bounds: HealthBounds) {
        self.bounds = bounds;
    }

    fn lane(&mut self, disk: DiskId, kind: CallKind) -> Option<&mut Lane> {
        let key = (kind, disk);
        if self.lanes.len() >= 2 * DISKS_MAX && !self.lanes.contains_key(&key) {
            self.lanes.retain(|_key, lane| lane.pending > 0 || lane.hung.is_some());
            if self.lanes.len() >= 2 * DISKS_MAX {
                return None;
            }
        }
        Some(self.lanes.entry(key).or_default())
    }

    /// Forgets what is known of a disk: its node serves it anew, and it is judged by what comes from now on.
    pub fn forget(&mut self, disk: DiskId) {
        for kind in [CallKind::Read, CallKind::Write] {
            if let Some(lane) = self.lanes.get_mut(&(kind, disk)) {
                // Calls of before are still to end.
                *lane = Lane { pending: lane.pending, ..Lane::default() };
            }
        }
    }

    /// A call begins.
    pub fn begin(&mut self, now: Duration, disk: DiskId, kind: CallKind) {
        if let Some(lane) = self.lane(disk, kind) {
            lane.begin(now);
        }
    }

    /// A call that began at `began` is over. To be told of every call that began, given-up ones included.
    pub fn end(&mut self, now: Duration, disk: DiskId, kind: CallKind, began: Duration, end: CallEnd) {
        let bounds = self.bounds;
        if let Some(lane) = self.lane(disk, kind) {
            if matches!(end, CallEnd::Busy | CallEnd::GivenUp) {
                lane.look(now, bounds);
            }
            lane.end(now, began, end);
        }
        if end == CallEnd::Failed {
            // A node that is not there takes neither.
            let other = if kind == CallKind::Read { CallKind::Write } else { CallKind::Read };
            if let Some(lane) = self.lane(disk, other) {
                lane.failed_until = now + FAILED_FOR;
            }
        }
        if end == CallEnd::Answered && kind == CallKind::Read {
            self.read_took(now.saturating_sub(began));
        }
    }

    /// What to do with a disk now.
    pub fn state(&mut self, now: Duration, disk: DiskId, kind: CallKind) -> DiskState {
        let bounds = self.bounds;
        let Some(lane) = self.lanes.get_mut(&(kind, disk)) else { return DiskState::Fine };
        lane.look(now, bounds);
        if lane.hung.is_some() || now < lane.failed_until {
            return DiskState::Gone;
        }
        // A silence that ended without an answer is forgotten after a while: the disk is tried again.
        let asked = lane.pending > 0 || now.saturating_sub(lane.active) <= DELAY_AGE_MAX;
        let silent = lane.silence(now) >= bounds.slow_after;
        let delay = lane.is_delayed(now, SLOW_DELAY_MIN).then(|| lane.delay(now)).flatten();
        let late = delay.is_some_and(|delay| self.is_late(now, kind, delay));
        if (silent && asked) || late { DiskState::Slow } else { DiskState::Fine }
    }

    /// Whether so late an answer is unusual among the disks.
    fn is_late(&self, now: Duration, kind: CallKind, delay: Duration) -> bool {
        let of_kind = self.lanes.iter().filter(|((of, _disk), _lane)| *of == kind);
        let mut delays: Vec<Duration> = of_kind.filter_map(|(_key, lane)| lane.delay(now)).collect();
        delays.sort_unstable();
        delays.get(delays.len() / 2).is_some_and(|middle| delay >= *middle * SLOW_FACTOR)
    }

    /// Whether a call that has waited until now waits for a disk that hangs, not for one that answers others.
    pub fn hangs(&mut self, now: Duration, disk: DiskId, kind: CallKind) -> bool {
        let bounds = self.bounds;
        self.lanes.get_mut(&(kind, disk)).is_some_and(|lane| {
            lane.look(now, bounds);
            lane.hung.is_some()
        })
    }

    /// The disks that hang.
    pub fn hung(&mut self, now: Duration) -> Vec<HungDisk> {
        let bounds = self.bounds;
        let hung = self.lanes.iter_mut().filter_map(|((kind, disk), lane)| {
            lane.look(now, bounds);
            Some(HungDisk { disk: *disk, kind: *kind, since: lane.hung? })
        });
        hung.collect()
    }

    /// Those of them that are to be asked now whether they still hang: each every few seconds, one call at a time.
    pub fn probes_due(&mut self, now: Duration) -> Vec<(DiskId, CallKind)> {
        let mut due = Vec::new();
        for ((kind, disk), lane) in &mut self.lanes {
            if lane.hung.is_some() && lane.pending == 0 && now >= lane.probe_after {
                lane.probe_after = now + PROBE_EVERY;
                due.push((*disk, *kind));
            }
        }
        due
    }

    fn read_took(&mut self, delay: Duration) {
        self.read_delays.push_back(delay);
        if self.read_delays.len() > READ_DELAYS_MAX {
            self.read_delays.pop_front();
        }
        self.reads_since_p99 += 1;
        if self.read_delays.len() < READ_DELAYS_MIN || self.reads_since_p99 < READS_PER_P99 {
            return;
        }
        self.reads_since_p99 = 0;
        let mut delays: Vec<Duration> = self.read_delays.iter().copied().collect();
        let rank = delays.len() * 99 / 100;
        let (_less, p99, _more) = delays.select_nth_unstable(rank);
        self.read_delay_p99 = Some(*p99);
    }

    /// The delay that 99 of 100 of the latest reads did not exceed, if there were enough of them. Some reads old.
    #[must_use]
    pub fn read_delay_p99(&self) -> Option<Duration> {
        self.read_delay_p99
    }
}

#[cfg(test)]
mod tests;
