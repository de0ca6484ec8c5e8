//! Messages in memory of their own, since librdkafka's goes with what they were fetched with: [`Copies`].
//!
//! An allocation for each message, and another for each that is shared with who keeps it until it is settled, would
//! cost more than all else that is done with a small message. So small ones share an allocation with those that came
//! next to them, up to [`SHARED`] bytes: a message that stays in memory keeps no more than that of its neighbours.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millstream_core::{Headers, Message, OriginId};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _, Timestamp};

/// How many bytes of payloads and keys share an allocation. What is larger has one of its own.
const SHARED: usize = 4096;

/// Where a message comes from, and what tells that assignment of the partition from those before it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Assigned {
    pub(crate) origin: OriginId,
    pub(crate) assignment: u32,
    /// How long its messages wait for their time, if they do.
    pub(crate) wait: Option<Duration>,
}

/// Copies messages one after the other.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// With their payloads and keys.
    done: Vec<(Assigned, Message)>,
    /// Whose payloads and keys are in `bytes`, one after the other.
    open: Vec<Open>,
    bytes: Vec<u8>,
}

/// A message but for its payload and key, and where those end.
#[derive(Debug)]
struct Open {
    from: Assigned,
    position: u64,
    headers: Headers,
    timestamp: Option<SystemTime>,
    payload: usize,
    key: Option<usize>,
}

impl Copies {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.done.len() + self.open.len()
    }

    /// Copies one that came from there.
    pub(crate) fn add(&mut self, from: Assigned, message: &BorrowedMessage<'_>) {
        let timestamp = match message.timestamp() {
            Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => u64::try_from(millis).ok(),
            Timestamp::NotAvailable => None,
        };
        let timestamp =
            timestamp.and_then(|millis| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)));
        let (payload, key) = self.copy(message.payload().unwrap_or_default(), message.key());
        self.open.push(Open {
            from,
            position: u64::try_from(message.offset()).unwrap_or_default(),
            headers: headers(message),
            timestamp,
            payload,
            key,
        });
    }

    /// Copies both; where they end.
    fn copy(&mut self, payload: &[u8], key: Option<&[u8]>) -> (usize, Option<usize>) {
        let size = payload.len() + key.map_or(0, <[u8]>::len);
        if self.bytes.len() + size > self.bytes.capacity() {
            self.close();
            self.bytes = Vec::with_capacity(size.max(SHARED));
        }
        self.bytes.extend_from_slice(payload);
        let payload = self.bytes.len();
        let key = key.map(|key| {
            self.bytes.extend_from_slice(key);
            self.bytes.len()
        });
        (payload, key)
    }

    /// Gives the open ones their payloads and keys.
    fn close(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.len() < bytes.capacity() / 2 {
            // What comes one at a time keeps no room for more.
            bytes.shrink_to_fit();
        }
        let bytes = Bytes::from(bytes);
        let mut at = 0;
        for open in self.open.drain(..) {
            let mut message = Message {
                payload: bytes.slice(at..open.payload),
                key: open.key.map(|key| bytes.slice(open.payload..key)),
                headers: open.headers,
                origin: open.from.origin,
                position: open.position,
                timestamp: open.timestamp,
                ..Message::default()
            };
            if !message.headers.is_empty() {
                message.take_failures();
            }
            at = open.key.unwrap_or(open.payload);
            self.done.push((open.from, message));
        }
    }

    /// All of them, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Assigned, Message)> {
        self.close();
        self.done.drain(..)
    }
}

/// What a message has of them.
pub(crate) fn headers(message: &BorrowedMessage<'_>) -> Headers {
    // Most messages have none, and to collect none would cost as much as a few.
    let Some(headers) = message.headers() else {
        return Headers::new();
    };
    headers
        .iter()
        .map(|header| {
            let value = String::from_utf8_lossy(header.value.unwrap_or_default());
            (header.key, value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![8 => 0..200_usize, 1 => 0..3 * SHARED];
        (any::<u8>(), length).prop_map(|(byte, length)| vec![byte; length])
    }

    fn push(copies: &mut Copies, payload: &[u8], key: Option<&[u8]>) {
        let (payload, key) = copies.copy(payload, key);
        copies.open.push(Open {
            from: Assigned::default(),
            position: 0,
            headers: Headers::new(),
            timestamp: None,
            payload,
            key,
        });
    }

    proptest! {
        #[test]
        fn copies_are_what_was_copied(messages in prop::collection::vec((part(), prop::option::of(part())), 0..100)) {
            let mut copies = Copies::default();
            for (payload, key) in &messages {
                push(&mut copies, payload, key.as_deref());
            }
            prop_assert_eq!(copies.len(), messages.len());
            let copied: Vec<_> = copies
                .drain()
                .map(|(_, message)| (message.payload.to_vec(), message.key.map(|key| key.to_vec())))
                .collect();
            prop_assert_eq!(copied, messages);
            prop_assert_eq!(copies.len(), 0);
        }
    }

    /// P4: what one message keeps of others is bounded.
    #[test]
    fn what_is_large_shares_its_memory_with_nothing_else() {
        let mut copies = Copies::default();
        for size in [10, 10, 2 * SHARED, 10] {
            push(&mut copies, &vec![1; size], None);
        }
        let messages: Vec<_> = copies.drain().collect();
        let alone = messages.iter().map(|(_, message)| message.payload.is_unique());
        assert!(alone.eq([false, false, true, true]));
    }
}
