//! Dead letters in a topic, read back.
//!
//! Kafka keeps what is read, and removes from the front alone. So a look is a consumer that is assigned all partitions and
//! commits nothing. A replay commits what it has sent, for a group of its own that has no members: the first letter that
//! it has not sent, and beside it, as run lengths, what it has sent after that. Those are not given again. Brokers forget
//! what nobody commits for long, so a replay commits it once more when it begins. No other visit does: two that commit
//! what they have found may set each other back. A purge deletes the records before the first letter that stays.
//!
//! What is committed holds for the letters that it was made of. A log that has lost its end and grew again has others at
//! their offsets, so each visit looks whether the letter is there that was replayed last, and where it is not, all that
//! there is was never sent, as far as anybody knows: it is given again, and only then deleted.

mod group;
mod mark;
mod partition;
mod visit;
mod witness;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Aside, BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::warn;

use self::mark::Mark;
use self::partition::Partition;
use self::visit::{Open, delete};
use crate::connector::refused;
use crate::properties::reach;
use crate::sink::beside;

/// How long brokers have to answer.
const REACH: Duration = Duration::from_secs(10);
/// How long there may be nothing while there should be something.
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(100);

/// Dead letters in a topic.
#[derive(Clone, Debug)]
pub(crate) struct TopicLetters {
    config: ClientConfig,
    topic: Arc<str>,
}

impl TopicLetters {
    /// Those in this topic, at brokers that this configuration reaches.
    pub(crate) fn new(config: &ClientConfig, topic: &Arc<str>) -> Self {
        let mut config = reach(config);
        config
            .set("group.id", format!("millstream.replay.{topic}"))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", "read_committed")
            .set("allow.auto.create.topics", "false");
        Self {
            config,
            topic: Arc::clone(topic),
        }
    }

    fn begin(&self, visit: Visit) -> Result<Open, OpenError> {
        let consumer: BaseConsumer = self.config.create().map_err(refused)?;
        let unavailable =
            |error: KafkaError| OpenError::Unavailable(format!("topic `{}`: {error}", self.topic));
        let metadata = consumer
            .fetch_metadata(Some(&self.topic), REACH)
            .map_err(unavailable)?;
        let topic = metadata.topics().first();
        match topic.and_then(|topic| topic.error()).map(RDKafkaErrorCode::from) {
            None => {}
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                return Err(OpenError::Refused(format!(
                    "there is no topic `{}`: nothing was given up yet, or it is made elsewhere",
                    self.topic
                )));
            }
            Some(error) => return Err(OpenError::Refused(format!("topic `{}`: {error}", self.topic))),
        }
        let mut asked = TopicPartitionList::new();
        for partition in topic.map_or(&[][..], |topic| topic.partitions()) {
            asked.add_partition(&self.topic, partition.id());
        }
        let committed = match group::committed(&consumer, &asked) {
            Ok(committed) => committed,
            // Who may only read the topic may look.
            Err(error)
                if visit == Visit::Look
                    && error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) =>
            {
                asked.clone()
            }
            Err(error) => return Err(unavailable(error)),
        };
        let mut marks = BTreeMap::new();
        for element in committed.elements() {
            let (low, high) = consumer
                .fetch_watermarks(&self.topic, element.partition(), REACH)
                .map_err(unavailable)?;
            let mark = Mark::read(element.offset(), element.metadata());
            if mark.is_none() && matches!(element.offset(), Offset::Offset(_)) {
                warn!(
                    topic = %self.topic,
                    partition = element.partition(),
                    "others than a replay have committed for the group of its replays: all letters that it has count as not \
                     replayed"
                );
            }
            marks.insert(element.partition(), (number(low), number(high), mark));
        }
        witness::hear(&self.config, &self.topic, &mut marks).map_err(OpenError::Unavailable)?;
        if visit == Visit::Replay {
            let all = marks.iter();
            let held = all.filter_map(|(partition, (_, _, mark))| Some((*partition, mark.as_ref()?)));
            if let Err(error) = group::commit(&consumer, &self.topic, held) {
                warn!(%error, "what was replayed is not committed anew: the broker may forget it sooner");
            }
        }
        let mut partitions = BTreeMap::new();
        let mut assigned = TopicPartitionList::new();
        for (number, (low, end, mark)) in marks {
            let partition = Partition::new(low, end, mark);
            let from = Offset::Offset(offset(partition.seen));
            assigned
                .add_partition_offset(&self.topic, number, from)
                .map_err(refused)?;
            partitions.insert(number, partition);
        }
        consumer.assign(&assigned).map_err(refused)?;
        Ok(Open {
            consumer,
            config: self.config.clone(),
            topic: Arc::clone(&self.topic),
            visit,
            partitions,
            given: HashMap::new(),
            number: 0,
        })
    }
}

fn number(offset: i64) -> u64 {
    u64::try_from(offset).unwrap_or_default()
}

fn offset(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl LetterBox for TopicLetters {
    fn open(&self, visit: Visit) -> BoxFuture<'_, Result<Box<dyn Letters>, OpenError>> {
        let letters = self.clone();
        Box::pin(async move {
            let opened = beside(move || letters.begin(visit)).await;
            let opened = opened.map_err(|error| OpenError::Unavailable(error.0))??;
            Ok(Box::new(Session(Aside::new(opened))) as Box<dyn Letters>)
        })
    }
}

/// A visit, whose calls block.
struct Session(Aside<Open>);

impl Letters for Session {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(self.0.work(move |open| open.read(most)))
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<u64, LetterError>> {
        let handles = handles.to_vec();
        Box::pin(self.0.work(move |open| open.remove(&handles)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let open = self.0.into_inner().await?;
            let kept = if open.visit == Visit::Purge {
                delete(&open.config, &open.topic, &open.partitions).await
            } else {
                Ok(0)
            };
            // A consumer that goes waits for its threads.
            beside(move || drop(open))
                .await
                .map_err(|error| LetterError(error.0))?;
            kept
        })
    }
}
