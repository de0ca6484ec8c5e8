//! What durations and sizes have in common: a whole number and a unit.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

use crate::invalid::Invalid;

/// A kind of quantity: its units from small to large, each with what it is a multiple of.
pub(super) struct Quantity {
    /// With its article.
    pub(super) name: &'static str,
    pub(super) units: &'static [(&'static str, u64)],
    pub(super) example: &'static str,
    /// The largest, in the smallest unit, and how it is written.
    pub(super) limit: (u64, &'static str),
}

impl Quantity {
    pub(super) fn parse(&self, text: &str) -> Result<u64, Invalid> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let Some((_, factor)) = self.units.iter().find(|(name, _)| *name == unit) else {
            return Err(if digits == 0 {
                self.refuse(format!("`{text}` is not {}", self.name))
            } else if unit.is_empty() {
                self.refuse(format!("`{text}` lacks a unit"))
            } else {
                self.refuse(format!("`{unit}` is not a unit of {}", self.name))
            });
        };
        if digits == 0 {
            return Err(self.refuse(format!("`{text}` lacks a number")));
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*factor))
            .filter(|value| *value <= self.limit.0)
            .ok_or_else(|| {
                Invalid::new(
                    format!("`{text}` is too large"),
                    format!("write at most \"{}\"", self.limit.1),
                )
            })
    }

    fn refuse(&self, message: String) -> Invalid {
        let units: Vec<_> = self.units.iter().map(|(name, _)| *name).collect();
        let help = format!(
            "write a whole number and one of the units {}, as in \"{}\"",
            units.join(", "),
            self.example
        );
        Invalid::new(message, help)
    }

    /// The value in the largest unit that leaves no fraction.
    pub(super) fn write(&self, value: u64, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |(_, factor): &&(&str, u64)| value != 0 && value.is_multiple_of(*factor);
        let largest = self.units.iter().filter(exact).max_by_key(|(_, factor)| *factor);
        let (unit, factor) = largest.or(self.units.first()).copied().unwrap_or(("", 1));
        write!(f, "{}{unit}", value / factor)
    }

    /// What a string must match; a variable may stand in for any part of it.
    pub(super) fn pattern(&self) -> String {
        let units: Vec<_> = self.units.iter().map(|(name, _)| *name).collect();
        format!(r"^([0-9]+({})|.*\$\{{.+\}}.*)$", units.join("|"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        &'static self,
        deserializer: D,
    ) -> Result<u64, D::Error> {
        deserializer.deserialize_str(Text(self))
    }
}

struct Text(&'static Quantity);

impl Visitor<'_> for Text {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} such as \"{}\"", self.0.name, self.0.example)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<u64, E> {
        self.0.parse(text).map_err(E::custom)
    }
}
