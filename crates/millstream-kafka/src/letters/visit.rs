//! One way through the letters of a topic: [`Open`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{Letter, LetterError, Visit, rt};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::BaseConsumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::group::commit;
use super::mark::print;
use super::partition::Partition;
use super::{PATIENCE, POLL, REACH, number, offset};
use crate::fetched::Given;

/// A visit.
pub(super) struct Open {
    pub(super) consumer: BaseConsumer,
    pub(super) config: ClientConfig,
    pub(super) topic: Arc<str>,
    pub(super) visit: Visit,
    pub(super) partitions: BTreeMap<i32, Partition>,
    /// Partition and offset of what was given, by its handle.
    pub(super) given: HashMap<u64, (i32, u64)>,
    pub(super) number: u64,
}

impl Open {
    pub(super) fn read(&mut self, most: usize) -> Result<Vec<Letter>, LetterError> {
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
                    if partition.is_some_and(|partition| partition.see(at.1, print(&message))) {
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

    pub(super) fn remove(&mut self, handles: &[u64]) -> Result<u64, LetterError> {
        let mut removed = 0;
        let mut changed = BTreeSet::new();
        for handle in handles {
            let Some((number, offset)) = self.given.remove(handle) else {
                continue;
            };
            if let Some(partition) = self.partitions.get_mut(&number) {
                removed += u64::from(partition.remove(offset));
                changed.insert(number);
            }
        }
        if self.visit != Visit::Replay || changed.is_empty() {
            return Ok(removed);
        }
        let marks: Vec<_> = changed
            .into_iter()
            .filter_map(|number| Some((number, self.partitions.get(&number)?.note()?)))
            .collect();
        let marks = marks.iter().map(|(number, mark)| (*number, mark));
        commit(&self.consumer, &self.topic, marks)
            .map_err(|error| LetterError(format!("what was replayed cannot be committed: {error}")))?;
        Ok(removed)
    }
}

/// Whether librdkafka deals with it by itself.
pub(super) fn is_passing(error: &KafkaError) -> bool {
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
    let given = Given::from(message);
    Letter {
        handle,
        id: format!("{}@{}", message.partition(), message.offset()),
        payload: Bytes::copy_from_slice(given.payload()),
        key: given.key().map(Bytes::copy_from_slice),
        headers: given.headers(),
        timestamp: given.timestamp(),
        ..Letter::default()
    }
}

/// Deletes what comes before the first letter that stays, replayed ones too; how many of the removed come after it.
pub(super) async fn delete(
    config: &ClientConfig,
    topic: &str,
    partitions: &BTreeMap<i32, Partition>,
) -> Result<u64, LetterError> {
    let mut before = TopicPartitionList::new();
    let mut kept = 0;
    for (number, partition) in partitions {
        let mark = partition.mark();
        kept += partition.kept();
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
