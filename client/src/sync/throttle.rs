//! Bandwidth limits: a token bucket for each direction, fixed, or at 80% of what is measured.
//!
//! What may be used is decided by [`Bucket`], which has no clock; [`Throttle`] waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::config::Rate;

/// How much may be saved up.
const BURST: Duration = Duration::from_millis(250);
/// Fewest bytes saved up, so that a message passes at once at any rate.
const BURST_BYTES_MIN: f64 = 64.0 * 1024.0;
/// Fewest bytes asked for at once.
const PART_BYTES_MIN: u64 = 16 * 1024;
/// The share of the measured rate that automatic limits take.
const AUTO_SHARE: f64 = 0.8;
/// Automatic limits measure for so long, without a limit, ...
const MEASURE_TIME: Duration = Duration::from_secs(2);
/// ... and then hold for so long.
const HOLD_TIME: Duration = Duration::from_secs(30);
/// Rates are averaged over about this time.
const AVERAGE_TIME: f64 = 3.0;
/// The longest wait before looking again whether the limit has changed.
const WAIT_MAX: Duration = Duration::from_millis(500);

/// One direction's allowance. Time is what it is told.
#[derive(Debug)]
struct Bucket {
    rate: Rate,
    /// Bytes saved up; below 0: used in advance.
    saved: f64,
    at: Instant,
    /// Automatic: when measuring or holding ends, bytes measured, and the limit found (none while measuring).
    turn_ends: Instant,
    measured: f64,
    found: Option<f64>,
    /// Bytes a second, averaged, and bytes since then.
    average: f64,
    average_at: Instant,
    counted: f64,
}

impl Bucket {
    fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            saved: 0.0,
            at: now,
            turn_ends: now + MEASURE_TIME,
            measured: 0.0,
            found: None,
            average: 0.0,
            average_at: now,
            counted: 0.0,
        }
    }

    fn limit(&mut self, now: Instant) -> Option<f64> {
        match self.rate {
            Rate::Unlimited => None,
            Rate::BytesPerSecond(rate) => Some(to_f64(rate).max(1.0)),
            Rate::Auto => {
                if now >= self.turn_ends {
                    self.turn(now);
                }
                self.found
            }
        }
    }

    fn turn(&mut self, now: Instant) {
        let measured = self.measured / MEASURE_TIME.as_secs_f64();
        // Next to nothing was sent: that says nothing about the line.
        if self.found.is_none() && measured > BURST_BYTES_MIN {
            self.found = Some(measured * AUTO_SHARE);
            self.turn_ends = now + HOLD_TIME;
        } else {
            self.found = None;
            self.turn_ends = now + MEASURE_TIME;
        }
        self.measured = 0.0;
    }

    /// Takes bytes and says how long to wait before they may go.
    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let bytes = to_f64(bytes);
        self.count(bytes, now);
        let Some(limit) = self.limit(now) else {
            self.measured += bytes;
            self.saved = 0.0;
            self.at = now;
            return Duration::ZERO;
        };
        let burst = (limit * BURST.as_secs_f64()).max(BURST_BYTES_MIN);
        self.saved = (self.saved + limit * now.duration_since(self.at).as_secs_f64()).min(burst);
        self.at = now;
        self.saved -= bytes;
        if self.saved >= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(-self.saved / limit) }
    }

    fn count(&mut self, bytes: f64, now: Instant) {
        self.counted += bytes;
        let elapsed = now.duration_since(self.average_at).as_secs_f64();
        if elapsed >= 0.25 {
            let keep = (-elapsed / AVERAGE_TIME).exp();
            self.average = self.average * keep + self.counted / elapsed * (1.0 - keep);
            self.counted = 0.0;
            self.average_at = now;
        }
    }
}

fn to_f64(value: u64) -> f64 {
    // Above 4 GiB a second, or in one message, the limit is beside the point.
    u32::try_from(value).map_or(f64::from(u32::MAX), f64::from)
}

/// One direction's limit. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Throttle(Arc<Mutex<Bucket>>);

impl Throttle {
    pub(crate) fn new(rate: Rate) -> Self {
        Self(Arc::new(Mutex::new(Bucket::new(rate, Instant::now()))))
    }

    fn bucket(&self) -> MutexGuard<'_, Bucket> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the limit; who waits for the old one notices soon.
    pub(crate) fn set(&self, rate: Rate) {
        let mut bucket = self.bucket();
        let mut fresh = Bucket::new(rate, Instant::now());
        fresh.average = bucket.average;
        *bucket = fresh;
    }

    /// Waits until so many bytes may go. Dropped halfway, the bytes count as gone.
    pub(crate) async fn take(&self, bytes: u64) {
        let mut wait = self.bucket().take(bytes, Instant::now());
        while !wait.is_zero() {
            let part = wait.min(WAIT_MAX);
            tokio::time::sleep(part).await;
            wait -= part;
            if !wait.is_zero() {
                // The limit may have been raised meanwhile.
                wait = wait.min(self.bucket().take(0, Instant::now()));
            }
        }
    }

    /// How many bytes to ask for at once, paid for before, so that the limit holds on the wire; `None` without a limit.
    pub(crate) fn part_bytes(&self) -> Option<u64> {
        let limit = self.bucket().limit(Instant::now())?;
        let part = Duration::try_from_secs_f64(limit * BURST.as_secs_f64()).unwrap_or(Duration::MAX);
        Some(part.as_secs().max(PART_BYTES_MIN))
    }

    /// Bytes a second, lately.
    pub(crate) fn rate_now(&self) -> u64 {
        let mut bucket = self.bucket();
        bucket.count(0.0, Instant::now());
        let average = Duration::try_from_secs_f64(bucket.average).unwrap_or_default();
        average.as_secs()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(bucket: &mut Bucket, start: Instant, seconds: u64, message: u64) -> f64 {
        let (mut now, end) = (start, start + Duration::from_secs(seconds));
        let mut sent = 0;
        while now < end {
            let wait = bucket.take(message, now);
            sent += message;
            // The line itself does 100 MB/s.
            now += wait + Duration::from_secs_f64(to_f64(message) / 100e6);
        }
        to_f64(sent) / f64::from(u32::try_from(seconds).unwrap())
    }

    #[test]
    fn a_fixed_limit_is_kept_whatever_the_messages() {
        for message in [1_000, 64 * 1024, 4 << 20] {
            let now = Instant::now();
            let mut bucket = Bucket::new(Rate::BytesPerSecond(2_000_000), now);
            let rate = run(&mut bucket, now, 20, message);
            assert!((1.9e6..2.3e6).contains(&rate), "{message} {rate}");
        }
    }

    #[test]
    fn what_is_asked_for_at_once_follows_the_limit() {
        assert_eq!(Throttle::new(Rate::Unlimited).part_bytes(), None);
        assert_eq!(Throttle::new(Rate::Auto).part_bytes(), None, "nothing is measured yet");
        assert_eq!(Throttle::new(Rate::BytesPerSecond(10_000)).part_bytes(), Some(PART_BYTES_MIN));
        assert_eq!(Throttle::new(Rate::BytesPerSecond(4_000_000)).part_bytes(), Some(1_000_000));
    }

    #[test]
    fn no_limit_never_waits() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Rate::Unlimited, now);
        assert!((0..1_000).all(|_| bucket.take(u64::MAX, now).is_zero()));
    }

    #[test]
    fn auto_settles_at_four_fifths_of_the_line() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Rate::Auto, now);
        run(&mut bucket, now, 3, 100_000);
        let held = run(&mut bucket, now + Duration::from_secs(3), 25, 100_000);
        assert!((7e7..8.8e7).contains(&held), "{held}");
    }

    #[test]
    fn an_idle_line_is_not_taken_for_a_slow_one() {
        let now = Instant::now();
        let mut bucket = Bucket::new(Rate::Auto, now);
        bucket.take(100, now);
        assert!(bucket.take(100, now + Duration::from_secs(5)).is_zero());
        assert!(bucket.take(1 << 30, now + Duration::from_secs(6)).is_zero());
    }
}
