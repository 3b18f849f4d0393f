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

    fn unit(&self, name: &str) -> &'static str {
        self.by_name.get(name).map_or("", |(unit, _values)| unit)
    }

    fn values(&self, name: &str) -> &[f64] {
        self.by_name.get(name).map_or(&[], |(_unit, values)| values)
    }

    /// One line each: name, median, range, unit.
    pub(crate) fn table(&self) -> String {
        let mut text = format!("{:<46} {:>10} {:>22}  unit\n", "what", "median", "range");
        for name in &self.order {
            let Some((unit, values)) = self.by_name.get(name) else { continue };
            let median = self.median(name).unwrap_or_default();
            text.push_str(&format!("{name:<46} {:>10} {:>22}  {unit}\n", short(median), range(values)));
        }
        text
    }

    /// The ratio of the medians of one name to those of `first`, and the range of the rounds' ratios.
    fn ratio_to(&self, first: &Self, name: &str) -> Option<String> {
        let ratio = self.median(name)? / first.median(name)?;
        let rounds = self.values(name).iter().zip(first.values(name)).map(|(own, first)| own / first);
        Some(format!("{} ({})", short(ratio), range(&rounds.collect::<Vec<_>>())))
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

/// Least to most.
fn range(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{} to {}", short(least), short(most))
}

/// Several runs side by side, one line for each name: medians with their ranges, and what they are to the first.
pub(crate) fn compared(columns: &[(&str, &Figures)]) -> String {
    let Some(((first_name, first), others)) = columns.split_first() else { return String::new() };
    if others.is_empty() {
        return first.table();
    }
    let mut text = format!("{:<34} {:<8} {first_name:<24}", "what", "unit");
    for (name, _figures) in others {
        text.push_str(&format!(" {name:<24} {:<20}", format!("/ {first_name}")));
    }
    text.push('\n');
    let cell = |figures: &Figures, name: &str| match figures.median(name) {
        Some(median) => format!("{} ({})", short(median), range(figures.values(name))),
        None => "-".to_owned(),
    };
    let known = |before: &[(&str, &Figures)], name: &str| {
        before.iter().any(|(_, figures)| figures.by_name.contains_key(name))
    };
    let names = (0..).zip(columns).flat_map(|(index, (_, figures))| {
        let new = figures.order.iter().filter(move |name| !known(&columns[..index], name));
        new.map(|name| (name, figures.unit(name)))
    });
    for (name, unit) in names {
        text.push_str(&format!("{name:<34} {unit:<8} {:<24}", cell(first, name)));
        for (_name, figures) in others {
            let ratio = figures.ratio_to(first, name).unwrap_or_default();
            text.push_str(&format!(" {:<24} {ratio:<20}", cell(figures, name)));
        }
        text.push('\n');
    }
    text
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

    #[test]
    fn what_is_compared_is_so_round_by_round() {
        let [mut slow, mut fast] = [Figures::default(), Figures::default()];
        for (one, other) in [(10.0, 20.0), (20.0, 30.0), (30.0, 90.0)] {
            slow.add(Figure::new("a", "MB/s", one));
            fast.add(Figure::new("a", "MB/s", other));
        }
        slow.add(Figure::new("b", "MB/s", 1.0));
        assert_eq!(fast.ratio_to(&slow, "a").as_deref(), Some("1.50 (1.50 to 3.00)"));
        assert_eq!(fast.ratio_to(&slow, "b"), None);
        fast.add(Figure::new("c", "ms", 4.0));
        let text = compared(&[("slow", &slow), ("fast", &fast)]);
        assert!(text.lines().any(|line| line.starts_with("c ") && line.contains("4.00 (4.00 to 4.00)")));
        assert!(text.contains("20.0 (10.0 to 30.0)") && text.contains("30.0 (20.0 to 90.0)"), "{text}");
        assert_eq!(compared(&[("slow", &slow)]), slow.table());
    }
}
