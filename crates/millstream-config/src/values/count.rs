//! Numbers of things of which there must be one.

use std::borrow::Cow;
use std::num::{NonZeroU32, NonZeroUsize};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::invalid::Invalid;

/// A whole number from 1 to 4294967295.
///
/// ```
/// # use millstream_config::Count;
/// assert_eq!(Count::new(16)?.get().get(), 16);
/// assert_eq!(Count::new(0).unwrap_err().message(), "0 is below 1");
/// # Ok::<_, millstream_config::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Count(NonZeroU32);

impl Count {
    /// This many.
    ///
    /// # Errors
    /// When it is below 1 or above 4294967295.
    pub fn new(number: i64) -> Result<Self, Invalid> {
        match u32::try_from(number) {
            Ok(small) => NonZeroU32::new(small)
                .map(Self)
                .ok_or_else(|| Invalid::new("0 is below 1", "write a whole number from 1 on")),
            Err(_) if number < 0 => Err(Invalid::new(
                format!("{number} is below 1"),
                "write a whole number from 1 on",
            )),
            Err(_) => Err(Invalid::new(
                format!("{number} is too large"),
                format!("write a whole number up to {}", u32::MAX),
            )),
        }
    }

    /// The number.
    pub const fn get(self) -> NonZeroU32 {
        self.0
    }

    /// The number as a length.
    pub fn size(self) -> NonZeroUsize {
        NonZeroUsize::try_from(self.0).unwrap_or(NonZeroUsize::MAX)
    }
}

impl From<NonZeroU32> for Count {
    fn from(number: NonZeroU32) -> Self {
        Self(number)
    }
}

impl From<NonZeroUsize> for Count {
    /// A number above what a count can hold becomes the largest count.
    fn from(number: NonZeroUsize) -> Self {
        Self(NonZeroU32::try_from(number).unwrap_or(NonZeroU32::MAX))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(i64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl JsonSchema for Count {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "minimum": 1, "maximum": u32::MAX })
    }
}
