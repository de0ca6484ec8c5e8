//! How a processor's input comes from a message: [`Decode`].

use std::error::Error;

use bytes::Bytes;

use crate::message::Message;

/// An input that can be made from a message.
///
/// It is made anew from the kept payload for every attempt. A message that does not decode is rejected, not
/// retried: the same bytes would fail again.
pub trait Decode: Sized + Send {
    /// Makes the input.
    ///
    /// # Errors
    /// Any error; its text becomes part of the dead letter, so it should not quote the payload.
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>>;
}

/// The payload as it is.
impl Decode for Bytes {
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(message.payload.clone())
    }
}

/// The payload as UTF-8.
impl Decode for String {
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(std::str::from_utf8(&message.payload)?.to_owned())
    }
}

/// The whole message; a clone is a few reference counts.
impl Decode for Message {
    fn decode(message: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(message.clone())
    }
}

/// Nothing: for a processor that looks at the [`Context`](crate::Context) alone.
impl Decode for () {
    fn decode(_: &Message) -> Result<Self, Box<dyn Error + Send + Sync>> {
        Ok(())
    }
}
