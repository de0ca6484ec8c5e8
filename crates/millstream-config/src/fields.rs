//! What a table may hold, as its JSON Schema says: the names to suggest, the keys to demand, what is secret.

use std::ops::Range;

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::DeValue;

use crate::mask;

/// The schema of one table or value, everything in line.
#[derive(Clone, Debug)]
pub(crate) struct Fields(Value);

/// A key that is not known.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// The keys of the tables it is in, from the outermost.
    pub(crate) within: Vec<String>,
    pub(crate) key: String,
    pub(crate) span: Range<usize>,
    /// The strings it holds, unless it is a table: a misspelt `url` holds a secret no less.
    pub(crate) strings: Vec<Range<usize>>,
    /// The keys that are known in its place.
    pub(crate) known: Vec<String>,
}

impl Fields {
    pub(crate) fn of<T: JsonSchema>() -> Self {
        let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
        let mut schema = generator.into_generator().into_root_schema_for::<T>().to_value();
        tidy(&mut schema);
        if let Some(root) = schema.as_object_mut() {
            root.remove("$schema");
            root.remove("title");
        }
        Self(schema)
    }

    /// A table with no keys but those that are taken out of it first.
    pub(crate) fn none() -> Self {
        Self(json!({ "type": "object", "properties": {}, "additionalProperties": false }))
    }

    /// Demands one more key, which is read apart from the others.
    pub(crate) fn require(&mut self, key: &str, description: &str) {
        if let Some(properties) = self.0.get_mut("properties").and_then(Value::as_object_mut) {
            properties.insert(key.to_owned(), json!({ "description": description }));
        }
        match self.0.get_mut("required").and_then(Value::as_array_mut) {
            Some(required) => required.push(key.into()),
            None => set(&mut self.0, "required", json!([key])),
        }
    }

    pub(crate) fn schema(&self) -> &Value {
        &self.0
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        names(&self.0)
    }

    pub(crate) fn required(&self) -> impl Iterator<Item = &str> {
        let required = self.0.get("required").and_then(Value::as_array);
        required.into_iter().flatten().filter_map(Value::as_str)
    }

    /// The schema of what is at this path of keys.
    pub(crate) fn property(&self, keys: &[&str]) -> Option<&Value> {
        keys.iter().try_fold(&self.0, |schema, key| {
            let schema = schema.get("items").unwrap_or(schema);
            let own = schema.get("properties").and_then(|all| all.get(key));
            own.or_else(|| schema.get("additionalProperties"))
        })
    }

    /// Takes the keys that are not known out of a table, at any depth.
    pub(crate) fn take_unknown(&self, value: &mut Spanned<DeValue<'_>>) -> Vec<Unknown> {
        let mut found = Vec::new();
        take_unknown(&self.0, value, &mut Vec::new(), &mut found);
        found
    }

    /// Calls `found` with the strings that the schema marks as secret.
    pub(crate) fn secrets(&self, value: &Spanned<DeValue<'_>>, found: &mut dyn FnMut(Range<usize>, &str)) {
        secrets(&self.0, value, found);
    }
}

/// Puts a key into a schema, which is an object.
pub(crate) fn set(schema: &mut Value, key: &str, value: Value) {
    if let Some(schema) = schema.as_object_mut() {
        schema.insert(key.to_owned(), value);
    }
}

fn names(schema: &Value) -> impl Iterator<Item = &str> {
    schema
        .get("properties")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(|map| map.keys().map(String::as_str))
}

/// A table with `flatten`ed rest or of free keys says so; all others are closed.
fn closed(schema: &Value) -> bool {
    schema.get("type").is_some_and(|name| name == "object")
        && matches!(
            schema.get("additionalProperties"),
            None | Some(Value::Bool(false))
        )
}

fn take_unknown(
    schema: &Value,
    value: &mut Spanned<DeValue<'_>>,
    within: &mut Vec<String>,
    found: &mut Vec<Unknown>,
) {
    match value.get_mut() {
        DeValue::Table(table) => {
            if closed(schema) {
                let wrong: Vec<_> = table
                    .keys()
                    .filter(|key| names(schema).all(|name| name != key.get_ref()))
                    .map(|key| (key.get_ref().to_string(), key.span()))
                    .collect();
                for (key, span) in wrong {
                    let mut strings = Vec::new();
                    if let Some(value) = table
                        .remove(key.as_str())
                        .filter(|value| !value.get_ref().is_table())
                    {
                        mask::search(&value, true, &mut |span, _| strings.push(span));
                    }
                    let known = names(schema).map(str::to_owned).collect();
                    found.push(Unknown {
                        within: within.clone(),
                        key,
                        span,
                        strings,
                        known,
                    });
                }
            }
            for (key, item) in table.iter_mut() {
                let key = key.get_ref();
                if let Some(schema) = schema.get("properties").and_then(|all| all.get(key.as_ref())) {
                    within.push(key.to_string());
                    take_unknown(schema, item, within, found);
                    within.pop();
                }
            }
        }
        DeValue::Array(array) => {
            if let Some(schema) = schema.get("items") {
                for item in array.iter_mut() {
                    take_unknown(schema, item, within, found);
                }
            }
        }
        _ => {}
    }
}

fn secrets(schema: &Value, value: &Spanned<DeValue<'_>>, found: &mut dyn FnMut(Range<usize>, &str)) {
    if schema.get(mask::KEYWORD) == Some(&Value::Bool(true)) {
        mask::search(value, true, found);
        return;
    }
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, item) in table {
                let own = schema
                    .get("properties")
                    .and_then(|all| all.get(key.get_ref().as_ref()));
                if let Some(schema) = own.or(schema.get("additionalProperties")) {
                    secrets(schema, item, found);
                }
            }
        }
        DeValue::Array(array) => {
            if let Some(schema) = schema.get("items") {
                for item in array.iter() {
                    secrets(schema, item, found);
                }
            }
        }
        _ => {}
    }
}

/// Takes out null, which TOML has not, and the line breaks that a doc comment is wrapped with.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            if map.get("default") == Some(&Value::Null) {
                map.remove("default");
            }
            if let Some(Value::Array(types)) = map.get_mut("type") {
                types.retain(|name| name != "null");
                if let [only] = types.as_slice() {
                    let only = only.clone();
                    map.insert("type".to_owned(), only);
                }
            }
            if let Some(Value::Array(options)) = map.get_mut("anyOf") {
                options.retain(|option| option.get("type").is_none_or(|name| name != "null"));
                if let [Value::Object(only)] = options.as_slice() {
                    let only = only.clone();
                    map.remove("anyOf");
                    for (key, value) in only {
                        map.entry(key).or_insert(value);
                    }
                }
            }
            if let Some(Value::String(description)) = map.get_mut("description") {
                *description = description
                    .replace("\n\n", "\0")
                    .replace('\n', " ")
                    .replace('\0', "\n\n");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
