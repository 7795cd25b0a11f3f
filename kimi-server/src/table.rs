//! Tables of text.

use kimi_net::printable;

/// Lines up columns; those named in `right` are numbers.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<usize>,
}

impl Table {
    /// A table with headings.
    pub fn new(headings: &[&str], right: &[usize]) -> Self {
        Self { rows: vec![headings.iter().map(|h| (*h).to_owned()).collect()], right: right.to_vec() }
    }

    /// Adds a row. Cells hold names of folders, models and machines: what would act on a terminal is written as a number.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|cell| printable(cell).into_owned()).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |c: usize| {
            self.rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).enumerate();
            let cells = cells.map(|(c, (text, width))| match self.right.contains(&c) {
                true => format!("{text:>width$}"),
                false => format!("{text:<width$}"),
            });
            writeln!(f, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_nothing_to_a_terminal() {
        let mut table = Table::new(&["model", "size"], &[1]);
        table.row(["a\x1b[2J\nb".to_owned(), "7 GB".to_owned()]);
        assert_eq!(table.to_string(), "model          size\na\\u{1b}[2J\\nb  7 GB\n");
    }
}
