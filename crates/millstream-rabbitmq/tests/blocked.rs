//! A broker that takes nothing. Alone in its process, because it counts threads.

#![allow(clippy::unwrap_used, reason = "in a test it is a failure")]

use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Delivered, Outgoing, Sink as _, SinkConnector};
use millstream_rabbitmq::{Declare, Dial, RabbitSink, Topology};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_connection_is_an_error_that_says_so_and_leaves_no_thread_behind() {
    let broker = RabbitMq::builder(Series::V3).start().unwrap();
    let topology = Topology::new("blocked").declare(Declare::default());
    let dial = Dial::new([broker.url()]).unwrap();
    let connector = RabbitSink::queue(dial, topology).timeout(Duration::from_millis(500));
    let messages: Vec<_> = (0..10).map(|number| Outgoing::new(number.to_string())).collect();
    let mut results = Vec::new();

    let mut sink = connector.open().await.unwrap();
    broker.raise_memory_alarm().unwrap();
    let why = sink.send(&messages, &mut results).await.unwrap_err().to_string();
    assert!(why.contains("short of memory or disk space"), "{why}");
    assert!(results.is_empty());
    drop(sink);
    tokio::time::timeout(Duration::from_secs(20), async {
        while io_threads() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("lapin's thread goes with the connection");

    broker.clear_memory_alarm().unwrap();
    let mut sink = connector.open().await.unwrap();
    sink.send(&messages, &mut results).await.unwrap();
    assert_eq!(results, vec![Delivered::Confirmed; 10]);
}

/// Threads of lapin in this process.
fn io_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("lapin-io-loop"))
        .count()
}
