//! A table of the file as a struct, with every error that it has and not only the first.
//!
//! Keys that are not known, and keys that are missing, come from the struct's schema. Then the table is
//! deserialised, and again without the entry at fault, until no entry is.

use std::ops::Range;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, ValueDeserializer};

use crate::elsewhere;
use crate::explain::{Site, explain};
use crate::fields::Fields;
use crate::report::Report;
use crate::suggest;
use crate::table::Table;

/// Makes a struct of what is left in the table. `others` are keys that are known too, and were taken out.
pub(crate) fn decode<T: DeserializeOwned>(
    report: &mut Report<'_>,
    table: &mut Table<'_>,
    fields: &Fields,
    others: &[&str],
) -> Option<T> {
    let mut value = Spanned::new(
        table.span.clone(),
        DeValue::Table(std::mem::take(&mut table.entries)),
    );
    fields.secrets(&value, &mut |span, text| report.secret(span, text));
    let misspelt = refuse_unknown(report, table, fields, others, &mut value);
    let missing = refuse_missing(report, table, fields, &misspelt);
    let mut failed = !misspelt.is_empty() || missing;
    loop {
        let error = match T::deserialize(ValueDeserializer::from(value.clone())) {
            Ok(_) if failed => return None,
            Ok(decoded) => return Some(decoded),
            Err(error) => error,
        };
        let span = error.span().unwrap_or_else(|| table.span.clone());
        let culprit = value
            .get_ref()
            .as_table()
            .and_then(|entries| entry_at(entries, &span));
        let Some((key, entry)) = culprit else {
            if !failed {
                let site = Site {
                    key: &table.path,
                    item: false,
                    value: None,
                    schema: None,
                    quotable: false,
                };
                report.invalid(span, explain(error.message(), &site));
            }
            return None;
        };
        let mut keys = vec![key.as_str()];
        let (found, item) = descend(entry, &span, &mut keys);
        let site = Site {
            key: keys.last().copied().unwrap_or_default(),
            item,
            value: found.map(Spanned::get_ref),
            schema: fields.property(&keys),
            quotable: !found
                .and_then(|value| value.get_ref().as_str())
                .is_some_and(|text| report.hides(text)),
        };
        report.invalid(span, explain(error.message(), &site));
        failed = true;
        if let DeValue::Table(entries) = value.get_mut() {
            entries.remove(key.as_str());
        }
    }
}

/// A part of the pipeline with its table, or its default where the file has none.
pub(crate) fn part<'i, T: DeserializeOwned + JsonSchema + Default>(
    report: &mut Report<'_>,
    pipeline: &mut Table<'i>,
    key: &str,
) -> Option<(T, Table<'i>)> {
    if !pipeline.has(key) {
        return Some((
            T::default(),
            Table::new(pipeline.below(key), pipeline.span.clone(), DeTable::new()),
        ));
    }
    let mut table = pipeline.take_table(report, key)?;
    Some((decode(report, &mut table, &Fields::of::<T>(), &[])?, table))
}

/// Reports the keys that are not known; gives the names that were probably meant, or were written.
fn refuse_unknown(
    report: &mut Report<'_>,
    table: &Table<'_>,
    fields: &Fields,
    others: &[&str],
    value: &mut Spanned<DeValue<'_>>,
) -> Vec<String> {
    let mut misspelt = Vec::new();
    for unknown in fields.take_unknown(value) {
        unknown.strings.into_iter().for_each(|span| report.cover(span));
        let mut known: Vec<_> = unknown.known.iter().map(String::as_str).collect();
        let mut path = table.path.clone();
        if unknown.within.is_empty() {
            known.extend(others);
        } else {
            path = format!("{path}.{}", unknown.within.join("."));
        }
        known.sort_unstable();
        known.dedup();
        let key = &unknown.key;
        misspelt.push(
            suggest::nearest(key, known.iter().copied())
                .unwrap_or(key)
                .to_owned(),
        );
        let label = if path.is_empty() {
            "the file".to_owned()
        } else {
            format!("[{path}]")
        };
        let homes = elsewhere::homes(&path, key);
        let help = match suggest::nearest(key, known.iter().copied()) {
            None if !homes.is_empty() => format!("move it to {}", homes.join(" or ")),
            _ => suggest::help(key, &known, "known here"),
        };
        report.error(unknown.span, format!("unknown key `{key}` in {label}"), help);
    }
    misspelt
}

/// Reports the keys that are missing and were not merely misspelt.
fn refuse_missing(report: &mut Report<'_>, table: &Table<'_>, fields: &Fields, misspelt: &[String]) -> bool {
    let mut any = false;
    for key in fields.required().filter(|key| !table.has(key)) {
        any = true;
        if misspelt.iter().any(|name| name == key) {
            continue;
        }
        let what = fields
            .property(&[key])
            .and_then(|schema| schema.get("description")?.as_str());
        let what = what
            .and_then(|text| text.lines().next())
            .map(|text| format!(": {text}"))
            .unwrap_or_default();
        report.error(
            table.span.clone(),
            format!("missing key `{key}` in {}", table.label()),
            format!("add `{key}`{}", what.trim_end_matches('.')),
        );
    }
    any
}

/// The entry whose key or value the span is in.
fn entry_at<'t, 'i>(
    table: &'t DeTable<'i>,
    span: &Range<usize>,
) -> Option<(String, &'t Spanned<DeValue<'i>>)> {
    let holds = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    table
        .iter()
        .find(|(key, value)| holds(key.span()) || contains(value, span))
        .map(|(key, value)| (key.get_ref().to_string(), value))
}

/// Whether the span is in this value; a table with a header of its own holds more than its header.
fn contains(value: &Spanned<DeValue<'_>>, span: &Range<usize>) -> bool {
    let outer = value.span();
    let within = outer.start <= span.start && span.end <= outer.end;
    within
        || match value.get_ref() {
            DeValue::Table(table) => entry_at(table, span).is_some(),
            DeValue::Array(array) => array.iter().any(|item| contains(item, span)),
            _ => false,
        }
}

/// Down to the innermost value that the span is in, collecting keys; and whether that is an item of an array.
fn descend<'t, 'i>(
    value: &'t Spanned<DeValue<'i>>,
    span: &Range<usize>,
    keys: &mut Vec<&'t str>,
) -> (Option<&'t Spanned<DeValue<'i>>>, bool) {
    let mut value = value;
    let mut item = false;
    loop {
        if value.span() == *span {
            return (Some(value), item);
        }
        let below = match value.get_ref() {
            DeValue::Table(table) => {
                table
                    .iter()
                    .find(|(_, item)| contains(item, span))
                    .map(|(key, value)| {
                        keys.push(key.get_ref());
                        (value, false)
                    })
            }
            DeValue::Array(array) => array
                .iter()
                .find(|item| contains(item, span))
                .map(|value| (value, true)),
            _ => return (Some(value), item),
        };
        match below {
            Some(below) => (value, item) = below,
            None => return (None, item),
        }
    }
}
