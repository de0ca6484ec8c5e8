//! What is wrong with some JSON, without what is in it: [`shape_of`].

use std::borrow::Cow;

use serde_json::error::Category;

/// The error's text without any value of the document.
///
/// `serde_json` quotes the value that it could not use; logs and dead letters must not.
///
/// ```
/// let error = serde_json::from_str::<u32>("\"hunter2\"").unwrap_err();
/// assert_eq!(error.to_string(), "invalid type: string \"hunter2\", expected u32 at line 1 column 9");
/// assert_eq!(millstream_cli::shape_of(&error), "invalid type: string, expected u32 at line 1 column 9");
/// ```
pub fn shape_of(error: &serde_json::Error) -> String {
    let text = error.to_string();
    if error.classify() != Category::Data {
        return text;
    }
    let place = format!(" at line {} column {}", error.line(), error.column());
    let (cause, place) = match text.strip_suffix(&place) {
        Some(cause) => (cause, place.as_str()),
        None => (text.as_str(), ""),
    };
    format!("{}{place}", without_value(cause))
}

/// Serde's own texts lose what they quote of the document; of others it cannot be known what they quote.
fn without_value(cause: &str) -> Cow<'_, str> {
    // These name a field of the type that is read.
    if cause.starts_with("missing field `") || cause.starts_with("duplicate field `") {
        return cause.into();
    }
    let quoting = ["invalid type: ", "invalid value: ", "invalid length ", "unknown "];
    let expected = cause.rfind(", expected ").and_then(|at| cause.get(at..));
    if let (true, Some(expected)) = (quoting.iter().any(|start| cause.starts_with(start)), expected) {
        let kind = cause.split(['`', '"', ',']).next().unwrap_or_default();
        return format!("{}{expected}", kind.trim_end()).into();
    }
    "invalid value".into()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[expect(dead_code, reason = "it is only read into")]
        id: u8,
        #[expect(dead_code, reason = "it is only read into")]
        size: Size,
    }

    #[derive(Debug, Deserialize)]
    enum Size {
        Small,
        Large,
    }

    fn shape(text: &str) -> String {
        shape_of(&serde_json::from_str::<Order>(text).unwrap_err())
    }

    #[test]
    fn no_value_of_the_document_is_quoted() {
        assert_eq!(shape(r#"{"id": 1}"#), "missing field `size` at line 1 column 9");
        assert_eq!(
            shape(r#"{"id": 300}"#),
            "invalid value: integer, expected u8 at line 1 column 10"
        );
        assert_eq!(
            shape(r#"{"id": "x, expected y"}"#),
            "invalid type: string, expected u8 at line 1 column 22"
        );
        assert_eq!(
            shape(r#"{"id": 1, "size": "huge"}"#),
            "unknown variant, expected `Small` or `Large` at line 1 column 24"
        );
        assert_eq!(
            shape(r#"{"hunter2": 1}"#),
            "unknown field, expected `id` or `size` at line 1 column 10"
        );
        assert_eq!(shape("{"), "EOF while parsing an object at line 1 column 1");
    }

    #[test]
    fn what_others_say_is_not_repeated() {
        let error = <serde_json::Error as serde::de::Error>::custom("no such customer: hunter2");
        assert_eq!(shape_of(&error), "invalid value");
    }
}
