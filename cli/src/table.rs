//! Columns that line up. Whatever a cell holds, it stays one cell on one line.

use crate::shown::shown;

/// Which side a column's cells keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Left,
    Right,
}

/// Rows of cells.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    sides: Vec<Side>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Columns with their titles; none of them shown if all are empty.
    pub(crate) fn new(columns: &[(&str, Side)]) -> Self {
        let titles: Vec<String> = columns.iter().map(|(title, _)| (*title).to_owned()).collect();
        let rows = if titles.iter().all(String::is_empty) { Vec::new() } else { vec![titles] };
        Self { sides: columns.iter().map(|(_, side)| *side).collect(), rows }
    }

    /// Adds a row, one cell per column.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.sides.len());
        self.rows.push(cells.into_iter().map(|cell| shown(&cell).into_owned()).collect());
    }

    /// All rows, one per line; nothing at the ends of lines.
    pub(crate) fn render(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> =
            (0..self.sides.len()).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&self.sides).zip(&widths).map(|((cell, side), width)| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&[("name", Side::Left), ("size", Side::Right), ("x", Side::Left)]);
        table.row(vec!["\u{e4}".to_owned(), "1000".to_owned(), String::new()]);
        table.row(vec!["longer".to_owned(), "5".to_owned(), "y".to_owned()]);
        assert_eq!(table.render(), "name    size  x\n\u{e4}       1000\nlonger     5  y\n");
    }

    #[test]
    fn a_cell_cannot_make_lines_of_its_own() {
        let mut table = Table::new(&[("", Side::Left), ("", Side::Left)]);
        table.row(vec!["a\n-rw 0".to_owned(), "b\u{1b}[1A".to_owned()]);
        assert_eq!(table.render(), "a\\n-rw 0  b\\u{1b}[1A\n");
    }

    #[test]
    fn titles_may_be_left_out() {
        let mut table = Table::new(&[("", Side::Left)]);
        table.row(vec!["a".to_owned()]);
        assert_eq!(table.render(), "a\n");
    }
}
