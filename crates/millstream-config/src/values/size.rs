//! Sizes as `"64KiB"`, `"1MiB"`.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroUsize;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::quantity::Quantity;
use crate::invalid::Invalid;

static SIZE: Quantity = Quantity {
    name: "a size",
    units: &[
        ("B", 1),
        ("KB", 1_000),
        ("KiB", 1 << 10),
        ("MB", 1_000_000),
        ("MiB", 1 << 20),
        ("GB", 1_000_000_000),
        ("GiB", 1 << 30),
    ],
    example: "1MiB",
    limit: (1 << 40, "1024GiB"),
};

/// A number of bytes above zero: a whole number and `B`, `KiB`, `MiB`, `GiB` (powers of 1024) or `KB`, `MB`,
/// `GB` (powers of 1000).
///
/// ```
/// # use millstream_config::ByteSize;
/// assert_eq!("64KiB".parse::<ByteSize>()?.get().get(), 65_536);
/// assert_eq!("64KB".parse::<ByteSize>()?.get().get(), 64_000);
/// # Ok::<_, millstream_config::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(NonZeroUsize);

impl ByteSize {
    /// This many bytes.
    pub const fn new(bytes: NonZeroUsize) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn get(self) -> NonZeroUsize {
        self.0
    }
}

impl FromStr for ByteSize {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::checked(SIZE.parse(text)?)
    }
}

impl ByteSize {
    fn checked(bytes: u64) -> Result<Self, Invalid> {
        usize::try_from(bytes)
            .ok()
            .and_then(NonZeroUsize::new)
            .map(Self)
            .ok_or_else(|| Invalid::new("this size cannot be zero", "write at least \"1B\""))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::checked(SIZE.deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SIZE.write(self.0.get() as u64, f)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": SIZE.pattern(), "examples": [SIZE.example] })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_unit_is_neither_guessed_nor_left_out() {
        for text in [
            "64", "64kib", "64K", "1TiB", "KiB", "0B", "-1B", "1.5MiB", "2000GiB",
        ] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn sizes_are_read_as_they_are_written(bytes in 1..=SIZE.limit.0) {
            let size = ByteSize::checked(bytes).unwrap();
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
