//! Words a deserialiser's error as a cause and a remedy.
//!
//! The deserialiser quotes what it found, which may be a secret, and says what it expected in Rust's words.
//! Both are put right here; what a type of our own or of a connector's says stays.

use serde_json::Value;
use toml::de::DeValue;

use crate::invalid::Invalid;
use crate::node::described;
use crate::suggest;

/// Where an error is.
#[derive(Debug)]
pub(crate) struct Site<'a> {
    /// The key.
    pub(crate) key: &'a str,
    /// Whether the error is about an item of the array that the key holds.
    pub(crate) item: bool,
    /// What it holds, if the error is about the value of a key.
    pub(crate) value: Option<&'a DeValue<'a>>,
    /// What it may hold.
    pub(crate) schema: Option<&'a Value>,
    /// Whether the value may be quoted.
    pub(crate) quotable: bool,
}

/// The cause and the remedy.
pub(crate) fn explain(error: &str, site: &Site<'_>) -> Invalid {
    let key = if site.item {
        format!("an item of `{}`", site.key)
    } else {
        format!("`{}`", site.key)
    };
    let worded = Invalid::split(error);
    if !site.quotable && matches!(site.value, Some(DeValue::String(_))) {
        let help = worded.map_or_else(|| remedy(site), |(_, help)| help.to_owned());
        return Invalid::new(format!("{key} cannot be what it is set to"), help);
    }
    if let Some((message, help)) = worded {
        return Invalid::new(format!("{key}: {message}"), help);
    }
    if let Some(rest) = error.strip_prefix("missing field ") {
        return Invalid::new(format!("missing key {rest} in {key}"), format!("add {rest}"));
    }
    if let Some((wrong, right)) = alternatives(error, "unknown variant ") {
        return Invalid::new(format!("{key} cannot be \"{wrong}\""), options(wrong, &right));
    }
    if let Some((wrong, right)) = alternatives(error, "unknown field ") {
        let help = suggest::help(wrong, &right, "known here");
        return Invalid::new(format!("unknown key `{wrong}` in {key}"), help);
    }
    let expected = error.rsplit_once("expected ").map(|(_, expected)| expected);
    match (error, expected, site.value) {
        (error, _, Some(value)) if error.starts_with("wanted string or table") => Invalid::new(
            format!("{key} must be a string, not {}", described(value)),
            remedy(site),
        ),
        (error, Some(expected), Some(value)) if error.starts_with("invalid type: ") => Invalid::new(
            format!("{key} must be {}, not {}", words(expected), described(value)),
            remedy(site),
        ),
        (error, Some(expected), Some(value)) if error.starts_with("invalid value: ") => {
            let found = match value {
                DeValue::Integer(number) => number.to_string(),
                DeValue::Float(number) => number.to_string(),
                other => described(other).to_owned(),
            };
            Invalid::new(
                format!("{key} must be {}, not {found}", words(expected)),
                remedy(site),
            )
        }
        _ => Invalid::new(format!("{key}: {error}"), remedy(site)),
    }
}

/// `x`, and `a` and `b`, of "unknown variant `x`, expected one of `a`, `b`".
fn alternatives<'e>(error: &'e str, prefix: &str) -> Option<(&'e str, Vec<&'e str>)> {
    let mut quoted = error.strip_prefix(prefix)?.split('`').skip(1).step_by(2);
    Some((quoted.next()?, quoted.collect()))
}

/// The remedy for a string that is none of these.
pub(crate) fn options(wrong: &str, right: &[&str]) -> String {
    let list = right
        .iter()
        .map(|name| format!("\"{name}\""))
        .collect::<Vec<_>>()
        .join(", ");
    match suggest::nearest(wrong, right.iter().copied()) {
        Some(name) => format!("did you mean \"{name}\"? It can be {list}"),
        None => format!("write one of {list}"),
    }
}

/// What Rust expected, in the words of the reference.
fn words(expected: &str) -> String {
    match expected {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "usize" => "a whole number from 0 on",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a sequence" => "an array",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
    .to_owned()
}

/// The remedy where the type has none of its own: an example, or what the schema says the key is.
fn remedy(site: &Site<'_>) -> String {
    let key = site.key;
    let Some(schema) = site.schema else {
        return format!("correct or remove `{key}`");
    };
    let constants: Vec<_> = schema
        .get("oneOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|option| option.get("const")?.as_str())
        .collect();
    if !constants.is_empty() {
        return options("", &constants);
    }
    let first = |name| {
        schema
            .get(name)
            .and_then(Value::as_array)
            .and_then(|list| list.first())
    };
    let empty = |value: &&Value| ["\"\"", "[]", "{}"].contains(&value.to_string().as_str());
    let default = schema.get("default").filter(|value| !empty(value));
    if let Some(example) = default.or_else(|| first("examples")).or_else(|| first("enum")) {
        return format!("write it as in `{key} = {example}`");
    }
    match schema.get("type").and_then(Value::as_str) {
        Some("string") => format!("write it between quotes, as in `{key} = \"…\"`"),
        Some("integer") => format!("write it as in `{key} = 1`"),
        Some("number") => format!("write it as in `{key} = 0.5`"),
        Some("boolean") => format!("write `{key} = true` or `{key} = false`"),
        Some("array") => format!("write it as in `{key} = [\"…\"]`"),
        Some("object") => format!("write it as in `{key} = {{ … }}`"),
        _ => format!("correct or remove `{key}`"),
    }
}
