//! Whether the letters are there that marks are made of: [`hear`].

use std::collections::BTreeMap;

use millstream_core::rt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use tracing::warn;

use super::mark::{Holds, Mark, Witness, print};
use super::visit::is_passing;
use super::{PATIENCE, POLL, number, offset};

/// Takes away those marks that do not hold. Of each partition there is where it begins and ends, and its mark.
pub(super) fn hear(
    config: &ClientConfig,
    topic: &str,
    marks: &mut BTreeMap<i32, (u64, u64, Option<Mark>)>,
) -> Result<(), String> {
    let mut asked = BTreeMap::new();
    for (partition, (low, end, mark)) in marks.iter_mut() {
        match mark.as_ref().map(|mark| mark.is_of(*low, *end)) {
            Some(Holds::With(witness)) => {
                asked.insert(*partition, witness);
            }
            Some(Holds::Not) => forget(topic, *partition, mark),
            Some(Holds::Nothing) | None => *mark = None,
        }
    }
    for partition in missing(config, topic, asked).map_err(|error| format!("topic `{topic}`: {error}"))? {
        if let Some((_, _, mark)) = marks.get_mut(&partition) {
            forget(topic, partition, mark);
        }
    }
    Ok(())
}

fn forget(topic: &str, partition: i32, mark: &mut Option<Mark>) {
    *mark = None;
    warn!(
        topic,
        partition, "it has lost letters that were replayed: all that it has counts as not replayed"
    );
}

/// The partitions in which these letters are not.
///
/// The look has a consumer of its own: librdkafka ends the process, now and then, where one is assigned a partition again
/// that it has just begun to fetch from.
fn missing(
    config: &ClientConfig,
    topic: &str,
    mut asked: BTreeMap<i32, Witness>,
) -> Result<Vec<i32>, String> {
    let mut missing = Vec::new();
    if asked.is_empty() {
        return Ok(missing);
    }
    let consumer: BaseConsumer = config.create().map_err(|error| error.to_string())?;
    let mut assigned = TopicPartitionList::new();
    for (partition, witness) in &asked {
        let at = Offset::Offset(offset(witness.offset));
        assigned
            .add_partition_offset(topic, *partition, at)
            .map_err(|error| error.to_string())?;
    }
    consumer.assign(&assigned).map_err(|error| error.to_string())?;
    let until = rt::now() + PATIENCE;
    while !asked.is_empty() {
        let (partition, found) = match consumer.poll(POLL) {
            None if rt::now() < until => continue,
            None => {
                return Err(format!(
                    "nothing came of it for {PATIENCE:?}, and there is more in it"
                ));
            }
            Some(Ok(message)) => {
                let found = Witness {
                    offset: number(message.offset()),
                    print: print(&message),
                };
                (message.partition(), Some(found))
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => (partition, None),
            Some(Err(error)) if is_passing(&error) => continue,
            Some(Err(error)) => return Err(error.to_string()),
        };
        // The first answer counts: what comes after it is what lies behind.
        if asked
            .remove(&partition)
            .is_some_and(|witness| found != Some(witness))
        {
            missing.push(partition);
        }
    }
    Ok(missing)
}
