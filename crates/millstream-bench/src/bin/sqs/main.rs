//! SQS: a pipeline with a no-op handler beside as many loops over the bare client, each of which receives ten messages
//! and deletes them. Payloads of 100 bytes, ElasticMQ on the same machine, which takes most of it: so the loops run once
//! with the attributes that the pipeline asks for (the count of receives, the group, the time, and what is sent along
//! as headers), and once without any, which is less for the broker to do.
//!
//! `cargo run --release -p millstream-bench --bin sqs [MESSAGES] [RUNS]`
//!
//! Each run consumes a queue that was filled before, in turn with the others: what disturbs the machine disturbs all. A
//! first round counts for nothing, for the broker's sake.
//!
//! A second table says what each costs, which other work on the machine changes less: calls, how full they are and how
//! many are under way at a time, and what processor time both sides use.

mod calls;

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_bench::{NoOp, cpu_seconds, median};
use millstream_brokers::ElasticMq;
use millstream_core::{DeadLetter, Flow, Host, PipelineSpec, SinkConnector as _, rt};
use millstream_sqs::aws_sdk_sqs::Client;
use millstream_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use millstream_sqs::aws_sdk_sqs::types::{
    DeleteMessageBatchRequestEntry, MessageSystemAttributeName as Attribute,
};
use millstream_sqs::{SqsConnector, SqsSink};

use self::calls::{Calls, KINDS, Kind};

/// Loops of the bare client, and polls of the pipeline.
const POLLERS: usize = 8;

/// How often to look whether all is done: a look costs time that the loops do not spend.
const LOOK: Duration = Duration::from_millis(10);

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn client(endpoint: &str, calls: &Calls) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("elasticmq"))
        .credentials_provider(Credentials::new("x", "x", None, None, "bench"))
        .interceptor(calls.clone())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

async fn fill(client: &Client, queue: &str, messages: usize) -> Result<()> {
    let mut sink = SqsSink::new(queue).client(client.clone()).open().await?;
    millstream_bench::fill(&mut sink, messages, 100).await?;
    Ok(())
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reader {
    Pipeline,
    Bare,
    /// The bare client, which asks for no attributes.
    Barest,
}

async fn bare(client: &Client, queue: &str, messages: usize, attributes: bool) -> Result<Duration> {
    let done = Arc::new(AtomicUsize::new(0));
    let started = rt::now();
    let loops: Vec<_> = (0..POLLERS)
        .map(|_| {
            let (client, queue, done) = (client.clone(), queue.to_owned(), Arc::clone(&done));
            rt::spawn(async move {
                while done.load(Ordering::Relaxed) < messages {
                    let mut receive = client
                        .receive_message()
                        .queue_url(&queue)
                        .max_number_of_messages(10);
                    if attributes {
                        receive = receive
                            .message_system_attribute_names(Attribute::ApproximateReceiveCount)
                            .message_system_attribute_names(Attribute::MessageGroupId)
                            .message_system_attribute_names(Attribute::SentTimestamp)
                            .message_attribute_names("All");
                    }
                    let received = receive
                        .wait_time_seconds(1)
                        .send()
                        .await?
                        .messages
                        .unwrap_or_default();
                    if received.is_empty() {
                        continue;
                    }
                    let mut delete = client.delete_message_batch().queue_url(&queue);
                    for (index, message) in received.iter().enumerate() {
                        std::hint::black_box(&message.body);
                        let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
                        let entry = entry.set_receipt_handle(message.receipt_handle.clone());
                        delete = delete.entries(entry.build()?);
                    }
                    delete.send().await?;
                    done.fetch_add(received.len(), Ordering::Relaxed);
                }
                Result::Ok(rt::now())
            })
        })
        .collect();
    // The first to see that all is done says when: the others wait for messages still.
    let mut ended = Vec::new();
    for one in loops {
        ended.push(one.await??);
    }
    let ended = ended.into_iter().min().ok_or("there are no loops")?;
    Ok(ended - started)
}

async fn ours(client: &Client, queue: &str, messages: usize) -> Result<Duration> {
    let connector = SqsConnector::new(queue)
        .client(client.clone())
        .pollers(POLLERS)
        .wait_time(Duration::from_secs(1));
    let mut spec = PipelineSpec::new("bench", Arc::new(connector), Flow::process(NoOp));
    spec.dead_letter = DeadLetter::Discard;
    let started = rt::now();
    let host = Host::start([spec])?;
    let pipeline = host.pipeline("bench").ok_or("the pipeline is not there")?;
    while pipeline.status().counts.acked < messages as u64 {
        rt::sleep(LOOK).await;
    }
    let took = started.elapsed();
    host.drain(Duration::from_secs(5)).await;
    Ok(took)
}

/// What a run took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Seconds of the processors, of this process and of the broker.
    ours: f64,
    brokers: f64,
    calls: [Kind; KINDS],
}

impl Cost {
    fn so_far(broker: &ElasticMq, calls: &Calls) -> Result<Self> {
        let broker = broker.id().ok_or("the broker is gone")?;
        Ok(Self {
            ours: cpu_seconds(std::process::id())?,
            brokers: cpu_seconds(broker)?,
            calls: calls.so_far(),
        })
    }

    fn since(mut self, before: &Self) -> Self {
        self.ours -= before.ours;
        self.brokers -= before.brokers;
        for (kind, before) in self.calls.iter_mut().zip(before.calls) {
            *kind = *kind - before;
        }
        self
    }
}

async fn run(broker: &ElasticMq, messages: usize, runs: usize) -> Result<()> {
    let calls = Calls::new();
    let client = client(&broker.url(), &calls);
    let queue = broker.create_queue("bench", &[])?;
    let names = [
        (Reader::Pipeline, "pipeline".to_owned()),
        (Reader::Bare, format!("{POLLERS} loops of the bare client")),
        (Reader::Barest, "  without attributes".to_owned()),
    ];
    let mut rates = [const { Vec::new() }; 3];
    let mut costs = [const { Vec::new() }; 3];
    for round in 0..=runs {
        for (((reader, _), rates), costs) in names.iter().zip(&mut rates).zip(&mut costs) {
            fill(&client, &queue, messages).await?;
            let before = Cost::so_far(broker, &calls)?;
            let took = match reader {
                Reader::Pipeline => ours(&client, &queue, messages).await?,
                _ => bare(&client, &queue, messages, *reader == Reader::Bare).await?,
            };
            if round > 0 {
                rates.push(messages as f64 / took.as_secs_f64());
                costs.push((took, Cost::so_far(broker, &calls)?.since(&before)));
            }
        }
    }
    println!("{:<34}{:>12}{:>8}", "", "messages/s", "ratio");
    let pipeline = rates[0].clone();
    for ((_, name), rates) in names.iter().zip(&rates) {
        let ratios = pipeline.iter().zip(rates).map(|(ours, theirs)| ours / theirs);
        let (rate, ratio) = (median(rates.clone()), median(ratios.collect()));
        println!("{name:<34}{rate:>12.0}{ratio:>8.2}");
    }
    println!();
    for ((_, name), costs) in names.iter().zip(&costs) {
        print_cost(name, messages, costs);
    }
    Ok(())
}

fn print_cost(name: &str, messages: usize, costs: &[(Duration, Cost)]) {
    let thousands = messages as f64 / 1e3;
    let of = |figure: &dyn Fn(&(Duration, Cost)) -> f64| median(costs.iter().map(figure).collect());
    println!(
        "{name}: {:.0} ms of this process and {:.0} ms of the broker for 1,000 messages",
        of(&|(_, cost)| cost.ours * 1e3 / thousands),
        of(&|(_, cost)| cost.brokers * 1e3 / thousands),
    );
    for (index, name) in ["receives", "deletions", "others"].iter().enumerate() {
        let kind = |cost: &Cost| cost.calls.get(index).copied().unwrap_or_default();
        println!(
            "  {name}: {:.1} for 1,000 messages, {:.2} in each, {:.1} under way",
            of(&|(_, cost)| kind(cost).calls / thousands),
            of(&|(_, cost)| kind(cost).messages / kind(cost).calls.max(1.0)),
            of(&|(took, cost)| kind(cost).seconds / took.as_secs_f64()),
        );
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args()
        .skip(1)
        .filter_map(|argument| argument.parse().ok());
    let messages = arguments.next().unwrap_or(20_000);
    let runs = arguments.next().unwrap_or(3);
    let broker = ElasticMq::start_in_memory()?;
    println!("{messages} messages of 100 bytes, medians of {runs} runs");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(run(&broker, messages, runs))
}
