//! Whole pipelines on a queue.

use std::collections::HashMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use millstream_brokers::ElasticMq;
use millstream_core::rt;
use millstream_core::{
    Context, DeduplicateSpec, Failure, Flow, Host, Message, Ordering, Outgoing, PipelineSpec, Processor,
    RetryStrategy,
};
use millstream_sqs::SqsConnector;
use parking_lot::Mutex;

use crate::bench::{Bench, soon};

/// What ran, in order, with what came of it.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<String>>>);

impl Runs {
    fn names(&self) -> Vec<String> {
        self.0.lock().clone()
    }

    fn times(&self) -> HashMap<String, usize> {
        let mut times = HashMap::new();
        for name in self.names() {
            *times.entry(name).or_default() += 1;
        }
        times
    }

    /// Waits until so many different messages have run.
    async fn reach(&self, number: usize) {
        soon("the runs", async {
            while self.times().len() < number {
                rt::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

struct Run<F> {
    runs: Runs,
    each: F,
}

impl<F, R> Processor for Run<F>
where
    F: Fn(Message, usize) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    type Input = Message;
    type Output = ();

    /// Counts a run that succeeds; the function is told how often the message has.
    async fn process(&self, message: Message, cx: &mut Context<'_>) -> Result<(), Failure> {
        let name = String::from_utf8_lossy(&message.payload).into_owned();
        (self.each)(message, cx.attempt() as usize).await?;
        self.runs.0.lock().push(name);
        Ok(())
    }
}

fn start<F, R>(connector: SqsConnector, set: impl FnOnce(&mut PipelineSpec), each: F) -> (Host, Runs)
where
    F: Fn(Message, usize) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send + 'static,
{
    let runs = Runs::default();
    let flow = Flow::process(Run {
        runs: runs.clone(),
        each,
    });
    let mut spec = PipelineSpec::new("orders", Arc::new(connector), flow);
    set(&mut spec);
    (Host::start([spec]).unwrap(), runs)
}

fn concurrency(spec: &mut PipelineSpec, number: usize) {
    spec.processor.concurrency = NonZeroUsize::new(number).unwrap();
}

#[tokio::test]
async fn messages_have_the_id_of_sqs_where_a_pipeline_deduplicates_by_it() {
    let bench = Bench::standard().await;
    bench.publish_numbered(4).await;
    let (host, runs) = start(
        bench.connector(),
        |spec| spec.deduplicate = Some(DeduplicateSpec::new()),
        |message, _| async move {
            assert!(
                message
                    .headers
                    .get("sqs-message-id")
                    .is_some_and(|id| id.len() > 8)
            );
            Ok(())
        },
    );
    runs.reach(4).await;
    bench.empties().await;
    host.drain(Duration::from_secs(10)).await;
    let counts = host.pipelines().next().unwrap().status().counts;
    assert_eq!((counts.unidentified, counts.duplicates, counts.failed), (0, 0, 0));
}

#[tokio::test]
async fn p2_a_handler_may_take_longer_than_a_message_is_hidden() {
    let bench = Bench::standard().await;
    bench.publish_numbered(4).await;
    // Two run, two wait.
    let (host, runs) = start(
        bench.short(),
        |spec| concurrency(spec, 2),
        |_, _| async {
            rt::sleep(Duration::from_secs(8)).await;
            Ok(())
        },
    );
    runs.reach(4).await;
    bench.empties().await;
    host.drain(Duration::from_secs(10)).await;
    assert!(
        runs.times().values().all(|times| *times == 1),
        "{:?}",
        runs.times()
    );
}

#[tokio::test]
async fn p3_a_message_that_failed_runs_again_before_what_follows_it_in_its_group() {
    let bench = Bench::fifo().await;
    let mut messages = Vec::new();
    for number in 0..6 {
        for key in ["a", "b", "c"] {
            messages.push(Outgoing::new(format!("{key}{number}")).with_key(key));
        }
    }
    bench.publish(&messages).await;
    let (host, runs) = start(
        bench.connector(),
        |spec| {
            spec.ordering = Ordering::Key;
            spec.retry.strategy = RetryStrategy::Redeliver;
            spec.retry.backoff = Duration::from_millis(500);
            concurrency(spec, 4);
        },
        |message, attempt| async move {
            let fails = ["a1", "b3"].map(|name| message.payload == name).contains(&true);
            if fails && attempt < 3 {
                return Err("not yet".into());
            }
            Ok(())
        },
    );
    runs.reach(messages.len()).await;
    bench.empties().await;
    host.drain(Duration::from_secs(10)).await;
    for key in ["a", "b", "c"] {
        let ran: Vec<_> = runs
            .names()
            .into_iter()
            .filter(|name| name.starts_with(key))
            .collect();
        let expected: Vec<_> = (0..6).map(|number| format!("{key}{number}")).collect();
        assert_eq!(ran, expected);
    }
    // What did not fail did not wait for what did.
    let names = runs.names();
    let at = |name: &str| names.iter().position(|ran| ran == name).unwrap();
    assert!(at("c5") < at("a1"), "{names:?}");
}

#[tokio::test]
async fn p1_a_deletion_that_fails_is_tried_again_and_nothing_runs_twice() {
    let bench = Bench::standard().await;
    bench.proxy.fail_entries("DeleteMessageBatch", 5);
    bench.publish_numbered(30).await;
    let (host, runs) = start(bench.connector(), |_| {}, |_, _| async { Ok(()) });
    runs.reach(30).await;
    bench.empties().await;
    host.drain(Duration::from_secs(10)).await;
    assert_eq!(runs.names().len(), 30);
}

#[tokio::test]
async fn p1_a_pipeline_survives_that_its_broker_is_killed_and_loses_nothing() {
    let mut broker = ElasticMq::start().unwrap();
    let bench = Bench::of(&broker, false).await;
    bench.publish_numbered(200).await;
    let (host, runs) = start(
        bench.connector(),
        |spec| {
            spec.limits.in_flight = NonZeroUsize::new(40).unwrap();
            spec.retry.max_deliveries = NonZeroU32::MAX;
        },
        |_, _| async {
            rt::sleep(Duration::from_millis(5)).await;
            Ok(())
        },
    );
    runs.reach(50).await;
    let broker = tokio::task::spawn_blocking(move || {
        broker.kill();
        broker.start_again().unwrap();
        broker
    })
    .await
    .unwrap();
    runs.reach(200).await;
    bench.empties().await;
    host.drain(Duration::from_secs(10)).await;
    drop(broker);
}

#[tokio::test]
async fn p6_a_drain_leaves_nothing_hidden() {
    let bench = Bench::standard().await;
    bench.publish_numbered(60).await;
    let (host, runs) = start(
        bench.connector().visibility_timeout(Duration::from_secs(3600)),
        |spec| concurrency(spec, 1),
        |_, _| async {
            rt::sleep(Duration::from_millis(100)).await;
            Ok(())
        },
    );
    runs.reach(3).await;
    let report = host.drain(Duration::from_secs(4)).await;
    let (waiting, out) = bench.counts().await;
    assert_eq!((waiting + runs.names().len(), out), (60, 0), "{report:?}");
}

/// A receive and a deletion for ten messages are 0.2 calls for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_full_batches_there_are_at_most_0_21_calls_a_message() {
    const MESSAGES: usize = 2_000;
    let bench = Bench::standard().await;
    bench.publish_numbered(MESSAGES).await;
    let published = bench.proxy.all_calls();
    let connector = bench.connector().visibility_timeout(Duration::from_secs(60));
    let (host, runs) = start(connector, |_| {}, |_, _| async { Ok(()) });
    soon("all to be deleted", async {
        while bench.proxy.entries("DeleteMessageBatch") < MESSAGES {
            rt::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let calls = bench.proxy.all_calls() - published;
    host.drain(Duration::from_secs(10)).await;
    assert_eq!(runs.names().len(), MESSAGES);
    println!("{:.4} calls a message", calls as f64 / MESSAGES as f64);
    assert!(
        calls as f64 <= 0.21 * MESSAGES as f64,
        "{calls} calls for {MESSAGES} messages"
    );
}
