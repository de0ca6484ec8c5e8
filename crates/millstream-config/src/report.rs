//! Collects what is wrong while a file is read, and knows what must not be shown of it.

use std::ops::Range;
use std::sync::Arc;

use millstream_core::Severity;

use crate::diagnostic::{Diagnostic, Diagnostics, position};
use crate::hidden::Hidden;
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
        self.hidden.add(value, shown);
    }

    /// Whether this text is one that no message may quote.
    pub(crate) fn hides(&self, text: &str) -> bool {
        self.hidden.covers(text)
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

#[cfg(test)]
mod tests {
    use super::*;

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
