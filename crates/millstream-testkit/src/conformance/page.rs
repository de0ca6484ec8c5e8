//! The table of reports in a Markdown page: [`update`].

use std::collections::BTreeMap;

use thiserror::Error;

use super::cases::ALL;
use super::report::Report;

/// Where the table begins …
const BEGIN: &str = "<!-- conformance table: generated -->";
/// … and where it ends.
const END: &str = "<!-- end of the conformance table -->";
/// Columns before those of the connectors.
const HEAD: [&str; 4] = ["case", "what it shows", "from", "guards"];
/// The name of the last row.
const SUM: &str = "passed of declared";

/// Why a page cannot have a table.
#[derive(Debug, Error)]
#[error("the page has no line `{BEGIN}` with a line `{END}` after it")]
pub struct NoTable;

/// The page with this report's column in its table, put in its place or added at the end. Columns of other
/// connectors stay as they are, for their own test runs to check; the page is up to date with a report if this
/// changes nothing.
///
/// # Errors
/// If the page does not say where its table is.
pub fn update(page: &str, report: &Report) -> Result<String, NoTable> {
    let (before, rest) = page.split_once(BEGIN).ok_or(NoTable)?;
    let (table, after) = rest.split_once(END).ok_or(NoTable)?;
    let mut table = Table::parse(table);
    table.set(report);
    Ok(format!("{before}{BEGIN}\n\n{}\n{END}{after}", table.render()))
}

/// Columns of connectors by name, in order; each has a cell for the name of a case.
struct Table(Vec<(String, BTreeMap<String, String>)>);

impl Table {
    fn parse(text: &str) -> Self {
        let mut rows = text
            .lines()
            .filter(|line| line.starts_with('|') && !line.starts_with("|-"))
            .map(cells);
        let names = rows.next().unwrap_or_default();
        let mut columns: Vec<_> = names
            .into_iter()
            .skip(HEAD.len())
            .map(|name| (name, BTreeMap::new()))
            .collect();
        for row in rows {
            let case = row.first().map(|cell| cell.trim_matches('`').to_owned());
            let cells = row.into_iter().skip(HEAD.len());
            for ((_, column), cell) in columns.iter_mut().zip(cells) {
                column.insert(case.clone().unwrap_or_default(), cell);
            }
        }
        Self(columns)
    }

    fn set(&mut self, report: &Report) {
        let verdicts = report.rows.iter();
        let mut column: BTreeMap<_, _> = verdicts
            .map(|row| (row.case.name.to_owned(), row.verdict.to_string()))
            .collect();
        column.insert(
            SUM.to_owned(),
            format!("{} of {}", report.passed(), report.declared()),
        );
        match self.0.iter_mut().find(|(name, _)| *name == report.subject) {
            Some((_, old)) => *old = column,
            None => self.0.push((report.subject.clone(), column)),
        }
    }

    fn render(&self) -> String {
        let names = self.0.iter().map(|(name, _)| name.clone());
        let mut lines = vec![line(HEAD.map(str::to_owned).into_iter().chain(names))];
        lines.push(format!("|{}", "---|".repeat(HEAD.len() + self.0.len())));
        for case in ALL {
            let head = [
                format!("`{}`", case.name),
                case.claim.to_owned(),
                case.from.to_owned(),
                case.guards.to_owned(),
            ];
            lines.push(line(head.into_iter().chain(self.row(case.name))));
        }
        let head = [SUM, "", "", ""].map(str::to_owned);
        lines.push(line(head.into_iter().chain(self.row(SUM))));
        lines.join("\n") + "\n"
    }

    /// What the connectors have in the row of this name; one whose test has not run since there is such a row has
    /// a dash.
    fn row(&self, name: &str) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .map(move |(_, column)| column.get(name).cloned().unwrap_or_else(|| "–".to_owned()))
    }
}

fn cells(line: &str) -> Vec<String> {
    let line = line.trim().trim_start_matches('|').trim_end_matches('|');
    line.split('|').map(|cell| cell.trim().to_owned()).collect()
}

fn line(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<_> = cells.collect();
    format!("| {} |", cells.join(" | "))
}
