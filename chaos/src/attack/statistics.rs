//! Percentiles, and whether two samples of times can be told apart.

use std::time::Duration;

/// The value below which `part` (0 to 1) of the sorted sample lies, by the nearest rank; zero of no values.
#[must_use]
pub fn percentile(sorted: &[Duration], part: f64) -> Duration {
    let Some(last) = sorted.len().checked_sub(1) else { return Duration::ZERO };
    // The rank counted up: the sample is far too small for a loop to matter, and no float becomes an index.
    let wanted = part * sorted.len() as f64;
    let rank = (1..=sorted.len()).find(|rank| *rank as f64 >= wanted).unwrap_or(sorted.len());
    sorted[(rank - 1).min(last)]
}

/// A two-sided Mann-Whitney rank-sum test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankSum {
    /// How many standard deviations the first sample's ranks are off; negative if it is the faster one.
    pub z: f64,
    /// How likely a difference like this is among samples of one kind.
    pub p: f64,
}

/// Tests whether `first` and `second` come from one distribution: normal approximation with corrections for ties and
/// continuity, good from some 20 values each (Hollander, Wolfe, Chicken, Nonparametric Statistical Methods, 4.1).
#[must_use]
pub fn rank_sum(first: &[Duration], second: &[Duration]) -> RankSum {
    let (m, n) = (first.len() as f64, second.len() as f64);
    let count = m + n;
    let mut all: Vec<(Duration, bool)> = first.iter().map(|value| (*value, true)).collect();
    all.extend(second.iter().map(|value| (*value, false)));
    all.sort_unstable();
    let (mut sum, mut ties, mut before) = (0.0, 0.0, 0.0);
    for tied in all.chunk_by(|one, other| one.0 == other.0) {
        let size = tied.len() as f64;
        let rank = before + f64::midpoint(size, 1.0);
        sum += rank * tied.iter().filter(|(_value, is_first)| *is_first).count() as f64;
        ties += size * (size * size - 1.0);
        before += size;
    }
    let mean = m * (count + 1.0) / 2.0;
    let variance = m * n / 12.0 * (count + 1.0 - ties / (count * (count - 1.0)));
    if !variance.is_normal() || variance < 0.0 {
        // Nothing to compare, or all values are equal.
        return RankSum { z: 0.0, p: 1.0 };
    }
    let off = sum - mean;
    let z = off.signum() * (off.abs() - 0.5).max(0.0) / variance.sqrt();
    RankSum { z, p: erfc(z.abs() / std::f64::consts::SQRT_2).min(1.0) }
}

/// The complementary error function, to 1.2e-7 of its value everywhere (Numerical Recipes in C, 6.2).
fn erfc(x: f64) -> f64 {
    const TERMS: [f64; 10] = [
        -1.265_512_23,
        1.000_023_68,
        0.374_091_96,
        0.096_784_18,
        -0.186_288_06,
        0.278_868_07,
        -1.135_203_98,
        1.488_515_87,
        -0.822_152_23,
        0.170_872_77,
    ];
    let t = 1.0 / (1.0 + 0.5 * x.abs());
    let polynomial = TERMS.iter().rev().fold(0.0, |sum, term| sum * t + term);
    let tail = t * (polynomial - x * x).exp();
    if x >= 0.0 { tail } else { 2.0 - tail }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    fn milliseconds(values: &[u64]) -> Vec<Duration> {
        values.iter().copied().map(Duration::from_millis).collect()
    }

    #[test]
    fn percentiles_are_values_of_the_sample() {
        let sample = milliseconds(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(percentile(&sample, 0.5), Duration::from_millis(5));
        assert_eq!(percentile(&sample, 0.99), Duration::from_millis(10));
        assert_eq!(percentile(&sample, 0.0), Duration::from_millis(1));
        assert_eq!(percentile(&[], 0.5), Duration::ZERO);
    }

    #[test]
    fn the_error_function_is_that_of_the_tables() {
        // Abramowitz and Stegun, table 7.1, and 7.3 for the tail.
        for (x, value) in
            [(0.0, 1.0), (0.5, 0.479_500_122), (1.0, 0.157_299_207), (2.0, 4.677_735e-3), (5.0, 1.537_46e-12)]
        {
            assert!((erfc(x) / value - 1.0).abs() < 1e-5, "{x}: {}", erfc(x));
        }
        assert!((erfc(-1.0) - 1.842_700_793).abs() < 1e-6);
    }

    #[test]
    fn a_rank_sum_is_that_of_the_formula() {
        // By hand: the first sample's ranks sum to 53, mean 68, variance 8*8*17/12; z = -14.5/9.522 = -1.5228.
        let first = milliseconds(&[1, 2, 4, 7, 8, 9, 10, 12]);
        let second = milliseconds(&[3, 5, 6, 11, 13, 14, 15, 16]);
        let test = rank_sum(&first, &second);
        assert!((test.p - 0.127_808).abs() < 1e-5, "{test:?}");
        assert!((test.z + 1.522_8).abs() < 1e-3);
        let turned = rank_sum(&second, &first);
        assert!((turned.p - test.p).abs() < 1e-12 && turned.z > 0.0);
    }

    #[test]
    fn equal_samples_are_not_told_apart() {
        let sample = milliseconds(&[5; 40]);
        assert_eq!(rank_sum(&sample, &sample), RankSum { z: 0.0, p: 1.0 });
        assert!(rank_sum(&[], &sample).p >= 1.0);
    }

    #[test]
    fn ties_shrink_the_variance() {
        // By hand: ranks 1.5 1.5 | 3.5 3.5 | 5.5 5.5; the first has 1.5 1.5 3.5 = 6.5, mean 10.5, variance
        // 9/12 * (7 - 18/30) = 4.8, z = -(4 - 0.5)/sqrt(4.8) = -1.5975.
        let test = rank_sum(&milliseconds(&[1, 1, 2]), &milliseconds(&[2, 3, 3]));
        assert!((test.z + 1.5975).abs() < 1e-3, "{test:?}");
    }

    #[test]
    fn a_small_shift_shows_and_noise_does_not() {
        let mut random = SmallRng::seed_from_u64(1);
        let mut sample = |shift: u64| -> Vec<Duration> {
            (0..1000).map(|_| Duration::from_micros(9000 + shift + random.random_range(0..2000))).collect()
        };
        let (same, other, shifted) = (sample(0), sample(0), sample(200));
        assert!(rank_sum(&same, &other).p > 0.001, "{:?}", rank_sum(&same, &other));
        assert!(rank_sum(&same, &shifted).p < 1e-6, "{:?}", rank_sum(&same, &shifted));
    }
}
