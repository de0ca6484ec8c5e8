//! How fast messages go through, beside a bare loop around librdkafka's consumer.
//!
//! ```sh
//! cargo run --release -p millstream-kafka --example throughput -- 1000000 100
//! ```
//!
//! The arguments are the number of messages and the bytes of each. Every reader reads all of them from the beginning; the
//! clock starts with the first message, since joining a group takes what it takes.

#![allow(clippy::unwrap_used, reason = "an example fails by panicking")]

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_brokers::Kafka;
use millstream_core::rt::{self, Instant};
use millstream_core::{
    Acknowledger, Chunk, Connector, Context, Credit, DeadLetter, EngineHandle, Failure, Flow, Host, Message,
    Outgoing, PipelineSpec, Processor, Settle, Settlement, Sink, SinkConnector, Source,
};
use millstream_kafka::{KafkaConnector, KafkaSink};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};

const TOPIC: &str = "throughput";

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let number: usize = arguments.next().unwrap_or(200_000);
    let size: usize = arguments.next().unwrap_or(100);
    let kafka = Kafka::builder().start().unwrap();
    let brokers = kafka.brokers();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let admin: AdminClient<_> = ClientConfig::new()
            .set("bootstrap.servers", &brokers)
            .create()
            .unwrap();
        let topic = NewTopic::new(TOPIC, 4, TopicReplication::Fixed(1));
        admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        say(
            "the sink, chunks of 1000",
            number,
            write(&brokers, number, size).await,
        );
        for round in 0..3 {
            let (to, group) = (brokers.clone(), format!("bare{round}"));
            let took = tokio::task::spawn_blocking(move || bare(&to, &group, number));
            say("a bare BaseConsumer", number, took.await.unwrap());
            let took = connector(&brokers, &format!("connector{round}"), number).await;
            say("source and acknowledger", number, took);
            let took = pipeline(&brokers, &format!("pipeline{round}"), number).await;
            say("a pipeline", number, took);
        }
    });
}

fn say(what: &str, number: usize, took: Duration) {
    let rate = number as f64 / took.as_secs_f64();
    println!("{what:<30} {rate:>10.0} messages a second");
}

async fn write(brokers: &str, number: usize, size: usize) -> Duration {
    let mut sink = SinkConnector::open(&KafkaSink::new(brokers, TOPIC))
        .await
        .unwrap();
    let chunk = vec![Outgoing::new(vec![b'x'; size]); 1_000];
    let began = rt::now();
    for _ in 0..number.div_ceil(chunk.len()) {
        let mut results = Vec::new();
        sink.send(&chunk, &mut results).await.unwrap();
    }
    began.elapsed()
}

fn bare(brokers: &str, group: &str, number: usize) -> Duration {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .create()
        .unwrap();
    consumer.subscribe(&[TOPIC]).unwrap();
    let (mut read, mut began) = (0, None);
    while read < number {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message.unwrap();
            began.get_or_insert_with(rt::now);
            read += 1;
        }
    }
    elapsed(began)
}

fn elapsed(began: Option<Instant>) -> Duration {
    began.unwrap().elapsed()
}

async fn connector(brokers: &str, group: &str, number: usize) -> Duration {
    let (engine, _told) = EngineHandle::detached();
    let connector = KafkaConnector::new(brokers, group, [TOPIC]);
    let (mut source, mut acknowledger) = Connector::open(&connector, engine).await.unwrap();
    let credit = Credit {
        messages: 1_000,
        bytes: usize::MAX,
    };
    let (mut read, mut began) = (0, None);
    let (mut settles, mut outcomes) = (Vec::new(), Vec::new());
    while read < number {
        let mut chunk = Chunk::new();
        source.read(credit, &mut chunk).await.unwrap();
        began.get_or_insert_with(rt::now);
        read += chunk.len();
        settles.extend(chunk.drain().map(|(ticket, _)| Settle {
            ticket,
            settlement: Settlement::Ack,
        }));
        acknowledger.settle(&settles, &mut outcomes).await;
        settles.clear();
        outcomes.clear();
    }
    elapsed(began)
}

#[derive(Default)]
struct Count {
    seen: AtomicUsize,
    began: std::sync::OnceLock<Instant>,
}

struct Counts(Arc<Count>);

impl Processor for Counts {
    type Input = Message;
    type Output = ();

    async fn process(&self, _: Message, _: &mut Context<'_>) -> Result<(), Failure> {
        if self.0.seen.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.began.get_or_init(rt::now);
        }
        Ok(())
    }
}

async fn pipeline(brokers: &str, group: &str, number: usize) -> Duration {
    let count = Arc::new(Count::default());
    let source = KafkaConnector::new(brokers, group, [TOPIC]);
    let flow = Flow::process(Counts(Arc::clone(&count)));
    let mut spec = PipelineSpec::new("throughput", Arc::new(source), flow);
    spec.dead_letter = DeadLetter::Discard;
    spec.processor.concurrency = NonZeroUsize::new(2).unwrap();
    let host = Host::start([spec]).unwrap();
    while count.seen.load(Ordering::Relaxed) < number {
        rt::sleep(Duration::from_millis(1)).await;
    }
    let took = elapsed(count.began.get().copied());
    let pipeline = host.pipelines().next().unwrap().clone();
    pipeline.stop().await;
    took
}
