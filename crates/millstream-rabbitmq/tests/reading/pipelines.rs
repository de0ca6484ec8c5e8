//! Whole pipelines on a queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_brokers::Series;
use millstream_core::{Context, DeadLetter, Failure, Flow, Host, PipelineSpec, Processor, rt};
use millstream_rabbitmq::RabbitConnector;
use millstream_rabbitmq::lapin::types::FieldTable;
use parking_lot::Mutex;

use crate::tools::{Client, counts, settings, start, until};

/// Counts how often each payload was processed to its end.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<Bytes, usize>>>);

impl Processor for Ledger {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, _: &mut Context<'_>) -> Result<(), Failure> {
        if payload.last() == Some(&b'7') {
            rt::sleep(Duration::from_millis(3)).await;
        }
        *self.0.lock().entry(payload).or_default() += 1;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_under_load_lose_nothing() {
    let broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "load";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..20_000).await;
    drop(client);
    // A connection that just ends cannot be closed any more.
    until("the client is gone", || broker.connections().unwrap() == 0).await;
    let ledger = Ledger::default();
    let mut settings = settings(&broker, queue);
    settings.connections = 2;
    settings.prefetch = Some(400);
    let connector = Arc::new(RabbitConnector::new(settings));
    let mut spec = PipelineSpec::new("load", connector, Flow::process(ledger.clone()));
    spec.dead_letter = DeadLetter::Discard;
    let host = Host::start([spec]).unwrap();
    for breaks in 1..=3 {
        until("some are done", || ledger.0.lock().len() >= breaks * 4_000).await;
        broker.close_all_connections("for the test").unwrap();
    }
    until("all are done", || ledger.0.lock().len() == 20_000).await;
    until("the queue is empty", || {
        let (ready, underway, _) = counts(&broker, queue);
        ready + underway == 0
    })
    .await;
    let repeated = ledger.0.lock().values().filter(|times| **times > 1).count();
    assert!(
        repeated <= 3 * 400,
        "only what was underway comes again: {repeated}"
    );
    host.drain(Duration::from_secs(10)).await;
    let log = std::fs::read_to_string(broker.log_path()).unwrap();
    assert!(!log.contains("PRECONDITION_FAILED"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pipeline_leaves_the_rest_in_the_queue_and_nothing_underway() {
    let broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "drained";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..20_000).await;
    let ledger = Ledger::default();
    let connector = Arc::new(RabbitConnector::new(settings(&broker, queue)));
    let mut spec = PipelineSpec::new("drained", connector, Flow::process(ledger.clone()));
    spec.dead_letter = DeadLetter::Discard;
    let host = Host::start([spec]).unwrap();
    until("some are done", || ledger.0.lock().len() >= 1_000).await;
    host.drain(Duration::from_secs(10)).await;
    let done = ledger.0.lock().len();
    assert!(ledger.0.lock().values().all(|times| *times == 1));
    until("nothing is underway", || {
        counts(&broker, queue) == (20_000 - done, 0, 0)
    })
    .await;
}
