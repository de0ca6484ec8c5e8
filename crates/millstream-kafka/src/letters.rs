//! Dead letters in a topic, read back.
//!
//! Kafka keeps what is read, and removes from the front alone. So a look is a consumer that is assigned all partitions and
//! commits nothing. A replay commits what it has sent, for a group of its own that has no members: the first letter that
//! it has not sent, and beside it, as run lengths, what it has sent after that. Those are not given again. A purge deletes
//! the records before the first letter that stays.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{BoxFuture, Letter, LetterBox, LetterError, Letters, OpenError, Visit, rt};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::warn;

use crate::connector::refused;
use crate::ends::Note;
use crate::fetched::Given;
use crate::metadata::{decode, encode};
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
        let committed = match patiently(|| consumer.committed_offsets(asked.clone(), REACH)) {
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
        let mut partitions = BTreeMap::new();
        let mut assigned = TopicPartitionList::new();
        for element in committed.elements() {
            let (low, high) = consumer
                .fetch_watermarks(&self.topic, element.partition(), REACH)
                .map_err(unavailable)?;
            let partition = Partition::new(number(low), number(high), element.offset(), element.metadata());
            let from = Offset::Offset(offset(partition.seen));
            assigned
                .add_partition_offset(&self.topic, element.partition(), from)
                .map_err(refused)?;
            partitions.insert(element.partition(), partition);
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
            Ok(Box::new(Session(Some(opened))) as Box<dyn Letters>)
        })
    }
}

/// What a visit knows of a partition.
#[derive(Debug)]
struct Partition {
    /// The first record there is.
    low: u64,
    /// Where it ended when the visit began.
    end: u64,
    /// All before it was read.
    seen: u64,
    /// What was replayed by visits before this one.
    done: Vec<Range<u64>>,
    /// What was given and not removed.
    outstanding: BTreeSet<u64>,
    /// What was given and removed.
    removed: Vec<u64>,
    over: bool,
}

impl Partition {
    fn new(low: u64, end: u64, committed: Offset, metadata: &str) -> Self {
        let (mark, done) = match committed {
            Offset::Offset(mark) => (number(mark), decode(number(mark), metadata).1),
            _ => (low, Vec::new()),
        };
        Self {
            low,
            end,
            seen: mark.clamp(low, end.max(low)),
            done,
            outstanding: BTreeSet::new(),
            removed: Vec::new(),
            over: mark >= end || low >= end,
        }
    }

    /// A record was read; whether it is a letter of this visit.
    fn see(&mut self, offset: u64) -> bool {
        if self.over || offset >= self.end {
            self.over = true;
            return false;
        }
        self.seen = offset + 1;
        self.over = self.seen >= self.end;
        if self.done.iter().any(|done| done.contains(&offset)) {
            return false;
        }
        self.outstanding.insert(offset)
    }

    fn remove(&mut self, offset: u64) {
        if self.outstanding.remove(&offset) {
            self.removed.push(offset);
        }
    }

    /// The first letter that stays, or where there may be one.
    fn mark(&self) -> u64 {
        self.outstanding.first().copied().unwrap_or(self.seen)
    }

    /// What is done behind the mark.
    fn beyond(&self) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        let mut at = self.mark();
        for stays in &self.outstanding {
            if at < *stays {
                ranges.push(at..*stays);
            }
            at = stays + 1;
        }
        if at < self.seen {
            ranges.push(at..self.seen);
        }
        let unread = self.done.iter().filter(|done| done.end > self.seen);
        ranges.extend(unread.map(|done| done.start.max(self.seen)..done.end));
        ranges
    }
}

/// A visit.
struct Open {
    consumer: BaseConsumer,
    config: ClientConfig,
    topic: Arc<str>,
    visit: Visit,
    partitions: BTreeMap<i32, Partition>,
    /// Partition and offset of what was given, by its handle.
    given: HashMap<u64, (i32, u64)>,
    number: u64,
}

impl Open {
    fn read(&mut self, most: usize) -> Result<Vec<Letter>, LetterError> {
        let mut letters = Vec::new();
        let mut until = rt::now() + PATIENCE;
        while letters.len() < most.max(1) && self.partitions.values().any(|partition| !partition.over) {
            // Once there is one, no more is waited for.
            let wait = if letters.is_empty() { POLL } else { Duration::ZERO };
            match self.consumer.poll(wait) {
                None if !letters.is_empty() => break,
                None if rt::now() < until => {}
                None => {
                    return Err(LetterError(format!(
                        "nothing came of topic `{}` for {PATIENCE:?}, and there is more in it",
                        self.topic
                    )));
                }
                Some(Ok(message)) => {
                    until = rt::now() + PATIENCE;
                    let at = (message.partition(), number(message.offset()));
                    let partition = self.partitions.get_mut(&at.0);
                    if partition.is_some_and(|partition| partition.see(at.1)) {
                        self.number += 1;
                        self.given.insert(self.number, at);
                        letters.push(letter(self.number, &message));
                    }
                }
                Some(Err(KafkaError::PartitionEOF(number))) => {
                    if let Some(partition) = self.partitions.get_mut(&number) {
                        partition.over = true;
                    }
                }
                Some(Err(error)) if is_passing(&error) => {}
                Some(Err(error)) => return Err(LetterError(format!("topic `{}`: {error}", self.topic))),
            }
        }
        Ok(letters)
    }

    fn remove(&mut self, handles: &[u64]) -> Result<(), LetterError> {
        let mut changed = BTreeSet::new();
        for handle in handles {
            let Some((number, offset)) = self.given.remove(handle) else {
                continue;
            };
            if let Some(partition) = self.partitions.get_mut(&number) {
                partition.remove(offset);
                changed.insert(number);
            }
        }
        if self.visit != Visit::Replay || changed.is_empty() {
            return Ok(());
        }
        let commit = || {
            let mut list = TopicPartitionList::new();
            for number in &changed {
                let Some(partition) = self.partitions.get(number) else {
                    continue;
                };
                let (mark, beyond) = (partition.mark(), partition.beyond());
                let metadata = encode(mark, &Note::default(), &beyond);
                if decode(mark, &metadata).1.len() < beyond.len() {
                    warn!(
                        topic = &*self.topic,
                        partition = number,
                        "too many letters stay between those that are replayed to note them all: some may be replayed again"
                    );
                }
                let mut element = list.add_partition(&self.topic, *number);
                element.set_offset(Offset::Offset(offset(mark)))?;
                element.set_metadata(metadata);
            }
            self.consumer.commit(&list, CommitMode::Sync)
        };
        patiently(commit).map_err(|error: KafkaError| {
            LetterError(format!("what was replayed cannot be committed: {error}"))
        })
    }
}

/// Asks the group's coordinator again while there is none: brokers look for one when a group is first asked about, and
/// when one of them goes.
fn patiently<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
    let until = rt::now() + PATIENCE;
    loop {
        match ask() {
            Err(error) if is_of_coordinator(&error) && rt::now() < until => std::thread::sleep(POLL),
            answer => return answer,
        }
    }
}

fn is_of_coordinator(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress
        )
    )
}

/// Whether librdkafka deals with it by itself.
fn is_passing(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::Resolve
        )
    )
}

fn letter(handle: u64, message: &BorrowedMessage<'_>) -> Letter {
    let message = Given::from(message);
    Letter {
        handle,
        id: format!("{}@{}", message.partition(), message.offset()),
        payload: Bytes::copy_from_slice(message.payload()),
        key: message.key().map(Bytes::copy_from_slice),
        headers: message.headers(),
        timestamp: message.timestamp(),
    }
}

/// A visit, which is away while it works.
struct Session(Option<Open>);

impl Session {
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Open) -> Result<T, LetterError> + Send + 'static,
    ) -> Result<T, LetterError> {
        let Some(mut open) = self.0.take() else {
            return Err(LetterError("a call before this one was broken off".to_owned()));
        };
        let (done, open) = beside(move || (work(&mut open), open))
            .await
            .map_err(|error| LetterError(error.0))?;
        self.0 = Some(open);
        done
    }
}

impl Letters for Session {
    fn next(&mut self, most: usize) -> BoxFuture<'_, Result<Vec<Letter>, LetterError>> {
        Box::pin(self.work(move |open| open.read(most)))
    }

    fn remove<'a>(&'a mut self, handles: &'a [u64]) -> BoxFuture<'a, Result<(), LetterError>> {
        let handles = handles.to_vec();
        Box::pin(self.work(move |open| open.remove(&handles)))
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, Result<u64, LetterError>> {
        Box::pin(async move {
            let Some(open) = self.0 else {
                return Ok(0);
            };
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

/// Deletes what comes before the first letter that stays, replayed ones too; how many of the removed come after it.
async fn delete(
    config: &ClientConfig,
    topic: &str,
    partitions: &BTreeMap<i32, Partition>,
) -> Result<u64, LetterError> {
    let mut before = TopicPartitionList::new();
    let mut kept = 0;
    for (number, partition) in partitions {
        let mark = partition.mark();
        kept += partition
            .removed
            .iter()
            .filter(|removed| **removed >= mark)
            .count() as u64;
        if mark > partition.low {
            before
                .add_partition_offset(topic, *number, Offset::Offset(offset(mark)))
                .map_err(|error| LetterError(error.to_string()))?;
        }
    }
    if before.count() == 0 {
        return Ok(kept);
    }
    let failed =
        |error: String| LetterError(format!("records of topic `{topic}` cannot be deleted: {error}"));
    let admin: AdminClient<DefaultClientContext> =
        config.create().map_err(|error| failed(error.to_string()))?;
    let options = AdminOptions::new()
        .operation_timeout(Some(REACH))
        .request_timeout(Some(PATIENCE));
    let deleted = admin.delete_records(&before, &options).await;
    for element in deleted.map_err(|error| failed(error.to_string()))?.elements() {
        element.error().map_err(|error| failed(error.to_string()))?;
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_coordinator_that_is_looked_for_is_waited_for() {
        let asked = Cell::new(0);
        let answer = patiently(|| {
            asked.set(asked.get() + 1);
            match asked.get() {
                1 => Err(KafkaError::MetadataFetch(RDKafkaErrorCode::NotCoordinator)),
                2 => Err(KafkaError::ConsumerCommit(
                    RDKafkaErrorCode::CoordinatorLoadInProgress,
                )),
                _ => Ok(()),
            }
        });
        assert_eq!((answer, asked.get()), (Ok(()), 3));
        let refused = patiently(|| -> Result<(), _> {
            Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::GroupAuthorizationFailed,
            ))
        });
        assert!(refused.is_err());
    }

    fn partition(end: u64, committed: Offset, metadata: &str) -> Partition {
        Partition::new(0, end, committed, metadata)
    }

    /// P1 of a replay: the mark passes no letter that was not sent, and what was sent beyond it is not given again.
    #[test]
    fn what_is_replayed_out_of_order_is_noted_beside_the_mark() {
        let mut first = partition(10, Offset::Invalid, "");
        // Offsets 3 and 4 are none: a marker, or compacted.
        for offset in [0, 1, 2, 5, 6] {
            assert!(first.see(offset), "{offset}");
        }
        for offset in [0, 2, 6] {
            first.remove(offset);
        }
        assert_eq!((first.mark(), first.beyond()), (1, vec![2..5, 6..7]));

        let text = encode(first.mark(), &Note::default(), &first.beyond());
        let mut second = partition(12, Offset::Offset(1), &text);
        let given: Vec<_> = (1..12).filter(|offset| second.see(*offset)).collect();
        assert_eq!(given, [1, 5, 7, 8, 9, 10, 11]);
        assert!(second.over);
        for offset in given {
            second.remove(offset);
        }
        assert_eq!((second.mark(), second.beyond()), (12, vec![]));
    }

    #[test]
    fn what_is_noted_and_was_not_read_again_stays_noted() {
        let text = encode(1, &Note::default(), &[4..6, 8..9]);
        let mut visit = partition(10, Offset::Offset(1), &text);
        assert!(visit.see(1) && visit.see(2));
        visit.remove(1);
        assert_eq!((visit.mark(), visit.beyond()), (2, vec![4..6, 8..9]));
        assert!(visit.see(3) && !visit.see(4) && !visit.see(5));
        assert_eq!(visit.beyond(), vec![4..6, 8..9]);
    }

    #[test]
    fn what_came_after_the_visit_began_is_not_of_it() {
        let mut visit = partition(2, Offset::Invalid, "");
        assert!(visit.see(1) && visit.over);
        assert!(!visit.see(2));
        assert!(partition(0, Offset::Invalid, "").over);
        // Records before the first one there is may have been deleted since.
        assert_eq!(Partition::new(5, 9, Offset::Offset(2), "").seen, 5);
    }
}
