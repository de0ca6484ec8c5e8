//! Why a value cannot be used, and what to use instead: [`Invalid`].

use std::fmt;

use thiserror::Error;

/// A refused value: the cause, the remedy, and which key of the table it is about.
///
/// Kinds return it from their checks. It can also be given to [`serde::de::Error::custom`] by a type of a
/// connector's own settings; the remedy then arrives in the diagnostic too:
///
/// ```
/// use millstream_config::Invalid;
/// use serde::{Deserialize, Deserializer, de::Error};
///
/// struct Port(u16);
///
/// impl<'de> Deserialize<'de> for Port {
///     fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
///         match u16::deserialize(deserializer)? {
///             0 => Err(D::Error::custom(Invalid::new("a port cannot be 0", "write one from 1 to 65535"))),
///             port => Ok(Self(port)),
///         }
///     }
/// }
/// ```
///
/// Neither text should quote a value that may be a secret.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub struct Invalid {
    pub(crate) key: Option<String>,
    pub(crate) message: String,
    pub(crate) help: String,
}

impl Invalid {
    /// About the table as a whole.
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            key: None,
            message: message.into(),
            help: help.into(),
        }
    }

    /// The same about the value of this key of the table.
    #[must_use]
    pub fn at(mut self, key: &str) -> Self {
        self.key = Some(key.to_owned());
        self
    }

    /// The cause.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The remedy.
    pub fn help(&self) -> &str {
        &self.help
    }

    /// Takes apart what [`Display`](fmt::Display) has written, as it comes out of a deserialiser.
    pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
        text.split_once(SEPARATOR)
    }
}

const SEPARATOR: &str = "\nhelp: ";

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.message, self.help)
    }
}
