//! How long real writes of stripes took lately, by size, in this cluster as it is now: what is there already is
//! acknowledged as late as what was written, so that time does not tell whether anybody else has it (promise 6).
//!
//! Invariants:
//! - A time is drawn only from writes of about the same size, of the last [`AGE_MAX`], of whoever, that all went
//!   through while the cluster took writes as it does now. Without enough of them there is none: then the write itself
//!   is done, and its time counted.
//! - Once a write has failed, none is drawn until writes go through again: what a real write would be refused for, is
//!   refused.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Times that are drawn from.
const SAMPLES_MAX: usize = 32;

/// Fewer are no distribution.
const SAMPLES_MIN: usize = 8;

/// Older ones say nothing about now.
const AGE_MAX: Duration = Duration::from_secs(10);

/// Size classes within a doubling.
const CLASSES_PER_DOUBLING: u64 = 4;

/// How long a write took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WriteTime {
    /// Until its shards were durable.
    pub(crate) durable: Duration,
    /// Until it was registered as well.
    pub(crate) whole: Duration,
}

/// The latest write times.
#[derive(Debug, Default)]
pub(crate) struct WriteTimes {
    /// What the cluster was like when they were taken.
    cluster: u64,
    classes: BTreeMap<u64, VecDeque<(Instant, WriteTime)>>,
}

/// Sizes that differ by less than a fifth, about, share a class; there are some hundred.
fn class(bytes: usize) -> u64 {
    let bytes = bytes.max(1) as u64;
    let doublings = u64::from(bytes.ilog2());
    let part = ((bytes - (1 << doublings)) * CLASSES_PER_DOUBLING) >> doublings;
    doublings * CLASSES_PER_DOUBLING + part
}

impl WriteTimes {
    /// Forgets everything if the cluster is not what it was.
    fn follow(&mut self, cluster: u64) {
        if self.cluster != cluster {
            self.classes.clear();
            self.cluster = cluster;
        }
    }

    /// A stripe of so many bytes was written and registered, in a cluster that was like this (any number that differs
    /// where writes may) before and after.
    pub(crate) fn wrote(&mut self, now: Instant, cluster: u64, bytes: usize, took: WriteTime) {
        self.follow(cluster);
        let samples = self.classes.entry(class(bytes)).or_default();
        samples.push_back((now, took));
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    /// A write failed.
    pub(crate) fn failed(&mut self) {
        self.classes.clear();
    }

    /// How long a write of so many bytes takes: one of the times of such writes, chosen by `random`.
    pub(crate) fn draw(
        &mut self,
        now: Instant,
        cluster: u64,
        bytes: usize,
        random: u32,
    ) -> Option<WriteTime> {
        self.follow(cluster);
        let samples = self.classes.get_mut(&class(bytes))?;
        while samples.front().is_some_and(|(at, _took)| now.saturating_duration_since(*at) > AGE_MAX) {
            samples.pop_front();
        }
        if samples.len() < SAMPLES_MIN {
            return None;
        }
        samples.get(random as usize % samples.len()).map(|(_at, took)| *took)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    fn ms(whole: u64) -> WriteTime {
        let whole = Duration::from_millis(whole);
        WriteTime { durable: whole / 2, whole }
    }

    fn filled(now: Instant, bytes: usize, took: WriteTime) -> WriteTimes {
        let mut times = WriteTimes::default();
        (0..SAMPLES_MIN).for_each(|_sample| times.wrote(now, 1, bytes, took));
        times
    }

    #[test]
    fn only_writes_of_that_size_in_this_cluster_and_lately_are_drawn_from() {
        let (now, took) = (Instant::now(), ms(9));
        let mut times = filled(now, MIB, took);
        for random in 0..100 {
            assert_eq!(times.draw(now, 1, MIB, random), Some(took));
            assert_eq!(times.draw(now, 1, MIB + 1000, random), Some(took));
            assert_eq!(times.draw(now, 1, 4096, random), None, "tiny ones say nothing of large ones");
            assert_eq!(times.draw(now, 1, 2 * MIB, random), None);
        }
        assert_eq!(times.draw(now + AGE_MAX * 2, 1, MIB, 0), None, "long ago");
        let mut times = filled(now, MIB, took);
        assert_eq!(times.draw(now, 2, MIB, 0), None, "a disk is full now");
        assert_eq!(times.draw(now, 1, MIB, 0), None, "and what was is forgotten");
    }

    #[test]
    fn a_failed_write_ends_it_until_writes_go_through_again() {
        let (now, took) = (Instant::now(), ms(9));
        let mut times = filled(now, MIB, took);
        times.failed();
        assert_eq!(times.draw(now, 1, MIB, 0), None);
        (1..SAMPLES_MIN).for_each(|_sample| times.wrote(now, 1, MIB, took));
        assert_eq!(times.draw(now, 1, MIB, 0), None, "not enough yet");
        times.wrote(now, 1, MIB, took);
        assert_eq!(times.draw(now, 1, MIB, 0), Some(took));
    }

    #[test]
    fn every_one_of_the_latest_is_drawn_and_no_older_one() {
        let now = Instant::now();
        let mut times = WriteTimes::default();
        for sample in 0..100 {
            times.wrote(now, 1, MIB, ms(sample));
        }
        let mut drawn: Vec<u128> =
            (0..200).map(|random| times.draw(now, 1, MIB, random).unwrap().whole.as_millis()).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn, (68..100).collect::<Vec<u128>>());
    }

    #[test]
    fn classes_are_few_and_grow_with_the_size() {
        let sizes: Vec<u64> = (0..=23).map(|shift| class(1 << shift)).collect();
        assert!(sizes.is_sorted() && sizes[23] < 100);
        assert_ne!(class(MIB), class(MIB + MIB / 4));
        assert_eq!(class(0), class(1));
    }
}
