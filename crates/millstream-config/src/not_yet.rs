//! What the reference has and this build does not honour yet.
//!
//! One entry for each: to honour it, delete the entry and add the key to its table. Until then the schema has
//! it, a value that asks for what the build does anyway is taken, and any other is an error.

use serde_json::Value;
use toml::de::{DeTable, DeValue};

use crate::fields::set;
use crate::report::Report;
use crate::table::Node;

/// Connectors of the reference; one that is not registered is not unknown.
pub(crate) const CONNECTORS: [&str; 6] = ["memory", "sqlite", "file", "rabbitmq", "kafka", "sqs"];
/// Handlers of the reference.
pub(crate) const HANDLERS: [&str; 3] = ["forward", "http", "exec"];

const ENTRIES: [Entry; 1] = [Entry {
    table: "pipelines.*.processor",
    key: "concurrency",
    refused: Refused::Table,
    schema: "",
    remedy: "write a fixed number, as in `concurrency = 16`",
}];

struct Entry {
    /// Where it is; `*` for any name.
    table: &'static str,
    key: &'static str,
    refused: Refused,
    /// Its JSON Schema, unless the table has the key already, for the values that are honoured.
    schema: &'static str,
    remedy: &'static str,
}

enum Refused {
    /// A table.
    Table,
}

/// Takes every such key out of the file; what is not honoured is an error.
pub(crate) fn refuse(report: &mut Report<'_>, root: &mut DeTable<'_>) {
    for entry in &ENTRIES {
        let steps: Vec<_> = entry.table.split('.').collect();
        walk(report, entry, &steps, root);
    }
}

fn walk(report: &mut Report<'_>, entry: &Entry, steps: &[&str], table: &mut DeTable<'_>) {
    let Some((step, rest)) = steps.split_first() else {
        if let Some(value) = table.get(entry.key)
            && entry.settle(report, value)
        {
            table.remove(entry.key);
        }
        return;
    };
    for (name, value) in table.iter_mut() {
        if let DeValue::Table(table) = value.get_mut()
            && (*step == "*" || *step == name.get_ref())
        {
            walk(report, entry, rest, table);
        }
    }
}

impl Entry {
    /// Whether the matter ends here, honoured or refused.
    fn settle(&self, report: &mut Report<'_>, value: &Node<'_>) -> bool {
        let key = self.key;
        let named = match self.refused {
            Refused::Table if value.get_ref().is_table() => format!("`{key} = {{ min, max }}`"),
            Refused::Table => return false,
        };
        report.error(value.span(), message(&named), self.remedy);
        true
    }

    fn is_in(&self, path: &str) -> bool {
        let (pattern, path) = (self.table.split('.'), path.split('.'));
        pattern.clone().count() == path.clone().count()
            && pattern
                .zip(path)
                .all(|(pattern, name)| pattern == "*" || pattern == name)
    }
}

/// The cause, for all that is in the reference and not in the build.
pub(crate) fn message(named: &str) -> String {
    format!("{named} is part of the reference, but this build does not honour it yet")
}

/// The keys of this table that are known although they are not honoured.
pub(crate) fn keys_in(path: &str) -> impl Iterator<Item = &'static str> {
    ENTRIES
        .iter()
        .filter(move |entry| entry.is_in(path))
        .map(|entry| entry.key)
}

/// Adds their schemas to the properties of this table.
pub(crate) fn document(table: &str, properties: &mut serde_json::Map<String, Value>) {
    for entry in ENTRIES
        .iter()
        .filter(|entry| entry.table == table && !entry.schema.is_empty())
    {
        let mut schema: Value = serde_json::from_str(entry.schema).unwrap_or_default();
        if let Some(description) = schema.get("description").and_then(Value::as_str) {
            let description = format!("{description} This build does not honour it yet.").into();
            set(&mut schema, "description", description);
        }
        properties.insert(entry.key.to_owned(), schema);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_has_a_schema_that_parses() {
        for entry in ENTRIES.iter().filter(|entry| !entry.schema.is_empty()) {
            let schema: Value = serde_json::from_str(entry.schema).unwrap();
            assert!(schema["description"].is_string(), "{}", entry.key);
        }
    }
}
