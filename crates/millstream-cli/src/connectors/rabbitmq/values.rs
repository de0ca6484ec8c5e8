//! Values of their own form: [`Urls`], [`Arguments`].

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use millstream_config::Secret;
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldArray, FieldTable};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// One URL, or a list of those that are tried in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Urls(pub Vec<Secret>);

// Not `untagged`, which loses the position of an error.
impl<'de> Deserialize<'de> for Urls {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Urls;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL or a list of URLs")
            }

            fn visit_str<E: Error>(self, url: &str) -> Result<Urls, E> {
                Ok(Urls(vec![Secret::new(url)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut urls: A) -> Result<Urls, A::Error> {
                let mut all = Vec::new();
                while let Some(url) = urls.next_element()? {
                    all.push(url);
                }
                Ok(Urls(all))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

impl JsonSchema for Urls {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Urls".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let one = generator.subschema_for::<Secret>();
        json_schema!({
            "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }],
            "writeOnly": true,
        })
    }
}

/// Arguments as AMQP has them: strings, whole numbers, numbers, booleans, lists and tables.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Arguments(BTreeMap<String, Value>);

impl Arguments {
    /// The same for AMQP. The error is a name that is too long.
    pub(super) fn table(&self) -> Result<FieldTable, String> {
        let mut table = FieldTable::default();
        for (name, value) in &self.0 {
            if name.len() > 255 {
                return Err(name.clone());
            }
            table.insert(name.as_str().into(), amqp(value)?);
        }
        Ok(table)
    }
}

fn amqp(value: &Value) -> Result<AMQPValue, String> {
    Ok(match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(value) => AMQPValue::Boolean(*value),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => AMQPValue::LongLongInt(whole),
            None => AMQPValue::Double(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(values) => {
            let values: Vec<_> = values.iter().map(amqp).collect::<Result<_, _>>()?;
            AMQPValue::FieldArray(FieldArray::from(values))
        }
        Value::Object(values) => {
            let values = values.iter().map(|(name, value)| (name.clone(), value.clone()));
            AMQPValue::FieldTable(Arguments(values.collect()).table()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_keep_their_types() {
        let arguments: Arguments = serde_json::from_str(
            r#"{"x-max-length": 10, "x-single-active-consumer": true, "x-half": 0.5, "x-list": ["a", {"b": 1}]}"#,
        )
        .unwrap();
        let table = arguments.table().unwrap();
        assert_eq!(table.inner()["x-max-length"], AMQPValue::LongLongInt(10));
        assert_eq!(
            table.inner()["x-single-active-consumer"],
            AMQPValue::Boolean(true)
        );
        assert_eq!(table.inner()["x-half"], AMQPValue::Double(0.5));
        let mut inner = FieldTable::default();
        inner.insert("b".into(), AMQPValue::LongLongInt(1));
        let list = vec![AMQPValue::LongString("a".into()), AMQPValue::FieldTable(inner)];
        assert_eq!(table.inner()["x-list"], AMQPValue::FieldArray(list.into()));
        let long: Arguments = serde_json::from_value(serde_json::json!({ "n".repeat(256): 1 })).unwrap();
        assert!(long.table().is_err());
    }
}
