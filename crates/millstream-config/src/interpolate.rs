//! Replaces `${NAME}` and `${NAME:-default}` in the strings of a parsed file.

use std::borrow::Cow;
use std::ops::Range;

use toml::Spanned;
use toml::de::DeValue;

use crate::report::Report;

/// Where variables come from: `&|name| std::env::var(name).ok()`, or a map in a test.
pub type Environment<'a> = dyn Fn(&str) -> Option<String> + 'a;

/// Replaces the variables of every string below `value`.
pub(crate) fn interpolate(
    value: &mut Spanned<DeValue<'_>>,
    environment: &Environment<'_>,
    report: &mut Report<'_>,
) {
    let span = value.span();
    match value.get_mut() {
        DeValue::String(text) if text.contains('$') => {
            *text = Cow::Owned(string(text, &span, environment, report));
        }
        DeValue::Array(array) => {
            for item in array.iter_mut() {
                interpolate(item, environment, report);
            }
        }
        DeValue::Table(table) => {
            for (_, item) in table.iter_mut() {
                interpolate(item, environment, report);
            }
        }
        _ => {}
    }
}

fn string(text: &str, span: &Range<usize>, environment: &Environment<'_>, report: &mut Report<'_>) -> String {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        replaced.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            replaced.push('$');
            rest = after;
        } else if let Some(after) = after.strip_prefix('{') {
            let Some((inner, after)) = after.split_once('}') else {
                refuse(
                    report,
                    span,
                    "${",
                    "`${` without a closing `}`".to_owned(),
                    "close it, as in \"${NAME}\", or write `$$` for a literal `$`".to_owned(),
                );
                return replaced;
            };
            replaced.push_str(&variable(inner, span, environment, report));
            rest = after;
        } else {
            replaced.push('$');
            rest = after;
        }
    }
    replaced.push_str(rest);
    replaced
}

fn variable(
    inner: &str,
    span: &Range<usize>,
    environment: &Environment<'_>,
    report: &mut Report<'_>,
) -> String {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let reference = format!("${{{name}");
    if name.is_empty()
        || !name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    {
        let message = format!("`{name}` cannot be the name of a variable");
        let help = "write \"${NAME}\" or \"${NAME:-default}\", a name of letters, digits and `_`".to_owned();
        refuse(report, span, &reference, message, help);
        return String::new();
    }
    match (environment(name), default) {
        (Some(value), _) if !value.is_empty() => {
            report.hide(&value, &format!("{reference}}}"));
            value
        }
        (_, Some(default)) => default.to_owned(),
        (Some(empty), None) => empty,
        (None, None) => {
            let message = format!("the environment variable `{name}` is not set");
            refuse(
                report,
                span,
                &reference,
                message,
                format!("set it, or give a default: \"{reference}:-default}}\""),
            );
            String::new()
        }
    }
}

/// Reports an error where the reference stands within the string, if it stands there unescaped.
fn refuse(report: &mut Report<'_>, span: &Range<usize>, reference: &str, message: String, help: String) {
    let raw = report.text().get(span.clone()).unwrap_or_default();
    let place = match raw.find(reference) {
        Some(at) => span.start + at..span.start + at + reference.len(),
        None => span.clone(),
    };
    report.error(place, message, help);
    report.unresolved(span.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(text: &str) -> Result<String, String> {
        let environment = |name: &str| match name {
            "USER" => Some("ada".to_owned()),
            "EMPTY" => Some(String::new()),
            "NESTED" => Some("${USER}".to_owned()),
            _ => None,
        };
        let mut report = Report::new("x.toml", text);
        let value = string(text, &(0..text.len()), &environment, &mut report);
        report
            .finish(Some(value))
            .map_err(|errors| errors.iter().next().unwrap().message.clone())
    }

    #[test]
    fn variables_and_defaults_are_replaced() {
        for (text, expected) in [
            ("${USER}", "ada"),
            ("a-${USER}-${USER}", "a-ada-ada"),
            ("${NONE:-x}", "x"),
            ("${NONE:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-x}", "x"),
            ("${USER:-x}", "ada"),
            ("${NESTED}", "${USER}"),
            ("$$ $${USER} $x $", "$ ${USER} $x $"),
        ] {
            assert_eq!(replaced(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_replaced_is_an_error_that_names_it() {
        assert_eq!(
            replaced("${NONE}").unwrap_err(),
            "the environment variable `NONE` is not set"
        );
        assert_eq!(
            replaced("${A B}").unwrap_err(),
            "`A B` cannot be the name of a variable"
        );
        assert_eq!(
            replaced("${}").unwrap_err(),
            "`` cannot be the name of a variable"
        );
        assert_eq!(replaced("${USER").unwrap_err(), "`${` without a closing `}`");
    }
}
