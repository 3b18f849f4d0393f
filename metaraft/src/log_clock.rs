//! What time it is: by the voters' clocks together, and in a group's log.
//!
//! Two times go into each entry. The **log time** decides: how long outcomes are remembered, when marks, sessions and
//! journal rows go. It runs on from the last entry by the leader's monotonic clock, and only leans towards the wall
//! clock, so a clock that jumps, however far and on however many nodes, never makes it jump, nor expires anything
//! early. The **wall time** is for people (when a file was changed), and says which request ids are of today: it is
//! what a majority of the voters' clocks say, and may jump and go back.
//!
//! Invariants:
//! - Log time never goes back. In any span it advances by at most 17/16 of the time that passes, and while nobody runs
//!   it stands still. So nothing expires before 16/17 of its term have passed.
//! - One clock that is wrong among a majority that is right changes neither.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How much faster or slower than time passes log time may run, to come to the wall clock: one part in so many.
const LEAN_PARTS: u64 = 16;
/// What a voter said its clock shows counts for so long; its clock is asked for about once a second.
const HEARD_FOR: Duration = Duration::from_secs(30);

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// This machine's clock, milliseconds since 1970; 0 before.
pub(crate) fn own_wall_ms() -> u64 {
    millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// The log time, as one node knows it: by the entries of all its groups, so that the groups agree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogClock {
    /// Of the last entry; 0 before the first one.
    ms: u64,
    /// When that was, here; for an entry from before this process, when it started.
    at: Instant,
    /// Milliseconds that have passed and not been leant for.
    credit_ms: u64,
}

impl LogClock {
    /// Goes on from an entry of `ms`, now.
    pub(crate) fn new(ms: u64, now: Instant) -> Self {
        Self { ms, at: now, credit_ms: 0 }
    }

    /// The log time by now, if nothing is leant; `None` before the first entry.
    pub(crate) fn reached(&self, now: Instant) -> Option<u64> {
        let elapsed_ms = millis(now.saturating_duration_since(self.at));
        (self.ms != 0).then(|| self.ms.saturating_add(elapsed_ms))
    }

    /// An entry was applied, after which the log's time is `ms`; `late` if its leader thought that it was earlier yet
    /// (it was started anew, and did not know how long ago the entry before was made).
    pub(crate) fn observe(&mut self, ms: u64, late: bool, now: Instant) {
        if ms > self.ms || (late && ms == self.ms) {
            *self = Self::new(ms, now);
        }
    }

    /// The time of a new entry.
    pub(crate) fn stamp(&mut self, now: Instant, wall_ms: u64) -> u64 {
        if self.ms == 0 {
            *self = Self::new(wall_ms, now);
            return self.ms;
        }
        let elapsed_ms = millis(now.saturating_duration_since(self.at));
        let steady_ms = self.ms.saturating_add(elapsed_ms);
        self.credit_ms = self.credit_ms.saturating_add(elapsed_ms);
        let lean_max_ms = self.credit_ms / LEAN_PARTS;
        self.credit_ms %= LEAN_PARTS;
        self.ms = if wall_ms > steady_ms {
            steady_ms.saturating_add(lean_max_ms.min(wall_ms - steady_ms))
        } else {
            steady_ms - lean_max_ms.min(elapsed_ms).min(steady_ms - wall_ms)
        };
        // Not `now`: parts of a millisecond are not lost, however many entries there are in one.
        self.at += Duration::from_millis(elapsed_ms);
        self.ms
    }
}

/// The clocks of all voters, as this node last heard of them.
#[derive(Debug)]
pub(crate) struct Clocks {
    voters: usize,
    heard: Mutex<BTreeMap<u64, (u64, Instant)>>,
}

impl Clocks {
    /// Of so many voters, this one included.
    pub(crate) fn new(voters: usize) -> Self {
        Self { voters, heard: Mutex::default() }
    }

    /// `voter` says that its clock shows `ms`.
    pub(crate) fn hear(&self, voter: u64, ms: u64, now: Instant) {
        if ms != 0 {
            self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(voter, (ms, now));
        }
    }

    /// What the clocks say together, this machine's showing `own_ms`.
    pub(crate) fn agreed_ms(&self, own_ms: u64, log_ms: u64, now: Instant) -> u64 {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let shows = heard.values().filter_map(|(ms, at)| {
            let since = now.saturating_duration_since(*at);
            (since <= HEARD_FOR).then(|| ms.saturating_add(millis(since)))
        });
        agreed(shows.chain([own_ms]).collect(), self.voters, own_ms, log_ms)
    }
}

/// The middle of what the clocks show, if they are a majority; of two in the middle, the one nearer to the log's time.
fn agreed(mut shown: Vec<u64>, voters: usize, own_ms: u64, log_ms: u64) -> u64 {
    if shown.len() <= voters / 2 {
        return own_ms;
    }
    shown.sort_unstable();
    let (lower, upper) = (shown[(shown.len() - 1) / 2], shown[shown.len() / 2]);
    if lower.abs_diff(log_ms) <= upper.abs_diff(log_ms) { lower } else { upper }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    const START_MS: u64 = 1_800_000_000_000;

    #[test]
    fn log_time_advances_however_many_entries_a_millisecond_has() {
        let begun = Instant::now();
        let mut clock = LogClock::new(START_MS, begun);
        for tick in 0..100_000_u64 {
            clock.stamp(begun + Duration::from_micros(tick * 100), START_MS + tick / 10);
        }
        assert_eq!(clock.ms, START_MS + 9_999);
    }

    #[test]
    fn the_middle_clock_counts_and_of_two_the_one_nearer_to_the_log() {
        let (right, ahead) = (START_MS, START_MS + 2 * DAY_MS);
        assert_eq!(agreed(vec![right, right + 3, ahead], 3, ahead, right), right + 3);
        assert_eq!(agreed(vec![right, ahead], 3, ahead, right), right);
        assert_eq!(agreed(vec![ahead], 3, ahead, right), ahead, "no majority: one's own");
        assert_eq!(agreed(vec![ahead; 3], 3, ahead, right), ahead);
    }

    /// A voter of a simulated group: its clock's error, and its log clock.
    struct Voter {
        error_ms: i64,
        log: LogClock,
        up: bool,
    }

    fn random_error(random: &mut SmallRng) -> i64 {
        let days: i64 = random.random_range(-40..40);
        days * DAY_MS.cast_signed() + random.random_range(-20_000..20_000)
    }

    /// Minutes of a group whose clocks jump, whose nodes restart and stand still, and whose leader changes.
    fn run(seed: u64) {
        let mut random = SmallRng::seed_from_u64(seed);
        let origin = Instant::now();
        let count = if random.random_bool(0.5) { 3 } else { 5 };
        let mut voters: Vec<Voter> =
            (0..count).map(|_| Voter { error_ms: 0, log: LogClock::new(0, origin), up: true }).collect();
        let (mut passed_ms, mut down_ms, mut leader, mut last) = (0_u64, 0_u64, 0, 0_u64);
        let mut entries: Vec<(u64, u64)> = Vec::new();
        for _ in 0..2000 {
            let step_ms = if random.random_bool(0.9) { random.random_range(0..5000) } else { DAY_MS / 8 };
            passed_ms += step_ms;
            let now = origin + Duration::from_millis(passed_ms);
            let who = random.random_range(0..count);
            match random.random_range(0..100) {
                0..5 => voters[who].error_ms = random_error(&mut random),
                5..10 => voters[who].error_ms = 0,
                10 => {
                    let all = random_error(&mut random);
                    voters.iter_mut().for_each(|voter| voter.error_ms = all);
                }
                11..14 => voters.iter_mut().for_each(|voter| voter.error_ms = 0),
                14..20 => leader = who,
                // A restart, which takes a moment, forgets when the last entry was; while all are down nothing is.
                20..24 => voters[who].log = LogClock::new(last, now - Duration::from_millis(1)),
                24 => {
                    down_ms += 7 * DAY_MS;
                    passed_ms += 7 * DAY_MS;
                    let now = origin + Duration::from_millis(passed_ms);
                    voters.iter_mut().for_each(|voter| voter.log = LogClock::new(last, now));
                }
                25..30 => voters[who].up = !voters[who].up,
                _ => {}
            }
            voters[leader].up = true;
            let now = origin + Duration::from_millis(passed_ms);
            let shows = |voter: &Voter| (START_MS + passed_ms).saturating_add_signed(voter.error_ms);
            let shown: Vec<u64> = voters.iter().filter(|voter| voter.up).map(shows).collect();
            let own_ms = shows(&voters[leader]);
            let log_ms = voters[leader].log.reached(now).unwrap_or(own_ms);
            let wall_ms = agreed(shown.clone(), count, own_ms, log_ms);
            let right = voters.iter().filter(|voter| voter.up && voter.error_ms == 0).count();
            if right * 2 > shown.len() && shown.len() * 2 > count {
                assert_eq!(wall_ms, START_MS + passed_ms, "a majority is right; seed {seed}");
            }
            let made = voters[leader].log.stamp(now, wall_ms);
            let stamped = made.max(last);
            if last == 0 {
                assert_eq!(stamped, wall_ms);
            }
            last = stamped;
            for voter in &mut voters {
                voter.log.observe(stamped, made < stamped, now);
            }
            entries.push((passed_ms - down_ms, stamped));
            let (then_ms, then) = entries[random.random_range(0..entries.len())];
            let lived_ms = passed_ms - down_ms - then_ms;
            assert!(stamped - then <= lived_ms + lived_ms / 16 + 1000, "log time ran ahead; seed {seed}");
        }
    }

    #[test]
    fn no_clock_however_wrong_makes_log_time_jump() {
        let first: u64 = rand::random();
        println!("seeds from {first}");
        for seed in 0..300 {
            run(first.wrapping_add(seed));
        }
    }
}
