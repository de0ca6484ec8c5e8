//! The group that replays are committed for, and its coordinator.

use millstream_core::rt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::mark::Mark;
use super::{PATIENCE, POLL, REACH, offset};

/// What is committed for these partitions, with what is noted beside it.
pub(super) fn committed(
    consumer: &BaseConsumer,
    asked: &TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    patiently(|| consumer.committed_offsets(asked.clone(), REACH))
}

/// Commits these marks of the topic's partitions.
pub(super) fn commit<'a>(
    consumer: &BaseConsumer,
    topic: &str,
    marks: impl IntoIterator<Item = (i32, &'a Mark)>,
) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::new();
    for (partition, mark) in marks {
        let (text, all) = mark.text();
        if !all {
            warn!(
                topic,
                partition,
                "too many letters stay between those that are replayed to note them all: some may be replayed again"
            );
        }
        let mut element = list.add_partition(topic, partition);
        element.set_offset(Offset::Offset(offset(mark.at)))?;
        element.set_metadata(text);
    }
    if list.count() == 0 {
        return Ok(());
    }
    patiently(|| consumer.commit(&list, CommitMode::Sync))
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
}
