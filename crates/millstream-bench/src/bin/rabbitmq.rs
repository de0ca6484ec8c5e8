//! RabbitMQ: a pipeline with a no-op handler beside two loops over the bare client, one that acknowledges a hundred
//! messages at a time and one that acknowledges each. Payloads of 100 bytes, the broker on the same machine.
//!
//! `cargo run --release -p millstream-bench --bin rabbitmq [MESSAGES] [RUNS]`
//!
//! Each run consumes a queue that was filled before, in turn with the others: what disturbs the machine disturbs all.

use std::error::Error;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use millstream_bench::{NoOp, median};
use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Flow, Host, PipelineSpec, SinkConnector, rt};
use millstream_rabbitmq::lapin::message::Delivery;
use millstream_rabbitmq::lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, QueueDeleteOptions,
};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::lapin::{Connection, ConnectionProperties, Consumer};
use millstream_rabbitmq::{Declare, Dial, RabbitConnector, RabbitSink, ReaderSettings, Topology};

const QUEUE: &str = "bench";

/// What the loops may have unacknowledged, and what the pipeline may have in flight.
const PREFETCH: u16 = 1_000;

/// How many the first loop acknowledges at once.
const AT_ONCE: usize = 100;

/// What the pipeline is to reach of each loop.
const WANTED: [f64; 2] = [0.9, 1.5];

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Fills the queue.
async fn fill(url: &str, messages: usize) -> Result<()> {
    let topology = Topology::new(QUEUE).declare(Declare::default());
    let connector = RabbitSink::queue(Dial::new([url])?, topology);
    let mut sink = SinkConnector::open(&connector).await?;
    millstream_bench::fill(&mut sink, messages, 1_000).await?;
    Ok(())
}

/// The next delivery of a consumer that must not end.
async fn next(consumer: &mut Consumer) -> Result<Delivery> {
    let next = std::future::poll_fn(|cx| futures_core::Stream::poll_next(std::pin::Pin::new(consumer), cx));
    Ok(next.await.ok_or("the consumer ended")??)
}

/// Consumes all of it with the bare client, acknowledging so many at once.
async fn bare(url: &str, messages: usize, at_once: usize) -> Result<Duration> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await?;
    let started = rt::now();
    let options = BasicConsumeOptions::default();
    let mut consumer = channel
        .basic_consume(QUEUE.into(), "bare".into(), options, FieldTable::default())
        .await?;
    for number in 1..=messages {
        let delivery = next(&mut consumer).await?;
        std::hint::black_box(&delivery.data);
        if number % at_once == 0 || number == messages {
            let multiple = BasicAckOptions {
                multiple: at_once > 1,
            };
            channel.basic_ack(delivery.delivery_tag, multiple).await?;
        }
    }
    let took = started.elapsed();
    connection.close(200, "done".into()).await?;
    Ok(took)
}

/// Consumes all of it with a pipeline.
async fn ours(url: &str, messages: usize) -> Result<Duration> {
    let settings = ReaderSettings::new(Dial::new([url])?, Topology::new(QUEUE));
    let mut spec = PipelineSpec::new(
        QUEUE,
        Arc::new(RabbitConnector::new(settings)),
        Flow::process(NoOp),
    );
    spec.limits.in_flight = NonZeroUsize::new(usize::from(PREFETCH)).ok_or("no prefetch")?;
    spec.dead_letter = millstream_core::DeadLetter::Discard;
    let started = rt::now();
    let host = Host::start([spec])?;
    let pipeline = host.pipeline(QUEUE).ok_or("the pipeline is not there")?;
    while pipeline.status().counts.acked < messages as u64 {
        host.idle(Duration::ZERO).await;
        rt::sleep(Duration::from_millis(1)).await;
    }
    let took = started.elapsed();
    host.drain(Duration::from_secs(5)).await;
    Ok(took)
}

async fn empty(url: &str) -> Result<()> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let left = channel
        .queue_delete(QUEUE.into(), QueueDeleteOptions::default())
        .await?;
    connection.close(200, "done".into()).await?;
    if left > 0 {
        return Err(format!("{left} messages were left").into());
    }
    Ok(())
}

async fn run(url: &str, messages: usize, runs: usize) -> Result<bool> {
    let mut rates: [Vec<f64>; 3] = Default::default();
    for _ in 0..runs {
        for (kind, rates) in rates.iter_mut().enumerate() {
            fill(url, messages).await?;
            let took = match kind {
                0 => ours(url, messages).await?,
                1 => bare(url, messages, AT_ONCE).await?,
                _ => bare(url, messages, 1).await?,
            };
            empty(url).await?;
            rates.push(messages as f64 / took.as_secs_f64());
        }
    }
    let [ours, multiple, each] = rates.map(median);
    println!("{:<34}{:>12}{:>8}{:>8}", "", "messages/s", "ratio", "wanted");
    println!("{:<34}{ours:>12.0}", "pipeline");
    let mut reached = true;
    let loops = [
        (format!("bare client, {AT_ONCE} at a time"), multiple),
        ("bare client, each".to_owned(), each),
    ];
    for ((name, rate), wanted) in loops.into_iter().zip(WANTED) {
        let ratio = ours / rate;
        reached &= ratio >= wanted;
        println!("{name:<34}{rate:>12.0}{ratio:>8.2}{wanted:>8.1}");
    }
    Ok(reached)
}

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let messages = arguments.next().unwrap_or(200_000);
    let runs = arguments.next().unwrap_or(5);
    let broker = RabbitMq::builder(Series::V3).start()?;
    println!(
        "RabbitMQ {}, {messages} messages of 100 bytes, medians of {runs} runs",
        broker.version()
    );
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let url = broker.url();
    let reached =
        runtime.block_on(async move { rt::spawn(async move { run(&url, messages, runs).await }).await? })?;
    println!("{}", if reached { "reached" } else { "not reached" });
    Ok(ExitCode::SUCCESS)
}
