//! AMQP messages as Millstream's, and back.
//!
//! # Reading
//!
//! | AMQP | [`Message`] |
//! |---|---|
//! | header `millstream-key` | the key |
//! | header `millstream-failures`, and beside it `millstream-first-failed-at` | `failures`, `first_failed` |
//! | header `x-delivery-count`, else the redelivered flag | `deliveries` |
//! | property `timestamp` | `timestamp`, and the header `amqp-timestamp` |
//! | any other property | a header: `amqp-content-type`, `amqp-message-id` and so on |
//! | any other header | a header; an array of strings as several, any other array or table as JSON |
//! | exchange and routing key, but for the default exchange | headers `amqp-exchange`, `amqp-routing-key` |
//!
//! That a message is persistent goes without saying; one that is marked otherwise has `amqp-delivery-mode` = `1`.
//!
//! # Writing
//!
//! The same in reverse, so that what is read and written again has the properties it had, with some exceptions. The
//! user id must be that of the connection, or the broker closes the channel; an expiration would let a retry come
//! early and a dead letter vanish; `x-death` and its kin are the broker's own and would grow with every round; `CC`
//! and `BCC` would send copies to others again. None of these is written. Header values are written as strings.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use millstream_core::{Headers, Message, OriginId, Outgoing};
use serde_json::Value;

/// The message's key.
const KEY: &str = "millstream-key";

/// A quorum queue's count of earlier deliveries.
pub(crate) const DELIVERY_COUNT: &str = "x-delivery-count";
pub(crate) const ACQUIRED_COUNT: &str = "x-acquired-count";

const CONTENT_TYPE: &str = "amqp-content-type";
const CONTENT_ENCODING: &str = "amqp-content-encoding";
const CORRELATION_ID: &str = "amqp-correlation-id";
const REPLY_TO: &str = "amqp-reply-to";
const EXPIRATION: &str = "amqp-expiration";
pub(crate) const MESSAGE_ID: &str = "amqp-message-id";
const TYPE: &str = "amqp-type";
pub(crate) const USER_ID: &str = "amqp-user-id";
const APP_ID: &str = "amqp-app-id";
const CLUSTER_ID: &str = "amqp-cluster-id";
const PRIORITY: &str = "amqp-priority";
const DELIVERY_MODE: &str = "amqp-delivery-mode";
const TIMESTAMP: &str = "amqp-timestamp";
pub(crate) const EXCHANGE: &str = "amqp-exchange";
pub(crate) const ROUTING_KEY: &str = "amqp-routing-key";

const TRANSIENT: u8 = 1;
const PERSISTENT: u8 = 2;

/// An address that only a channel which consumes replies may give; the broker closes any other.
pub(crate) const DIRECT_REPLY: &str = "amq.rabbitmq.reply-to";

/// What a consumer got, as a message.
pub(crate) fn read(delivery: lapin::message::Delivery, origin: OriginId) -> Message {
    let properties = &delivery.properties;
    let mut message = Message {
        payload: Bytes::from(delivery.data),
        origin,
        position: delivery.delivery_tag,
        deliveries: 1 + u32::from(delivery.redelivered),
        timestamp: properties
            .timestamp()
            .as_ref()
            .and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(*seconds))),
        ..Message::default()
    };
    if let Some(table) = properties.headers() {
        read_headers(table, &mut message);
        if message.failures > 0 {
            message.take_first_failed();
        }
    }
    read_properties(properties, &mut message.headers);
    if !delivery.exchange.as_str().is_empty() {
        message.headers.push(EXCHANGE, delivery.exchange.as_str());
        message.headers.push(ROUTING_KEY, delivery.routing_key.as_str());
    }
    message
}

fn read_headers(table: &FieldTable, message: &mut Message) {
    for (name, value) in table {
        match name.as_str() {
            KEY => {
                message.key = Some(match value {
                    AMQPValue::LongString(key) => Bytes::copy_from_slice(key.as_bytes()),
                    AMQPValue::ByteArray(key) => Bytes::copy_from_slice(key.as_slice()),
                    other => Bytes::from(text(other)),
                });
            }
            Message::FAILURES => message.failures = text(value).parse().unwrap_or(0),
            name => {
                if name == DELIVERY_COUNT
                    && let Ok(count) = text(value).parse::<u32>()
                {
                    message.deliveries = count.saturating_add(1);
                }
                match value {
                    // The usual case, without a copy more than it takes.
                    AMQPValue::LongString(text) => {
                        message
                            .headers
                            .push(name, &String::from_utf8_lossy(text.as_bytes()));
                    }
                    AMQPValue::FieldArray(array) if is_repeated(array) => {
                        for value in array.as_slice() {
                            message.headers.push(name, &text(value));
                        }
                    }
                    other => message.headers.push(name, &text(other)),
                }
            }
        }
    }
}

/// Whether this is what a header that occurs more than once is written as.
fn is_repeated(array: &FieldArray) -> bool {
    let values = array.as_slice();
    values.len() > 1
        && values
            .iter()
            .all(|value| matches!(value, AMQPValue::LongString(_)))
}

fn read_properties(properties: &BasicProperties, headers: &mut Headers) {
    let texts = [
        (CONTENT_TYPE, properties.content_type()),
        (CONTENT_ENCODING, properties.content_encoding()),
        (CORRELATION_ID, properties.correlation_id()),
        (REPLY_TO, properties.reply_to()),
        (EXPIRATION, properties.expiration()),
        (MESSAGE_ID, properties.message_id()),
        (TYPE, properties.kind()),
        (USER_ID, properties.user_id()),
        (APP_ID, properties.app_id()),
        (CLUSTER_ID, properties.cluster_id()),
    ];
    for (name, value) in texts {
        if let Some(value) = value {
            headers.push(name, value.as_str());
        }
    }
    if let Some(priority) = properties.priority() {
        headers.push(PRIORITY, &priority.to_string());
    }
    if properties.delivery_mode().is_some_and(|mode| mode == TRANSIENT) {
        headers.push(DELIVERY_MODE, "1");
    }
    if let Some(seconds) = properties.timestamp() {
        headers.push(TIMESTAMP, &seconds.to_string());
    }
}

/// A header's value as text: numbers as people write them, tables and arrays as JSON.
fn text(value: &AMQPValue) -> String {
    match value {
        AMQPValue::LongString(text) => String::from_utf8_lossy(text.as_bytes()).into_owned(),
        AMQPValue::ShortString(text) => text.as_str().to_owned(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into_owned(),
        AMQPValue::Void => String::new(),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => json(value).to_string(),
        AMQPValue::Boolean(value) => value.to_string(),
        AMQPValue::ShortShortInt(value) => value.to_string(),
        AMQPValue::ShortShortUInt(value) => value.to_string(),
        AMQPValue::ShortInt(value) => value.to_string(),
        AMQPValue::ShortUInt(value) => value.to_string(),
        AMQPValue::LongInt(value) => value.to_string(),
        AMQPValue::LongUInt(value) => value.to_string(),
        AMQPValue::LongLongInt(value) => value.to_string(),
        AMQPValue::Timestamp(value) => value.to_string(),
        AMQPValue::Float(value) => value.to_string(),
        AMQPValue::Double(value) => value.to_string(),
        AMQPValue::DecimalValue(decimal) => {
            let mut digits = format!("{:0>1$}", decimal.value, usize::from(decimal.scale) + 1);
            if decimal.scale > 0 {
                digits.insert(digits.len() - usize::from(decimal.scale), '.');
            }
            digits
        }
    }
}

fn json(value: &AMQPValue) -> Value {
    match value {
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(json).collect(),
        AMQPValue::FieldTable(table) => table
            .into_iter()
            .map(|(name, value)| (name.as_str().to_owned(), json(value)))
            .collect(),
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(value) => (*value).into(),
        AMQPValue::ShortShortInt(value) => (*value).into(),
        AMQPValue::ShortShortUInt(value) => (*value).into(),
        AMQPValue::ShortInt(value) => (*value).into(),
        AMQPValue::ShortUInt(value) => (*value).into(),
        AMQPValue::LongInt(value) => (*value).into(),
        AMQPValue::LongUInt(value) => (*value).into(),
        AMQPValue::LongLongInt(value) => (*value).into(),
        AMQPValue::Timestamp(value) => (*value).into(),
        AMQPValue::Float(value) => (*value).into(),
        AMQPValue::Double(value) => (*value).into(),
        other => text(other).into(),
    }
}

/// What to publish an outgoing message with. The error says why AMQP cannot carry it.
///
/// `room` is what the header frame may hold: it cannot be split.
pub(crate) fn write(outgoing: &Outgoing, room: usize) -> Result<BasicProperties, String> {
    let mut properties = BasicProperties::default();
    let mut table = Vec::new();
    let mut mode = PERSISTENT;
    let mut size = FIXED;
    if let Some(key) = &outgoing.key {
        size += KEY.len() + key.len() + PER_HEADER;
        table.push((
            ShortString::from(KEY),
            AMQPValue::LongString(LongString::from(key.to_vec())),
        ));
    }
    for (name, value) in outgoing.headers.iter() {
        let short = || {
            ShortString::try_new(value)
                .map_err(|_| format!("`{name}` is {} bytes long; AMQP has room for 255", value.len()))
        };
        size += value.len();
        match name {
            CONTENT_TYPE => properties = properties.with_content_type(short()?),
            CONTENT_ENCODING => properties = properties.with_content_encoding(short()?),
            CORRELATION_ID => properties = properties.with_correlation_id(short()?),
            REPLY_TO if value == DIRECT_REPLY => {}
            REPLY_TO => properties = properties.with_reply_to(short()?),
            MESSAGE_ID => properties = properties.with_message_id(short()?),
            TYPE => properties = properties.with_type(short()?),
            APP_ID => properties = properties.with_app_id(short()?),
            CLUSTER_ID => properties = properties.with_cluster_id(short()?),
            PRIORITY => {
                if let Ok(priority) = value.parse() {
                    properties = properties.with_priority(priority);
                }
            }
            DELIVERY_MODE if value == "1" => mode = TRANSIENT,
            TIMESTAMP => {
                if let Ok(seconds) = value.parse() {
                    properties = properties.with_timestamp(seconds);
                }
            }
            DELIVERY_MODE | EXPIRATION | USER_ID | EXCHANGE | ROUTING_KEY | KEY => {}
            name if is_the_brokers(name) => {}
            name => {
                size += name.len() + PER_HEADER;
                let name = ShortString::try_new(name).map_err(|_| {
                    let mut start = String::new();
                    start.extend(name.chars().take(20));
                    format!(
                        "the header `{start}…` has a name of {} bytes; AMQP has room for 255",
                        name.len()
                    )
                })?;
                table.push((name, AMQPValue::LongString(value.into())));
            }
        }
    }
    if size > room {
        return Err(format!("its headers have {size} bytes; AMQP has room for {room}"));
    }
    if outgoing.priority > 0 {
        properties = properties.with_priority(u8::try_from(outgoing.priority).unwrap_or(u8::MAX));
    }
    if !table.is_empty() {
        properties = properties.with_headers(merged(table));
    }
    Ok(properties.with_delivery_mode(mode))
}

/// What properties take at most beside their values, and one header beside its name and value.
const FIXED: usize = 128;
const PER_HEADER: usize = 6;

/// AMQP has a name once: the values of one that occurs more than once become an array.
fn merged(pairs: Vec<(ShortString, AMQPValue)>) -> FieldTable {
    let mut table = std::collections::BTreeMap::<ShortString, AMQPValue>::new();
    for (name, value) in pairs {
        match table.get_mut(name.as_str()) {
            None => {
                table.insert(name, value);
            }
            Some(AMQPValue::FieldArray(array)) => array.push(value),
            Some(first) => {
                let both = vec![std::mem::replace(first, AMQPValue::Void), value];
                *first = AMQPValue::FieldArray(both.into());
            }
        }
    }
    table.into()
}

/// Headers that the broker makes or acts upon.
fn is_the_brokers(name: &str) -> bool {
    matches!(
        name,
        "x-death" | DELIVERY_COUNT | ACQUIRED_COUNT | "x-stream-offset" | "CC" | "BCC"
    ) || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

#[cfg(test)]
mod tests {
    use lapin::message::Delivery;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const ROOM: usize = 131_000;

    /// What a source makes of a message with these properties, delivered for the first time by the default exchange.
    fn read_back(properties: BasicProperties) -> Message {
        let mut delivery = Delivery::mock(7, "".into(), "queue".into(), false, b"payload".to_vec());
        delivery.properties = properties;
        read(delivery, OriginId::default())
    }

    fn write_back(message: &Message) -> BasicProperties {
        let outgoing = Outgoing {
            payload: message.payload.clone(),
            key: message.key.clone(),
            headers: message.headers.clone(),
            ..Outgoing::default()
        };
        write(&outgoing, ROOM).unwrap()
    }

    fn text_of(length: usize) -> impl Strategy<Value = String> {
        vec(any::<char>(), 0..length).prop_map(String::from_iter)
    }

    prop_compose! {
        fn properties()(
            texts in vec(proptest::option::of(text_of(60)), 8),
            priority in proptest::option::of(any::<u8>()),
            timestamp in proptest::option::of(any::<u64>()),
            transient in any::<bool>(),
            headers in vec(("[a-z]{1,8}", vec(text_of(20), 1..3)), 0..5),
            key in proptest::option::of(vec(any::<u8>(), 0..20)),
        ) -> BasicProperties {
            let mut table = FieldTable::default();
            for (name, values) in headers {
                let mut values: Vec<_> = values.iter().map(|value| AMQPValue::LongString(value.as_str().into())).collect();
                let value = if values.len() == 1 { values.remove(0) } else { AMQPValue::FieldArray(values.into()) };
                table.insert(name.into(), value);
            }
            if let Some(key) = key {
                table.insert(KEY.into(), AMQPValue::LongString(key.into()));
            }
            let mut properties = BasicProperties::default()
                .with_delivery_mode(if transient { TRANSIENT } else { PERSISTENT });
            if !table.inner().is_empty() {
                properties = properties.with_headers(table);
            }
            let with = [
                BasicProperties::with_content_type,
                BasicProperties::with_content_encoding,
                BasicProperties::with_correlation_id,
                BasicProperties::with_reply_to,
                BasicProperties::with_message_id,
                BasicProperties::with_type,
                BasicProperties::with_app_id,
                BasicProperties::with_cluster_id,
            ];
            for (with, text) in with.into_iter().zip(texts) {
                if let Some(text) = text {
                    properties = with(properties, text.as_str().into());
                }
            }
            if let Some(priority) = priority {
                properties = properties.with_priority(priority);
            }
            if let Some(timestamp) = timestamp {
                properties = properties.with_timestamp(timestamp);
            }
            properties
        }
    }

    proptest! {
        #[test]
        fn what_is_read_and_written_again_has_the_properties_it_had(properties in properties()) {
            let message = read_back(properties.clone());
            prop_assert_eq!(write_back(&message), properties);
        }
    }

    #[test]
    fn a_plain_message_has_no_headers() {
        let message = read_back(BasicProperties::default().with_delivery_mode(PERSISTENT));
        assert!(message.headers.is_empty());
        assert_eq!(&message.payload[..], b"payload");
        assert_eq!(
            (message.position, message.deliveries, message.failures),
            (7, 1, 0)
        );
    }

    #[test]
    fn the_brokers_own_headers_are_shown_and_never_written() {
        let mut death = FieldTable::default();
        death.insert("queue".into(), AMQPValue::LongString("orders.retry.1s".into()));
        death.insert("count".into(), AMQPValue::LongLongInt(3));
        let mut table = FieldTable::default();
        table.insert(
            "x-death".into(),
            AMQPValue::FieldArray(vec![AMQPValue::FieldTable(death)].into()),
        );
        table.insert(
            "x-first-death-queue".into(),
            AMQPValue::LongString("orders.retry.1s".into()),
        );
        table.insert(
            "x-last-death-reason".into(),
            AMQPValue::LongString("expired".into()),
        );
        table.insert(
            "CC".into(),
            AMQPValue::FieldArray(vec![AMQPValue::LongString("copy".into())].into()),
        );
        table.insert(DELIVERY_COUNT.into(), AMQPValue::LongLongInt(4));
        table.insert(Message::FAILURES.into(), AMQPValue::LongString("2".into()));
        let properties = BasicProperties::default()
            .with_headers(table)
            .with_expiration("1000".into())
            .with_user_id("app".into());
        let message = read_back(properties);
        assert_eq!((message.deliveries, message.failures), (5, 2));
        assert_eq!(
            message.headers.get("x-death"),
            Some(r#"[{"count":3,"queue":"orders.retry.1s"}]"#)
        );
        assert_eq!(message.headers.get(EXPIRATION), Some("1000"));
        assert_eq!(message.headers.get(Message::FAILURES), None);
        let written = write_back(&message);
        assert_eq!(*written.headers(), None);
        assert_eq!((written.expiration(), written.user_id()), (&None, &None));
    }

    #[test]
    fn the_way_that_a_message_took_is_told_unless_it_is_the_plain_one() {
        let delivery = Delivery::mock(1, "orders".into(), "eu.new".into(), true, Vec::new());
        let message = read(delivery, OriginId::default());
        assert_eq!(message.headers.get(EXCHANGE), Some("orders"));
        assert_eq!(message.headers.get(ROUTING_KEY), Some("eu.new"));
        assert_eq!(message.deliveries, 2);
    }

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let decimal = |scale, value| {
            text(&AMQPValue::DecimalValue(lapin::types::DecimalValue {
                scale,
                value,
            }))
        };
        assert_eq!(
            (decimal(2, 1234), decimal(3, 5), decimal(0, 5)),
            ("12.34".into(), "0.005".into(), "5".into())
        );
        assert_eq!(text(&AMQPValue::Boolean(true)), "true");
        assert_eq!(text(&AMQPValue::Double(0.5)), "0.5");
        assert_eq!(text(&AMQPValue::Void), "");
    }
}
