//! A Kafka, topics, and pipelines that read them.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream_brokers::Kafka;
use millstream_core::rt;
use millstream_core::{
    Context, DeadLetter, Delivered, DrainReport, Failure, Flow, Host, Message, Outgoing, Pipeline,
    PipelineSpec, Processor, Sink, SinkConnector,
};
use millstream_kafka::{KafkaConnector, KafkaSink};
use parking_lot::Mutex;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

pub(crate) const SOON: Duration = Duration::from_secs(120);

/// One Kafka for all tests that do it no harm; its guard ends it with the process.
pub(crate) async fn brokers() -> String {
    static KAFKA: OnceLock<Kafka> = OnceLock::new();
    tokio::task::spawn_blocking(|| {
        let settings = |builder: millstream_brokers::KafkaBuilder| {
            // The cleaner looks often.
            builder
                .formatted()
                .setting("log.cleaner.backoff.ms", "200")
                // In the newer protocol this is the broker's to say.
                .setting("group.consumer.min.heartbeat.interval.ms", "300")
                .setting("group.consumer.heartbeat.interval.ms", "300")
                .setting("group.consumer.min.session.timeout.ms", "3000")
                .setting("group.consumer.session.timeout.ms", "3000")
        };
        KAFKA
            .get_or_init(|| settings(Kafka::builder()).start().unwrap())
            .brokers()
    })
    .await
    .unwrap()
}

/// A Kafka of a test's own, which it may kill.
pub(crate) struct OwnKafka(Arc<Mutex<Kafka>>);

impl OwnKafka {
    pub(crate) async fn start() -> Self {
        let started = tokio::task::spawn_blocking(|| Kafka::builder().start().unwrap());
        Self(Arc::new(Mutex::new(started.await.unwrap())))
    }

    pub(crate) fn brokers(&self) -> String {
        self.0.lock().brokers()
    }

    pub(crate) async fn kill(&self) {
        self.has(Kafka::kill).await;
    }

    pub(crate) async fn start_again(&self) {
        self.has(|kafka| kafka.start_again().unwrap()).await;
    }

    /// Has it stop in good order; meanwhile does this to its one node's folder.
    pub(crate) async fn while_stopped(&self, done: impl Fn(&Path) + Send + 'static) {
        self.has(move |kafka| {
            kafka.stop().unwrap();
            kafka.folders().for_each(done);
            kafka.start_again().unwrap();
        })
        .await;
    }

    async fn has(&self, done: impl FnOnce(&mut Kafka) + Send + 'static) {
        let kafka = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || done(&mut kafka.lock()))
            .await
            .unwrap();
    }
}

/// A topic of its own, and a group of the same name.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    pub(crate) brokers: String,
    pub(crate) name: String,
    pub(crate) partitions: i32,
}

impl Topic {
    pub(crate) async fn make(name: &str, partitions: i32) -> Self {
        Self::with(&brokers().await, name, partitions, &[]).await
    }

    pub(crate) async fn with(brokers: &str, name: &str, partitions: i32, settings: &[(&str, &str)]) -> Self {
        let admin: AdminClient<_> = config(brokers).create().unwrap();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
        let topic = Self {
            brokers: brokers.to_owned(),
            name: name.to_owned(),
            partitions,
        };
        until("its broker knows of the topic", || topic.is_known()).await;
        topic
    }

    /// The controller knows of it before the broker does.
    async fn is_known(&self) -> bool {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || {
            let anybody: BaseConsumer = config(&topic.brokers).create().unwrap();
            let metadata = anybody.fetch_metadata(Some(&topic.name), SOON).unwrap();
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            partitions.filter(|partition| partition.leader() >= 0).count() == topic.partitions as usize
        })
        .await
        .unwrap()
    }

    pub(crate) fn reads(&self) -> KafkaConnector {
        KafkaConnector::new(&self.brokers, &self.name, [&self.name])
            .commit_interval(Duration::from_millis(100))
            .property("session.timeout.ms", "3000")
            .unwrap()
            .property("heartbeat.interval.ms", "300")
            .unwrap()
    }

    /// In the newer protocol.
    pub(crate) fn reads_newer(&self) -> KafkaConnector {
        KafkaConnector::new(&self.brokers, &self.name, [&self.name])
            .commit_interval(Duration::from_millis(100))
            .property("group.protocol", "consumer")
            .unwrap()
    }

    /// Publishes these, all confirmed.
    pub(crate) async fn publish(&self, messages: &[Outgoing]) {
        let sink = KafkaSink::new(&self.brokers, &self.name);
        let mut sink = SinkConnector::open(&sink).await.unwrap();
        let mut results = Vec::new();
        sink.send(messages, &mut results).await.unwrap();
        assert_eq!(results, vec![Delivered::Confirmed; messages.len()]);
    }

    fn all(&self) -> TopicPartitionList {
        let mut all = TopicPartitionList::new();
        for partition in 0..self.partitions {
            all.add_partition(&self.name, partition);
        }
        all
    }

    /// What the group has committed of each partition, and what it wrote beside it.
    pub(crate) async fn committed(&self) -> Vec<(Option<u64>, String)> {
        self.committed_by(&self.name).await
    }

    /// What this group has.
    async fn committed_by(&self, group: &str) -> Vec<(Option<u64>, String)> {
        let (topic, group) = (self.clone(), group.to_owned());
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config(&topic.brokers).set("group.id", &group).create().unwrap();
            // A coordinator that has just come up says so.
            let until = rt::after(SOON);
            let committed = loop {
                match consumer.committed_offsets(topic.all(), SOON) {
                    Ok(committed) => break committed,
                    Err(error) => assert!(rt::now() < until, "{error}"),
                }
            };
            let found = committed.elements();
            found
                .iter()
                .map(|partition| match partition.offset() {
                    Offset::Offset(offset) => (
                        Some(u64::try_from(offset).unwrap()),
                        partition.metadata().to_owned(),
                    ),
                    _ => (None, String::new()),
                })
                .collect()
        })
        .await
        .unwrap()
    }

    /// Where each partition ends.
    pub(crate) async fn ends(&self) -> Vec<u64> {
        let topic = self.clone();
        tokio::task::spawn_blocking(move || {
            let consumer: BaseConsumer = config(&topic.brokers).create().unwrap();
            let end = |partition| {
                let until = rt::now() + SOON;
                loop {
                    match consumer.fetch_watermarks(&topic.name, partition, SOON) {
                        Ok((_, end)) => return u64::try_from(end).unwrap(),
                        // A topic that was just made has no leader yet.
                        Err(error) => assert!(rt::now() < until, "{error}"),
                    }
                    std::thread::sleep(Duration::from_millis(10));
                }
            };
            (0..topic.partitions).map(end).collect()
        })
        .await
        .unwrap()
    }

    /// Whether the group is at the end of one of its partitions.
    pub(crate) async fn has_a_partition_at_its_end(&self) -> bool {
        let committed = self.committed().await;
        let offsets: Vec<_> = committed.iter().map(|(offset, _)| offset.unwrap_or(0)).collect();
        let ends = self.ends().await;
        offsets.iter().zip(&ends).any(|(offset, end)| offset == end)
    }

    /// Waits until the group has committed so much.
    pub(crate) async fn all_committed(&self, messages: usize) {
        until("all of it is committed", || async {
            self.total_committed().await == messages as u64
        })
        .await;
    }

    pub(crate) async fn total_committed(&self) -> u64 {
        self.total_committed_by(&self.name).await
    }

    pub(crate) async fn total_committed_by(&self, group: &str) -> u64 {
        let committed = self.committed_by(group).await;
        committed.into_iter().filter_map(|(offset, _)| offset).sum()
    }
}

pub(crate) fn config(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    config
}

/// Messages named `key-number`, round the keys.
pub(crate) fn keyed(range: std::ops::Range<usize>, keys: usize) -> Vec<Outgoing> {
    range
        .map(|number| {
            let key = format!("key{}", number % keys);
            Outgoing::new(format!("{key}-{}", number / keys)).with_key(key)
        })
        .collect()
}

/// Waits until it is so, however long the machine takes for it, within two minutes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut so: impl FnMut() -> F) {
    let waits = async {
        while !so().await {
            rt::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(
        tokio::time::timeout(SOON, waits).await.is_ok(),
        "not so after two minutes: {what}"
    );
}

/// How often each payload was done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Done(Arc<Mutex<BTreeMap<String, usize>>>);

impl Done {
    pub(crate) fn add(&self, message: &Message) {
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        *self.0.lock().entry(payload).or_default() += 1;
    }

    pub(crate) fn distinct(&self) -> usize {
        self.0.lock().len()
    }

    pub(crate) fn total(&self) -> usize {
        self.0.lock().values().sum()
    }

    pub(crate) fn times(&self, payload: &str) -> usize {
        self.0.lock().get(payload).copied().unwrap_or(0)
    }

    pub(crate) async fn reaches(&self, number: usize) {
        until(&format!("{number} messages are done"), || async {
            self.distinct() >= number
        })
        .await;
    }
}

struct Each<F>(F);

impl<F, R> Processor for Each<F>
where
    F: Fn(Message) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    type Input = Message;
    type Output = ();

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<(), Failure> {
        (self.0)(message).await
    }
}

/// A pipeline of its own host.
pub(crate) struct Member(Pipeline);

impl Member {
    pub(crate) fn start<F, R>(source: KafkaConnector, set: impl FnOnce(&mut PipelineSpec), each: F) -> Self
    where
        F: Fn(Message) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let mut spec = PipelineSpec::new("orders", Arc::new(source), Flow::process(Each(each)));
        spec.dead_letter = DeadLetter::Discard;
        spec.processor.concurrency = NonZeroUsize::new(8).unwrap();
        set(&mut spec);
        Self::run(spec)
    }

    /// One that counts what it reads, and does nothing else.
    pub(crate) fn counts(source: KafkaConnector, done: &Done) -> Self {
        let done = done.clone();
        Self::start(
            source,
            |_| {},
            move |message| {
                done.add(&message);
                async { Ok(()) }
            },
        )
    }

    pub(crate) fn run(spec: PipelineSpec) -> Self {
        let host = Host::start([spec]).unwrap();
        Self(host.pipelines().next().unwrap().clone())
    }

    pub(crate) async fn drain(&self) -> DrainReport {
        self.0.drain(Duration::from_secs(20)).await
    }

    pub(crate) fn pipeline(&self) -> &Pipeline {
        &self.0
    }
}

/// What a reader finds in a topic up to its present end that reads nothing uncommitted, and how often.
pub(crate) async fn outputs(topic: &Topic) -> BTreeMap<String, usize> {
    let topic = topic.clone();
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config(&topic.brokers)
            .set("group.id", "reader")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .set("enable.auto.commit", "false")
            .create()
            .unwrap();
        let mut all = TopicPartitionList::new();
        for partition in 0..topic.partitions {
            let at = Offset::Beginning;
            all.add_partition_offset(&topic.name, partition, at).unwrap();
        }
        consumer.assign(&all).unwrap();
        let (mut found, mut open) = (BTreeMap::new(), topic.partitions);
        while open > 0 {
            match consumer.poll(SOON).expect("the end is reached within a minute") {
                Ok(message) => {
                    let payload = String::from_utf8_lossy(message.payload().unwrap()).into_owned();
                    *found.entry(payload).or_default() += 1;
                }
                Err(KafkaError::PartitionEOF(_)) => open -= 1,
                Err(error) => panic!("{error}"),
            }
        }
        found
    })
    .await
    .unwrap()
}
