//! Keeps secrets out of what diagnostics show.
//!
//! Four things count as secret: the value of a setting of type [`Secret`](crate::Secret), the user and
//! password of a URL wherever one stands, any string under a key whose name says so (`password`,
//! `sasl.password`, `api_key`), and what a key holds that is not known, for it may be one of these misspelt.
//! `${NAME}` stays visible, since it tells nothing but the name.

use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

/// Marks a setting's schema as secret; the standard's word for what may be written and is never shown.
pub(crate) const KEYWORD: &str = "writeOnly";

const TELLING: [&str; 6] = ["password", "passwd", "secret", "token", "api_key", "credential"];

/// Whether a key's name says that its value is secret.
pub(crate) fn names_a_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    TELLING.iter().any(|word| key.contains(word))
}

/// Calls `found` with every string below `value` that its key or its form gives away as secret.
pub(crate) fn search(value: &Spanned<DeValue<'_>>, secret: bool, found: &mut dyn FnMut(Range<usize>, &str)) {
    match value.get_ref() {
        DeValue::String(text) if secret || text.contains("://") => found(value.span(), text),
        DeValue::Array(array) => {
            for item in array.iter() {
                search(item, secret, found);
            }
        }
        DeValue::Table(table) => {
            for (key, item) in table {
                let named = names_a_secret(key.get_ref()) && !item.get_ref().is_table();
                search(item, secret || named, found);
            }
        }
        _ => {}
    }
}

/// The file's text with stars over these spans and over the users of all URLs, at the same length.
pub(crate) fn source(text: &str, secrets: &[Range<usize>]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for range in secrets {
        let Some(raw) = text.get(range.clone()) else {
            continue;
        };
        let hidden = match user_of_url(raw) {
            Some(user) => user,
            None if raw.contains("://") => continue,
            None => content(raw),
        };
        cover(&mut bytes, range.start + hidden.start..range.start + hidden.end);
    }
    for range in users_of_urls(text) {
        cover(&mut bytes, range);
    }
    String::from_utf8(bytes).unwrap_or_default()
}

/// A message without the users of URLs.
pub(crate) fn message(text: &str) -> String {
    let mut shown = text.to_owned();
    for range in users_of_urls(text).into_iter().rev() {
        shown.replace_range(range, "***");
    }
    shown
}

/// A string without the quotes around it.
fn content(raw: &str) -> Range<usize> {
    let quotes = ["\"\"\"", "'''", "\"", "'"];
    let quote = quotes
        .iter()
        .find(|quote| raw.len() >= 2 * quote.len() && raw.starts_with(**quote));
    let quote = quote.map_or(0, |quote| quote.len());
    quote..raw.len() - quote
}

/// From the scheme to the last `@`, in a text that is one string.
fn user_of_url(raw: &str) -> Option<Range<usize>> {
    let start = raw.find("://")? + 3;
    let end = raw.rfind('@')?;
    (start < end).then_some(start..end)
}

/// The same in a text of any kind, where a URL ends with its line or with a quote.
fn users_of_urls(text: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text.get(from..).and_then(|rest| rest.find("://")) {
        let start = from + at + 3;
        let rest = text.get(start..).unwrap_or_default();
        let end = rest.find(['\n', '"']).unwrap_or(rest.len());
        if let Some(at) = rest.get(..end).and_then(|run| run.rfind('@')) {
            found.push(start..start + at);
        }
        from = start + end;
    }
    found
}

/// Stars over all but `${NAME}`.
fn cover(bytes: &mut [u8], range: Range<usize>) {
    let Some(hidden) = bytes.get_mut(range) else {
        return;
    };
    let mut rest = hidden;
    while let Some((first, tail)) = rest.split_first_mut() {
        let name = tail
            .iter()
            .skip(1)
            .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'_')
            .count();
        if *first == b'$' && tail.first() == Some(&b'{') && tail.get(name + 1) == Some(&b'}') {
            rest = tail.get_mut(name + 2..).unwrap_or_default();
            continue;
        }
        if !matches!(first, b'\n' | b'\r') {
            *first = b'*';
        }
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    #[test]
    fn users_of_urls_are_covered_at_the_same_length() {
        let text = "url = \"amqp://ü:hunter2@h/v\" # http://me:too@x\nother = 'https://h'\n";
        let shown = source(text, &[]);
        assert_eq!(
            shown,
            "url = \"amqp://**********@h/v\" # http://******@x\nother = 'https://h'\n"
        );
        assert_eq!(shown.len(), text.len());
    }

    #[test]
    fn a_quote_within_a_password_does_not_end_what_is_covered() {
        let text = r#"url = 'amqp://u:a"b@h'"#;
        assert_eq!(source(text, slice::from_ref(&(6..22))), "url = 'amqp://*****@h'");
    }

    #[test]
    fn the_name_of_a_variable_stays_and_its_default_goes() {
        let text = r#"key = "x${KEY}y${KEY:-z}""#;
        assert_eq!(
            source(text, slice::from_ref(&(6..text.len()))),
            r#"key = "*${KEY}**********""#
        );
    }
}
