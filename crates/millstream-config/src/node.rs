//! A value of the file: [`Node`].

use toml::Spanned;
use toml::de::DeValue;

/// A value of the file with its place.
pub(crate) type Node<'i> = Spanned<DeValue<'i>>;

/// The type of a value, with its article.
pub(crate) fn described(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
