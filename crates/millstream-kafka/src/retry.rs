//! The way into a retry topic, [`RetrySink`], and out of it, [`welcome`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millstream_core::{
    Delivered, EngineHandle, Message, OpenError, Outgoing, Sink, SinkConnector, SinkError, Was, rt,
};
use rdkafka::producer::Producer;

use crate::shared::Return;
use crate::sink::{KafkaSink, KafkaWriter, REACH, beside};
use crate::tiers::Tiers;
use crate::transactions::Transactions;
use crate::transactions::sink::write;
use crate::transactions::work::Letter;

/// When a message may be handed out, in milliseconds since 1970.
const DUE: &str = "millstream-retry-due";
/// Where it was first read, as `topic[partition]@offset`, and when it was published there, in milliseconds since 1970.
const ORIGIN: &str = "millstream-retry-origin";
const TIMESTAMP: &str = "millstream-retry-timestamp";

/// Writes to retry topics: each message to that of its [`Outgoing::delay`], and to the partition of the number that it had.
#[derive(Clone, Debug)]
pub(crate) struct RetrySink {
    pub(crate) sink: KafkaSink,
    pub(crate) tiers: Tiers,
    /// What it writes within, if the source has them.
    pub(crate) transactions: Option<Arc<Transactions>>,
}

impl SinkConnector for RetrySink {
    type Sink = RetryWriter;

    async fn open(&self) -> Result<RetryWriter, OpenError> {
        let writer = self.sink.writer()?;
        let (producer, tiers) = (Arc::clone(&writer.producer), self.tiers.clone());
        let partitions = beside(move || {
            let mut partitions = HashMap::new();
            for name in tiers.names() {
                let unavailable = |why: &str| OpenError::Unavailable(format!("the topic `{name}`: {why}"));
                let metadata = producer
                    .client()
                    .fetch_metadata(Some(&name), REACH)
                    .map_err(|error| unavailable(&error.to_string()))?;
                let found = metadata
                    .topics()
                    .first()
                    .map_or(0, |topic| topic.partitions().len());
                let found = i32::try_from(found).unwrap_or(i32::MAX);
                if found == 0 {
                    return Err(unavailable("there is no such topic"));
                }
                partitions.insert(name, found);
            }
            Ok(partitions)
        })
        .await
        .map_err(|error| OpenError::Unavailable(error.0))??;
        Ok(RetryWriter {
            writer: match &self.transactions {
                Some(transactions) => Writer::Within(Arc::clone(transactions)),
                None => Writer::Own(writer),
            },
            tiers: self.tiers.clone(),
            partitions,
        })
    }
}

/// What writes: a producer of its own, or that of the source's transactions.
#[derive(Debug)]
enum Writer {
    Own(KafkaWriter),
    Within(Arc<Transactions>),
}

/// An open [`RetrySink`].
#[derive(Debug)]
pub(crate) struct RetryWriter {
    writer: Writer,
    tiers: Tiers,
    /// How many each topic has.
    partitions: HashMap<String, i32>,
}

impl Sink for RetryWriter {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let mut letters = Vec::with_capacity(messages.len());
        for message in messages {
            let (topic, wait) = self
                .tiers
                .topic(message.delay)
                .ok_or_else(|| SinkError("there is no retry topic".to_owned()))?;
            let partitions = self.partitions.get(&topic).copied().unwrap_or(1);
            let was = message.was.as_deref();
            let partition = was.and_then(|was| partition_of(&was.place));
            let partition = partition.map(|partition| partition.rem_euclid(partitions));
            letters.push(Letter {
                topic: topic.into(),
                partition,
                message: address(message, wait),
            });
        }
        match &mut self.writer {
            Writer::Own(writer) => {
                let letters = letters
                    .iter()
                    .map(|letter| (&*letter.topic, letter.partition, &letter.message));
                writer.write(letters, results).await
            }
            Writer::Within(transactions) => write(transactions, letters, results).await,
        }
    }
}

/// The message with what it says of itself while it waits.
fn address(message: &Outgoing, wait: Duration) -> Outgoing {
    let mut message = message.clone();
    message
        .headers
        .set(DUE, &millis(SystemTime::now() + wait).to_string());
    if let Some(Was {
        place,
        position,
        timestamp,
    }) = message.was.as_deref()
    {
        message.headers.set(ORIGIN, &format!("{place}@{position}"));
        if let Some(timestamp) = timestamp {
            message.headers.set(TIMESTAMP, &millis(*timestamp).to_string());
        }
    }
    message
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The partition in `topic[partition]`.
fn partition_of(place: &str) -> Option<i32> {
    let (_, partition) = place.strip_suffix(']')?.rsplit_once('[')?;
    partition.parse().ok()
}

/// Makes a message of a retry topic what it was, and says what it waits for: never longer than messages of its topic do,
/// since whoever wrote it may have had another clock, and all that comes after it waits for it.
pub(crate) fn welcome(engine: &EngineHandle, message: &mut Message, wait: Duration) -> Return {
    let mut number = |name| message.headers.remove(name)?.parse::<u64>().ok();
    let (due, timestamp) = (number(DUE), number(TIMESTAMP));
    let home = message.headers.remove(ORIGIN);
    if let Some(timestamp) = timestamp {
        message.timestamp = UNIX_EPOCH.checked_add(Duration::from_millis(timestamp));
    }
    Return {
        due: due.map(|due| {
            let left = Duration::from_millis(due.saturating_sub(millis(SystemTime::now())));
            rt::after(left.min(wait))
        }),
        home: home.as_deref().and_then(|home| {
            let (place, position) = home.rsplit_once('@')?;
            Some((engine.origin(place), position.parse().ok()?))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_as_what_it_was() {
        let (engine, _) = EngineHandle::detached();
        let was = Was {
            place: "orders[3]".into(),
            position: 42,
            timestamp: UNIX_EPOCH.checked_add(Duration::from_millis(7)),
        };
        let mut message = Outgoing::new("a").with_header("tenant", "acme");
        message.was = Some(Box::new(was));
        let written = address(&message, Duration::from_secs(60));
        let mut read = Message {
            headers: written.headers,
            ..Message::new("a")
        };
        let back = welcome(&engine, &mut read, Duration::from_secs(60));
        assert_eq!(back.home, Some((engine.origin("orders[3]"), 42)));
        assert!(back.due.unwrap() > rt::after(Duration::from_secs(50)));
        assert_eq!(read.headers, message.headers);
        assert_eq!(read.timestamp, UNIX_EPOCH.checked_add(Duration::from_millis(7)));
    }

    /// P5: it would hold all that comes after it for as long.
    #[tokio::test(start_paused = true)]
    async fn no_message_waits_longer_than_its_topic_has_messages_wait() {
        let (engine, _) = EngineHandle::detached();
        let wait = Duration::from_secs(5);
        for due in [u64::MAX, millis(SystemTime::now() + Duration::from_secs(86_400))] {
            let mut message = Message::new("a").with_header(DUE, &due.to_string());
            let back = welcome(&engine, &mut message, wait);
            assert_eq!(back.due, Some(rt::now() + wait));
        }
    }

    #[test]
    fn what_somebody_else_wrote_there_is_due_at_once() {
        let (engine, _) = EngineHandle::detached();
        let back = welcome(
            &engine,
            &mut Message::new("a").with_header(ORIGIN, "nowhere"),
            Duration::MAX,
        );
        assert_eq!((back.due, back.home), (None, None));
        assert_eq!(partition_of("orders[3]"), Some(3));
        assert_eq!(partition_of("orders"), None);
    }
}
