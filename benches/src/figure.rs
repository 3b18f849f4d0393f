//! Figures: named, with a unit, measured several times, told as median and range.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

/// One measurement.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) value: f64,
}

impl Figure {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self { name: name.into(), unit, value }
    }
}

/// Decimal megabytes in a second.
#[expect(clippy::cast_precision_loss, reason = "byte counts, for rates")]
pub(crate) fn megabytes_per_second(bytes: usize, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

/// Events in a second.
#[expect(clippy::cast_precision_loss, reason = "small counts, for rates")]
pub(crate) fn per_second(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

/// All measurements of a run, by name, in the order in which they were first made.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    order: Vec<String>,
    by_name: BTreeMap<String, (&'static str, Vec<f64>)>,
}

impl Figures {
    pub(crate) fn add(&mut self, figure: Figure) {
        if !self.by_name.contains_key(&figure.name) {
            self.order.push(figure.name.clone());
        }
        self.by_name.entry(figure.name).or_insert((figure.unit, Vec::new())).1.push(figure.value);
    }

    /// Median of all measurements of one name.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        let mut values = self.by_name.get(name)?.1.clone();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// One line each: name, median, range, unit.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{:<46} {:>10} {:>22}  unit\n", "what", "median", "range");
        for name in &self.order {
            let Some((unit, values)) = self.by_name.get(name) else { continue };
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(0.0, f64::max);
            let median = self.median(name).unwrap_or_default();
            let range = format!("{} to {}", short(least), short(most));
            text.push_str(&format!("{name:<46} {:>10} {range:>22}  {unit}\n", short(median)));
        }
        text
    }

    /// As a document: every measurement.
    pub(crate) fn json(&self) -> Value {
        let rows = self.order.iter().filter_map(|name| {
            let (unit, values) = self.by_name.get(name)?;
            Some(json!({ "name": name, "unit": unit, "median": self.median(name), "values": values }))
        });
        Value::Array(rows.collect())
    }
}

/// Three significant digits or so.
pub(crate) fn short(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _small => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_all_rounds() {
        let mut figures = Figures::default();
        for value in [3.0, 100.0, 1.0] {
            figures.add(Figure::new("a", "MB/s", value));
        }
        assert_eq!(figures.median("a"), Some(3.0));
        assert_eq!(figures.median("b"), None);
        assert!(figures.table().contains("1.00 to 100"));
    }
}
