//! Messages as SQS carries them.
//!
//! A body is text that XML can hold, and is not empty; anything else travels as base64. There are at most ten
//! attributes, whose names are few characters and whose values are not empty: headers that do not fit travel together
//! in one of them. A queue without groups has no place for a key, and a group's name cannot be any bytes: then the
//! key is an attribute too. All of this is undone by whoever reads with this crate; others see what the names say.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{
    Message as Received, MessageAttributeValue, MessageSystemAttributeName as System,
    SendMessageBatchRequestEntry,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use millstream_core::{Headers, Message, Outgoing};

/// The attribute that says how the body is to be read: `base64` or `empty`.
pub(crate) const ENCODING: &str = "millstream-encoding";
/// The attribute with a key that the queue has no other place for.
pub(crate) const KEY: &str = "millstream-key";
/// The attribute with those headers that have none of their own, as a JSON list of names and values.
pub(crate) const HEADERS: &str = "millstream-headers";
/// The header with the id that SQS gave the message. It is not sent: what is sent gets one of its own.
pub(crate) const MESSAGE_ID: &str = "sqs-message-id";
/// How that attribute begins where it is no text.
const CODED: &str = "base64:";
/// How the group of a message begins that has no key, in a queue that wants one.
const NO_KEY: &str = "millstream-none-";
/// How the group begins of a key that cannot be a group's name.
const HASHED: &str = "millstream-hash-";

/// Attributes that a message may have.
const ATTRIBUTES: usize = 10;
/// Characters of a group's name, and of an attribute's.
const LONGEST_GROUP: usize = 128;
const LONGEST_NAME: usize = 256;

/// The longest that SQS delays a message which is sent.
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(15 * 60);

/// A message as it will be sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parcel {
    pub(crate) body: String,
    pub(crate) attributes: HashMap<String, MessageAttributeValue>,
    pub(crate) group: Option<String>,
    /// Seconds; none where the queue says.
    pub(crate) delay: Option<i32>,
}

impl Parcel {
    /// What SQS will be sent for this, to a queue with or without groups.
    pub(crate) fn of(outgoing: &Outgoing, fifo: bool) -> Self {
        let mut parcel = Self::default();
        match std::str::from_utf8(&outgoing.payload) {
            Ok("") => {
                parcel.body.push('-');
                parcel.attribute(ENCODING, "String", "empty");
            }
            Ok(text) if text.chars().all(is_allowed) => parcel.body.push_str(text),
            _ => {
                parcel.body = BASE64.encode(&outgoing.payload);
                parcel.attribute(ENCODING, "String", "base64");
            }
        }
        parcel.set_key(outgoing.key.as_deref(), fifo);
        parcel.set_headers(&outgoing.headers);
        parcel.delay = (!outgoing.delay.is_zero()).then(|| crate::service::whole_seconds(outgoing.delay));
        parcel
    }

    fn set_key(&mut self, key: Option<&[u8]>, fifo: bool) {
        let text = key.and_then(|key| std::str::from_utf8(key).ok());
        match (key, text) {
            (None, _) if fifo => self.group = Some(format!("{NO_KEY}{:032x}", fastrand::u128(..))),
            (None, _) => {}
            (Some(_), Some(text)) if fifo && is_group(text) => self.group = Some(text.to_owned()),
            (Some(key), text) => {
                if fifo {
                    self.group = Some(format!("{HASHED}{:016x}", hash(key)));
                }
                match text {
                    Some(text)
                        if !text.is_empty() && !text.starts_with(CODED) && text.chars().all(is_allowed) =>
                    {
                        self.attribute(KEY, "String", text);
                    }
                    _ => self.attribute(KEY, "String.base64", &format!("{CODED}{}", BASE64.encode(key))),
                }
            }
        }
    }

    fn set_headers(&mut self, headers: &Headers) {
        let fits =
            |name: &str, value: &str| is_name(name) && !value.is_empty() && value.chars().all(is_allowed);
        let room = ATTRIBUTES - self.attributes.len();
        let headers: Vec<_> = headers.iter().filter(|(name, _)| *name != MESSAGE_ID).collect();
        let all_fit = headers.len() <= room
            && headers.iter().all(|(name, value)| {
                fits(name, value) && headers.iter().filter(|(other, _)| other == name).count() == 1
            });
        let mut rest = Vec::new();
        for (name, value) in headers {
            let has_room = all_fit || self.attributes.len() < ATTRIBUTES - 1;
            if has_room && fits(name, value) && !self.attributes.contains_key(name) {
                self.attribute(name, "String", value);
            } else {
                rest.push((name, value));
            }
        }
        if !rest.is_empty() {
            // Escaped, so that it holds nothing that SQS does not take.
            let json = ascii(&serde_json::to_string(&rest).unwrap_or_default());
            self.attribute(HEADERS, "String.json", &json);
        }
    }

    fn attribute(&mut self, name: &str, kind: &str, value: &str) {
        let value = MessageAttributeValue::builder()
            .data_type(kind)
            .string_value(value);
        // It has the type, which is all that it needs.
        if let Ok(value) = value.build() {
            self.attributes.insert(name.to_owned(), value);
        }
    }

    /// What it counts for in SQS' limits: body, and names, types and values of attributes.
    pub(crate) fn size(&self) -> usize {
        let attributes = self.attributes.iter().map(|(name, value)| {
            name.len() + value.data_type.len() + value.string_value.as_ref().map_or(0, String::len)
        });
        self.body.len() + attributes.sum::<usize>()
    }

    /// The entry at this place of a batch. Under one deduplication id a FIFO queue takes one message in five minutes.
    pub(crate) fn entry(
        self,
        place: usize,
        deduplication: Option<String>,
    ) -> Result<SendMessageBatchRequestEntry, BuildError> {
        SendMessageBatchRequestEntry::builder()
            .id(place.to_string())
            .message_body(self.body)
            .set_message_attributes((!self.attributes.is_empty()).then_some(self.attributes))
            .set_message_group_id(self.group)
            .set_message_deduplication_id(deduplication)
            .set_delay_seconds(self.delay)
            .build()
    }
}

/// A message as it was received, with what its lease needs.
#[derive(Debug)]
pub(crate) struct Arrived {
    pub(crate) message: Message,
    pub(crate) id: String,
    pub(crate) receipt: String,
    pub(crate) group: Option<String>,
    /// How often SQS has handed it out, this time included.
    pub(crate) receives: u32,
}

impl Arrived {
    /// Reads one; nothing for what has no receipt, which nobody could settle.
    pub(crate) fn of(received: Received) -> Option<Self> {
        let receipt = received.receipt_handle?;
        let system = received.attributes.unwrap_or_default();
        let number = |name: &System| system.get(name).and_then(|value| value.parse::<u64>().ok());
        let group = system.get(&System::MessageGroupId).cloned();
        let mut attributes = received.message_attributes.unwrap_or_default();
        let mut take = |name: &str| attributes.remove(name).and_then(|value| value.string_value);

        let body = received.body.unwrap_or_default();
        let payload = match take(ENCODING).as_deref() {
            Some("empty") => Bytes::new(),
            Some("base64") => BASE64.decode(&body).map_or_else(|_| body.into(), Bytes::from),
            _ => body.into(),
        };
        let key = take(KEY).map(|text| match text.strip_prefix(CODED) {
            Some(coded) => BASE64
                .decode(coded)
                .map_or_else(|_| text.clone().into(), Bytes::from),
            None => text.into(),
        });
        let key = key.or_else(|| {
            let group = group.as_ref().filter(|group| !group.starts_with(NO_KEY))?;
            Some(Bytes::from(group.clone()))
        });
        let rest: Vec<(String, String)> = take(HEADERS)
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default();
        let mut plain: Vec<_> = attributes
            .into_iter()
            .map(|(name, value)| {
                let bytes = |blob: Blob| BASE64.encode(blob);
                let text = value.string_value.or_else(|| value.binary_value.map(bytes));
                (name, text.unwrap_or_default())
            })
            .collect();
        plain.sort_unstable();
        let timestamp = number(&System::SentTimestamp);
        let receives = number(&System::ApproximateReceiveCount).unwrap_or(1);
        Some(Self {
            message: Message {
                payload,
                key,
                headers: plain.into_iter().chain(rest).collect(),
                timestamp: timestamp.map(|time| SystemTime::UNIX_EPOCH + Duration::from_millis(time)),
                ..Message::default()
            },
            id: received.message_id.unwrap_or_default(),
            receipt,
            group,
            receives: u32::try_from(receives).unwrap_or(u32::MAX),
        })
    }
}

/// Whether SQS takes it in a body or a value: what XML 1.0 can hold.
fn is_allowed(character: char) -> bool {
    matches!(character, '\u{9}' | '\u{A}' | '\u{D}' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}'
        | '\u{10000}'..='\u{10FFFF}')
}

fn is_name(name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let own = [ENCODING, KEY, HEADERS].contains(&name);
    !own && !name.is_empty()
        && name.len() <= LONGEST_NAME
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.contains("..")
        && !lower.starts_with("aws.")
        && !lower.starts_with("amazon.")
}

fn is_group(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= LONGEST_GROUP
        && key.bytes().all(|byte| byte.is_ascii_graphic())
        && !key.starts_with(NO_KEY)
        && !key.starts_with(HASHED)
}

/// FNV-1a, the same in every version and on every machine: keys of one hash share a group, and lose nothing by it.
fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The JSON with all that is not ASCII escaped.
fn ascii(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for character in json.chars() {
        // A control character is escaped already, but for this one.
        if character.is_ascii() && character != '\u{7f}' {
            escaped.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of what was sent.
    fn through(outgoing: &Outgoing, fifo: bool) -> Message {
        let parcel = Parcel::of(outgoing, fifo);
        assert!(parcel.attributes.len() <= ATTRIBUTES);
        assert!(!parcel.body.is_empty() && parcel.body.chars().all(is_allowed));
        assert_eq!(parcel.group.is_some(), fifo);
        for (name, value) in &parcel.attributes {
            let value = value.string_value.as_deref().unwrap();
            assert!(
                !value.is_empty() && value.chars().all(is_allowed),
                "{name}: {value:?}"
            );
        }
        let mut received = Received::builder()
            .receipt_handle("receipt")
            .body(parcel.body)
            .set_message_attributes(Some(parcel.attributes));
        if let Some(group) = parcel.group {
            received = received.attributes(System::MessageGroupId, group);
        }
        Arrived::of(received.build()).unwrap().message
    }

    #[test]
    fn the_id_of_a_message_is_not_sent_with_a_copy_of_it() {
        let outgoing = Outgoing::new("a")
            .with_header(MESSAGE_ID, "of another")
            .with_header("kept", "yes");
        let headers = through(&outgoing, false).headers;
        assert_eq!(headers.iter().collect::<Vec<_>>(), [("kept", "yes")]);
    }

    #[test]
    fn payloads_and_keys_of_any_bytes_arrive_as_they_were() {
        let long = "k".repeat(LONGEST_GROUP + 1);
        let keys: [Option<&[u8]>; 8] = [
            None,
            Some(b""),
            Some(b"customer-7"),
            Some(b"two words"),
            Some(&[0, 255]),
            Some(b"base64:AA=="),
            Some(long.as_bytes()),
            Some(b"millstream-none-1"),
        ];
        for payload in [&b""[..], b"text", "gr\u{fc}n".as_bytes(), b"\x00", &[0xff, 0xfe]] {
            for key in keys {
                for fifo in [false, true] {
                    let mut sent = Outgoing::new(payload.to_vec());
                    sent.key = key.map(Bytes::copy_from_slice);
                    let read = through(&sent, fifo);
                    assert_eq!((read.payload, read.key), (sent.payload, sent.key), "fifo: {fifo}");
                }
            }
        }
    }

    #[test]
    fn headers_of_any_names_and_values_arrive_however_many_there_are() {
        let odd = [
            ("tenant", ""),
            ("tenant", "again"),
            ("", "nameless"),
            ("AWS.reserved", "x"),
            ("gr\u{fc}n", "\u{1}\u{7f}\u{ffff}\u{1f600}"),
            (HEADERS, "mine"),
            (KEY, "mine"),
        ];
        let many = (0..25).map(|number| (format!("name-{number}"), format!("value {number}")));
        let odd = odd.map(|(name, value)| (name.to_owned(), value.to_owned()));
        for headers in [odd.to_vec(), many.clone().collect(), many.take(10).collect()] {
            let mut sent = Outgoing::new("payload").with_key("two words");
            sent.headers = headers.iter().cloned().collect();
            for fifo in [false, true] {
                let read = through(&sent, fifo);
                assert_eq!(read.key, sent.key);
                let mut came: Vec<_> = read
                    .headers
                    .iter()
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .collect();
                came.sort();
                let mut expected = headers.clone();
                expected.sort();
                assert_eq!(came, expected);
            }
        }
    }

    #[test]
    fn ten_plain_headers_are_ten_plain_attributes() {
        let mut sent = Outgoing::new("payload");
        for number in 0..10 {
            sent.headers.push(&format!("name-{number}"), "value");
        }
        let parcel = Parcel::of(&sent, false);
        assert_eq!(
            (parcel.attributes.len(), parcel.attributes.contains_key(HEADERS)),
            (10, false)
        );
    }

    #[test]
    fn messages_without_a_key_share_no_group() {
        let group = || Parcel::of(&Outgoing::new("payload"), true).group;
        assert_ne!(group(), group());
    }
}
