//! P1: on Kafka and on SQS, killed and run again, the example ends with the table that the embedded queue ends with.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod runs;

use millstream_brokers::{ElasticMq, Kafka};

use crate::runs::{DEPARTURES, Runs, scaled};

fn ends_as_on_the_embedded_queue(file: &'static str, environment: (&'static str, String), all: u64) {
    let credentials = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"].map(|name| (name, "x".to_owned()));
    let runs = Runs::new(file, credentials.into_iter().chain([environment]), all);
    runs.kill_again_and_again(scaled(2, 5));
    let embedded = Runs::new("flights", [], all).finish();
    assert!(embedded.contains(&format!(" dead-lettered, of {all} departures")));
    assert_eq!(runs.finish(), embedded);
}

#[test]
fn killed_and_run_again_it_ends_with_the_same_table_on_kafka() {
    let broker = Kafka::builder()
        .setting("auto.create.topics.enable", "true")
        .setting("num.partitions", "4")
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    ends_as_on_the_embedded_queue(
        "kafka",
        ("KAFKA_BROKERS", broker.brokers()),
        scaled(30_000, DEPARTURES),
    );
}

#[test]
fn so_it_does_on_sqs() {
    let broker = ElasticMq::start_in_memory().unwrap_or_else(|error| panic!("{error}"));
    // What was under way when it was killed is soon to be had again.
    let fifo = [("FifoQueue", "true"), ("VisibilityTimeout", "10")];
    broker.create_queue("flights.fifo", &fifo).unwrap();
    broker.create_queue("flights-dead", &[]).unwrap();
    // ElasticMQ is slow.
    ends_as_on_the_embedded_queue("sqs", ("SQS_URL", broker.url()), scaled(1_000, 5_000));
}
