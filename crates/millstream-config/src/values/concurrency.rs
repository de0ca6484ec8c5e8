//! How many at a time: a number, or bounds between which it adapts.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::Count;
use crate::invalid::Invalid;

/// `16`, or `{ min = 1, max = 256 }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(crate) enum Concurrency {
    Fixed(Count),
    Between(Between),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Between {
    min: Count,
    max: Count,
}

impl Concurrency {
    /// How many at most.
    pub(crate) fn most(self) -> NonZeroUsize {
        match self {
            Self::Fixed(number) => number.size(),
            Self::Between(Between { max, .. }) => max.size(),
        }
    }

    /// How many at least, where it adapts.
    pub(crate) fn adapts_from(self) -> Option<NonZeroUsize> {
        match self {
            Self::Fixed(_) => None,
            Self::Between(Between { min, .. }) => Some(min.size()),
        }
    }
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;

        impl<'de> Visitor<'de> for Either {
            type Value = Concurrency;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or a table with `min` and `max`")
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Concurrency, E> {
                Count::new(number).map(Concurrency::Fixed).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Concurrency, A::Error> {
                let between = Between::deserialize(MapAccessDeserializer::new(map))?;
                if between.min > between.max {
                    return Err(A::Error::custom(Invalid::new(
                        format!(
                            "`min` ({}) is above `max` ({})",
                            between.min.get(),
                            between.max.get()
                        ),
                        "write them the other way round, or one number that is to stay",
                    )));
                }
                Ok(Concurrency::Between(between))
            }
        }

        deserializer.deserialize_any(Either)
    }
}

impl JsonSchema for Concurrency {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Concurrency".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let count = Count::json_schema(generator);
        let described = |description: &str| {
            let mut bound = count.clone();
            bound.insert("description".to_owned(), description.into());
            bound
        };
        let (min, max) = (
            described("At least so many at a time."),
            described("At most so many at a time."),
        );
        json_schema!({
            "anyOf": [
                count,
                {
                    "type": "object",
                    "properties": { "min": min, "max": max },
                    "required": ["min", "max"],
                    "additionalProperties": false
                }
            ]
        })
    }
}
