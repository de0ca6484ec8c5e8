//! Headers as the `headers` column holds them: one JSON object of strings.
//!
//! A name that occurs more than once does so in the object too, so that nothing is lost and the order stays.
//! What someone else's `INSERT` put there may hold other values than strings: they become their JSON text.

use std::fmt;

use millstream_core::Headers;
use serde::de::{MapAccess, Visitor};
use serde::{Deserializer, Serializer};
use serde_json::Value;

/// The name under which headers that cannot be read are handed out, as they stand.
const UNREADABLE: &str = "millstream-headers";

/// The column's text; `None` where there are none.
pub(crate) fn encode(headers: &Headers) -> Option<String> {
    if headers.is_empty() {
        return None;
    }
    let mut text = Vec::with_capacity(headers.size() + headers.len() * 6 + 2);
    serde_json::Serializer::new(&mut text)
        .collect_map(headers.iter())
        .ok()?;
    String::from_utf8(text).ok()
}

/// The headers in the column's text.
pub(crate) fn decode(text: &[u8]) -> Headers {
    let mut json = serde_json::Deserializer::from_slice(text);
    json.deserialize_map(Pairs).unwrap_or_else(|_| {
        [(UNREADABLE, String::from_utf8_lossy(text))]
            .into_iter()
            .collect()
    })
}

struct Pairs;

impl<'de> Visitor<'de> for Pairs {
    type Value = Headers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
        let mut headers = Headers::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            match value {
                Value::String(value) => headers.push(&name, &value),
                other => headers.push(&name, &other.to_string()),
            }
        }
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_keep_their_order_and_their_repetitions() {
        let mut headers = Headers::new();
        for (name, value) in [("b", "1"), ("a", "\"quoted\"\n"), ("b", "2")] {
            headers.push(name, value);
        }
        let text = encode(&headers).unwrap();
        assert_eq!(text, r#"{"b":"1","a":"\"quoted\"\n","b":"2"}"#);
        assert_eq!(decode(text.as_bytes()), headers);
    }

    #[test]
    fn no_headers_are_no_text() {
        assert_eq!(encode(&Headers::new()), None);
        assert_eq!(decode(b"{}"), Headers::new());
    }

    #[test]
    fn values_that_are_no_strings_become_their_json_text() {
        let headers = decode(br#"{"n":1,"list":["a"]}"#);
        assert_eq!(headers.get("n"), Some("1"));
        assert_eq!(headers.get("list"), Some(r#"["a"]"#));
    }

    #[test]
    fn headers_that_cannot_be_read_are_handed_out_as_they_stand() {
        assert_eq!(decode(b"[1]").get(UNREADABLE), Some("[1]"));
    }
}
