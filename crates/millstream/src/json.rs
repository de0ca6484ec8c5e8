//! An input that is read from JSON: [`Json`].

use std::error::Error;

use millstream_core::{Decode, Message, Outgoing};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A payload of JSON, as a processor's input; a sink takes it as well.
///
/// A payload that is not the JSON of a `T` is rejected, with an error that quotes nothing of it.
///
/// ```
/// # use millstream::{Decode, Json, Message};
/// let Json(numbers) = Json::<Vec<u32>>::decode(&Message::new("[1, 2]"))?;
/// assert_eq!(numbers, [1, 2]);
///
/// let error = Json::<Vec<u32>>::decode(&Message::new("[\"hunter2\"]")).unwrap_err();
/// assert_eq!(error.to_string(), "invalid type: string, expected u32 at line 1 column 10");
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned + Send> Decode for Json<T> {
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        match serde_json::from_slice(&message.payload) {
            Ok(value) => Ok(Self(value)),
            Err(error) => Err(millstream_cli::shape_of(&error).into()),
        }
    }
}

impl<T: Serialize> Json<T> {
    /// The value as a message for a sink.
    ///
    /// ```
    /// # use millstream::Json;
    /// let outgoing = Json([1, 2]).outgoing()?;
    /// assert_eq!(outgoing.payload, "[1,2]");
    /// # Ok::<(), millstream::Failure>(())
    /// ```
    ///
    /// # Errors
    /// If the value has no JSON, such as a map with keys that are no strings. The failure rejects the message:
    /// the next attempt would end alike.
    pub fn outgoing(&self) -> Result<Outgoing, millstream_core::Failure> {
        match serde_json::to_vec(&self.0) {
            Ok(payload) => Ok(Outgoing::new(payload)),
            Err(error) => Err(millstream_core::Failure::reject(error)),
        }
    }
}
