//! P1: `examples/relay` moves messages from RabbitMQ to Kafka with the stock binary alone, as they are and in the order of
//! their keys, and loses none when it is killed in the middle.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream_brokers::{Kafka, RabbitMq, Series};
use millstream_core::rt::Instant;
use millstream_core::{Delivered, Outgoing, Sink, SinkConnector};
use millstream_rabbitmq::lapin::options::BasicPublishOptions;
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::lapin::{BasicProperties, Connection, ConnectionProperties};
use millstream_rabbitmq::{Declare, Dial, RabbitSink, Topology};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/relay/relay.toml");

/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);
const PARTITIONS: i32 = 3;
const MESSAGES: u32 = 30_000;
const KEYS: u32 = 50;

/// What a message is, wherever it is: key, headers, body.
type Moved = (Option<Vec<u8>>, Vec<(String, Vec<u8>)>, Vec<u8>);

/// The message of this number: one in ten without a key, and none of them text.
fn message(number: u32) -> Outgoing {
    let mut body = number.to_be_bytes().to_vec();
    body.extend([0, 0xff, b'\n']);
    let mut message = Outgoing::new(body);
    if !number.is_multiple_of(10) {
        message = message.with_key(format!("customer-{}", number % KEYS));
    }
    for (name, value) in [
        ("tenant", "acme".to_owned()),
        ("número", format!("n°{number}")),
        ("empty", String::new()),
    ] {
        message = message.with_header(name, &value);
    }
    message
}

fn as_moved(message: &Outgoing) -> Moved {
    let headers = message.headers.iter();
    let mut headers: Vec<_> = headers
        .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
        .collect();
    headers.sort();
    (
        message.key.as_ref().map(|key| key.to_vec()),
        headers,
        message.payload.to_vec(),
    )
}

fn number_of(body: &[u8]) -> u32 {
    u32::from_be_bytes(body[..4].try_into().unwrap())
}

async fn publish(url: &str) {
    let topology = Topology::new("orders").declare(Declare::default());
    let sink = RabbitSink::queue(Dial::new([url]).unwrap(), topology);
    let mut sink = SinkConnector::open(&sink).await.unwrap();
    for first in (0..MESSAGES).step_by(1_000) {
        let messages: Vec<_> = (first..first + 1_000).map(message).collect();
        let mut results = Vec::new();
        sink.send(&messages, &mut results).await.unwrap();
        assert_eq!(results, vec![Delivered::Confirmed; messages.len()]);
    }
    // One from a program that knows nothing of Millstream.
    let connection = Connection::connect(url, ConnectionProperties::default())
        .await
        .unwrap();
    let channel = connection.create_channel().await.unwrap();
    let mut headers = FieldTable::default();
    headers.insert("retries".into(), AMQPValue::LongInt(7));
    let properties = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_delivery_mode(2)
        .with_headers(headers);
    let options = BasicPublishOptions::default();
    let body = [&MESSAGES.to_be_bytes()[..], b"{}"].concat();
    channel
        .basic_publish("".into(), "orders".into(), options, &body, properties)
        .await
        .unwrap();
    connection.close(200, "done".into()).await.unwrap();
}

/// The stock binary with the example's file; dropped, it is killed.
struct Relay(Child);

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn relay(rabbitmq: &str, kafka: &str, arguments: &[&str]) -> Relay {
    let child = Command::new(env!("CARGO_BIN_EXE_stock"))
        .args(["run", FILE])
        .args(arguments)
        .env("RABBITMQ_URL", rabbitmq)
        .env("KAFKA_BROKERS", kafka)
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .spawn();
    Relay(child.unwrap())
}

fn consumer(brokers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers).set("group.id", "test");
    config.create().unwrap()
}

/// How many messages the topic has.
fn arrived(consumer: &BaseConsumer) -> i64 {
    (0..PARTITIONS)
        .filter_map(|partition| consumer.fetch_watermarks("orders", partition, PATIENCE).ok())
        .map(|(_, end)| end)
        .sum()
}

/// All messages of the topic, those of each partition in their order.
fn read(consumer: &BaseConsumer) -> Vec<Moved> {
    let mut all = TopicPartitionList::new();
    for partition in 0..PARTITIONS {
        all.add_partition_offset("orders", partition, Offset::Beginning)
            .unwrap();
    }
    consumer.assign(&all).unwrap();
    let expected = usize::try_from(arrived(consumer)).unwrap();
    let mut read = Vec::new();
    let begin = Instant::now();
    while read.len() < expected {
        assert!(begin.elapsed() < PATIENCE, "{} of {expected}", read.len());
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.unwrap();
        let headers = message.headers().into_iter().flat_map(Headers::iter);
        let mut headers: Vec<_> = headers
            .map(|header| (header.key.to_owned(), header.value.unwrap().to_vec()))
            .collect();
        headers.sort();
        let key = message.key().map(<[u8]>::to_vec);
        read.push((key, headers, message.payload().unwrap().to_vec()));
    }
    read
}

#[test]
fn killed_in_the_middle_it_moves_every_message_as_it_is() {
    let broker = RabbitMq::builder(Series::V4)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let kafka = Kafka::builder()
        .setting("auto.create.topics.enable", "true")
        .setting("num.partitions", &PARTITIONS.to_string())
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(publish(&broker.url()));

    let consumer = consumer(&kafka.brokers());
    let mut killed = relay(&broker.url(), &kafka.brokers(), &[]);
    let begin = Instant::now();
    while arrived(&consumer) < i64::from(MESSAGES / 4) {
        assert!(begin.elapsed() < PATIENCE, "nothing arrives");
        assert!(killed.0.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    drop(killed);
    let before = arrived(&consumer);
    assert!(before < i64::from(MESSAGES), "it was done before it was killed");

    let mut second = relay(&broker.url(), &kafka.brokers(), &["--until-idle", "3s"]);
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = second.0.try_wait().unwrap() {
            break status;
        }
        assert!(begin.elapsed() < PATIENCE, "it does not end");
        std::thread::park_timeout(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");

    let read = read(&consumer);
    let mut seen = BTreeSet::new();
    let mut last = BTreeMap::new();
    for moved in &read {
        let number = number_of(&moved.2);
        if number < MESSAGES {
            assert_eq!(*moved, as_moved(&message(number)));
        } else {
            let headers = [("amqp-content-type", "application/json"), ("retries", "7")];
            let headers = headers.map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
            assert_eq!((&moved.0, &moved.1[..]), (&None, &headers[..]));
        }
        // What comes again was there before; the first time is in order.
        if let (true, Some(key)) = (seen.insert(number), &moved.0) {
            let before = last.insert(key, number);
            assert!(before < Some(number), "{before:?} before {number}");
        }
    }
    println!(
        "killed after {before} messages; {} came twice",
        read.len() - seen.len()
    );
    assert_eq!(seen, (0..=MESSAGES).collect());
    assert_eq!(
        broker
            .eval("[rabbit_amqqueue:stat(Queue) || Queue <- rabbit_amqqueue:list()]")
            .unwrap(),
        "[{ok, 0, 0}]",
        "a queue still has messages"
    );
}
