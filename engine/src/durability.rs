//! How likely a stripe is to be lost, by the exact chain of its number of lost shards: shards are lost at the disks'
//! failure rate, each lost one is repaired independently, and the loss of more than the code takes ends it.
//!
//! The mean time to loss is computed by eliminating state after state without subtraction (as Grassmann, Taksar and
//! Heyman do for stationary chains), so twenty nines come out as exactly as two.

/// Hours in a year of 365.25 days.
const HOURS_PER_YEAR: f64 = 8766.0;

/// What the model is of.
#[derive(Clone, Debug, PartialEq)]
pub struct LossModel {
    /// Shards of a stripe, `k + m`; each on a disk of its own.
    pub shards: u32,
    /// For 1, 2, ... lost shards: the part of such patterns that can still be decoded, of those reached by losing one
    /// more shard of a pattern that could. After the last entry, none can. Reed-Solomon: `m` times 1.
    pub decodable: Vec<f64>,
    /// Annualised failure rate of a disk: the part of disks that fail in a year. Above 0, below 1.
    pub annual_failure_rate: f64,
    /// Hours from a shard's loss until it is made again. Above 0.
    pub repair_hours: f64,
}

impl LossModel {
    /// A Reed-Solomon code, or copies (`k` = 1).
    #[must_use]
    pub fn reed_solomon(data: u32, parity: u32, annual_failure_rate: f64, repair_hours: f64) -> Self {
        let decodable = vec![1.0; parity as usize];
        Self { shards: data + parity, decodable, annual_failure_rate, repair_hours }
    }

    /// Mean years until a stripe with all of its shards is lost.
    #[must_use]
    pub fn mean_years_to_loss(&self) -> f64 {
        let failure = -(-self.annual_failure_rate).ln_1p();
        let repair = HOURS_PER_YEAR / self.repair_hours;
        // Mean time from a state: `time + advance × (mean time from the next state)`; `1 - advance` is kept as `end`.
        let mut steps: Vec<(f64, f64)> = Vec::with_capacity(self.decodable.len() + 1);
        let (mut time, mut end) = (0.0, 0.0);
        for lost in 0..=self.decodable.len() {
            let survives = self.decodable.get(lost).copied().unwrap_or(0.0);
            #[expect(clippy::cast_precision_loss, reason = "a handful of shards")]
            let lost = lost as f64;
            let loses = (f64::from(self.shards) - lost) * failure;
            let repairs = lost * repair;
            let leaves = loses + repairs * end;
            time = (1.0 + repairs * time) / leaves;
            end = (loses * (1.0 - survives) + repairs * end) / leaves;
            steps.push((time, loses * survives / leaves));
        }
        steps.into_iter().rev().fold(0.0, |next, (time, advance)| time + advance * next)
    }

    /// The probability that a stripe is lost within a year.
    #[must_use]
    pub fn annual_loss_probability(&self) -> f64 {
        -(-1.0 / self.mean_years_to_loss()).exp_m1()
    }

    /// The same as nines: 9.3 means a probability of 10 to the power of -9.3.
    #[must_use]
    pub fn nines(&self) -> f64 {
        -self.annual_loss_probability().log10()
    }

    /// The probability that a stripe that has lost `lost` shards (at least 1) goes on to lose one after another, until
    /// it is lost, before a single one of them is repaired. 1 if it is lost already.
    #[must_use]
    pub fn loss_before_repair_probability(&self, lost: u32) -> f64 {
        let failure = -(-self.annual_failure_rate).ln_1p();
        let repair = HOURS_PER_YEAR / self.repair_hours;
        let chance = |state: u32| {
            let loses = f64::from(self.shards.saturating_sub(state)) * failure;
            loses / (loses + f64::from(state) * repair)
        };
        let tolerated = u32::try_from(self.decodable.len()).unwrap_or(u32::MAX);
        (lost..=tolerated).map(chance).product()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFR: f64 = 0.014;

    fn lrc_12_2_2(repair_hours: f64) -> LossModel {
        LossModel { shards: 16, decodable: vec![1.0, 1.0, 1.0, 0.86], annual_failure_rate: AFR, repair_hours }
    }

    /// The longest repair that keeps eleven nines.
    fn hours_for_eleven_nines(model: &dyn Fn(f64) -> LossModel) -> f64 {
        let (mut low, mut high) = (0.1, 10_000.0);
        for _halving in 0..60 {
            let middle = f64::midpoint(low, high);
            if model(middle).nines() >= 11.0 { low = middle } else { high = middle }
        }
        low
    }

    #[test]
    fn the_model_gives_the_published_table() {
        let reed_solomon = |data, parity| move |hours| LossModel::reed_solomon(data, parity, AFR, hours);
        type Row<'a> = (&'a str, &'a dyn Fn(f64) -> LossModel, [f64; 3], f64);
        let rows: [Row<'_>; 7] = [
            ("3 copies", &reed_solomon(1, 2), [10.2, 11.4, 13.0], 9.6),
            ("4+2", &reed_solomon(4, 2), [8.9, 10.1, 11.7], 2.1),
            ("6+3", &reed_solomon(6, 3), [12.4, 14.2, 16.5], 69.7),
            ("10+4", &reed_solomon(10, 4), [15.5, 17.9, 21.0], 321.0),
            ("12+4", &reed_solomon(12, 4), [15.2, 17.6, 20.7], 264.0),
            ("12,2,2", &lrc_12_2_2, [12.1, 13.9, 16.2], 55.0),
            ("17+3", &reed_solomon(17, 3), [10.8, 12.6, 14.9], 20.6),
        ];
        for (name, model, nines, hours_max) in rows {
            for (hours, expected) in [24.0, 6.0, 1.0].into_iter().zip(nines) {
                let found = model(hours).nines();
                assert!((found - expected).abs() < 0.1, "{name} {hours} h: {found} not {expected}");
            }
            let found = hours_for_eleven_nines(model);
            assert!((found / hours_max - 1.0).abs() < 0.05, "{name}: {found} h, not {hours_max}");
        }
    }

    #[test]
    fn the_chain_agrees_with_a_simulation_at_high_rates() {
        use rand::rngs::SmallRng;
        use rand::{Rng, SeedableRng};
        let model = LossModel::reed_solomon(4, 2, 0.9, 400.0);
        let mut random = SmallRng::seed_from_u64(1);
        let failure = -(1.0_f64 - model.annual_failure_rate).ln();
        let repair = HOURS_PER_YEAR / model.repair_hours;
        let mut years = 0.0;
        let runs = 20_000;
        for _run in 0..runs {
            let mut lost = 0_u32;
            while lost <= 2 {
                let loses = f64::from(6 - lost) * failure;
                let rate = loses + f64::from(lost) * repair;
                years -= (1.0 - random.random::<f64>()).ln() / rate;
                if random.random::<f64>() < loses / rate { lost += 1 } else { lost -= 1 }
            }
        }
        let simulated = years / f64::from(runs);
        let computed = model.mean_years_to_loss();
        assert!((simulated / computed - 1.0).abs() < 0.04, "{simulated} against {computed}");
    }

    #[test]
    fn every_lost_shard_makes_loss_likelier() {
        let model = LossModel::reed_solomon(4, 2, AFR, 24.0);
        let chances: Vec<f64> = (1..4).map(|lost| model.loss_before_repair_probability(lost)).collect();
        assert!(chances.windows(2).all(|pair| pair[0] < pair[1]), "{chances:?}");
        assert!((chances[2] - 1.0).abs() < f64::EPSILON, "what is lost is lost");
    }
}
