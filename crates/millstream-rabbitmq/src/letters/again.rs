//! A message that was got, as it is published again to the queue that it came from: [`Again`].

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use millstream_core::{Message, OriginId};

use crate::properties;
use crate::publisher::Parcel;

/// A copy of a message that its broker takes as it is.
///
/// The queue counts the copy's deliveries anew. What the broker would act upon once more is left out: `CC` sends copies
/// to others. What can only be said of the first publish is kept as headers, as they are read anyway: the exchange, the
/// routing key, and the user id, which must be that of the connection.
#[derive(Debug)]
pub(super) struct Again {
    payload: Bytes,
    properties: BasicProperties,
}

impl Again {
    /// The copy, and the message as it is read now and would be read from the copy.
    pub(super) fn of(mut delivery: Delivery) -> (Self, Message) {
        let properties = properties_of(&delivery);
        delivery.properties = properties.clone();
        delivery.exchange = ShortString::default();
        let message = properties::read(delivery, OriginId::default());
        let again = Self {
            payload: message.payload.clone(),
            properties,
        };
        (again, message)
    }
}

impl Parcel for Again {
    fn payload(&self) -> &[u8] {
        &self.payload
    }

    fn properties(&self, _: usize) -> Result<BasicProperties, String> {
        Ok(self.properties.clone())
    }
}

/// Calls the setter for what is there.
macro_rules! kept {
    ($from:expr, $($get:ident => $set:ident),+) => {{
        let mut kept = BasicProperties::default();
        $(if let Some(value) = $from.$get() {
            kept = kept.$set(value.clone());
        })+
        kept
    }};
}

fn properties_of(delivery: &Delivery) -> BasicProperties {
    let old = &delivery.properties;
    let left_out = [
        properties::DELIVERY_COUNT,
        properties::ACQUIRED_COUNT,
        "CC",
        "BCC",
    ];
    let mut table = FieldTable::default();
    for (name, value) in old.headers().iter().flatten() {
        if !left_out.contains(&name.as_str()) {
            table.insert(name.clone(), value.clone());
        }
    }
    let text = |value: &ShortString| AMQPValue::LongString(value.as_str().into());
    if !delivery.exchange.as_str().is_empty() {
        table.insert(properties::EXCHANGE.into(), text(&delivery.exchange));
        table.insert(properties::ROUTING_KEY.into(), text(&delivery.routing_key));
    }
    if let Some(user) = old.user_id() {
        table.insert(properties::USER_ID.into(), text(user));
    }
    let mut kept = kept!(
        old,
        content_type => with_content_type,
        content_encoding => with_content_encoding,
        delivery_mode => with_delivery_mode,
        priority => with_priority,
        correlation_id => with_correlation_id,
        expiration => with_expiration,
        message_id => with_message_id,
        timestamp => with_timestamp,
        kind => with_type,
        app_id => with_app_id,
        cluster_id => with_cluster_id
    );
    if let Some(reply_to) = old
        .reply_to()
        .as_ref()
        .filter(|to| to.as_str() != properties::DIRECT_REPLY)
    {
        kept = kept.with_reply_to(reply_to.clone());
    }
    if !table.inner().is_empty() {
        kept = kept.with_headers(table);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A letter is named by what is read of it, so it must read the same before it was put back and after.
    #[test]
    fn a_copy_reads_as_what_it_is_a_copy_of() {
        let mut headers = FieldTable::default();
        headers.insert("x-delivery-count".into(), AMQPValue::LongLongInt(7));
        headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
        headers.insert("number".into(), AMQPValue::LongInt(3));
        headers.insert(
            "CC".into(),
            AMQPValue::FieldArray(vec![AMQPValue::LongString("other".into())].into()),
        );
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_user_id("app".into())
            .with_priority(4)
            .with_expiration("60000".into());
        let mut delivery = Delivery::mock(7, "orders".into(), "eu".into(), true, b"payload".to_vec());
        delivery.properties = properties;
        let (again, message) = Again::of(delivery);
        assert_eq!(again.properties.user_id(), &None);
        assert_eq!(again.properties.priority(), &Some(4));
        for (name, value) in [
            ("tenant", Some("a")),
            ("number", Some("3")),
            ("amqp-exchange", Some("orders")),
            ("amqp-routing-key", Some("eu")),
            ("amqp-user-id", Some("app")),
            ("amqp-expiration", Some("60000")),
            ("x-delivery-count", None),
            ("CC", None),
        ] {
            assert_eq!(message.headers.get(name), value, "{name}");
        }

        let mut delivery = Delivery::mock(8, "".into(), "dead".into(), false, b"payload".to_vec());
        delivery.properties = again.properties.clone();
        let (copy, reread) = Again::of(delivery);
        assert_eq!(copy.properties, again.properties);
        assert_eq!(
            (reread.headers, reread.payload),
            (message.headers, message.payload)
        );
    }
}
