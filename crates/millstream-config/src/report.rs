//! Collects what is wrong while a file is read, and knows what must not be shown of it.

use std::ops::Range;
use std::sync::Arc;

use millstream_core::Severity;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::invalid::Invalid;
use crate::mask;
use crate::secret::Secret;
use crate::written::{Places, Written};

/// The errors of one file so far.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    path: Arc<str>,
    text: &'a str,
    found: Vec<Diagnostic>,
    /// Strings whose variables could not be replaced; what else is wrong with them does not count.
    unresolved: Vec<Range<usize>>,
    /// Where secrets stand in the text.
    secrets: Vec<Range<usize>>,
    hidden: Hidden,
}

/// Values that no message may quote, each with what to put in its place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hidden(Vec<(String, String)>);

impl<'a> Report<'a> {
    pub(crate) fn new(path: &str, text: &'a str) -> Self {
        Self {
            path: path.into(),
            text,
            found: Vec::new(),
            unresolved: Vec::new(),
            secrets: Vec::new(),
            hidden: Hidden::default(),
        }
    }

    pub(crate) fn text(&self) -> &'a str {
        self.text
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Adds an error, unless it follows from a variable that is missing.
    pub(crate) fn error(&mut self, span: Range<usize>, message: impl Into<String>, help: impl Into<String>) {
        let inside = |outer: &Range<usize>| outer.start <= span.start && span.end <= outer.end;
        if self.unresolved.iter().any(inside) {
            return;
        }
        let (line, column) = position(self.text, span.start);
        let (message, help) = (message.into(), help.into());
        self.found.push(Diagnostic {
            severity: Severity::Error,
            path: Arc::clone(&self.path),
            line,
            column,
            span,
            message,
            help,
        });
    }

    /// The same for a check that has worded its error already.
    pub(crate) fn invalid(&mut self, span: Range<usize>, invalid: Invalid) {
        self.error(span, invalid.message, invalid.help);
    }

    /// No further errors about this value.
    pub(crate) fn unresolved(&mut self, span: Range<usize>) {
        self.unresolved.push(span);
    }

    /// Keeps what is here out of excerpts.
    pub(crate) fn cover(&mut self, span: Range<usize>) {
        self.secrets.push(span);
    }

    /// Keeps this value out of excerpts and messages.
    pub(crate) fn secret(&mut self, span: Range<usize>, value: &str) {
        self.hide(value, &Secret::new(value).redacted_url());
        self.cover(span);
    }

    /// Puts `shown` in place of `value` in every message.
    pub(crate) fn hide(&mut self, value: &str, shown: &str) {
        if !value.is_empty() && value != shown {
            self.hidden.0.push((value.to_owned(), shown.to_owned()));
        }
    }

    /// Whether this text is one that no message may quote.
    pub(crate) fn hides(&self, text: &str) -> bool {
        self.hidden
            .0
            .iter()
            .any(|(value, _)| text == value || (value.chars().count() > 2 && text.contains(value)))
    }

    /// The value, if nothing is wrong.
    pub(crate) fn finish<T>(mut self, value: Option<T>) -> Result<T, Diagnostics> {
        match value {
            Some(value) if self.found.is_empty() => return Ok(value),
            None if self.found.is_empty() => {
                self.error(
                    0..0,
                    "this file cannot be used",
                    "start from an example of the reference",
                );
            }
            _ => {}
        }
        let mut found = std::mem::take(&mut self.found);
        for diagnostic in &mut found {
            diagnostic.message = self.hidden.clean(&diagnostic.message);
            diagnostic.help = self.hidden.clean(&diagnostic.help);
        }
        Err(Diagnostics::new(
            self.path,
            mask::source(self.text, &self.secrets),
            found,
        ))
    }

    /// The file as it stays known when nothing is wrong with it.
    pub(crate) fn written(&self, places: Places) -> Written {
        Written::new(
            Arc::clone(&self.path),
            mask::source(self.text, &self.secrets),
            self.hidden.clone(),
            places,
        )
    }
}

impl Hidden {
    /// A message without what it must not quote. A value of one or two characters is only recognised between
    /// quotes, or it would be found in every word. The longest go first, because others may be parts of them.
    pub(crate) fn clean(&self, message: &str) -> String {
        let mut hidden: Vec<_> = self.0.iter().collect();
        hidden.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        let mut clean = mask::message(message);
        for (value, shown) in hidden {
            if value.chars().count() > 2 {
                clean = clean.replace(value.as_str(), shown);
            } else {
                for quote in ['`', '"', '\''] {
                    clean = clean.replace(
                        &format!("{quote}{value}{quote}"),
                        &format!("{quote}{shown}{quote}"),
                    );
                }
            }
        }
        clean
    }
}

/// Line and column, both from 1, the column in characters.
pub(crate) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let column = before
        .get(line_start..)
        .unwrap_or_default()
        .trim_start_matches('\u{feff}')
        .chars()
        .count();
    (before.matches('\n').count() + 1, column + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_lines_and_characters_from_one() {
        let text = "a = 1\nü = 2\n";
        assert_eq!(position(text, 0), (1, 1));
        assert_eq!(position(text, text.find('2').unwrap()), (2, 5));
        assert_eq!(position(text, text.len()), (3, 1));
    }

    #[test]
    fn the_longest_hidden_value_is_replaced_first() {
        let mut report = Report::new("x.toml", "");
        report.hide("hunter", "${SHORT}");
        report.hide("hunter2", "${LONG}");
        report.error(0..0, "cannot use hunter2", "not hunter, not `hunter`");
        let errors = report.finish::<()>(None).unwrap_err();
        assert_eq!(
            errors.to_string(),
            "x.toml:1:1: cannot use ${LONG}\n  help: not ${SHORT}, not `${SHORT}`"
        );
    }
}
