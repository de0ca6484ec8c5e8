//! Kafka, with topics of one partition or several.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use millstream_brokers::Kafka;
use millstream_core::rt::Instant;
use millstream_core::{Capabilities, Ids, RetrySpec, SharedConnector, SharedSinkConnector};
use millstream_kafka::{KafkaConnector, KafkaSink};
use millstream_testkit::conformance::{Features, Place, Subject};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};

/// Long enough for anything that happens at all.
const SOON: Duration = Duration::from_secs(60);

/// All places are topics of one Kafka.
pub(crate) struct OnKafka {
    kafka: Arc<Mutex<Kafka>>,
    brokers: String,
    partitions: i32,
}

impl OnKafka {
    pub(crate) async fn start(partitions: i32) -> Self {
        let kafka = tokio::task::spawn_blocking(|| Kafka::builder().start().unwrap())
            .await
            .unwrap();
        Self {
            brokers: kafka.brokers(),
            kafka: Arc::new(Mutex::new(kafka)),
            partitions,
        }
    }
}

impl OnKafka {
    /// Waits until the broker, and not the controller alone, knows of the topic: on a busy machine that is a while.
    async fn until_known(&self, topic: &str) {
        let (topic, partitions) = (topic.to_owned(), self.partitions);
        let anybody: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .unwrap();
        let known = move || {
            let metadata = anybody.fetch_metadata(Some(&topic), SOON).unwrap();
            let led = metadata.topics().iter().flat_map(|topic| topic.partitions());
            led.filter(|partition| partition.leader() >= 0).count() == partitions as usize
        };
        let waits = move || {
            let until = Instant::now() + SOON;
            while !known() {
                assert!(Instant::now() < until, "the topic is not known after a minute");
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        tokio::task::spawn_blocking(waits).await.unwrap();
    }
}

impl Subject for OnKafka {
    type Place = Topic;

    fn name(&self) -> &str {
        match self.partitions {
            1 => "kafka",
            _ => "kafka, four partitions",
        }
    }

    fn declares(&self) -> Features {
        Features {
            retry_sink: true,
            capabilities: Capabilities {
                counts_ends: true,
                halts: true,
                longest_delay: Some(Duration::from_millis(500)),
                holds_places: true,
                ids: Ids::Position,
                ..Capabilities::default()
            },
            keys: true,
            headers: true,
            ordered: true,
            consumers: true,
            groups: true,
            backlog: true,
            // What is settled beyond the committed offset is kept as far as the commit's metadata can hold it.
            settles_singly: false,
            takes_back: false,
            restarts: true,
            // A member cannot be thrown out from the outside, with what rdkafka has.
            cuts: false,
        }
    }

    async fn place(&self, name: &str) -> Topic {
        let admin: AdminClient<_> = ClientConfig::new()
            .set("bootstrap.servers", &self.brokers)
            .create()
            .unwrap();
        let topic = NewTopic::new(name, self.partitions, TopicReplication::Fixed(1));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
        self.until_known(name).await;
        Topic {
            brokers: self.brokers.clone(),
            name: name.to_owned(),
        }
    }

    async fn restart(&self) {
        let kafka = Arc::clone(&self.kafka);
        let restart = move || {
            let mut kafka = kafka.lock();
            kafka.kill();
            kafka.start_again().unwrap();
        };
        tokio::task::spawn_blocking(restart).await.unwrap();
    }
}

pub(crate) struct Topic {
    brokers: String,
    name: String,
}

impl Topic {
    fn reads(&self, group: &str) -> KafkaConnector {
        KafkaConnector::new(&self.brokers, group, [&self.name])
            .commit_interval(Duration::from_millis(500))
            .retry_topics(&waits())
            // Whoever ends while it joins is waited for by the group.
            .property("session.timeout.ms", "6000")
            .unwrap()
    }
}

/// One retry topic, for waits as those that the cases ask for.
fn waits() -> RetrySpec {
    RetrySpec {
        attempts: const { NonZeroU32::new(2).unwrap() },
        backoff: Duration::from_millis(500),
        ..RetrySpec::default()
    }
}

impl Place for Topic {
    fn connector(&self) -> SharedConnector {
        Arc::new(self.reads(&self.name))
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(KafkaSink::new(&self.brokers, &self.name))
    }

    async fn group(&self, name: &str) -> SharedConnector {
        Arc::new(self.reads(&format!("{}-{name}", self.name)))
    }
}
