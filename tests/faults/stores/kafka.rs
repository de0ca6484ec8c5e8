//! Topics of Kafka, with a static member, which has its partitions back at once when it was killed.

use std::sync::Arc;

use millstream_brokers::Kafka;
use millstream_core::rt::Instant;
use millstream_core::{RetrySpec, SharedConnector, SharedSinkConnector};
use millstream_kafka::{KafkaConnector, KafkaSink};
use millstream_tests::QUEUE;

use super::{DEAD, HandsOut, Store};
use crate::kafka_topic::Topic;
use crate::place::SOON;

/// Few: what a member that was killed may have choked on is a thousand messages of each.
const PARTITIONS: i32 = 2;

/// Whether it is counted what it hands out.
pub(crate) struct OnKafka<const COUNTED: bool = false> {
    kafka: Kafka,
    topics: [(&'static str, Topic); 2],
}

impl<const COUNTED: bool> Store for OnKafka<COUNTED> {
    const TAKES_BACK: bool = true;

    fn start() -> Self {
        let kafka = Kafka::builder().counted(COUNTED).start();
        let kafka = kafka.unwrap_or_else(|error| panic!("{error}"));
        let brokers = kafka.brokers();
        Self {
            topics: [QUEUE, DEAD].map(|name| (name, Topic::make(&brokers, name, PARTITIONS, 1))),
            kafka,
        }
    }

    fn name(&self) -> String {
        format!("Kafka {}", self.kafka.version())
    }

    fn source(&self, queue: &str) -> String {
        let brokers = self.kafka.brokers();
        format!(
            "{{ type = \"kafka\", brokers = \"{brokers}\", group = \"{queue}\", topics = [\"{queue}\"], \
             static_id = \"{queue}\", commit_interval = \"1s\" }}"
        )
    }

    fn sink(&self, queue: &str) -> String {
        let brokers = self.kafka.brokers();
        format!("{{ type = \"kafka\", brokers = \"{brokers}\", topic = \"{queue}\" }}")
    }

    fn inlet(&self, queue: &str) -> SharedConnector {
        let connector = KafkaConnector::new(&self.kafka.brokers(), queue, [queue]);
        Arc::new(connector.static_id(queue).retry_topics(&RetrySpec::default()))
    }

    fn outlet(&self, queue: &str) -> SharedSinkConnector {
        Arc::new(KafkaSink::new(&self.kafka.brokers(), queue))
    }

    /// What lies behind what is committed, settled already or not.
    fn remaining(&self, queue: &str) -> u32 {
        let (_, topic) = self.topics.iter().find(|(name, _)| *name == queue).unwrap();
        let (look, until) = (topic.looker(), Instant::now() + SOON);
        let committed: u64 = loop {
            match look() {
                Ok(committed) => break committed.iter().sum(),
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
        };
        let end: u64 = topic.ends().iter().sum();
        u32::try_from(end - committed).unwrap()
    }

    fn restart(&mut self, _: bool) {
        self.kafka.kill();
        self.kafka.start_again().unwrap();
    }
}

impl HandsOut for OnKafka<true> {
    const BYTES: usize = 32 << 10;

    /// How often it was asked for messages, by whomever: Kafka hands out none that it was not asked for, and says of none
    /// whether it has. Nobody but pipelines asks while this is looked at.
    fn handed_out(&self, _: &str) -> u32 {
        u32::try_from(self.kafka.fetches()).unwrap()
    }
}
