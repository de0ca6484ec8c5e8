//! What of a pipeline's table holds until the pipeline is started again: [`Fixed`].

use std::collections::BTreeMap;
use std::fmt;

use toml::de::{DeTable, DeValue};

/// Tables of which all may change while the pipeline runs.
const CHANGEABLE: [&str; 4] = ["limits", "breaker", "dependencies", "supervisor"];
/// Keys of the rate limit that may not: all others may.
const OF_RATE_LIMIT: [&str; 2] = ["store", "on_store_failure"];
/// Keys of the processor's table that may.
const OF_PROCESSOR: [&str; 3] = ["concurrency", "max_demand", "timeout"];
/// Keys of a sequence that may.
const OF_SEQUENCE: [&str; 2] = ["held", "wait"];
/// The keys of a batcher that may not: all others may.
const OF_BATCHER: [&str; 1] = ["sink"];

/// What of a pipeline's table holds until the pipeline is started again, as it is written, with variables replaced: to be
/// compared with another reading of the file. It never prints a value.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Fixed(BTreeMap<String, String>);

impl Fixed {
    /// Of the pipeline's table.
    pub(crate) fn of(pipeline: &DeTable<'_>) -> Self {
        let mut fixed = Self::default();
        for (key, value) in pipeline {
            let (key, value) = (key.get_ref().as_ref(), value.get_ref());
            match (key, value) {
                (key, _) if CHANGEABLE.contains(&key) => {}
                // The source may be made for the schedule of what it holds back.
                ("retry", DeValue::Table(table)) if !redelivers(table) => {}
                ("processor", DeValue::Table(table)) => {
                    fixed.add("processor", table, |key| !OF_PROCESSOR.contains(&key));
                }
                ("rate_limit", DeValue::Table(table)) => {
                    fixed.add("rate_limit", table, |key| OF_RATE_LIMIT.contains(&key));
                }
                ("sequence", DeValue::Table(table)) => {
                    fixed.add("sequence", table, |key| !OF_SEQUENCE.contains(&key));
                }
                ("batchers", DeValue::Table(batchers)) => {
                    for (name, batcher) in batchers {
                        if let DeValue::Table(table) = batcher.get_ref() {
                            let path = format!("batchers.{}", name.get_ref());
                            fixed.add(&path, table, |key| OF_BATCHER.contains(&key));
                        }
                    }
                }
                (key, value) => fixed.insert(key.to_owned(), value),
            }
        }
        fixed
    }

    fn add(&mut self, path: &str, table: &DeTable<'_>, which: impl Fn(&str) -> bool) {
        for (key, value) in table {
            if which(key.get_ref()) {
                self.insert(format!("{path}.{}", key.get_ref()), value.get_ref());
            }
        }
    }

    fn insert(&mut self, path: String, value: &DeValue<'_>) {
        let mut text = String::new();
        write(&mut text, value);
        self.0.insert(path, text);
    }

    /// The keys, below the pipeline's table, whose values differ.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut keys: Vec<_> = self.0.keys().chain(other.0.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.into_iter()
            .filter(|key| self.0.get(*key) != other.0.get(*key))
            .cloned()
            .collect()
    }
}

/// The keys alone: values may be secrets.
impl fmt::Debug for Fixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

fn redelivers(retry: &DeTable<'_>) -> bool {
    let strategy = retry.get("strategy").and_then(|value| value.get_ref().as_str());
    strategy.is_some_and(|strategy| strategy == "redeliver")
}

/// The value as text that is the same for the same value, however it is laid out.
fn write(text: &mut String, value: &DeValue<'_>) {
    match value {
        DeValue::Table(table) => {
            let mut entries: Vec<_> = table.iter().collect();
            entries.sort_unstable_by_key(|(key, _)| key.get_ref().as_ref());
            for (key, value) in entries {
                text.push_str(&format!("{:?}={{", key.get_ref()));
                write(text, value.get_ref());
                text.push('}');
            }
        }
        DeValue::Array(values) => {
            for value in values.iter() {
                text.push('[');
                write(text, value.get_ref());
                text.push(']');
            }
        }
        other => text.push_str(&format!("{other:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixed(text: &str) -> Fixed {
        Fixed::of(DeTable::parse(text).unwrap().get_ref())
    }

    #[test]
    fn the_layout_and_what_may_change_make_no_difference() {
        let one = fixed(
            r#"
            source = { type = "sqlite", path = "a.db" }
            retry.attempts = 3
            [processor]
            handler = "audit"
            concurrency = 3
            [batchers.db]
            size = 3
            [limits]
            in_flight = 10
            [rate_limit]
            messages = 10
            [sequence]
            by = "header:seq"
            held = 5
            "#,
        );
        let other = fixed(
            r#"
            [source]
            path = 'a.db'
            type = "sqlite"
            [processor]
            concurrency = { min = 1, max = 4 }
            timeout = "1s"
            handler = "audit"
            [sequence]
            wait = "1s"
            by = "header:seq"
            "#,
        );
        assert_eq!(one.differences(&other), [""; 0]);
        assert_eq!(one, other);
    }

    #[test]
    fn what_holds_until_the_next_start_is_told_by_its_key_and_never_by_its_value() {
        let one = fixed(
            r#"
            ordering = "key"
            source = { type = "rabbitmq", url = "amqp://user:secret@host" }
            processor = { handler = "http", url = "http://a" }
            rate_limit = { messages = 7, store = { type = "redis", url = "redis://:secret@host" } }
            batchers.out = { sink = { type = "sqlite", path = "a.db" } }
            retry = { strategy = "redeliver", attempts = 3 }
            "#,
        );
        let other = fixed(
            r#"
            source = { type = "rabbitmq", url = "amqp://user:other@host" }
            dead_letter = "discard"
            processor = { handler = "http", url = "http://b" }
            rate_limit = { messages = 8 }
            batchers.out = { sink = { type = "sqlite", path = "b.db" }, size = 7 }
            retry = { strategy = "redeliver", attempts = 4 }
            "#,
        );
        let keys = [
            "batchers.out.sink",
            "dead_letter",
            "ordering",
            "processor.url",
            "rate_limit.store",
            "retry",
            "source",
        ];
        assert_eq!(one.differences(&other), keys);
        assert!(!format!("{one:?}").contains("secret"));
    }
}
