//! `type = "kafka"`: topics of Apache Kafka.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_config::{
    Invalid, PositiveDuration, Secret, SinkContext, SinkKind, SourceContext, SourceKind,
};
use millstream_core::{RetryStrategy, SharedConnector, SharedSinkConnector};
use millstream_kafka::{InvalidProperty, KafkaConnector, KafkaSink, OffsetReset, connects};
use schemars::JsonSchema;
use serde::Deserialize;

/// Topics of Kafka.
#[derive(Clone, Copy, Debug, Default)]
pub struct KafkaKind;

/// Topics of Kafka, read as a member of a group.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSettings {
    /// Where to find it: host and port of one broker or several, separated by commas.
    pub brokers: String,
    /// The group: a message goes to one of its members.
    pub group: String,
    /// The topics; one that begins with `^` is a pattern.
    pub topics: Vec<String>,
    /// Where the group begins that has committed nothing: with the oldest message there is, or with what is written from
    /// then on.
    #[serde(default)]
    pub offset_reset: KafkaOffsetReset,
    /// How often what is settled is committed; a process that is killed repeats what it settled since.
    #[serde(default = "commit_interval")]
    pub commit_interval: PositiveDuration,
    /// A name for this member that outlives its process, so that a restart moves no partition. No two members may have
    /// the same.
    pub static_id: Option<String>,
    /// Makes it exactly once: what this pipeline's sinks of `type = "kafka"` write is committed in one transaction with the
    /// offsets of what it came from. A name for this process that is the same after a restart; no two may have the same.
    pub transactional_id: Option<String>,
    /// Passed to librdkafka as they are.
    #[serde(default)]
    pub properties: BTreeMap<String, Secret>,
}

/// Where a group begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KafkaOffsetReset {
    /// With the oldest message there is.
    #[default]
    Earliest,
    /// With what is written from then on.
    Latest,
}

/// A topic of Kafka. A message is confirmed once all replicas in sync have it; its key picks the partition, as with
/// Kafka's own clients.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KafkaSinkSettings {
    /// Where to find it: host and port of one broker or several, separated by commas.
    pub brokers: String,
    /// The topic.
    pub topic: String,
    /// Passed to librdkafka as they are.
    #[serde(default)]
    pub properties: BTreeMap<String, Secret>,
}

fn commit_interval() -> PositiveDuration {
    PositiveDuration::from_millis(5_000)
}

/// What must not be empty is not.
fn named(settings: &[(&str, &str)]) -> Result<(), Invalid> {
    for (key, value) in settings {
        if value.is_empty() {
            return Err(Invalid::new(format!("`{key}` is empty"), "write a name between the quotes").at(key));
        }
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` calls")]
fn property(error: InvalidProperty) -> Invalid {
    Invalid::new(error.to_string(), "remove it from `properties`").at("properties")
}

/// The brokers that are named, in any order.
fn addresses(brokers: &str) -> BTreeSet<&str> {
    brokers.split(',').map(str::trim).collect()
}

fn sink(brokers: &str, topic: &str, properties: &BTreeMap<String, Secret>) -> Result<KafkaSink, Invalid> {
    properties
        .iter()
        .try_fold(KafkaSink::new(brokers, topic), |sink, (name, value)| {
            sink.property(name, value.expose())
        })
        .map_err(property)
}

impl SourceKind for KafkaKind {
    type Settings = KafkaSettings;

    fn source(&self, settings: &KafkaSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        let KafkaSettings {
            brokers,
            group,
            topics,
            offset_reset,
            commit_interval,
            static_id,
            transactional_id,
            properties,
        } = settings;
        named(&[("brokers", brokers), ("group", group)])?;
        if topics.is_empty() || topics.iter().any(String::is_empty) {
            return Err(Invalid::new(
                "`topics` names no topic",
                "write one, as in `topics = [\"orders\"]`",
            )
            .at("topics"));
        }
        let reset = match offset_reset {
            KafkaOffsetReset::Earliest => OffsetReset::Earliest,
            KafkaOffsetReset::Latest => OffsetReset::Latest,
        };
        let mut connector = KafkaConnector::new(brokers, group, topics)
            .offset_reset(reset)
            .commit_interval(commit_interval.get());
        if cx.retry.strategy == RetryStrategy::Redeliver {
            connector = connector.retry_topics(&cx.retry);
        }
        if let Some(id) = static_id {
            named(&[("static_id", id)])?;
            connector = connector.static_id(id);
        }
        if let Some(id) = transactional_id {
            named(&[("transactional_id", id)])?;
            let level = properties.get("isolation.level");
            if level.is_some_and(|level| level.expose() != "read_committed") {
                return Err(Invalid::new(
                    "with a `transactional_id` the property `isolation.level` must be `read_committed`",
                    "remove it from `properties`: it is",
                )
                .at("properties"));
            }
            connector = connector.transactional(id);
        }
        let connector = properties
            .iter()
            .try_fold(connector, |connector, (name, value)| {
                connector.property(name, value.expose())
            })
            .map_err(property)?;
        Ok(Arc::new(connector))
    }

    /// To the one topic that is read; not where there are several, or a pattern.
    fn publish(
        &self,
        settings: &KafkaSettings,
        _: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        match &settings.topics[..] {
            [topic] if !topic.starts_with('^') => {
                // What it takes to read may not suit a writer; what it takes to connect does.
                let connects: BTreeMap<_, _> = settings
                    .properties
                    .iter()
                    .filter(|(name, _)| connects(name))
                    .map(|(name, value)| (name.clone(), value.clone()))
                    .collect();
                Ok(Some(Arc::new(sink(&settings.brokers, topic, &connects)?)))
            }
            _ => Ok(None),
        }
    }
}

impl SinkKind for KafkaKind {
    type Settings = KafkaSinkSettings;

    fn sink(
        &self,
        settings: &KafkaSinkSettings,
        cx: &SinkContext<'_>,
    ) -> Result<SharedSinkConnector, Invalid> {
        let KafkaSinkSettings {
            brokers,
            topic,
            properties,
        } = settings;
        named(&[("brokers", brokers), ("topic", topic)])?;
        let source = cx
            .source
            .and_then(|source| source.downcast_ref::<KafkaConnector>());
        let within = source.and_then(|source| Some((source, source.sink(topic)?)));
        let Some((source, within)) = within else {
            return Ok(Arc::new(sink(brokers, topic, properties)?));
        };
        if addresses(brokers) != addresses(source.brokers()) {
            let id = source.transactional_id().unwrap_or_default();
            return Err(Invalid::new(
                format!(
                    "this sink writes to `{brokers}`, and the source's transactions `{id}` are those of `{}`",
                    source.brokers()
                ),
                "name the source's `brokers`, or remove the source's `transactional_id`",
            )
            .at("brokers"));
        }
        let within = properties
            .iter()
            .try_fold(within, |sink, (name, value)| sink.property(name, value.expose()))
            .map_err(property)?;
        Ok(Arc::new(within))
    }
}
