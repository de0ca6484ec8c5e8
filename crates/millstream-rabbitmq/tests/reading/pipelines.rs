//! Whole pipelines on a queue.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_brokers::Series;
use millstream_core::rt::Instant;
use millstream_core::{
    Context, DeadLetter, Failure, Flow, Host, Message, PipelineSpec, Processor, RetryStrategy, Settlement, rt,
};
use millstream_rabbitmq::lapin::BasicProperties;
use millstream_rabbitmq::lapin::ExchangeKind;
use millstream_rabbitmq::lapin::options::{BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::{RabbitConnector, RabbitSink, Topology};
use parking_lot::Mutex;

use crate::tools::{BROKER, Client, counts, filled, number, settings, start, until};

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

/// What a message was when it ran, and when that was.
type Runs = Arc<Mutex<Vec<(Instant, u32, Message)>>>;

/// Fails each message until the last attempt, or settles it early to come again later.
struct Again {
    runs: Runs,
    early: Option<Duration>,
}

impl Processor for Again {
    type Input = Message;
    type Output = ();

    async fn process(&self, message: Message, cx: &mut Context<'_>) -> Result<(), Failure> {
        let attempt = cx.attempt();
        self.runs.lock().push((Instant::now(), attempt, message));
        match self.early {
            None => Err("not yet".into()),
            Some(after) => {
                if attempt == 1 {
                    cx.settle_now(Settlement::Retry { after, failures: 1 });
                }
                Ok(())
            }
        }
    }
}

/// A retry queue gives its messages back by the default exchange.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_keeps_its_exchange_and_routing_key_over_retries_and_in_its_dead_letter() {
    let (queue, exchange, letters) = ("routed", "routes of orders", "routed.dead");
    let client = Client::of(&BROKER).await;
    client.declare(queue, FieldTable::default()).await;
    client.declare(letters, FieldTable::default()).await;
    let kind = ExchangeKind::Topic;
    let options = ExchangeDeclareOptions::default();
    let declared = client
        .channel
        .exchange_declare(exchange.into(), kind, options, FieldTable::default());
    declared.await.unwrap();
    let options = QueueBindOptions::default();
    let bound = client.channel.queue_bind(
        queue.into(),
        exchange.into(),
        "eu.#".into(),
        options,
        FieldTable::default(),
    );
    bound.await.unwrap();
    let options = BasicPublishOptions::default();
    let properties = BasicProperties::default();
    let published = client
        .channel
        .basic_publish(exchange.into(), "eu.new".into(), options, b"x", properties);
    published.await.unwrap().await.unwrap();

    let runs = Runs::default();
    let again = Again {
        runs: Arc::clone(&runs),
        early: None,
    };
    let connector = Arc::new(RabbitConnector::new(settings(&BROKER, queue)));
    let mut spec = PipelineSpec::new(queue, connector, Flow::process(again));
    spec.retry.strategy = RetryStrategy::Redeliver;
    spec.retry.attempts = 3.try_into().unwrap();
    let dial = settings(&BROKER, queue).dial;
    let sink = RabbitSink::queue(dial, Topology::new(letters));
    spec.dead_letter = DeadLetter::Sink(Arc::new(sink));
    let host = Host::start([spec]).unwrap();
    until("its dead letter is there", || counts(&BROKER, letters).0 == 1).await;
    host.drain(Duration::from_secs(10)).await;
    let way = |message: &Message| {
        ["amqp-exchange", "amqp-routing-key"].map(|name| message.headers.get(name).map(str::to_owned))
    };
    let expected = [Some(exchange.to_owned()), Some("eu.new".to_owned())];
    let ways: Vec<_> = runs.lock().iter().map(|(.., message)| way(message)).collect();
    assert_eq!(ways, vec![expected.clone(); 3]);
    let mut reading = crate::tools::Reading::open(settings(&BROKER, letters)).await;
    let letter = reading.take(1).await.remove(0).1;
    assert_eq!(way(&letter), expected);
    let origin = letter.headers.get("millstream-origin").unwrap();
    assert!(origin.starts_with("routed@"), "{origin}");
}

/// RabbitMQ would give it out again at once, round and round.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_that_is_settled_early_keeps_its_wait() {
    let queue = "early";
    let _client = filled(queue, 1).await;
    let runs = Runs::default();
    let wait = Duration::from_secs(2);
    let again = Again {
        runs: Arc::clone(&runs),
        early: Some(wait),
    };
    let connector = Arc::new(RabbitConnector::new(settings(&BROKER, queue)));
    let mut spec = PipelineSpec::new(queue, connector, Flow::process(again));
    spec.dead_letter = DeadLetter::Discard;
    let host = Host::start([spec]).unwrap();
    until("it runs again", || runs.lock().len() >= 2).await;
    until("it is done", || {
        let (ready, underway, _) = counts(&BROKER, queue);
        ready + underway == 0
    })
    .await;
    host.drain(Duration::from_secs(10)).await;
    let runs = runs.lock();
    let [(first, 1, _), (second, 2, message)] = &runs[..] else {
        panic!("{runs:?}");
    };
    assert!(*second - *first >= wait, "{:?}", *second - *first);
    assert_eq!(number(message), 0);
}
