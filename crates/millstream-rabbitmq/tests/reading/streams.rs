//! Streams, where the position is the reader's own business.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_brokers::{RabbitMq, Series};
use millstream_core::{
    Chunk, Connector, Context, DeadLetter, EngineHandle, Failure, Flow, Host, OpenError, Outcome,
    PipelineSpec, Processor, Settlement, Source, rt,
};
use millstream_rabbitmq::lapin::BasicProperties;
use millstream_rabbitmq::lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::{Dial, RabbitConnector, RabbitSink, ReaderSettings, Topology};
use parking_lot::Mutex;

use crate::tools::{
    BROKER, Client, PLENTY, Reading, counts, number, numbers, settings, start, tickets, until,
};

/// How a stream is read from there where no position is stored.
fn from(broker: &RabbitMq, stream: &str, offset: impl Into<AMQPValue>) -> ReaderSettings {
    let mut settings = settings(broker, stream);
    settings.arguments.insert("x-stream-offset".into(), offset.into());
    settings
}

fn text(text: &str) -> AMQPValue {
    AMQPValue::LongString(text.into())
}

/// A stream with so many messages, and a client.
async fn stream(broker: &RabbitMq, stream: &str, messages: usize) -> Client {
    let client = Client::of(broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("stream"));
    client.declare(stream, arguments).await;
    client.publish(stream, 0..messages).await;
    client
}

/// Opens it, once the one before is gone.
async fn open(settings: ReaderSettings) -> Reading {
    let opening = async {
        loop {
            match Reading::try_open(settings.clone()).await {
                Ok(reading) => return reading,
                Err(OpenError::Unavailable(_)) => rt::sleep(Duration::from_millis(5)).await,
                Err(refused) => panic!("{refused}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), opening)
        .await
        .expect("nobody else reads it")
}

/// The position that is stored, which stays where it is.
async fn position(client: &Client, stream: &str, reader: &str) -> Option<u64> {
    let queue = format!("{stream}.position.{reader}");
    let mut last = None;
    while let Some(message) = client
        .channel
        .basic_get(queue.as_str().into(), BasicGetOptions::default())
        .await
        .unwrap()
    {
        last = Some(message.delivery);
    }
    let last = last?;
    let requeue = BasicNackOptions {
        multiple: true,
        requeue: true,
    };
    client
        .channel
        .basic_nack(last.delivery_tag, requeue)
        .await
        .unwrap();
    Some(std::str::from_utf8(&last.data).unwrap().parse().unwrap())
}

async fn stored(client: &Client, stream: &str, expected: u64) {
    let waiting = async {
        while position(client, stream, "default").await != Some(expected) {
            rt::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting)
        .await
        .unwrap_or_else(|_| panic!("{expected} is not stored"));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_position_reading_begins_where_the_settings_have_it() {
    let name = "begin";
    let client = stream(&BROKER, name, 50).await;
    for (reader, offset, first) in [
        ("first", text("first"), 0),
        ("number", AMQPValue::LongLongInt(20), 20),
        ("age", text("1h"), 0),
        ("past", AMQPValue::Timestamp(1), 0),
    ] {
        let mut settings = from(&BROKER, name, offset);
        settings.reader = reader.to_owned();
        let messages = open(settings).await.take(50 - first).await;
        assert_eq!(numbers(&messages), (first..50).collect::<Vec<_>>(), "{reader}");
        assert!(
            messages
                .iter()
                .all(|(_, message)| message.position == number(message) as u64)
        );
    }
    // A declaration alone says that it is a stream, too.
    let mut declared = settings(&BROKER, name);
    let mut declare = millstream_rabbitmq::Declare::default();
    declare.arguments.insert("x-queue-type".into(), text("stream"));
    declared.topology = Topology::new(name).declare(declare);
    declared.reader = "declared".to_owned();
    assert_eq!(
        numbers(&open(declared).await.take(50).await),
        (0..50).collect::<Vec<_>>()
    );
    drop(client);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_first_after_next_comes_again_when_it_was_not_done() {
    let name = "next";
    let client = stream(&BROKER, name, 10).await;
    let settings = from(&BROKER, name, text("next"));
    let mut reading = open(settings.clone()).await;
    let reads = async { reading.take(5).await };
    let publishes = async {
        until("it is consumed", || counts(&BROKER, name).2 == 1).await;
        client.publish(name, 10..15).await;
    };
    let (messages, ()) = tokio::join!(reads, publishes);
    assert_eq!(numbers(&messages), [10, 11, 12, 13, 14]);
    reading
        .settle_now(&tickets(&messages)[..2], &Settlement::Ack)
        .await;
    drop(reading);
    client.publish(name, 15..17).await;
    let mut reading = open(settings).await;
    assert_eq!(numbers(&reading.take(5).await), [12, 13, 14, 15, 16]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_reader_goes_on_where_it_stopped() {
    for series in [Series::V3, Series::V4] {
        let broker = start(series);
        let name = "drained-stream";
        let client = stream(&broker, name, 200).await;
        let settings = from(&broker, name, text("first"));
        let mut reading = open(settings.clone()).await;
        let messages = reading.take(100).await;
        let given = tickets(&messages);
        reading.settle_now(&given[..60], &Settlement::Ack).await;
        reading.settle_now(&given[70..], &Settlement::Ack).await;
        reading.drain().await;
        assert_eq!(
            position(&client, name, "default").await,
            Some(60),
            "never past what is not done, and at the end of the drain"
        );
        // What is settled later in the drain is answered for once it is stored.
        reading.settle(&given[60..70], &Settlement::Ack).await;
        assert!(reading.outcomes.is_empty());
        reading.flush().await;
        assert_eq!(reading.outcomes.len(), 10);
        assert_eq!(position(&client, name, "default").await, Some(100));
        drop(reading);
        let mut reading = open(settings).await;
        assert_eq!(numbers(&reading.take(100).await), (100..200).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_reader_repeats_what_was_not_stored_and_loses_nothing() {
    let broker = start(Series::V3);
    let name = "killed-reader";
    let client = stream(&broker, name, 200).await;
    let settings = from(&broker, name, text("first"));
    let process = settings.clone();
    // Its tasks end with its runtime, wherever they are.
    let reads = move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let mut reading = open(process).await;
            let messages = reading.take(100).await;
            reading
                .settle_now(&tickets(&messages)[..50], &Settlement::Ack)
                .await;
            std::mem::forget(reading);
        });
        runtime.shutdown_background();
    };
    std::thread::spawn(reads).join().unwrap();
    let at = position(&client, name, "default").await.unwrap();
    assert!(at <= 50, "{at} is not done");
    drop(client);
    broker.close_all_connections("for the test").unwrap();
    let mut reading = open(settings).await;
    let first = at as usize;
    assert_eq!(
        numbers(&reading.take(200 - first).await),
        (first..200).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_keeps_the_position() {
    for series in [Series::V3, Series::V4] {
        let mut broker = start(series);
        let name = "killed-stream";
        let client = stream(&broker, name, 200).await;
        let settings = from(&broker, name, text("first"));
        let mut reading = open(settings.clone()).await;
        let messages = reading.take(80).await;
        reading
            .settle_now(&tickets(&messages)[..50], &Settlement::Ack)
            .await;
        stored(&client, name, 50).await;
        broker.flush_declarations().unwrap();
        broker.kill();
        until("it is degraded", || reading.engine.degraded().is_some()).await;
        // What is in hand may be done meanwhile.
        reading
            .settle_now(&tickets(&messages)[50..], &Settlement::Ack)
            .await;
        let broker = tokio::task::spawn_blocking(move || {
            broker.start_again().unwrap();
            broker
        })
        .await
        .unwrap();
        let more = reading.take(20).await;
        assert_eq!(
            numbers(&more),
            (80..100).collect::<Vec<_>>(),
            "nothing is repeated"
        );
        assert_eq!(reading.engine.lost(), []);
        reading.settle_now(&tickets(&more), &Settlement::Ack).await;
        let client = Client::of(&broker).await;
        stored(&client, name, 100).await;
        until("it has recovered", || reading.engine.degraded().is_none()).await;
        drop(reading);
        let mut reading = open(settings).await;
        assert_eq!(numbers(&reading.take(100).await), (100..200).collect::<Vec<_>>());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_back_comes_again_and_nothing_else_does() {
    let name = "released";
    let client = stream(&BROKER, name, 20).await;
    let mut reading = open(from(&BROKER, name, text("first"))).await;
    let messages = reading.take(10).await;
    let given = tickets(&messages);
    reading.settle_now(&given[..3], &Settlement::Ack).await;
    reading.settle_now(&given[6..], &Settlement::Ack).await;
    // The fifth is still in hand.
    reading
        .settle_now(&[given[3], given[5]], &Settlement::Release)
        .await;
    let again = reading.take(12).await;
    let mut expected = vec![3, 5];
    expected.extend(10..20);
    let mut got = numbers(&again);
    // The others may have been sent ahead.
    got.sort_unstable();
    assert_eq!(got, expected);
    // What was given back is stale under its old ticket.
    reading.settle(&given[3..4], &Settlement::Ack).await;
    assert_eq!(reading.outcomes.pop().unwrap().1, Outcome::Stale);
    reading.settle_now(&tickets(&again), &Settlement::Ack).await;
    stored(&client, name, 4).await;
    reading.settle_now(&given[4..5], &Settlement::Ack).await;
    stored(&client, name, 20).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_message_of_a_stream_does_not_starve_the_others() {
    let name = "slow-stream";
    let client = stream(&BROKER, name, 1_000).await;
    let mut settings = from(&BROKER, name, text("first"));
    settings.prefetch = Some(20);
    let mut reading = open(settings).await;
    let slow = reading.take(1).await;
    let mut others = 0;
    while others < 999 {
        let messages = reading.read(PLENTY).await;
        others += messages.len();
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    reading.settle_now(&tickets(&slow), &Settlement::Ack).await;
    stored(&client, name, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_sent_ahead_no_further_than_the_prefetch() {
    let name = "prefetched-stream";
    // Before RabbitMQ 4 it is in whole chunks, as they were published.
    let broker = start(Series::V4);
    let _client = stream(&broker, name, 500).await;
    let mut settings = from(&broker, name, text("first"));
    settings.prefetch = Some(37);
    let mut reading = open(settings).await;
    let mut next = 0;
    while next < 500 {
        let messages = reading.read(PLENTY).await;
        assert!(messages.len() <= 37, "{}", messages.len());
        assert_eq!(
            numbers(&messages),
            (next..next + messages.len()).collect::<Vec<_>>()
        );
        next += messages.len();
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_retention_has_taken_holds_nothing_up() {
    let broker = start(Series::V3);
    let name = "retention";
    let client = Client::of(&broker).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), text("stream"));
    arguments.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(400_000));
    arguments.insert(
        "x-stream-max-segment-size-bytes".into(),
        AMQPValue::LongLongInt(100_000),
    );
    client.declare(name, arguments).await;
    client.publish(name, 0..10).await;
    let settings = from(&broker, name, text("first"));
    let mut reading = open(settings.clone()).await;
    let messages = reading.take(10).await;
    let given = tickets(&messages);
    reading.settle_now(&given[..4], &Settlement::Ack).await;
    // The rest is left, and is gone when somebody looks again.
    reading.drain().await;
    drop(reading);
    for _ in 0..20 {
        client.publish_large(name, 50, 1_000).await;
    }
    let mut reading = open(settings).await;
    let first = reading.take(1).await;
    let offset = first[0].1.position;
    assert!(offset > 10, "retention has taken nothing: {offset}");
    reading.settle_now(&tickets(&first), &Settlement::Ack).await;
    client.publish(name, 10..11).await;
    let last = loop {
        let messages = reading.read(PLENTY).await;
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
        if let Some((_, last)) = messages.last()
            && &last.payload[..] == b"10"
        {
            break last.position;
        }
    };
    // The broker keeps records of its own among the messages, which have offsets too.
    stored(&client, name, last + 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_different_names_each_see_everything_and_one_name_has_one_reader() {
    let name = "readers";
    let client = stream(&BROKER, name, 30).await;
    let mut one = from(&BROKER, name, text("first"));
    one.reader = "one".to_owned();
    let mut two = one.clone();
    // The tag goes before the name.
    two.consumer_tag = Some("two".to_owned());
    let (mut first, mut second) = (open(one.clone()).await, open(two).await);
    for reading in [&mut first, &mut second] {
        let messages = reading.take(30).await;
        assert_eq!(numbers(&messages), (0..30).collect::<Vec<_>>());
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
        reading.drain().await;
    }
    for reader in ["one", "two"] {
        assert_eq!(position(&client, name, reader).await, Some(30), "{reader}");
    }
    let Err(OpenError::Unavailable(why)) = Reading::try_open(one.clone()).await.map(drop) else {
        panic!("somebody reads under this name");
    };
    assert!(why.contains("under the name `one`"), "{why}");
    drop(first);
    client.publish(name, 30..31).await;
    assert_eq!(numbers(&open(one).await.take(1).await), [30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_read_as_a_queue_is_refused() {
    let name = "undeclared";
    let client = stream(&BROKER, name, 0).await;
    let connector = RabbitConnector::new(settings(&BROKER, name));
    let (engine, detached) = EngineHandle::detached();
    detached.rejects_elsewhere();
    let (mut source, acknowledger) = connector.open(engine.clone()).await.unwrap();
    let mut chunk = Chunk::new();
    let publishes = async {
        until("it is consumed", || counts(&BROKER, name).2 == 1).await;
        client.publish(name, 0..10).await;
    };
    let (read, ()) = tokio::join!(source.read(PLENTY, &mut chunk), publishes);
    let why = read.unwrap_err().to_string();
    assert!(why.contains("`undeclared` is a stream"), "{why}");
    assert!(chunk.is_empty());
    drop((source, acknowledger));
    let Err(OpenError::Refused(why)) = connector.open(engine).await.map(drop) else {
        panic!("it is to be refused now");
    };
    assert!(why.contains("`x-stream-offset`"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_with_messages_from_a_stream_is_none() {
    let queue = "from-a-stream";
    let client = Client::of(&BROKER).await;
    client.declare(queue, FieldTable::default()).await;
    let mut headers = FieldTable::default();
    headers.insert("x-stream-offset".into(), AMQPValue::LongLongInt(7));
    client
        .channel
        .basic_publish(
            "".into(),
            queue.into(),
            BasicPublishOptions::default(),
            b"0",
            BasicProperties::default().with_headers(headers),
        )
        .await
        .unwrap()
        .await
        .unwrap();
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let messages = reading.take(1).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    until("it is gone", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

/// Counts how often each payload was processed, and rejects what ends in 3.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<BTreeMap<Bytes, usize>>>);

impl Processor for Ledger {
    type Input = Bytes;
    type Output = ();

    async fn process(&self, payload: Bytes, _: &mut Context<'_>) -> Result<(), Failure> {
        let last = payload.last().copied();
        *self.0.lock().entry(payload).or_default() += 1;
        if last == Some(b'3') {
            return Err(Failure::reject("a three"));
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_on_a_stream_runs_each_message_once_over_broken_connections_and_buries_the_dead() {
    let broker = start(Series::V3);
    let (name, dead) = ("load", "load.dead");
    let client = stream(&broker, name, 20_000).await;
    client.declare(dead, FieldTable::default()).await;
    drop(client);
    // A connection that just ends cannot be closed any more.
    until("the client is gone", || broker.connections().unwrap() == 0).await;
    let ledger = Ledger::default();
    let connector = Arc::new(RabbitConnector::new(from(&broker, name, text("first"))));
    let mut spec = PipelineSpec::new("load", connector, Flow::process(ledger.clone()));
    let dial = Dial::new([broker.url()]).unwrap();
    spec.dead_letter = DeadLetter::Sink(Arc::new(RabbitSink::queue(dial, Topology::new(dead))));
    let host = Host::start([spec]).unwrap();
    for breaks in 1..=3 {
        until("some are done", || ledger.0.lock().len() >= breaks * 4_000).await;
        broker.close_all_connections("for the test").unwrap();
    }
    until("all are done", || ledger.0.lock().len() == 20_000).await;
    // A dead letter may be there twice, when its confirmation was lost with the connection.
    until("the threes are dead", || counts(&broker, dead).0 >= 2_000).await;
    host.drain(Duration::from_secs(10)).await;
    assert!(ledger.0.lock().values().all(|times| *times == 1));
    let client = Client::of(&broker).await;
    assert_eq!(position(&client, name, "default").await, Some(20_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_that_leaves_rejected_messages_to_a_stream_does_not_start() {
    let connector = Arc::new(RabbitConnector::new(from(
        &BROKER,
        "keeps-nothing",
        text("first"),
    )));
    let spec = PipelineSpec::new("keeps-nothing", connector, Flow::process(Ledger::default()));
    assert!(Host::start([spec]).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_made_anew_is_told_from_one_that_is_quiet() {
    let name = "anew";
    let client = stream(&BROKER, name, 100).await;
    let settings = from(&BROKER, name, text("first"));
    let mut reading = open(settings.clone()).await;
    let messages = reading.take(100).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    reading.drain().await;
    drop(reading);
    // Quiet, for longer than a reader waits for what must be there.
    let mut reading = open(settings.clone()).await;
    let mut chunk = Chunk::new();
    let quiet = Duration::from_secs(12);
    let read = tokio::time::timeout(quiet, reading.source.read(PLENTY, &mut chunk)).await;
    assert!(read.is_err() && chunk.is_empty());
    assert_eq!(reading.engine.degraded(), None);
    reading.drain().await;
    drop(reading);
    client.delete(name).await;
    let client = stream(&BROKER, name, 10).await;
    let mut reading = open(settings).await;
    let told = async {
        until("it is told", || {
            let cause = reading.engine.degraded().unwrap_or_default();
            cause.contains("ends before the stored position")
        })
        .await;
    };
    tokio::select! {
        _ = reading.source.read(PLENTY, &mut chunk) => panic!("it has nothing from there on"),
        () = told => {}
    }
    client.publish(name, 10..101).await;
    assert_eq!(numbers(&reading.take(1).await), [100]);
    until("it has recovered", || reading.engine.degraded().is_none()).await;
}
