//! Kafka: a pipeline with a no-op handler beside a loop over the bare client, and one whose handler takes 10 ms, with its
//! keys in order, beside as many bare timers. Payloads of 100 bytes with 10,000 keys in 8 partitions, the broker on the same
//! machine.
//!
//! `cargo run --release -p millstream-bench --bin kafka [MESSAGES] [RUNS] [TIMED]`
//!
//! TIMED is how many messages the handlers of 10 ms get. All read the same topic in turn, each as a group of its own, so what
//! disturbs the machine disturbs all. The clock starts with the first message, since joining a group takes what it takes.

use std::error::Error;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use millstream_bench::median;
use millstream_brokers::Kafka;
use millstream_core::{
    Context, DeadLetter, Failure, Flow, Host, Ordering as Order, Outgoing, PipelineSpec, Processor, Sink,
    SinkConnector, rt,
};
use millstream_kafka::{KafkaConnector, KafkaSink};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;

const TOPIC: &str = "bench";
const PARTITIONS: usize = 8;
const KEYS: usize = 10_000;

/// How often what is done is committed, by the loop as by the pipelines.
const COMMIT: Duration = Duration::from_secs(1);

/// What the slow handlers take, and how many run at a time.
const SLOW: Duration = Duration::from_millis(10);
const AT_ONCE: usize = 256;

/// How much of the slow messages are read in the order of their partitions: they run eight at a time.
const OF_PARTITIONS: usize = 20;

/// What the pipelines are to reach of what they stand beside.
const WANTED: f64 = 0.9;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Counts messages from the first one's beginning to the last one's end.
#[derive(Debug)]
struct Meter {
    wanted: usize,
    began: OnceLock<rt::Instant>,
    took: OnceLock<Duration>,
    done: AtomicUsize,
}

impl Meter {
    fn new(wanted: usize) -> Arc<Self> {
        Arc::new(Self {
            wanted,
            began: OnceLock::new(),
            took: OnceLock::new(),
            done: AtomicUsize::new(0),
        })
    }

    fn begin(&self) {
        self.began.get_or_init(rt::now);
    }

    fn end(&self) {
        if self.done.fetch_add(1, Ordering::Relaxed) + 1 == self.wanted {
            let took = self.began.get().map(rt::Instant::elapsed);
            self.took.get_or_init(|| took.unwrap_or_default());
        }
    }

    /// Messages a second.
    fn rate(&self) -> Option<f64> {
        Some(self.wanted as f64 / self.took.get()?.as_secs_f64())
    }
}

struct NoOp(Arc<Meter>);

impl Processor for NoOp {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, _: &mut Context<'_>) -> std::result::Result<(), Failure> {
        self.0.begin();
        std::hint::black_box(&payload);
        self.0.end();
        Ok(())
    }
}

struct Slow(Arc<Meter>);

impl Processor for Slow {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, _: Bytes, _: &mut Context<'_>) -> std::result::Result<(), Failure> {
        self.0.begin();
        rt::sleep(SLOW).await;
        self.0.end();
        Ok(())
    }
}

/// Makes the topic and fills it.
async fn fill(brokers: &str, messages: usize) -> Result<()> {
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let topic = NewTopic::new(TOPIC, i32::try_from(PARTITIONS)?, TopicReplication::Fixed(1));
    admin.create_topics([&topic], &AdminOptions::new()).await?;
    let mut sink = SinkConnector::open(&KafkaSink::new(brokers, TOPIC)).await?;
    let mut results = Vec::new();
    for chunk in (0..messages).collect::<Vec<_>>().chunks(KEYS) {
        let outgoing: Vec<_> = chunk
            .iter()
            .map(|number| {
                let key = format!("{:08}", number % KEYS);
                Outgoing::new(Bytes::from_static(&[7; 100])).with_key(key)
            })
            .collect();
        sink.send(&outgoing, &mut results).await?;
        results.clear();
    }
    Ok(())
}

/// Reads all of it with the bare client: borrows each message, looks at its payload, stores its offset, and commits what is
/// stored at intervals without waiting.
fn bare(brokers: &str, group: &str, messages: usize) -> Result<f64> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", group)
        .set("auto.offset.reset", "earliest")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // By default it stands still for a second whenever it has fetched enough ahead.
        .set("fetch.queue.backoff.ms", "10")
        .create()?;
    consumer.subscribe(&[TOPIC])?;
    let meter = Meter::new(messages);
    let mut committed = rt::now();
    while meter.took.get().is_none() {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message?;
        meter.begin();
        std::hint::black_box(message.payload());
        consumer.store_offset_from_message(&message)?;
        meter.end();
        if message.offset() % 1_000 == 0 && committed.elapsed() >= COMMIT {
            committed = rt::now();
            consumer.commit_consumer_state(CommitMode::Async)?;
        }
    }
    match consumer.commit_consumer_state(CommitMode::Sync) {
        // The last commit had everything.
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::NoOffset)) => {}
        committed => committed?,
    }
    Ok(meter.rate().unwrap_or_default())
}

/// Reads so many of them with a pipeline.
async fn ours<P: Processor<Output = ()>>(
    brokers: &str,
    group: &str,
    messages: usize,
    processor: impl Fn(Arc<Meter>) -> P,
    concurrency: usize,
    ordering: Order,
) -> Result<f64> {
    let meter = Meter::new(messages);
    let source = KafkaConnector::new(brokers, group, [TOPIC]).commit_interval(COMMIT);
    let flow = Flow::process(processor(Arc::clone(&meter)));
    let mut spec = PipelineSpec::new(group, Arc::new(source), flow);
    spec.dead_letter = DeadLetter::Discard;
    spec.processor.concurrency = NonZeroUsize::new(concurrency).ok_or("no concurrency")?;
    spec.ordering = ordering;
    let host = Host::start([spec])?;
    while meter.took.get().is_none() {
        rt::sleep(Duration::from_millis(5)).await;
    }
    host.drain(Duration::from_secs(5)).await;
    Ok(meter.rate().unwrap_or_default())
}

/// As many timers as the slow handlers are, one after the other in tasks that share what there is to do.
async fn timers(messages: usize) -> Result<f64> {
    let meter = Meter::new(messages);
    let given = Arc::new(AtomicUsize::new(0));
    let tasks = (0..AT_ONCE).map(|_| {
        let (meter, given) = (Arc::clone(&meter), Arc::clone(&given));
        rt::spawn(async move {
            while given.fetch_add(1, Ordering::Relaxed) < messages {
                meter.begin();
                rt::sleep(SLOW).await;
                meter.end();
            }
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await?;
    }
    Ok(meter.rate().unwrap_or_default())
}

async fn run(brokers: &str, messages: usize, runs: usize, timed: usize) -> Result<bool> {
    fill(brokers, messages.max(timed)).await?;
    let mut rates: [Vec<f64>; 5] = Default::default();
    for round in 0..runs {
        for (kind, rates) in rates.iter_mut().enumerate() {
            let group = format!("{kind}-{round}");
            rates.push(match kind {
                0 => {
                    let brokers = brokers.to_owned();
                    // A thread with a name, by which profilers tell it from the others.
                    let loops = std::thread::Builder::new()
                        .name("bare".to_owned())
                        .spawn(move || bare(&brokers, &group, messages))?;
                    tokio::task::spawn_blocking(|| loops.join())
                        .await?
                        .map_err(|_| "the loop panicked")??
                }
                1 => ours(brokers, &group, messages, NoOp, 2, Order::None).await?,
                2 => timers(timed).await?,
                3 => ours(brokers, &group, timed, Slow, AT_ONCE, Order::Key).await?,
                _ => {
                    let some = timed.div_ceil(OF_PARTITIONS);
                    ours(brokers, &group, some, Slow, AT_ONCE, Order::Partition).await?
                }
            });
        }
    }
    let [bare, noop, timers, keys, partitions] = rates.map(median);
    println!("{:<42}{:>12}{:>8}{:>8}", "", "messages/s", "ratio", "wanted");
    println!("{:<42}{bare:>12.0}", "bare client, no-op");
    println!(
        "{:<42}{noop:>12.0}{:>8.2}{WANTED:>8.1}",
        "pipeline, no-op",
        noop / bare
    );
    println!("{:<42}{timers:>12.0}", format!("{AT_ONCE} bare timers of 10 ms"));
    println!(
        "{:<42}{keys:>12.0}{:>8.2}{WANTED:>8.1}",
        "pipeline, 10 ms, keys in order",
        keys / timers
    );
    println!(
        "{:<42}{partitions:>12.0}{:>8.2}",
        "pipeline, 10 ms, partitions in order",
        partitions / timers
    );
    Ok(noop / bare >= WANTED && keys / timers >= WANTED)
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let messages = arguments.next().unwrap_or(1_000_000);
    let runs = arguments.next().unwrap_or(5);
    let timed = arguments.next().unwrap_or(100_000);
    let broker = Kafka::builder().start()?;
    println!(
        "Kafka {}, {messages} messages of 100 bytes, {timed} of them with handlers of 10 ms, {PARTITIONS} partitions, \
         medians of {runs} runs",
        broker.version()
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let brokers = broker.brokers();
    let reached = runtime.block_on(async move {
        rt::spawn(async move { run(&brokers, messages, runs, timed).await }).await?
    })?;
    println!("{}", if reached { "reached" } else { "not reached" });
    Ok(ExitCode::SUCCESS)
}
