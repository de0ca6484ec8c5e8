//! The group that replays are committed for, and its coordinator.

use millstream_core::rt;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tracing::warn;

use super::{PATIENCE, POLL, REACH};

/// What is committed for these partitions, with what is noted beside it.
///
/// It is committed again as it is: the broker forgets what nobody has committed for its `offsets.retention.minutes`, and
/// begins to count anew.
pub(super) fn committed(
    consumer: &BaseConsumer,
    asked: &TopicPartitionList,
) -> Result<TopicPartitionList, KafkaError> {
    let committed = patiently(|| consumer.committed_offsets(asked.clone(), REACH))?;
    if let Err(error) = renew(consumer, &committed) {
        warn!(%error, "what was replayed is not committed anew: the broker may forget it sooner");
    }
    Ok(committed)
}

fn renew(consumer: &BaseConsumer, committed: &TopicPartitionList) -> Result<(), KafkaError> {
    let mut again = TopicPartitionList::new();
    for element in committed.elements() {
        if let Offset::Offset(_) = element.offset() {
            let mut kept = again.add_partition(element.topic(), element.partition());
            kept.set_offset(element.offset())?;
            kept.set_metadata(element.metadata());
        }
    }
    if again.count() == 0 {
        return Ok(());
    }
    patiently(|| consumer.commit(&again, CommitMode::Sync))
}

/// Asks the group's coordinator again while there is none: brokers look for one when a group is first asked about, and
/// when one of them goes.
pub(super) fn patiently<T>(ask: impl Fn() -> Result<T, KafkaError>) -> Result<T, KafkaError> {
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
