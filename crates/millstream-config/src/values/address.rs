//! Where a listener listens, as `"127.0.0.1:9464"`.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::invalid::Invalid;

/// An address and a port; port 0 is any that is free.
///
/// ```
/// # use millstream_config::ListenAddress;
/// assert_eq!("[::1]:9464".parse::<ListenAddress>()?.get().port(), 9464);
/// assert!("localhost".parse::<ListenAddress>().is_err());
/// # Ok::<_, millstream_config::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ListenAddress(SocketAddr);

impl ListenAddress {
    /// The address.
    pub const fn get(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for ListenAddress {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        text.parse().map(Self).map_err(|_| {
            Invalid::new(
                format!("`{text}` is not an address and a port"),
                "write them as numbers: \"127.0.0.1:9464\", or \"0.0.0.0:9464\" to be reached from elsewhere",
            )
        })
    }
}

impl<'de> Deserialize<'de> for ListenAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl JsonSchema for ListenAddress {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ListenAddress".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "examples": ["127.0.0.1:9464"] })
    }
}
