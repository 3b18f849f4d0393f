//! How long real writes took lately: a chunk that is there already is acknowledged as late as one that was written,
//! so that time does not tell whether anybody else has it (promise 6).

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::random;

const SAMPLES_MAX: usize = 64;

/// Until a write has been seen.
const LATENCY_DEFAULT: Duration = Duration::from_millis(15);

/// The latest write latencies.
#[derive(Debug, Default)]
pub(crate) struct Latencies {
    samples: Mutex<(Vec<Duration>, usize)>,
}

impl Latencies {
    /// Remembers how long a write took, from the arrival of its chunk to its acknowledgement.
    pub(crate) fn record(&self, latency: Duration) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let (latencies, next) = &mut *samples;
        if latencies.len() < SAMPLES_MAX {
            latencies.push(latency);
        } else {
            latencies[*next % SAMPLES_MAX] = latency;
            *next = (*next + 1) % SAMPLES_MAX;
        }
    }

    /// One of them, drawn at random.
    pub(crate) fn draw(&self) -> Duration {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let count = samples.0.len();
        if count == 0 {
            return LATENCY_DEFAULT;
        }
        let index = usize::from(u16::from_be_bytes(random::bytes())) % count;
        samples.0[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_are_drawn() {
        let latencies = Latencies::default();
        assert_eq!(latencies.draw(), LATENCY_DEFAULT);
        latencies.record(Duration::from_secs(100));
        for _ in 0..SAMPLES_MAX {
            latencies.record(Duration::from_millis(3));
        }
        for _ in 0..1000 {
            assert_eq!(latencies.draw(), Duration::from_millis(3));
        }
    }
}
