//! Plain tables: columns padded to their widest cell.

/// Rows under a header. Columns whose header ends in `>` stand to the right.
#[derive(Clone, Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these headers.
    pub fn new<const N: usize>(headers: [&str; N]) -> Self {
        let right = headers.iter().map(|header| header.ends_with('>')).collect();
        let first = headers.iter().map(|header| header.trim_end_matches('>').to_owned()).collect();
        Self { rows: vec![first], right }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table as text, a line per row.
    pub fn text(&self) -> String {
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max()
        };
        let widths: Vec<usize> = (0..self.right.len()).map(|c| width(c).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, width), right) in row.iter().zip(&widths).zip(&self.right) {
                let padding = " ".repeat(width - cell.chars().count());
                let (before, after) = if *right { (&*padding, "") } else { ("", &*padding) };
                line.push_str(&format!("{before}{cell}{after}  "));
            }
            text.push_str(line.trim_end());
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
        let mut table = Table::new(["NAME", "SIZE>", "STATE"]);
        table.row(["a".into(), "1 GiB".into(), "ok".into()]);
        table.row(["longer".into(), "64 KiB".into(), "degraded".into()]);
        let expected = "NAME      SIZE  STATE\na        1 GiB  ok\nlonger  64 KiB  degraded\n";
        assert_eq!(table.text(), expected);
    }
}
