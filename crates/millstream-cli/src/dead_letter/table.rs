//! Letters as lines of a table: [`Table`].

use std::fmt::Write as _;

use millstream_core::Letter;

use super::time::utc;

const HEAD: [&str; 7] = [
    "ID",
    "FAILED AT",
    "REASON",
    "STAGE",
    "ATTEMPTS",
    "REPLAYS",
    "ERROR",
];
/// How much of an error a line shows, in characters.
const ERROR: usize = 80;

/// Columns that are as wide as what they have held so far. No payload is in it.
#[derive(Debug, Default)]
pub(super) struct Table {
    widths: [usize; HEAD.len()],
    begun: bool,
}

impl Table {
    /// The lines of these letters; before the first ones, the head.
    pub(super) fn lines(&mut self, letters: &[Letter]) -> String {
        let mut rows: Vec<[String; HEAD.len()]> = Vec::with_capacity(letters.len() + 1);
        if !self.begun && !letters.is_empty() {
            self.begun = true;
            rows.push(HEAD.map(str::to_owned));
        }
        rows.extend(letters.iter().map(row));
        for row in &rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (width, cell) in self.widths.iter().zip(&row) {
                // Memory takes what is written.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

fn row(letter: &Letter) -> [String; HEAD.len()] {
    let says = |what| plain(letter.says(what).unwrap_or("-"));
    [
        letter.id.clone(),
        letter.failed_at().map_or_else(|| "-".to_owned(), utc),
        says("reason"),
        says("stage"),
        says("attempts"),
        letter.replays().to_string(),
        says("error"),
    ]
}

/// The text on one line, without what would move a terminal's cursor, and not all of it if it is long.
fn plain(text: &str) -> String {
    let mut plain: String = text
        .chars()
        .take(ERROR)
        .map(|character| if character.is_control() { ' ' } else { character })
        .collect();
    if text.chars().nth(ERROR).is_some() {
        plain.push('…');
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_failures_and_no_payload() {
        let headers = [
            ("millstream-reason", "attempts"),
            ("millstream-stage", "db"),
            ("millstream-attempts", "5"),
            ("millstream-error", "gone\u{1b}[2J\nfor good"),
            ("millstream-failed-at", "951782400000"),
        ];
        let letter = Letter {
            id: "12".to_owned(),
            payload: "hunter2".into(),
            headers: headers.into_iter().collect(),
            ..Letter::default()
        };
        assert_eq!(
            Table::default().lines(&[letter]),
            "ID  FAILED AT             REASON    STAGE  ATTEMPTS  REPLAYS  ERROR\n\
             12  2000-02-29T00:00:00Z  attempts  db     5         0        gone [2J for good\n"
        );
        assert_eq!(Table::default().lines(&[]), "");
    }
}
