//! What a pipeline asks of Kafka, compared with what is there: [`source`] and [`sink`].
//!
//! Metadata is asked for in a way that makes no topic, also where brokers are set to make those that are asked for.

use std::time::Duration;

use millstream_core::{Facts, Finding, OpenError, Ordering};
use rdkafka::ClientConfig;
use rdkafka::config::FromClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DefaultProducerContext};

use crate::connector::refused;
use crate::properties::{millis, reach};

/// How long brokers have to answer.
const REACH: Duration = Duration::from_secs(10);
/// The most that a member may take between two polls, unless it is told otherwise.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(300);

/// A member of a group, as this configuration makes it, that reads these topics.
pub(crate) async fn source(config: ClientConfig, topics: &[String], facts: &Facts<'_>) -> Vec<Finding> {
    let mut found: Vec<_> = drain(&config, facts).into_iter().collect();
    let (patterns, names): (Vec<_>, Vec<_>) =
        topics.iter().cloned().partition(|topic| topic.starts_with('^'));
    let whole = patterns.is_empty();
    for pattern in patterns {
        let what = format!("which topics `{pattern}` means is not looked at");
        let help = "name the topics, to have them compared";
        found.push(Finding::note(what, help).at("topics"));
    }
    match beside(move || partitions(&config, &names)).await {
        Ok(counts) => {
            let mut all = 0;
            for (topic, count) in counts {
                match count {
                    Some(count) => all += count,
                    None => found.push(missing(&topic, "topics")),
                }
            }
            found.extend(idle(all, facts).filter(|_| whole));
        }
        Err(finding) => found.push(finding),
    }
    found
}

/// A topic that is written to by a producer of this configuration.
pub(crate) async fn sink(config: ClientConfig, topic: &str) -> Vec<Finding> {
    let name = topic.to_owned();
    let look = move || {
        // What librdkafka does not take is told by the producer; a consumer asks for metadata.
        BaseProducer::<DefaultProducerContext>::from_config(&config).map_err(unusable)?;
        partitions(&reach(&config), &[name])
    };
    match beside(look).await {
        Ok(counts) if counts.iter().all(|(_, count)| count.is_some()) => Vec::new(),
        Ok(_) => vec![missing(topic, "topic")],
        Err(finding) => vec![finding],
    }
}

fn missing(topic: &str, key: &str) -> Finding {
    let help = "make it with the partitions that it shall have, or name another";
    Finding::error(format!("there is no topic `{topic}`"), help).at(key)
}

/// More workers than partitions, of which each has one message run at a time.
fn idle(partitions: usize, facts: &Facts<'_>) -> Option<Finding> {
    let workers = facts.pipeline.processor.concurrency.get();
    let by_partition = matches!(facts.pipeline.ordering, Ordering::Partition);
    (by_partition && partitions > 0 && workers > partitions).then(|| {
        let what = format!(
            "with ordering = \"partition\" no more than {partitions} of the {workers} workers ever have a message: there are \
             {partitions} partitions"
        );
        let help = format!("set `concurrency` to {partitions}, order by key, or give the topics more partitions");
        Finding::warning(what, help).in_pipeline(["processor", "concurrency"])
    })
}

/// A group that gives up on a member before its drain is over.
fn drain(config: &ClientConfig, facts: &Facts<'_>) -> Option<Finding> {
    let interval = millis(config, "max.poll.interval.ms", POLL_INTERVAL);
    let timeout = facts.shutdown_timeout;
    (interval < timeout).then(|| {
        let what = format!(
            "a drain may take {timeout:?} (`shutdown_timeout`), and the group gives the partitions of a member to others \
             after {interval:?} (`max.poll.interval.ms`): what is settled later is repeated there"
        );
        let help = "raise `max.poll.interval.ms` above `shutdown_timeout`, or lower that";
        Finding::warning(what, help).in_pipeline(["source", "properties", "max.poll.interval.ms"])
    })
}

/// How many partitions each of these topics has; none where there is no such topic.
fn partitions(config: &ClientConfig, topics: &[String]) -> Result<Vec<(String, Option<usize>)>, Finding> {
    let mut config = config.clone();
    config.set("allow.auto.create.topics", "false");
    let consumer: BaseConsumer = config.create().map_err(unusable)?;
    if topics.is_empty() {
        consumer.fetch_metadata(None, REACH).map_err(unreachable)?;
    }
    let mut counts = Vec::with_capacity(topics.len());
    for topic in topics {
        let metadata = consumer.fetch_metadata(Some(topic), REACH).map_err(unreachable)?;
        let found = metadata.topics().first();
        let count = match found.and_then(|found| found.error()).map(RDKafkaErrorCode::from) {
            None => found.map(|found| found.partitions().len()),
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => None,
            Some(error) => {
                let error = OpenError::Refused(format!("the topic `{topic}`: {error}"));
                return Err(Finding::from(error));
            }
        };
        counts.push((topic.clone(), count));
    }
    Ok(counts)
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn unreachable(error: KafkaError) -> Finding {
    let why = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::OperationTimedOut) => {
            format!("no broker answers within {REACH:?}")
        }
        _ => error.to_string(),
    };
    Finding::from(OpenError::Unavailable(why)).at("brokers")
}

fn unusable(error: KafkaError) -> Finding {
    Finding::from(refused(error)).at("properties")
}

/// Where blocking keeps nobody else waiting.
async fn beside<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, Finding> + Send + 'static,
) -> Result<T, Finding> {
    let looked = tokio::task::spawn_blocking(look).await;
    looked.unwrap_or_else(|error| Err(Finding::from(OpenError::Unavailable(error.to_string()))))
}
