//! The messages of a test: [`Work`].

use std::ops::Range;

use bytes::Bytes;
use millstream_core::{Delivered, DynSink, Outgoing};

/// The queue that every test uses.
pub const QUEUE: &str = "work";

/// Messages numbered from zero, each with a key that follows from its number and the seed.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// Decides which key a message has.
    pub seed: u64,
    /// How many keys there are; none if zero.
    pub keys: u32,
    /// How long a payload is; at least four bytes.
    pub bytes: usize,
}

impl Work {
    /// The key of this message: the first keys have far more messages than the last.
    #[must_use]
    pub fn key(&self, number: u32) -> u32 {
        let chance = fastrand::Rng::with_seed(self.seed ^ (u64::from(number) << 32)).f64();
        let key = f64::from(self.keys) * chance * chance;
        key as u32
    }

    /// This message.
    #[must_use]
    pub fn message(&self, number: u32) -> Outgoing {
        let mut payload = vec![0; self.bytes.max(4)];
        for (place, byte) in payload.iter_mut().zip(number.to_le_bytes()) {
            *place = byte;
        }
        let message = Outgoing::new(payload);
        if self.keys == 0 {
            return message;
        }
        message.with_key(format!("key-{}", self.key(number)))
    }

    /// Writes these messages to a sink, a thousand at a time, each of which it confirms.
    ///
    /// # Panics
    /// If it does not.
    pub async fn publish(&self, sink: &mut dyn DynSink, mut numbers: Range<u32>) {
        while !numbers.is_empty() {
            let some: Vec<_> = numbers
                .by_ref()
                .take(1_000)
                .map(|number| self.message(number))
                .collect();
            let mut results = Vec::new();
            let sent = sink.send(&some, &mut results).await;
            sent.unwrap_or_else(|error| panic!("the messages cannot be published: {error}"));
            assert_eq!(results, vec![Delivered::Confirmed; some.len()]);
        }
    }

    /// The number of the message with this payload.
    #[must_use]
    pub fn number(payload: &Bytes) -> Option<u32> {
        let head = payload.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*head))
    }
}
