//! Shares of a whole, as `0.5`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::invalid::Invalid;

/// A share above 0 and up to 1.
///
/// ```
/// # use millstream_config::Ratio;
/// assert_eq!(Ratio::new(0.5)?.get(), 0.5);
/// assert!(Ratio::new(0.0).is_err());
/// # Ok::<_, millstream_config::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize)]
pub struct Ratio(f64);

impl Ratio {
    /// This share.
    ///
    /// # Errors
    /// When it is not above 0 and up to 1.
    pub fn new(share: f64) -> Result<Self, Invalid> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else {
            Err(Invalid::new(
                format!("{share} is not a share above 0 and up to 1"),
                "write a fraction such as 0.5, or 1 for the whole",
            ))
        }
    }

    /// A default, which is known to be one.
    pub(crate) const fn literal(share: f64) -> Self {
        Self(share)
    }

    /// The share.
    pub const fn get(self) -> f64 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Ratio {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(f64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for Ratio {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Ratio".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 })
    }
}
