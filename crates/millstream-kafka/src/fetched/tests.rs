use std::time::Duration;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::DefaultConsumerContext;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};

use super::*;

const SOON: Duration = Duration::from_secs(30);

/// One partition at a cluster of librdkafka's own.
struct Reading {
    // Each goes before what it needs.
    fetched: Fetched<DefaultConsumerContext>,
    // It keeps the partition that it was paused with.
    partition: TopicPartitionList,
    consumer: Arc<BaseConsumer>,
    producer: BaseProducer,
    cluster: MockCluster<'static, DefaultProducerContext>,
}

fn orders() -> Place {
    Place {
        topic: "orders".into(),
        partition: 0,
    }
}

impl Reading {
    fn start() -> Self {
        Self::start_behind(&[], 0)
    }

    /// One whose first fetches are answered so, from a log of so many messages.
    fn start_behind(errors: &[RDKafkaRespErr], messages: usize) -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "readers")
            .set("auto.offset.reset", "earliest")
            .set("fetch.wait.max.ms", "10");
        let consumer: Arc<BaseConsumer> = Arc::new(config.create().unwrap());
        let mut fetched = Fetched::new(&consumer);
        fetched.begin(&orders(), Assigned::default(), || {});
        let mut partition = TopicPartitionList::new();
        partition
            .add_partition_offset("orders", 0, Offset::Offset(0))
            .unwrap();
        let reading = Self {
            producer: config.create().unwrap(),
            cluster,
            consumer,
            fetched,
            partition,
        };
        reading.publish(messages);
        if !errors.is_empty() {
            reading.cluster.request_errors(RDKafkaApiKey::Fetch, errors);
        }
        reading.consumer.assign(&reading.partition).unwrap();
        reading
    }

    fn publish(&self, messages: usize) {
        for _ in 0..messages {
            self.producer
                .send(BaseRecord::<(), _>::to("orders").payload("a payload"))
                .unwrap();
        }
        self.producer.flush(SOON).unwrap();
    }

    /// Takes until so many have come, errors among them, and no more; what came in time.
    fn take(&mut self, messages: usize) -> Vec<Result<u64, String>> {
        let until = std::time::SystemTime::now() + SOON;
        let mut came = Vec::new();
        while came.len() < messages && std::time::SystemTime::now() < until {
            assert!(self.consumer.poll(Duration::from_millis(5)).is_none());
            assert!(self.fetched.turn().is_some());
            self.fetched.take(messages - came.len(), |one| {
                came.push(
                    one.map(|given| given.offset())
                        .map_err(|(error, _)| error.to_string()),
                );
            });
        }
        came
    }

    /// As librdkafka does by itself in a rebalance, and what follows it.
    fn pause_and_go_on(&mut self, offset: i64) {
        self.consumer.pause(&self.partition).unwrap();
        self.fetched.drop_outdated();
        self.consumer.resume(&self.partition).unwrap();
        go_on(&self.consumer, &[(orders(), Some(Offset::Offset(offset)))]).unwrap();
    }
}

/// P7: the message that a fetch failed at is not left out when its partition is paused and goes on.
#[test]
fn p7_what_a_fetch_failed_at_comes_when_a_paused_partition_goes_on() {
    let mut reading = Reading::start();
    reading.publish(3);
    assert_eq!(reading.take(3), [Ok(0), Ok(1), Ok(2)]);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    reading.cluster.request_errors(RDKafkaApiKey::Fetch, &[refused]);
    assert!(matches!(&reading.take(1)[..], [Err(error)] if error.contains("uthorization")));
    reading.publish(3);
    reading.pause_and_go_on(3);
    assert_eq!(reading.take(3), [Ok(3), Ok(4), Ok(5)]);
}

/// P7: nor is the first one where a fetch failed before anything was read.
#[test]
fn p7_what_the_first_fetch_failed_at_comes_when_a_paused_partition_goes_on() {
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    let mut reading = Reading::start_behind(&[refused], 3);
    let mut failed_at = None;
    let until = std::time::SystemTime::now() + SOON;
    while failed_at.is_none() && std::time::SystemTime::now() < until {
        assert!(reading.consumer.poll(Duration::from_millis(5)).is_none());
        assert!(reading.fetched.turn().is_some());
        let failed =
            |one: Result<Given<'_>, (KafkaError, i64)>| failed_at = one.err().map(|(_, offset)| offset);
        reading.fetched.take(1, failed);
    }
    assert_eq!(failed_at, Some(0));
    reading.pause_and_go_on(0);
    assert_eq!(reading.take(3), [Ok(0), Ok(1), Ok(2)]);
}

/// P7: librdkafka may know better by then, of a log that was cut for instance.
#[test]
fn p7_a_partition_of_which_nothing_was_taken_goes_on_where_librdkafka_means_to() {
    let mut reading = Reading::start();
    reading.publish(10);
    assert_eq!(reading.take(10).len(), 10);
    reading.pause_and_go_on(5);
    reading.pause_and_go_on(10);
    assert_eq!(reading.take(2), [Ok(5), Ok(6)]);
}

/// P7: what was fetched and not taken comes again behind a pause, from the one after the last that was taken.
#[test]
fn p7_a_paused_partition_goes_on_behind_the_last_message_that_was_taken() {
    let mut reading = Reading::start();
    reading.publish(10);
    assert_eq!(reading.take(4), [Ok(0), Ok(1), Ok(2), Ok(3)]);
    reading.pause_and_go_on(4);
    assert_eq!(reading.take(3), [Ok(4), Ok(5), Ok(6)]);
}

/// P7: behind a step back too, to the first message of a log that was cut.
#[test]
fn p7_a_paused_partition_goes_on_behind_a_step_back() {
    let mut reading = Reading::start();
    reading.publish(10);
    assert_eq!(reading.take(10).len(), 10);
    let gone = RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE;
    reading.cluster.request_errors(RDKafkaApiKey::Fetch, &[gone]);
    assert_eq!(reading.take(2), [Ok(0), Ok(1)]);
    reading.pause_and_go_on(2);
    assert_eq!(reading.take(2), [Ok(2), Ok(3)]);
}

/// P4: whoever has had enough leaves the rest where it is, in order.
#[test]
fn p4_what_is_not_taken_stays() {
    let mut reading = Reading::start();
    reading.publish(1_200);
    let first = reading.take(700);
    let then = reading.take(500);
    let all: Vec<_> = [first, then].concat();
    assert!(all.into_iter().eq((0..1_200).map(Ok)));
}

/// P6: what was fetched refers to its partition, and that to what was fetched; none of it keeps a consumer from its end.
#[test]
fn p6_a_consumer_ends_whatever_was_not_taken() {
    let (ended, waits) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut reading = Reading::start();
        reading.publish(10);
        assert_eq!(reading.take(4).len(), 4);
        drop(reading);
        ended.send(()).unwrap();
    });
    waits.recv_timeout(2 * SOON).expect("it ends");
}
