//! Delayed redelivery: [`RetrySink`].
//!
//! # How
//!
//! A message that shall come again later goes to a queue that nobody reads, whose `x-message-ttl` is the delay and
//! whose dead letters go to the queue that the message came from. In a queue with one time to live for all, what
//! comes first is due first, so that nothing is held up behind a longer delay; therefore there is a queue for each
//! of a fixed list of delays, `QUEUE.retry.5s`. A delay is rounded up to the next of them: a message may be late,
//! by less than it was to wait, and never early.
//!
//! # When those queues go
//!
//! They have an `x-expires`, and the broker deletes a queue that was not declared for so long *with what is in
//! it*. So it is a day longer than the time to live, each queue is declared anew when it was not for half of that
//! day, and what was confirmed later than that is published again: the broker may have taken it just before it
//! deleted the queue.

use std::collections::HashMap;
use std::time::Duration;

use lapin::Channel;
use lapin::options::QueueDeclareOptions;
use lapin::types::{AMQPValue, FieldTable, ShortString};
use millstream_core::rt::{self, Instant};
use millstream_core::{Delivered, OpenError, Outgoing, Sink, SinkConnector, SinkError};

use crate::dial::Dial;
use crate::publisher::{Fate, Publisher, Route};
use crate::topology::short;
use crate::trouble::{self, Trouble, code};

const DAY: u64 = 86_400_000;

/// The delays below a day for which there is a queue, in milliseconds; above, it is whole days.
const TIERS: [u64; 33] = [
    100, 200, 300, 500, 700, 1_000, 2_000, 3_000, 5_000, 7_000, 10_000, 15_000, 20_000, 30_000, 45_000,
    60_000, 120_000, 180_000, 300_000, 420_000, 600_000, 900_000, 1_200_000, 1_800_000, 2_700_000, 3_600_000,
    7_200_000, 10_800_000, 14_400_000, 21_600_000, 28_800_000, 43_200_000, 57_600_000,
];

/// RabbitMQ counts these times in 32 bits of milliseconds, and the expiry is a day more.
const MOST_DAYS: u64 = 48;

/// How long a declaration is relied upon.
const LEASE: Duration = Duration::from_millis(DAY / 2);

/// Brings messages back to a queue after [`Outgoing::delay`]; at once where that is zero.
///
/// Delays are rounded up: below a day to a value of a fixed list, above to whole days, of which 48 are the most.
/// The first message with a delay makes a durable classic queue `QUEUE.retry.DELAY`; a day after its last use it is
/// gone. The user needs the permission to configure, write and read these names.
///
/// The broker moves a message whose time has come without waiting for a word from the queue it goes to: if that
/// queue is deleted, or full and configured to refuse, the message is gone.
#[derive(Clone, Debug)]
pub struct RetrySink {
    dial: Dial,
    queue: String,
    timeout: Duration,
}

impl RetrySink {
    /// Brings messages back to this queue.
    pub fn new(dial: Dial, queue: &str) -> Self {
        Self {
            dial,
            queue: queue.to_owned(),
            timeout: Duration::from_secs(30),
        }
    }

    /// How long the broker may be silent while confirmations are awaited.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

/// The queue's delay for a message's, in milliseconds; `None` for at once.
fn tier(delay: Duration) -> Option<u64> {
    if delay.is_zero() {
        return None;
    }
    // Part of a millisecond counts as one.
    let millis = u64::try_from(delay.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    let listed = TIERS.iter().copied().find(|tier| *tier >= millis);
    Some(listed.unwrap_or_else(|| millis.div_ceil(DAY).min(MOST_DAYS) * DAY))
}

/// A tier as part of a queue's name.
fn label(millis: u64) -> String {
    for (unit, name) in [(DAY, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if millis.is_multiple_of(unit) {
            return format!("{}{name}", millis / unit);
        }
    }
    format!("{millis}ms")
}

impl SinkConnector for RetrySink {
    type Sink = RetryPublishing;

    async fn open(&self) -> Result<RetryPublishing, OpenError> {
        let publisher = Publisher::open(&self.dial, self.timeout).await?;
        Ok(RetryPublishing {
            sink: self.clone(),
            open: Some(Open {
                publisher,
                tiers: HashMap::new(),
            }),
        })
    }
}

/// An open [`RetrySink`].
///
/// Between two calls its connection may go; the next call takes another before it publishes.
#[derive(Debug)]
pub struct RetryPublishing {
    sink: RetrySink,
    /// Taken out for a call, so that none is left behind by one that is dropped.
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    publisher: Publisher,
    /// By delay in milliseconds.
    tiers: HashMap<u64, Tier>,
}

#[derive(Debug)]
struct Tier {
    queue: ShortString,
    /// When the declaration that is relied upon was begun.
    declared: Instant,
}

impl Sink for RetryPublishing {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let sink = &self.sink;
        let mut open = match self.open.take().filter(|open| open.publisher.is_open()) {
            Some(open) => open,
            None => Open {
                publisher: Publisher::open(&sink.dial, sink.timeout)
                    .await
                    .map_err(|error| SinkError(error.to_string()))?,
                tiers: HashMap::new(),
            },
        };
        for millis in messages.iter().filter_map(|message| tier(message.delay)) {
            open.declare(&sink.queue, millis, sink.timeout)
                .await
                .map_err(|trouble| SinkError(trouble.text))?;
        }
        let home = short("queue", &sink.queue).map_err(|trouble| SinkError(trouble.text))?;
        let Open { publisher, tiers } = &mut open;
        let fates = publisher
            .publish(messages, |message| {
                let queue = match tier(message.delay) {
                    None => &home,
                    Some(millis) => &tiers.get(&millis).ok_or("its queue is not declared")?.queue,
                };
                Ok(Route {
                    exchange: ShortString::default(),
                    routing_key: queue.clone(),
                })
            })
            .await?;
        let mut gone = false;
        results.extend(messages.iter().zip(fates).map(|(message, fate)| {
            let tier = tier(message.delay).and_then(|millis| tiers.get(&millis));
            match (fate, tier) {
                (Fate::Unroutable, None) => Delivered::Failed(format!("there is no queue `{}`", sink.queue)),
                (Fate::Unroutable, Some(tier)) => {
                    gone = true;
                    Delivered::Failed(format!("queue `{}` is gone; it is declared anew", tier.queue))
                }
                (Fate::Confirmed, Some(tier)) if tier.declared.elapsed() > LEASE => Delivered::Failed(
                    format!("the broker took too long to put it into queue `{}`", tier.queue),
                ),
                (fate, _) => fate.into(),
            }
        }));
        if gone {
            tiers.clear();
        }
        self.open = Some(open);
        Ok(())
    }
}

impl Open {
    /// Declares the queue of this tier, unless that was done not long ago.
    async fn declare(&mut self, home: &str, millis: u64, patience: Duration) -> Result<(), Trouble> {
        let now = rt::now();
        // Half of the lease is for publishing.
        if let Some(tier) = self.tiers.get(&millis)
            && now.duration_since(tier.declared) < LEASE / 2
        {
            return Ok(());
        }
        let name = format!("{home}.retry.{}", label(millis));
        let queue = short("queue", &name)?;
        let declaring = declare(self.publisher.channel(), home, queue.clone(), millis);
        tokio::time::timeout(patience, declaring)
            .await
            .unwrap_or_else(|_| {
                Err(Trouble::passing(format!(
                    "queue `{name}`: no answer within {patience:?}"
                )))
            })?;
        self.tiers.insert(millis, Tier { queue, declared: now });
        Ok(())
    }
}

async fn declare(channel: &Channel, home: &str, queue: ShortString, millis: u64) -> Result<(), Trouble> {
    let number = |millis| AMQPValue::LongLongInt(i64::try_from(millis).unwrap_or(i64::MAX));
    let mut arguments = FieldTable::default();
    for (name, value) in [
        ("x-queue-type", AMQPValue::LongString("classic".into())),
        ("x-message-ttl", number(millis)),
        ("x-expires", number(millis + DAY)),
        ("x-dead-letter-exchange", AMQPValue::LongString("".into())),
        ("x-dead-letter-routing-key", AMQPValue::LongString(home.into())),
    ] {
        arguments.insert(name.into(), value);
    }
    let name = queue.clone();
    channel
        .queue_declare(queue, QueueDeclareOptions::durable(), arguments)
        .await
        .map(drop)
        .map_err(|error| match trouble::reply(&error) {
            Some((code::PRECONDITION_FAILED, text)) => Trouble::passing(format!(
                "queue `{name}`, where messages wait for their next attempt, is there with other properties: \
                 delete it; the broker says: {text}"
            )),
            Some((code::ACCESS_REFUSED, text)) => Trouble::passing(format!(
                "the user may not declare queue `{name}`, where messages wait for their next attempt; \
                 the broker says: {text}"
            )),
            _ => Trouble::from(error),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tiers_have_names_that_a_person_reads() {
        let names: Vec<_> = TIERS.iter().map(|tier| label(*tier)).collect();
        assert_eq!(
            names.join(" "),
            "100ms 200ms 300ms 500ms 700ms 1s 2s 3s 5s 7s 10s 15s 20s 30s 45s 1m 2m 3m 5m 7m 10m 15m 20m 30m 45m 1h \
             2h 3h 4h 6h 8h 12h 16h"
        );
        assert_eq!(label(3 * DAY), "3d");
    }

    #[test]
    fn what_has_no_delay_has_no_tier() {
        assert_eq!(tier(Duration::ZERO), None);
        assert_eq!(tier(Duration::from_nanos(1)), Some(100));
        assert_eq!(tier(Duration::from_millis(1000)), Some(1000));
        assert_eq!(tier(Duration::from_micros(1_000_001)), Some(2000));
        assert_eq!(tier(Duration::MAX), Some(MOST_DAYS * DAY));
        assert!((MOST_DAYS + 1) * DAY < u64::from(u32::MAX));
    }

    proptest! {
        #[test]
        fn no_message_comes_early_nor_later_than_twice_its_delay(millis in 100..MOST_DAYS * DAY) {
            let tier = tier(Duration::from_millis(millis)).unwrap();
            prop_assert!(tier >= millis);
            prop_assert!(tier <= 2 * millis);
        }
    }
}
