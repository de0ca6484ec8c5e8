//! The conformance suite on every connector, the page that says how they did, and the table of what Broadway tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod broadway;
mod kafka;
mod memory;
mod rabbitmq;
mod sqlite;
mod sqs;

use std::path::Path;

use millstream_testkit::conformance::{self, Subject, page};
use millstream_tests::Scale;
use parking_lot::Mutex;

/// The page, which one test at a time reads and writes.
static PAGE: Mutex<()> = Mutex::new(());

/// Runs the suite, prints its report, and compares it with the connector's column of `docs/conformance.md`.
async fn conforms(subject: impl Subject) {
    let scale = match Scale::of("conformance").name() {
        "full" => conformance::Scale::Full,
        _ => conformance::Scale::Small,
    };
    let report = conformance::run(subject, scale).await;
    println!("\n{report}\n");
    assert!(report.is_conformant(), "{report}");

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let _page = PAGE.lock();
    let page = std::fs::read_to_string(&path).unwrap();
    let updated = page::update(&page, &report).unwrap();
    if std::env::var_os("MILLSTREAM_UPDATE_DOCS").is_some() {
        std::fs::write(&path, &updated).unwrap();
    } else {
        assert!(
            page == updated,
            "docs/conformance.md does not say what `{}` came to; write it anew with\n\
             MILLSTREAM_UPDATE_DOCS=1 cargo test --release -p millstream-tests --features end-to-end --test conformance\n\
             Its table would be\n{updated}",
            report.subject
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_connector_in_memory_keeps_what_it_declares() {
    conforms(memory::Memory).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_queue_keeps_what_it_declares() {
    conforms(sqlite::Sqlite::new(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_queue_in_order_of_keys_keeps_what_it_declares() {
    conforms(sqlite::Sqlite::new(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_with_a_classic_queue_keeps_what_it_declares() {
    conforms(rabbitmq::Rabbit::start(rabbitmq::Kind::Classic).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_with_a_quorum_queue_keeps_what_it_declares() {
    conforms(rabbitmq::Rabbit::start(rabbitmq::Kind::Quorum).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_keeps_what_the_connector_declares() {
    conforms(kafka::OnKafka::start(1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_with_topics_of_four_partitions_keeps_what_the_connector_declares() {
    conforms(kafka::OnKafka::start(4).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_queues_of_sqs_keep_what_they_declare() {
    conforms(sqs::Sqs::new(false)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifo_queues_of_sqs_keep_what_they_declare() {
    conforms(sqs::Sqs::new(true)).await;
}
