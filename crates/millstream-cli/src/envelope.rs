//! A message as one line of JSON: [`Envelope`].
//!
//! `payload` is a string, or `payload_base64` stands in its place where it is not UTF-8; so too with `key`.
//! `headers` is an object of strings in their order; where a header occurs twice, so does its name. `attempt`
//! counts from 1, `origin` is for people, and `timestamp` is in milliseconds since 1970.
//! A dead letter that is listed has an `id`.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use millstream_core::{Headers, Letter, Message, Outgoing};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::shape::shape_of;

/// A message as one line of JSON, wherever one is read or written.
///
/// ```
/// # use millstream_cli::Envelope;
/// let envelope = Envelope::parse(br#"{"payload": "hello", "key": "7", "headers": {"tenant": "acme"}}"#)?;
/// assert_eq!(envelope.headers.get("tenant"), Some("acme"));
///
/// let mut line = Vec::new();
/// envelope.write(&mut line);
/// assert_eq!(line, b"{\"payload\":\"hello\",\"key\":\"7\",\"headers\":{\"tenant\":\"acme\"}}\n");
/// # Ok::<(), millstream_cli::EnvelopeError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// The body.
    pub payload: Bytes,
    /// The key, where there is one.
    pub key: Option<Bytes>,
    /// The message's own headers.
    pub headers: Headers,
    /// Which handler run of the message this is, or would be next, from 1.
    pub attempt: Option<u32>,
    /// Where it came from, as `place@position`.
    pub origin: Option<String>,
    /// When it was published.
    pub timestamp: Option<SystemTime>,
    /// Of a dead letter: what names it in its store.
    pub id: Option<String>,
}

/// Why a line is no envelope. It never quotes what the line holds.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct EnvelopeError(String);

impl Envelope {
    /// Reads one.
    ///
    /// # Errors
    /// If the line is no JSON object with these fields and no others.
    pub fn parse(line: &[u8]) -> Result<Self, EnvelopeError> {
        let fields: Fields = serde_json::from_slice(line).map_err(|error| EnvelopeError(shape_of(&error)))?;
        let payload = bytes_of("payload", fields.payload, fields.payload_base64)?
            .ok_or_else(|| EnvelopeError("it has neither `payload` nor `payload_base64`".to_owned()))?;
        let timestamp = fields
            .timestamp
            .map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        Ok(Self {
            payload,
            key: bytes_of("key", fields.key, fields.key_base64)?,
            headers: fields.headers,
            attempt: fields.attempt,
            origin: fields.origin,
            timestamp,
            id: fields.id,
        })
    }

    /// Adds its line, with the line feed.
    pub fn write(&self, to: &mut Vec<u8>) {
        let (payload, payload_base64) = text_of(Some(&self.payload));
        let (key, key_base64) = text_of(self.key.as_ref());
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).ok();
        let line = Line {
            payload,
            payload_base64,
            key,
            key_base64,
            headers: (!self.headers.is_empty()).then_some(Pairs(&self.headers)),
            attempt: self.attempt,
            origin: self.origin.as_deref(),
            timestamp: self
                .timestamp
                .and_then(since)
                .and_then(|since| u64::try_from(since.as_millis()).ok()),
            id: self.id.as_deref(),
        };
        serde_json::to_writer(&mut *to, &line)
            .expect("strings and numbers always serialise, and memory takes them");
        to.push(b'\n');
    }
}

impl From<&Outgoing> for Envelope {
    fn from(outgoing: &Outgoing) -> Self {
        Self {
            payload: outgoing.payload.clone(),
            key: outgoing.key.clone(),
            headers: outgoing.headers.clone(),
            ..Self::default()
        }
    }
}

impl From<Letter> for Envelope {
    fn from(letter: Letter) -> Self {
        Self {
            payload: letter.payload,
            key: letter.key,
            headers: letter.headers,
            timestamp: letter.timestamp,
            id: Some(letter.id),
            ..Self::default()
        }
    }
}

/// Attempt, origin, time and id are not a sender's to say, and stay behind.
impl From<Envelope> for Outgoing {
    fn from(envelope: Envelope) -> Self {
        Self {
            payload: envelope.payload,
            key: envelope.key,
            headers: envelope.headers,
            ..Self::default()
        }
    }
}

/// The origin is the reader's to say, and stays behind.
impl From<Envelope> for Message {
    fn from(envelope: Envelope) -> Self {
        Self {
            payload: envelope.payload,
            key: envelope.key,
            headers: envelope.headers,
            timestamp: envelope.timestamp,
            failures: envelope.attempt.map_or(0, |attempt| attempt.saturating_sub(1)),
            ..Self::default()
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    headers: Option<Pairs<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    origin: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    payload: Option<String>,
    payload_base64: Option<String>,
    key: Option<String>,
    key_base64: Option<String>,
    #[serde(default, deserialize_with = "pairs")]
    headers: Headers,
    attempt: Option<u32>,
    origin: Option<String>,
    timestamp: Option<u64>,
    id: Option<String>,
}

/// The bytes as text, or in base64 if they are none.
fn text_of(bytes: Option<&Bytes>) -> (Option<&str>, Option<String>) {
    match bytes.map(|bytes| std::str::from_utf8(bytes).map_err(|_| bytes)) {
        None => (None, None),
        Some(Ok(text)) => (Some(text), None),
        Some(Err(bytes)) => (None, Some(BASE64.encode(bytes))),
    }
}

fn bytes_of(
    name: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<Option<Bytes>, EnvelopeError> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(EnvelopeError(format!("it has both `{name}` and `{name}_base64`"))),
        (text, None) => Ok(text.map(Bytes::from)),
        (None, Some(base64)) => match BASE64.decode(base64) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(_) => Err(EnvelopeError(format!("`{name}_base64` is not base64"))),
        },
    }
}

/// Headers as an object that may have a name twice.
struct Pairs<'a>(&'a Headers);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.0.iter() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

fn pairs<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Headers, D::Error> {
    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = Headers;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object of strings")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Headers, A::Error> {
            let mut headers = Headers::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                headers.push(&name, &value);
            }
            Ok(headers)
        }
    }

    deserializer.deserialize_map(Pairs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(envelope: &Envelope) -> Vec<u8> {
        let mut line = Vec::new();
        envelope.write(&mut line);
        line
    }

    fn error(line: &str) -> String {
        Envelope::parse(line.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn only_what_is_there_is_written() {
        assert_eq!(line(&Envelope::default()), b"{\"payload\":\"\"}\n");
    }

    #[test]
    fn bytes_that_are_no_text_travel_in_base64() {
        let envelope = Envelope {
            payload: Bytes::from_static(&[0xff, 0]),
            key: Some(Bytes::from_static(&[0xfe])),
            ..Envelope::default()
        };
        let line = line(&envelope);
        assert_eq!(line, b"{\"payload_base64\":\"/wA=\",\"key_base64\":\"/g==\"}\n");
        assert_eq!(Envelope::parse(&line), Ok(envelope));
    }

    #[test]
    fn what_is_no_envelope_is_told_without_its_content() {
        assert_eq!(error("{}"), "it has neither `payload` nor `payload_base64`");
        assert_eq!(
            error(r#"{"payload": "a", "payload_base64": "YQ=="}"#),
            "it has both `payload` and `payload_base64`"
        );
        assert_eq!(
            error(r#"{"payload_base64": "hunter2"}"#),
            "`payload_base64` is not base64"
        );
        assert_eq!(
            error(r#"{"payload": "a", "heders": {}}"#),
            "unknown field, expected one of `payload`, `payload_base64`, `key`, `key_base64`, `headers`, `attempt`, \
             `origin`, `timestamp`, `id` at line 1 column 25"
        );
        assert!(error(r#"{"payload": 5}"#).starts_with("invalid type: integer, expected a string"));
        assert!(error(r#"{"payload": "", "headers": {"a": 1}}"#).starts_with("invalid type: integer"));
        assert!(error("hunter2").starts_with("expected value"));
    }

    #[test]
    fn attempts_count_from_one_and_failures_from_none() {
        let envelope = Envelope::parse(br#"{"payload": "", "attempt": 3}"#).unwrap();
        assert_eq!(Message::from(envelope).failures, 2);
    }

    fn envelopes() -> impl Strategy<Value = Envelope> {
        let bytes = || {
            prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)].prop_map(Bytes::from)
        };
        let headers = prop::collection::vec((any::<String>(), any::<String>()), 0..4);
        let time = (0..=u64::from(u32::MAX) * 4000)
            .prop_map(|millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis));
        (
            bytes(),
            prop::option::of(bytes()),
            headers,
            any::<Option<u32>>(),
            any::<Option<String>>(),
            prop::option::of(time),
            any::<Option<String>>(),
        )
            .prop_map(
                |(payload, key, headers, attempt, origin, timestamp, id)| Envelope {
                    payload,
                    key,
                    headers: headers.into_iter().collect(),
                    attempt,
                    origin,
                    timestamp,
                    id,
                },
            )
    }

    proptest! {
        #[test]
        fn an_envelope_is_read_as_it_was_written_and_is_one_line(envelope in envelopes()) {
            let line = line(&envelope);
            prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
            prop_assert_eq!(Envelope::parse(&line), Ok(envelope));
        }

        #[test]
        fn no_line_makes_it_panic(line in any::<Vec<u8>>()) {
            let _ = Envelope::parse(&line);
        }
    }
}
