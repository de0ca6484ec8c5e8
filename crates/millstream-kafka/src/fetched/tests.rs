use rdkafka::TopicPartitionList;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::DefaultConsumerContext;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer};
use rdkafka::types::RDKafkaApiKey;

use super::*;
use crate::shared::Rules;

const SOON: Duration = Duration::from_secs(30);

struct Reading {
    // Each goes before what it needs.
    fetched: Fetched<DefaultConsumerContext>,
    consumer: Arc<BaseConsumer>,
    producer: BaseProducer,
    partition: TopicPartitionList,
    cluster: MockCluster<'static, DefaultProducerContext>,
}

impl Reading {
    fn start() -> Self {
        let cluster = MockCluster::new(1).unwrap();
        cluster.create_topic("orders", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("group.id", "readers")
            .set("fetch.wait.max.ms", "10");
        let consumer: Arc<BaseConsumer> = Arc::new(config.create().unwrap());
        let shared = Arc::new(Shared::new(Rules {
            window: 100,
            halts: false,
            tells_all: false,
        }));
        let fetched = Fetched::new(Arc::clone(&consumer), shared).unwrap();
        let place = Place {
            topic: "orders".into(),
            partition: 0,
        };
        fetched.queue().upgrade().unwrap().lead(&consumer, &place);
        let mut partition = TopicPartitionList::new();
        partition
            .add_partition_offset("orders", 0, Offset::Offset(0))
            .unwrap();
        consumer.assign(&partition).unwrap();
        Self {
            producer: config.create().unwrap(),
            cluster,
            consumer,
            fetched,
            partition,
        }
    }

    fn publish(&self, messages: usize) {
        for _ in 0..messages {
            self.producer
                .send(BaseRecord::<(), _>::to("orders").payload("a payload"))
                .unwrap();
        }
        self.producer.flush(SOON).unwrap();
    }

    /// Takes until so many have come, errors among them; what came in time.
    fn take(&mut self, messages: usize) -> Vec<Result<u64, String>> {
        let until = std::time::SystemTime::now() + SOON;
        let mut came = Vec::new();
        while came.len() < messages && std::time::SystemTime::now() < until {
            drop(self.consumer.poll(Duration::from_millis(5)));
            self.fetched.take(BATCH, |one| {
                let one = one.map(|given| given.offset());
                came.push(one.map_err(|trouble| {
                    assert!(!trouble.is_lost);
                    trouble.error.to_string()
                }));
            });
        }
        came
    }
}

/// P7: the message at which a fetch failed is not left out when its partition is paused and goes on.
#[test]
fn p7_what_an_error_was_told_instead_of_comes_when_a_paused_partition_goes_on() {
    let mut reading = Reading::start();
    reading.publish(3);
    assert_eq!(reading.take(3), [Ok(0), Ok(1), Ok(2)]);
    let refused = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    reading.cluster.request_errors(RDKafkaApiKey::Fetch, &[refused]);
    assert!(matches!(&reading.take(1)[..], [Err(error)] if error.contains("uthorization")));
    reading.consumer.pause(&reading.partition).unwrap();
    reading.publish(3);
    reading.consumer.resume(&reading.partition).unwrap();
    assert_eq!(reading.take(3), [Ok(3), Ok(4), Ok(5)]);
    // At this cluster no consumer ever ends that was paused, whoever reads from it.
    std::mem::forget(Arc::clone(&reading.consumer));
}
