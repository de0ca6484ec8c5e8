//! A value that must not be printed: [`Secret`].

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize, Serializer};

use crate::mask;

/// A string that prints as `***` wherever it is shown or serialised.
///
/// Settings of this type are also masked in the excerpts that diagnostics show.
///
/// ```
/// # use millstream_config::Secret;
/// let url = Secret::new("amqp://guest:hunter2@broker:5672/orders");
/// assert_eq!(format!("{url} {url:?}"), "*** ***");
/// assert_eq!(url.redacted_url(), "amqp://***@broker:5672/orders");
/// ```
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// What is printed in its place.
    const MASK: &str = "***";

    /// Hides this value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value, for whoever must present it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// The value as a URL that may be printed: scheme, host and path stay, the user with the password and
    /// the query go. What is no URL goes altogether.
    ///
    /// What stands before the last `@` counts as the user, because a password is not always escaped as it
    /// ought to be.
    pub fn redacted_url(&self) -> String {
        let Some((scheme, rest)) = self.0.split_once("://") else {
            return Self::MASK.to_owned();
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((_, rest)) => ("***@", rest),
            None => ("", rest),
        };
        match rest.find(['?', '#']).and_then(|end| rest.get(..end)) {
            Some(place) => format!("{scheme}://{user}{place}?{}", Self::MASK),
            None => format!("{scheme}://{user}{rest}"),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(Self::MASK)
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl JsonSchema for Secret {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", (mask::KEYWORD): true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_its_host_and_loses_its_user_and_query() {
        for (url, shown) in [
            ("amqp://u:p@h:1/v", "amqp://***@h:1/v"),
            ("amqp://u:p/w@x@h:1/v", "amqp://***@h:1/v"),
            ("https://h/path?token=x", "https://h/path?***"),
            ("https://h/path", "https://h/path"),
            ("hunter2", "***"),
        ] {
            assert_eq!(Secret::new(url).redacted_url(), shown);
        }
    }

    #[test]
    fn serialising_prints_no_secret() {
        assert_eq!(serde_json::to_string(&Secret::new("hunter2")).unwrap(), "\"***\"");
    }
}
