//! Durations as `"250ms"`, `"5s"`, `"2m"`, `"1h"`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::quantity::Quantity;
use crate::invalid::Invalid;

static DURATION: Quantity = Quantity {
    name: "a duration",
    units: &[("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)],
    example: "30s",
    limit: (8784 * 3_600_000, "8784h"),
};

/// A duration, which may be zero: a whole number and `ms`, `s`, `m` or `h`, up to a year.
///
/// ```
/// # use millstream_config::HumanDuration;
/// # use std::time::Duration;
/// let lease: HumanDuration = "90s".parse()?;
/// assert_eq!(Duration::from(lease), Duration::from_secs(90));
/// assert_eq!(HumanDuration::from_millis(120_000).to_string(), "2m");
/// # Ok::<_, millstream_config::Invalid>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(u64);

impl HumanDuration {
    /// So many milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// The same as the standard library has it.
    pub const fn get(self) -> Duration {
        Duration::from_millis(self.0)
    }
}

/// A duration above zero, written as [`HumanDuration`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PositiveDuration(HumanDuration);

impl PositiveDuration {
    /// So many milliseconds, at least one.
    pub const fn from_millis(millis: u64) -> Self {
        Self(HumanDuration(if millis == 0 { 1 } else { millis }))
    }

    /// The same as the standard library has it.
    pub const fn get(self) -> Duration {
        self.0.get()
    }
}

impl FromStr for HumanDuration {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        DURATION.parse(text).map(Self)
    }
}

impl FromStr for PositiveDuration {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Self::try_from(HumanDuration::from_str(text)?)
    }
}

impl TryFrom<HumanDuration> for PositiveDuration {
    type Error = Invalid;

    fn try_from(duration: HumanDuration) -> Result<Self, Invalid> {
        if duration.0 == 0 {
            return Err(Invalid::new(
                "this duration cannot be zero",
                "write at least \"1ms\"",
            ));
        }
        Ok(Self(duration))
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        DURATION.deserialize(deserializer).map(Self)
    }
}

impl<'de> Deserialize<'de> for PositiveDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::try_from(HumanDuration::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        DURATION.write(self.0, f)
    }
}

impl fmt::Display for PositiveDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

macro_rules! written_as_text {
    ($($type:ident),*) => {$(
        impl From<$type> for Duration {
            fn from(duration: $type) -> Self {
                duration.get()
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": DURATION.pattern(), "examples": [DURATION.example] })
            }
        }
    )*};
}

written_as_text!(HumanDuration, PositiveDuration);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_no_duration_is_refused_with_a_remedy() {
        for (text, message) in [
            ("", "`` is not a duration"),
            ("5", "`5` lacks a unit"),
            ("s", "`s` lacks a number"),
            ("5 s", "` s` is not a unit of a duration"),
            ("1.5s", "`.5s` is not a unit of a duration"),
            ("-5s", "`-5s` is not a duration"),
            ("5d", "`d` is not a unit of a duration"),
            ("8785h", "`8785h` is too large"),
            ("99999999999999999999h", "`99999999999999999999h` is too large"),
        ] {
            let invalid = text.parse::<HumanDuration>().unwrap_err();
            assert_eq!(invalid.message(), message);
            assert!(invalid.help().starts_with("write "));
        }
        assert!("0s".parse::<PositiveDuration>().is_err());
    }

    proptest! {
        #[test]
        fn durations_are_read_as_they_are_written(millis in 0..=DURATION.limit.0) {
            let duration = HumanDuration::from_millis(millis);
            prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }

        #[test]
        fn no_text_makes_it_panic(text in ".*") {
            let _ = text.parse::<PositiveDuration>();
        }
    }
}
