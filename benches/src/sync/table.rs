//! The figures: one row for each, one column for each program, and what was promised.

use serde_json::{Value, json};

/// A figure of one program.
#[derive(Debug)]
struct Cell {
    program: &'static str,
    value: f64,
}

#[derive(Debug)]
struct Row {
    what: String,
    unit: &'static str,
    promise: String,
    cells: Vec<Cell>,
}

/// All rows, in the order in which they were first measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a figure; `promise` says what must show for Keepstone, and may be empty.
    pub(crate) fn add(
        &mut self,
        program: &'static str,
        what: impl Into<String>,
        unit: &'static str,
        value: f64,
        promise: &str,
    ) {
        let what = what.into();
        let cell = Cell { program, value };
        eprintln!("  {what}: {} {unit}", short(value));
        match self.rows.iter_mut().find(|row| row.what == what) {
            Some(row) => row.cells.push(cell),
            None => self.rows.push(Row { what, unit, promise: promise.to_owned(), cells: vec![cell] }),
        }
    }

    pub(crate) fn text(&self) -> String {
        let mut text =
            format!("{:<58} {:>10} {:>10}  {:<7}  promised\n", "what", "Keepstone", "Syncthing", "unit");
        for row in &self.rows {
            let cell = |program: &str| {
                let found = row.cells.iter().find(|cell| cell.program == program);
                found.map_or_else(|| "-".to_owned(), |cell| short(cell.value))
            };
            text.push_str(&format!(
                "{:<58} {:>10} {:>10}  {:<7}  {}\n",
                row.what,
                cell("Keepstone"),
                cell("Syncthing"),
                row.unit,
                row.promise
            ));
        }
        text
    }

    pub(crate) fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let cells: serde_json::Map<String, Value> =
                    row.cells.iter().map(|cell| (cell.program.to_owned(), json!(cell.value))).collect();
                json!({ "what": row.what, "unit": row.unit, "promise": row.promise, "figures": cells })
            })
            .collect();
        json!({ "figures": rows })
    }
}

/// Three significant digits or so.
fn short(value: f64) -> String {
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
    fn both_programs_share_a_row() {
        let mut table = Table::default();
        table.add("Keepstone", "a", "s", 1.0, "at most 2");
        table.add("Syncthing", "a", "s", 17.5, "");
        table.add("Keepstone", "b", "s", 3.0, "");
        assert_eq!(table.text().lines().count(), 3);
        assert!(table.text().contains("1.00       17.5"));
    }
}
