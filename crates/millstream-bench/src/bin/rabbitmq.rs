//! Reading RabbitMQ beside bare lapin loops: messages of 100 bytes, transient, in a classic queue.
//!
//! `cargo run --release -p millstream-bench --bin rabbitmq URL [MESSAGES] [RUNS] [PREFETCH]`, where the URL is
//! that of a broker to spare.

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use millstream_bench::median;
use millstream_core::rt;
use millstream_core::{
    Acknowledger, Chunk, Connector, Context, Credit, DeadLetter, EngineHandle, Failure, Flow, Host,
    PipelineSpec, Processor, Settle, Settlement, Source,
};
use millstream_rabbitmq::lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
    QueuePurgeOptions,
};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::lapin::{BasicProperties, Channel, Connection, ConnectionProperties};
use millstream_rabbitmq::{Dial, RabbitConnector, ReaderSettings, Topology};
use tokio::sync::Notify;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const QUEUE: &str = "millstream-bench";

/// Each case, with the share of the first one's rate that it is to reach.
const CASES: [(&str, f64); 4] = [
    ("lapin, an ack for 100", 1.0),
    ("lapin, an ack each", 0.0),
    ("connector", 0.9),
    ("pipeline", 0.9),
];

#[derive(Clone)]
struct Bench {
    url: Arc<str>,
    messages: usize,
    prefetch: u16,
}

impl Bench {
    async fn channel(&self) -> Outcome<(Connection, Channel)> {
        let connection = Connection::connect(&self.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        Ok((connection, channel))
    }

    /// Empties the queue and fills it.
    async fn fill(&self) -> Outcome<()> {
        let (_connection, channel) = self.channel().await?;
        let options = QueueDeclareOptions {
            durable: true,
            ..QueueDeclareOptions::default()
        };
        channel
            .queue_declare(QUEUE.into(), options, FieldTable::default())
            .await?;
        channel
            .queue_purge(QUEUE.into(), QueuePurgeOptions::default())
            .await?;
        for _ in 0..self.messages {
            channel
                .basic_publish(
                    "".into(),
                    QUEUE.into(),
                    BasicPublishOptions::default(),
                    &[7; 100],
                    BasicProperties::default(),
                )
                .await?;
        }
        loop {
            let options = QueueDeclareOptions {
                passive: true,
                ..options
            };
            let queue = channel
                .queue_declare(QUEUE.into(), options, FieldTable::default())
                .await?;
            if queue.message_count() as usize == self.messages {
                return Ok(());
            }
        }
    }

    async fn bare(&self, each: usize) -> Outcome<Duration> {
        let (_connection, channel) = self.channel().await?;
        channel
            .basic_qos(self.prefetch, BasicQosOptions::default())
            .await?;
        let started = rt::now();
        let consumer = channel
            .basic_consume(
                QUEUE.into(),
                "".into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        let mut consumer = std::pin::pin!(consumer);
        for number in 1..=self.messages {
            let next = std::future::poll_fn(|cx| consumer.as_mut().poll_next(cx)).await;
            let delivery = next.ok_or("cancelled")??;
            std::hint::black_box(&delivery.data);
            if number % each == 0 || number == self.messages {
                channel
                    .basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: each > 1 })
                    .await?;
            }
        }
        Ok(started.elapsed())
    }

    fn connector(&self) -> Outcome<RabbitConnector> {
        let mut settings = ReaderSettings::new(Dial::new([&*self.url])?, Topology::new(QUEUE));
        settings.prefetch = Some(self.prefetch);
        Ok(RabbitConnector::new(settings))
    }

    async fn connector_alone(&self) -> Outcome<Duration> {
        let (engine, detached) = EngineHandle::detached();
        detached.rejects_elsewhere();
        let (mut source, mut acknowledger) = self.connector()?.open(engine).await?;
        let (mut chunk, mut settles, mut outcomes) = (Chunk::new(), Vec::new(), Vec::new());
        let started = rt::now();
        let (mut read, mut settled) = (0, 0);
        while settled < self.messages {
            if read < self.messages {
                let credit = Credit {
                    messages: 10_000,
                    bytes: usize::MAX,
                };
                source.read(credit, &mut chunk).await?;
                read += chunk.len();
                settles.extend(chunk.drain().map(|(ticket, message)| {
                    std::hint::black_box(&message.payload);
                    let settlement = Settlement::Ack;
                    Settle { ticket, settlement }
                }));
                acknowledger.settle(&settles, &mut outcomes).await;
                settles.clear();
            } else {
                acknowledger.flush(&mut outcomes).await;
            }
            settled += outcomes.len();
            outcomes.clear();
        }
        Ok(started.elapsed())
    }

    async fn pipeline(&self) -> Outcome<Duration> {
        let counted = Arc::new(Counted {
            left: AtomicUsize::new(self.messages),
            done: Notify::new(),
        });
        let connector = Arc::new(self.connector()?);
        let mut spec = PipelineSpec::new("bench", connector, Flow::process(Count(Arc::clone(&counted))));
        spec.dead_letter = DeadLetter::Discard;
        let started = rt::now();
        let host = Host::start([spec]).map_err(|error| error.to_string())?;
        counted.done.notified().await;
        let took = started.elapsed();
        host.drain(Duration::from_secs(5)).await;
        Ok(took)
    }

    async fn run(self, case: usize) -> Outcome<f64> {
        self.fill().await?;
        let took = match case {
            0 => self.bare(100).await?,
            1 => self.bare(1).await?,
            2 => self.connector_alone().await?,
            _ => self.pipeline().await?,
        };
        Ok(self.messages as f64 / took.as_secs_f64() / 1_000.0)
    }
}

struct Counted {
    left: AtomicUsize,
    done: Notify,
}

struct Count(Arc<Counted>);

impl Processor for Count {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, _: Bytes, _: &mut Context<'_>) -> Result<(), Failure> {
        if self.0.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.done.notify_one();
        }
        Ok(())
    }
}

fn measure() -> Outcome<bool> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().ok_or("the URL of a broker is missing")?;
    let mut numbers = arguments.filter_map(|argument| argument.parse::<usize>().ok());
    let bench = Bench {
        url: url.into(),
        messages: numbers.next().unwrap_or(200_000),
        prefetch: 0,
    };
    let runs = numbers.next().unwrap_or(5);
    let prefetch = u16::try_from(numbers.next().unwrap_or(2_000))?;
    let bench = Bench { prefetch, ..bench };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    println!(
        "{} messages of 100 bytes, prefetch {prefetch}, medians of {runs} runs, thousand messages a second",
        bench.messages
    );
    println!("{:<24}{:>8}{:>8}{:>8}", "case", "rate", "ratio", "wanted");
    let mut rates = [const { Vec::new() }; CASES.len()];
    // In turn, since the broker is not equally fast all the time.
    for _ in 0..runs {
        for (case, rates) in rates.iter_mut().enumerate() {
            let bench = bench.clone();
            rates.push(runtime.block_on(async { rt::spawn(bench.run(case)).await? })?);
        }
    }
    let medians = rates.map(median);
    let mut reached = true;
    for ((name, wanted), rate) in CASES.into_iter().zip(medians) {
        let ratio = rate / medians[0];
        reached &= ratio >= wanted;
        println!("{name:<24}{rate:>8.1}{ratio:>8.2}{wanted:>8.2}");
    }
    println!("{}", if reached { "reached" } else { "not reached" });
    Ok(reached)
}

fn main() -> ExitCode {
    match measure() {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
