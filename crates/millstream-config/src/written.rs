//! The file that a configuration was read from, for what is found out about it later: [`Written`].

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use millstream_core::Finding;
use toml::de::DeValue;

use crate::diagnostic::{Diagnostic, Diagnostics, position};
use crate::hidden::Hidden;
use crate::node::Node;

/// Where every key of a file is, and what must not be shown of it.
#[derive(Clone)]
pub(crate) struct Written {
    path: Arc<str>,
    /// Secrets are masked.
    source: String,
    hidden: Hidden,
    places: Places,
}

/// The place of the value of each key, by the keys that lead there.
pub(crate) type Places = BTreeMap<Vec<String>, Place>;

#[derive(Clone, Debug)]
pub(crate) struct Place {
    span: Range<usize>,
    line: usize,
    column: usize,
}

/// All places of a file.
pub(crate) fn places(text: &str, root: &Node<'_>) -> Places {
    let mut places = Places::new();
    collect(text, root, &mut Vec::new(), &mut places);
    places
}

fn collect(text: &str, node: &Node<'_>, keys: &mut Vec<String>, places: &mut Places) {
    let span = node.span();
    let (line, column) = position(text, span.start);
    places.insert(keys.clone(), Place { span, line, column });
    if let DeValue::Table(table) = node.get_ref() {
        for (key, value) in table {
            keys.push(key.get_ref().to_string());
            collect(text, value, keys, places);
            keys.pop();
        }
    }
}

impl Written {
    pub(crate) fn new(path: Arc<str>, source: String, hidden: Hidden, places: Places) -> Self {
        Self {
            path,
            source,
            hidden,
            places,
        }
    }

    /// The findings at their places, each with the keys that lead to it; none if there are none.
    pub(crate) fn diagnose<'a>(
        &self,
        found: impl IntoIterator<Item = (Vec<&'a str>, Finding)>,
    ) -> Option<Diagnostics> {
        let found: Vec<_> = found
            .into_iter()
            .map(|(keys, finding)| self.diagnostic(&keys, &finding))
            .collect();
        (!found.is_empty()).then(|| Diagnostics::new(Arc::clone(&self.path), self.source.clone(), found))
    }

    fn diagnostic(&self, keys: &[&str], finding: &Finding) -> Diagnostic {
        let Place { span, line, column } = self.at(keys);
        Diagnostic {
            severity: finding.severity,
            path: Arc::clone(&self.path),
            line,
            column,
            span,
            message: self.hidden.clean(&finding.message),
            help: self.hidden.clean(&finding.help),
        }
    }

    /// The value at these keys, or the innermost table on the way there that the file has.
    fn at(&self, keys: &[&str]) -> Place {
        let mut keys: Vec<_> = keys.iter().map(|key| (*key).to_owned()).collect();
        loop {
            if let Some(place) = self.places.get(&keys) {
                return place.clone();
            }
            if keys.pop().is_none() {
                return Place {
                    span: 0..0,
                    line: 1,
                    column: 1,
                };
            }
        }
    }
}

impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Written")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}
