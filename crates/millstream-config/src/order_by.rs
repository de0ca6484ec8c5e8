//! What messages are ordered by: `"key"`, `"header:NAME"`, `"json:/pointer"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use millstream_core::{OrderBy, Ordering};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::invalid::Invalid;

/// `order_by` as it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OrderByName {
    /// The message's key.
    Key,
    /// The first value of this header.
    Header(String),
    /// What this JSON pointer gives in the payload.
    Json(Vec<String>),
}

impl OrderByName {
    /// The core's ordering by it.
    ///
    /// A payload that is no JSON, or has nothing but an object, an array or null at the pointer, is unordered.
    pub(crate) fn ordering(self) -> Ordering {
        match self {
            Self::Key => Ordering::Key,
            Self::Header(_) | Self::Json(_) => Ordering::By(self.value()),
        }
    }

    /// What gives it.
    pub(crate) fn value(self) -> OrderBy {
        match self {
            Self::Key => Arc::new(|message| message.key.clone()),
            Self::Header(name) => Arc::new(move |message| {
                let value = message.headers.get(&name)?;
                Some(Bytes::copy_from_slice(value.as_bytes()))
            }),
            Self::Json(steps) => Arc::new(move |message| scalar_at(&message.payload, &steps)),
        }
    }
}

impl FromStr for OrderByName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let help = "write \"key\", \"header:NAME\" or \"json:/pointer\"";
        if text == "key" {
            return Ok(Self::Key);
        }
        if let Some(name) = text.strip_prefix("header:") {
            return match name {
                "" => Err(Invalid::new(
                    "`header:` names no header",
                    "write it as in \"header:tenant\"",
                )),
                name => Ok(Self::Header(name.to_owned())),
            };
        }
        let Some(pointer) = text.strip_prefix("json:") else {
            return Err(Invalid::new(
                format!("messages cannot be ordered by `{text}`"),
                help,
            ));
        };
        let Some(steps) = pointer.strip_prefix('/') else {
            return Err(Invalid::new(
                format!("`{pointer}` is not a JSON pointer"),
                "begin it with a slash, as in \"json:/order/id\"",
            ));
        };
        Ok(Self::Json(
            steps
                .split('/')
                .map(|step| step.replace("~1", "/").replace("~0", "~"))
                .collect(),
        ))
    }
}

impl fmt::Display for OrderByName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => f.write_str("key"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Json(steps) => {
                f.write_str("json:")?;
                steps
                    .iter()
                    .try_for_each(|step| write!(f, "/{}", step.replace('~', "~0").replace('/', "~1")))
            }
        }
    }
}

impl<'de> Deserialize<'de> for OrderByName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for OrderByName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for OrderByName {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "OrderBy".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": r"^(key|header:.+|json:/.*|.*\$\{.+\}.*)$",
            "examples": ["key", "header:tenant", "json:/order/id"],
        })
    }
}

/// The string, number or boolean at the pointer; the rest of the payload is skipped, not built.
fn scalar_at(payload: &[u8], steps: &[String]) -> Option<Bytes> {
    let mut json = serde_json::Deserializer::from_slice(payload);
    match At(steps).deserialize(&mut json).ok()?? {
        Value::String(text) => Some(Bytes::from(text)),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(Bytes::from(value.to_string())),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// Reads the value at a pointer.
struct At<'a>(&'a [String]);

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Option<Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<Value>, D::Error> {
        match self.0.split_first() {
            None => Value::deserialize(deserializer).map(Some),
            Some((step, rest)) => deserializer.deserialize_any(Below { step, rest }),
        }
    }
}

struct Below<'a> {
    step: &'a str,
    rest: &'a [String],
}

impl<'de> Visitor<'de> for Below<'_> {
    type Value = Option<Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Value>, A::Error> {
        let mut found = None;
        while let Some(key) = map.next_key::<Cow<'_, str>>()? {
            if key == self.step {
                found = map.next_value_seed(At(self.rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Option<Value>, A::Error> {
        let wanted = self.step.parse::<usize>().ok();
        let mut found = None;
        let mut index = 0;
        loop {
            if wanted == Some(index) {
                let Some(value) = items.next_element_seed(At(self.rest))? else {
                    return Ok(found);
                };
                found = value;
            } else if items.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Option<Value>, E> {
        Ok(None)
    }

    fn visit_unit<E: Error>(self) -> Result<Option<Value>, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use millstream_core::Message;
    use proptest::prelude::*;

    use super::*;

    fn ordered_by(order_by: &str, message: &Message) -> Option<String> {
        match order_by.parse::<OrderByName>().unwrap().ordering() {
            Ordering::By(by) => by(message).map(|key| String::from_utf8(key.to_vec()).unwrap()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_json_pointer_gives_scalars_and_nothing_else() {
        let payload = r#"{"a": {"b/c": [1, {"~": "x"}], "n": null, "t": true}, "s": "text"}"#;
        let message = Message::new(payload);
        for (pointer, found) in [
            ("/s", Some("text")),
            ("/a/b~1c/0", Some("1")),
            ("/a/b~1c/1/~0", Some("x")),
            ("/a/t", Some("true")),
            ("/a/n", None),
            ("/a/b~1c", None),
            ("/a/b~1c/2", None),
            ("/s/x", None),
            ("/missing", None),
        ] {
            assert_eq!(
                ordered_by(&format!("json:{pointer}"), &message).as_deref(),
                found,
                "{pointer}"
            );
        }
        assert_eq!(ordered_by("json:/s", &Message::new("no json")), None);
    }

    #[test]
    fn a_header_gives_its_first_value() {
        let message = Message::new("")
            .with_header("tenant", "acme")
            .with_header("tenant", "other");
        assert_eq!(ordered_by("header:tenant", &message).as_deref(), Some("acme"));
    }

    #[test]
    fn it_is_read_as_it_is_written() {
        for text in ["key", "header:tenant", "json:/a~1b/~0c/", "json:/"] {
            assert_eq!(text.parse::<OrderByName>().unwrap().to_string(), text);
        }
        for text in ["", "keys", "header:", "json:", "json:a"] {
            assert!(text.parse::<OrderByName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn the_pointer_finds_what_serde_json_finds(
            object in prop::collection::btree_map("[ab]", prop::collection::vec(0u32..9, 0..3), 0..3),
            pointer in "/[ab]/[0-3]",
        ) {
            let payload = serde_json::to_vec(&object).unwrap();
            let value: Value = serde_json::from_slice(&payload).unwrap();
            let expected = value.pointer(&pointer).map(ToString::to_string);
            prop_assert_eq!(ordered_by(&format!("json:{pointer}"), &Message::new(payload)), expected);
        }
    }
}
