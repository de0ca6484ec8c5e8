//! Messages in memory of their own, since librdkafka's goes with what they were fetched with: [`Copies`].
//!
//! An allocation for each message, and another for each that is shared with who keeps it until it is settled, would
//! cost more than all else that is done with a small message. So small ones share an allocation with those that came
//! next to them, up to [`SHARED`] bytes: a message that stays in memory keeps no more than that of its neighbours.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use millstream_core::{Headers, Message, OriginId};

use crate::fetched::Given;

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
    /// All of them, in order.
    messages: Vec<Open>,
    /// Payloads and keys, one after the other, and of how many messages.
    full: Vec<(Bytes, usize)>,
    /// Those of the last messages, and how many those are.
    bytes: Vec<u8>,
    open: usize,
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
        self.messages.len()
    }

    /// Copies one that came from there.
    pub(crate) fn add(&mut self, from: Assigned, message: &Given<'_>) {
        let (payload, key) = self.copy(message.payload(), message.key());
        self.messages.push(Open {
            from,
            position: message.offset(),
            headers: message.headers(),
            timestamp: message.timestamp(),
            payload,
            key,
        });
    }

    /// Copies both for the next message; where they end.
    fn copy(&mut self, payload: &[u8], key: Option<&[u8]>) -> (usize, Option<usize>) {
        let size = payload.len() + key.map_or(0, <[u8]>::len);
        if self.bytes.len() + size > self.bytes.capacity() {
            self.close();
            self.bytes = Vec::with_capacity(size.max(SHARED));
        }
        self.open += 1;
        self.bytes.extend_from_slice(payload);
        let payload = self.bytes.len();
        let key = key.map(|key| {
            self.bytes.extend_from_slice(key);
            self.bytes.len()
        });
        (payload, key)
    }

    /// Leaves the bytes of the last messages as they are.
    fn close(&mut self) {
        if self.open == 0 {
            return;
        }
        let mut bytes = std::mem::take(&mut self.bytes);
        if bytes.len() < bytes.capacity() / 2 {
            // What comes one at a time keeps no room for more.
            bytes.shrink_to_fit();
        }
        self.full.push((bytes.into(), std::mem::take(&mut self.open)));
    }

    /// All of them, in order.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = (Assigned, Message)> {
        self.close();
        let mut full = self.full.drain(..);
        let (mut bytes, mut left, mut at) = (Bytes::new(), 0, 0);
        self.messages.drain(..).map(move |open| {
            if left == 0 {
                (bytes, left) = full.next().unwrap_or_default();
                at = 0;
            }
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
            left -= 1;
            at = open.key.unwrap_or(open.payload);
            (open.from, message)
        })
    }
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
        copies.messages.push(Open {
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
