//! Kafka started, killed, started again, and left behind by a test that was killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use millstream_brokers::{Kafka, StartError};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Message, Offset, TopicPartitionList};

const SOON: Duration = Duration::from_secs(60);

/// Blocking, as the harness is, on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

fn config(kafka: &Kafka) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", kafka.brokers());
    config
}

fn make_topic(kafka: &Kafka, copies: i32) {
    block_on(async {
        let admin: AdminClient<_> = config(kafka).create().unwrap();
        let topic = NewTopic::new("t", 1, TopicReplication::Fixed(copies));
        let made = admin.create_topics([&topic], &AdminOptions::new()).await.unwrap();
        made.into_iter().for_each(|made| drop(made.unwrap()));
    });
}

fn publish(kafka: &Kafka, payload: &str) {
    block_on(async {
        let producer: FutureProducer = config(kafka).set("acks", "all").create().unwrap();
        let record = FutureRecord::<(), _>::to("t").payload(payload);
        producer.send(record, SOON).await.unwrap();
    });
}

fn read(kafka: &Kafka) -> Vec<u8> {
    let consumer: BaseConsumer = config(kafka).set("group.id", "g").create().unwrap();
    let mut start = TopicPartitionList::new();
    start.add_partition_offset("t", 0, Offset::Beginning).unwrap();
    consumer.assign(&start).unwrap();
    let message = (0..60).find_map(|_| consumer.poll(Duration::from_secs(1))?.ok());
    message.unwrap().payload().unwrap().to_owned()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..1_000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not so after 10 s: {what}");
}

#[test]
fn a_message_survives_a_kill_of_kafka_and_an_end_that_was_asked_for() {
    let mut kafka = Kafka::builder().start().unwrap();
    assert!(kafka.version().starts_with("4."));
    make_topic(&kafka, 1);
    publish(&kafka, "kept");
    let (brokers, id) = (kafka.brokers(), kafka.ids().next().unwrap());
    kafka.kill();
    assert!(!kafka.runs());
    assert!(TcpStream::connect(&brokers).is_err());
    kafka.start_again().unwrap();
    assert_eq!(kafka.brokers(), brokers);
    assert_ne!(kafka.ids().next().unwrap(), id);
    assert_eq!(read(&kafka), b"kept");

    kafka.stop().unwrap();
    let log = std::fs::read_to_string(&kafka.log_paths()[0]).unwrap();
    assert!(log.contains("SIGTERM"), "it was asked to: {log}");
    kafka.start_again().unwrap();
    assert_eq!(read(&kafka), b"kept");

    let folders: Vec<_> = kafka.folders().map(Path::to_owned).collect();
    drop(kafka);
    assert!(folders.iter().all(|folder| !folder.exists()));
}

#[test]
fn three_nodes_go_on_without_one_of_them() {
    let mut kafka = Kafka::builder().nodes(3).start().unwrap();
    make_topic(&kafka, 3);
    publish(&kafka, "kept");
    kafka.kill_node(0);
    assert_eq!(kafka.ids().count(), 2);
    assert_eq!(read(&kafka), b"kept");
    kafka.start_again().unwrap();
    assert_eq!(kafka.ids().count(), 3);
}

#[test]
fn nothing_is_left_of_a_kafka_whose_test_was_killed() {
    let mut test = Command::new(env!("CARGO_BIN_EXE_brokers"))
        .arg("kafka")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(test.stdout.take().unwrap()).lines();
    let [brokers, log] = [(); 2].map(|()| lines.next().unwrap().unwrap());
    let folder = Path::new(&log).parent().unwrap();
    assert!(TcpStream::connect(&brokers).is_ok());
    test.kill().unwrap();
    test.wait().unwrap();
    until("it is gone", || TcpStream::connect(&brokers).is_err());
    until("its folder is gone", || !folder.exists());
}

#[test]
fn a_kafka_that_cannot_start_says_why() {
    let error = Kafka::builder()
        .setting("log.segment.bytes", "lots")
        .start()
        .unwrap_err();
    assert!(matches!(error, StartError::Failed { .. }), "{error}");
    assert!(error.to_string().contains("log.segment.bytes"), "{error}");
}
