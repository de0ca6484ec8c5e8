//! FIFO queues: the order of groups.

use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Outcome, Outgoing, Settlement};
use millstream_sqs::SqsConnector;

use crate::bench::{Bench, Reader, payloads, soon};

fn message(payload: &'static str, key: &'static str) -> Outgoing {
    Outgoing::new(payload).with_key(key)
}

#[tokio::test]
async fn p3_a_message_that_waits_for_a_retry_holds_back_its_group_and_nothing_else() {
    let bench = Bench::fifo().await;
    bench
        .publish(&[message("a1", "a"), message("a2", "a"), message("b1", "b")])
        .await;
    let mut reader = bench.open().await;
    let read = reader.collect(3).await;
    let (a, b): (Vec<_>, Vec<_>) = read
        .into_iter()
        .partition(|(_, message)| message.key.as_deref() == Some(b"a"));
    assert_eq!(payloads(&a), ["a1", "a2"]);
    let retry = Settlement::Retry {
        after: Duration::from_millis(1500),
        failures: 1,
    };
    assert_eq!(reader.settle(&a[..1], &retry).await, [Outcome::Sent]);
    // What follows it was not run, and goes back.
    assert_eq!(
        reader.settle(&a[1..], &Settlement::Release).await,
        [Outcome::Sent]
    );
    bench.publish(&[message("a3", "a"), message("b2", "b")]).await;
    reader.ack(&b).await;
    let mut order = Vec::new();
    while order.len() < 4 {
        let read = reader.read(10).await;
        order.extend(payloads(&read));
        reader.ack(&read).await;
    }
    assert_eq!(order, ["b2", "a1", "a2", "a3"]);
}

#[tokio::test]
async fn p3_of_a_group_that_is_out_nothing_more_is_read_until_it_is_settled() {
    let bench = Bench::fifo().await;
    let names = ["a1", "a2", "a3", "a4"];
    bench.publish(&names.map(|name| message(name, "a"))).await;
    let mut reader = bench.open().await;
    // One poll brings all of them, and the rest waits here.
    bench.proxy.hold("ReceiveMessage", Duration::from_millis(500));
    assert!(reader.within(Duration::from_millis(50), 10).await.is_empty());
    let first = reader.read(2).await;
    assert_eq!(payloads(&first), ["a1", "a2"]);
    assert!(reader.within(Duration::from_millis(1500), 10).await.is_empty());
    assert_eq!(
        reader.settle(&first, &Settlement::Release).await,
        vec![Outcome::Sent; first.len()]
    );
    // It came back before anything that follows it was read.
    let mut order = Vec::new();
    while order.len() < 4 {
        let read = reader.read(10).await;
        order.extend(payloads(&read));
        reader.ack(&read).await;
    }
    assert_eq!(order, names);
}

#[tokio::test]
async fn p3_when_one_of_a_group_is_lost_what_follows_it_is_lost_first() {
    let bench = Bench::fifo().await;
    bench
        .publish(&[message("a1", "a"), message("a2", "a"), message("b1", "b")])
        .await;
    let mut reader = Reader::open(&bench.short()).await;
    let held = reader.collect(3).await;
    // Beats go in the order in which messages came.
    bench.proxy.fail_delivery("ChangeMessageVisibilityBatch");
    let lost = soon("a loss", async {
        loop {
            let lost = reader.told.lost();
            if !lost.is_empty() {
                return lost;
            }
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let gone = |payload: &str| {
        let (ticket, _) = held
            .iter()
            .find(|(_, message)| message.payload == payload)
            .unwrap();
        lost.iter().position(|scope| scope.holds(ticket))
    };
    assert_eq!(gone("b1"), None);
    assert!(gone("a2").unwrap() < gone("a1").unwrap(), "{lost:?}");
    let mut again = Vec::new();
    while again.len() < 2 {
        let read = reader.read(10).await;
        again.extend(payloads(&read));
        reader.ack(&read).await;
    }
    assert_eq!(again, ["a1", "a2"]);
}

#[tokio::test]
async fn p3_what_was_lost_on_its_way_is_not_asked_for_again_when_another_process_may_have_it() {
    let bench = Bench::fifo().await;
    bench.publish(&[message("a1", "a")]).await;
    let mut reader = Reader::open(&bench.short()).await;
    bench.proxy.hold("ReceiveMessage", Duration::from_secs(1));
    assert!(reader.within(Duration::from_millis(50), 1).await.is_empty());
    soon("the message to be sent", async {
        while bench.counts().await != (0, 1) {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bench.proxy.cut();
    let mut other = Reader::open(&SqsConnector::new(&bench.url).client(bench.direct.clone())).await;
    let held = other.collect(1).await;
    bench.proxy.mend();
    // Longer than the pauses between two attempts are by now.
    assert!(reader.within(Duration::from_secs(8), 1).await.is_empty());
    other.ack(&held).await;
    bench.empties().await;
}

#[tokio::test]
async fn messages_without_a_key_hold_nothing_back() {
    let bench = Bench::fifo().await;
    bench.publish(&[Outgoing::new("one"), Outgoing::new("two")]).await;
    let mut reader = bench.open().await;
    let first = reader.read(1).await;
    let second = reader.read(1).await;
    assert_eq!([&first[0].1.key, &second[0].1.key], [&None, &None]);
}

#[tokio::test]
async fn the_same_message_twice_is_two_messages() {
    let bench = Bench::fifo().await;
    bench.publish(&[message("a", "k"), message("a", "k")]).await;
    let mut reader = bench.open().await;
    let read = reader.collect(2).await;
    reader.ack(&read).await;
}

/// P1: SQS hands out what follows a message in its group with it, and counts both, whichever ends the process.
#[tokio::test]
async fn what_follows_a_message_that_was_delivered_too_often_is_not_given_up_with_it() {
    let bench = Bench::fifo().await;
    bench
        .publish(&[message("a1", "a"), message("a2", "a"), message("b1", "b")])
        .await;
    bench.receive_in_vain(3, 17).await;
    let mut reader = bench.open().await;
    let mut deliveries = Vec::new();
    for _ in 0..3 {
        let read = reader.read(10).await;
        assert_eq!(read.len(), 1, "a suspect comes alone");
        let (_, message) = &read[0];
        deliveries.push((message.payload.clone(), message.deliveries));
        reader.ack(&read).await;
    }
    deliveries.sort_unstable();
    assert_eq!(
        deliveries,
        [("a1".into(), 18), ("a2".into(), 4), ("b1".into(), 18)]
    );
}
