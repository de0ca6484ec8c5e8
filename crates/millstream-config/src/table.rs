//! One table of the file, with the place of every key.

use std::collections::BTreeMap;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::node::{Node, described};
use crate::report::Report;

/// A table whose entries are taken out as they are understood; the places of all of them stay.
#[derive(Debug)]
pub(crate) struct Table<'i> {
    /// Its name as in a header, without the brackets.
    pub(crate) path: String,
    /// Its header, or the key that it is the value of.
    pub(crate) span: Range<usize>,
    pub(crate) entries: DeTable<'i>,
    places: BTreeMap<String, Place>,
}

#[derive(Debug)]
struct Place {
    key: Range<usize>,
    value: Range<usize>,
}

impl<'i> Table<'i> {
    pub(crate) fn new(path: String, span: Range<usize>, entries: DeTable<'i>) -> Self {
        let place = |(key, value): (&Spanned<_>, &Node<'i>)| Place {
            key: key.span(),
            value: value.span(),
        };
        let places = entries
            .iter()
            .map(|(key, value)| (key.get_ref().to_string(), place((key, value))))
            .collect();
        Self {
            path,
            span,
            entries,
            places,
        }
    }

    /// The value as a table, or an error.
    pub(crate) fn of(report: &mut Report<'_>, path: String, node: Node<'i>) -> Option<Self> {
        let span = node.span();
        match node.into_inner() {
            DeValue::Table(entries) => Some(Self::new(path, span, entries)),
            other => {
                let key = path.rsplit('.').next().unwrap_or_default();
                report.error(
                    span,
                    format!("`{key}` must be a table, not {}", described(&other)),
                    format!("write its keys below a header of its own, [{path}]"),
                );
                None
            }
        }
    }

    /// Takes one entry out.
    pub(crate) fn take(&mut self, key: &str) -> Option<Node<'i>> {
        self.entries.remove(key)
    }

    /// Takes one entry out as a table below this one.
    pub(crate) fn take_table(&mut self, report: &mut Report<'_>, key: &str) -> Option<Self> {
        let node = self.take(key)?;
        Self::of(report, self.below(key), node)
    }

    /// Whether the file has this key, taken out or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.places.contains_key(key)
    }

    /// Where this key's value is; the table itself where there is none.
    pub(crate) fn at(&self, key: &str) -> Range<usize> {
        self.places
            .get(key)
            .map_or_else(|| self.span.clone(), |place| place.value.clone())
    }

    /// Where this key is; the table itself where there is none.
    pub(crate) fn key_at(&self, key: &str) -> Range<usize> {
        self.places
            .get(key)
            .map_or_else(|| self.span.clone(), |place| place.key.clone())
    }

    /// The path of what this key holds.
    pub(crate) fn below(&self, key: &str) -> String {
        let bare = !key.is_empty()
            && key
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte));
        let key = if bare { key.to_owned() } else { format!("{key:?}") };
        if self.path.is_empty() {
            key
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// How messages name it.
    pub(crate) fn label(&self) -> String {
        if self.path.is_empty() {
            "the file".to_owned()
        } else {
            format!("[{}]", self.path)
        }
    }
}
