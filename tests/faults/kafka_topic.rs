//! The topic of a test, as somebody sees it who belongs to none of its members: [`Topic`].

use std::time::Duration;

use millstream_core::SinkConnector;
use millstream_core::rt::{self, Instant};
use millstream_kafka::KafkaSink;
use millstream_tests::Work;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::metadata::MetadataPartition;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::place::SOON;

/// How much is published at once, and how long an answer may take where another question follows it anyway.
const PAUSE: Duration = Duration::from_millis(50);
const ANSWER: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(crate) struct Topic {
    brokers: String,
    /// Also the group's that reads it.
    name: String,
    partitions: i32,
}

impl Topic {
    /// Makes it, with as many copies as there are nodes.
    pub(crate) fn make(brokers: &str, name: &str, partitions: i32, nodes: usize) -> Self {
        let admin: AdminClient<_> = config(brokers).create().unwrap();
        let copies = i32::try_from(nodes).unwrap();
        let in_sync = (nodes / 2 + 1).to_string();
        let topic = NewTopic::new(name, partitions, TopicReplication::Fixed(copies))
            .set("min.insync.replicas", &in_sync);
        let made = runtime().block_on(admin.create_topics([&topic], &AdminOptions::new()));
        made.unwrap().into_iter().for_each(|made| drop(made.unwrap()));
        let topic = Self {
            brokers: brokers.to_owned(),
            name: name.to_owned(),
            partitions,
        };
        // The controller knows of it before every broker does.
        let until = Instant::now() + SOON;
        while topic
            .leaders()
            .is_none_or(|leaders| leaders.len() != partitions as usize)
        {
            assert!(Instant::now() < until, "the topic is not known after a minute");
            std::thread::sleep(PAUSE);
        }
        topic
    }

    /// Publishes everything in order, evenly over this time and later where nothing could be published meanwhile.
    pub(crate) fn publish(&self, work: &Work, messages: u32, over: Duration) {
        let sink = KafkaSink::new(&self.brokers, &self.name)
            .property("message.timeout.ms", "120000")
            .unwrap();
        runtime().block_on(async {
            let mut sink = SinkConnector::open(&sink).await.unwrap();
            let began = Instant::now();
            let mut next = 0;
            while next < messages {
                let due = began.elapsed().as_secs_f64() / over.as_secs_f64() * f64::from(messages);
                let due = messages.min(due as u32);
                work.publish(&mut sink, next..due).await;
                next = due;
                rt::sleep(PAUSE).await;
            }
        });
    }

    fn outsider(&self) -> BaseConsumer {
        config(&self.brokers)
            .set("group.id", &self.name)
            .set("auto.offset.reset", "earliest")
            .create()
            .unwrap()
    }

    fn all(&self, offset: Offset) -> TopicPartitionList {
        let mut all = TopicPartitionList::new();
        for partition in 0..self.partitions {
            all.add_partition_offset(&self.name, partition, offset).unwrap();
        }
        all
    }

    /// Somebody who looks at what the group has committed of each partition, again and again.
    pub(crate) fn looker(&self) -> impl Fn() -> Result<Vec<u64>, KafkaError> + Send + use<> {
        let (outsider, all) = (self.outsider(), self.all(Offset::Invalid));
        move || {
            let committed = outsider.committed_offsets(all.clone(), ANSWER)?;
            let committed = committed.elements();
            let offset = |offset| match offset {
                Offset::Offset(offset) => u64::try_from(offset).unwrap(),
                _ => 0,
            };
            Ok(committed.iter().map(|found| offset(found.offset())).collect())
        }
    }

    /// Where each partition ends.
    pub(crate) fn ends(&self) -> Vec<u64> {
        let outsider = self.outsider();
        let end = |partition| {
            let (_, end) = outsider.fetch_watermarks(&self.name, partition, SOON).unwrap();
            u64::try_from(end).unwrap()
        };
        (0..self.partitions).map(end).collect()
    }

    /// Where each message is, by its number. Each is there once.
    pub(crate) fn positions(&self, messages: u32) -> Vec<(usize, u64)> {
        let reader = self.outsider();
        reader.assign(&self.all(Offset::Beginning)).unwrap();
        let mut positions = vec![None; messages as usize];
        let mut missing = messages;
        let until = Instant::now() + SOON;
        while missing > 0 {
            assert!(Instant::now() < until, "{missing} messages cannot be found");
            let Some(Ok(message)) = reader.poll(ANSWER) else {
                continue;
            };
            let payload = message.payload().unwrap_or_default();
            let number = Work::number(&payload.to_vec().into()).expect("every payload is a number");
            let at = (
                usize::try_from(message.partition()).unwrap(),
                u64::try_from(message.offset()).unwrap(),
            );
            let before = positions[number as usize].replace(at);
            assert_eq!(
                before, None,
                "message {number} was written twice, and at {at:?} again"
            );
            missing -= 1;
        }
        positions.into_iter().flatten().collect()
    }

    /// The node that leads most of its partitions, by its place among them.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leaders = self.leaders()?;
        let most = leaders
            .iter()
            .max_by_key(|leader| leaders.iter().filter(|other| other == leader).count())?;
        usize::try_from(most - 1).ok()
    }

    /// The node that leads each partition that has one.
    fn leaders(&self) -> Option<Vec<i32>> {
        let metadata = self.outsider().fetch_metadata(Some(&self.name), ANSWER).ok()?;
        let topic = metadata.topics().first()?;
        let leaders = topic.partitions().iter().map(MetadataPartition::leader);
        Some(leaders.filter(|leader| *leader >= 0).collect())
    }
}

fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
