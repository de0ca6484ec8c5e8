//! What no message may quote: [`Hidden`].

use crate::mask;

/// Values that no message may quote, each with what to put in its place.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hidden(Vec<(String, String)>);

impl Hidden {
    /// Puts `shown` in place of `value` from now on.
    pub(crate) fn add(&mut self, value: &str, shown: &str) {
        if !value.is_empty() && value != shown {
            self.0.push((value.to_owned(), shown.to_owned()));
        }
    }

    /// Whether this text is one that no message may quote.
    pub(crate) fn covers(&self, text: &str) -> bool {
        self.0
            .iter()
            .any(|(value, _)| text == value || (value.chars().count() > 2 && text.contains(value)))
    }

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
