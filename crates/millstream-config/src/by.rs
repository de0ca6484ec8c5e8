//! What a message is known by: `by` of `deduplicate` and of `sequence`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use millstream_core::{IdBy, OrderBy};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::invalid::Invalid;
use crate::order_by::OrderByName;

/// `"header:NAME"` or `"json:/pointer"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ValueName(OrderByName);

/// `"id"`, or as [`ValueName`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum IdName {
    Id,
    Value(ValueName),
}

impl ValueName {
    /// What gives it.
    pub(crate) fn reader(self) -> OrderBy {
        self.0.value()
    }
}

impl IdName {
    pub(crate) fn by(self) -> IdBy {
        match self {
            Self::Id => IdBy::Source,
            Self::Value(value) => IdBy::By(value.reader()),
        }
    }
}

impl FromStr for ValueName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text.starts_with("header:") || text.starts_with("json:") {
            return text.parse().map(Self);
        }
        Err(Invalid::new(
            format!("`{text}` names nothing in a message"),
            "write \"header:NAME\" or \"json:/pointer\"",
        ))
    }
}

impl FromStr for IdName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if text == "id" {
            return Ok(Self::Id);
        }
        text.parse().map(Self::Value).map_err(|invalid: Invalid| {
            if text.contains(':') {
                return invalid;
            }
            Invalid::new(
                format!("messages cannot be told apart by `{text}`"),
                "write \"id\", \"header:NAME\" or \"json:/pointer\"",
            )
        })
    }
}

impl fmt::Display for ValueName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for IdName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("id"),
            Self::Value(value) => value.fmt(f),
        }
    }
}

macro_rules! written {
    ($name:ident, $schema:literal, $pattern:literal, $examples:expr) => {
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(D::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $schema.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": $examples })
            }
        }
    };
}

written!(
    ValueName,
    "Value",
    r"^(header:.+|json:/.*|.*\$\{.+\}.*)$",
    ["header:seq", "json:/seq"]
);
written!(
    IdName,
    "Id",
    r"^(id|header:.+|json:/.*|.*\$\{.+\}.*)$",
    ["id", "header:message-id", "json:/order/id"]
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_as_it_is_written() {
        for text in ["id", "header:tenant", "json:/a~1b/~0c/"] {
            assert_eq!(text.parse::<IdName>().unwrap().to_string(), text);
            assert_eq!(text.parse::<ValueName>().is_ok(), text != "id");
        }
        for text in ["", "key", "header:", "json:a", "ids"] {
            assert!(text.parse::<IdName>().is_err(), "{text}");
            assert!(text.parse::<ValueName>().is_err(), "{text}");
        }
    }
}
