//! Leases: kept while a message is here, lost by our own clock.

use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Outcome, Outgoing, Scope, Settlement, Ticket};
use millstream_sqs::SqsConnector;

use crate::bench::{Bench, Reader, payloads, soon};

const DELETE: &str = "DeleteMessageBatch";
const HIDE: &str = "ChangeMessageVisibilityBatch";

fn has_lost(reader: &Reader, ticket: &Ticket) -> bool {
    reader.told.lost().iter().any(|scope: &Scope| scope.holds(ticket))
}

#[tokio::test]
async fn p2_what_is_held_for_longer_than_it_is_hidden_stays_hidden() {
    let bench = Bench::standard().await;
    let mut reader = Reader::open(&bench.short()).await;
    bench.proxy.hold("ReceiveMessage", Duration::from_millis(500));
    bench.publish_numbered(10).await;
    assert!(reader.within(Duration::from_millis(50), 10).await.is_empty());
    // One poll brings all of them; two are received and not read.
    let read = reader.collect(8).await;
    let mut other = bench.open().await;
    assert!(other.within(Duration::from_secs(8), 10).await.is_empty());
    for (_, message) in &read {
        assert_eq!(message.deliveries, 1);
    }
    assert!(reader.told.lost().is_empty());
    reader.ack(&read).await;
    // Ten to a call, and a call every second and a half.
    assert!(bench.proxy.calls(HIDE) < bench.proxy.entries(HIDE));
}

#[tokio::test]
async fn p2_what_cannot_be_kept_hidden_is_lost_and_its_settlement_is_stale() {
    let bench = Bench::standard().await;
    bench.publish_numbered(2).await;
    let mut reader = Reader::open(&bench.short()).await;
    let held = reader.collect(2).await;
    bench.proxy.cut();
    soon("the loss to be told", async {
        while !held.iter().all(|(ticket, _)| has_lost(&reader, ticket)) {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    bench.proxy.mend();
    for settlement in [Settlement::Ack, Settlement::Release] {
        assert_eq!(reader.settle(&held, &settlement).await, [Outcome::Stale; 2]);
    }
    let again = reader.collect(2).await;
    assert!(again.iter().all(|(_, message)| message.deliveries == 2));
    reader.ack(&again).await;
    bench.empties().await;
}

#[tokio::test]
async fn p2_one_delivery_is_lost_without_the_others() {
    let bench = Bench::standard().await;
    bench.publish_numbered(2).await;
    let mut reader = Reader::open(&bench.short()).await;
    let held = reader.collect(2).await;
    bench.proxy.fail_delivery(HIDE);
    let lost = soon("one to be lost", async {
        loop {
            if let Some(lost) = held.iter().position(|(ticket, _)| has_lost(&reader, ticket)) {
                return lost;
            }
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let kept = 1 - lost;
    assert_eq!(
        reader.settle(&held[lost..=lost], &Settlement::Ack).await,
        [Outcome::Stale]
    );
    assert_eq!(
        reader.settle(&held[kept..=kept], &Settlement::Ack).await,
        [Outcome::Sent]
    );
}

#[tokio::test]
async fn p3_what_cannot_be_kept_hidden_is_given_up_before_another_process_can_have_it() {
    let bench = Bench::fifo().await;
    bench.publish(&[Outgoing::new("a1").with_key("a")]).await;
    // The answer is under way for a fifth of the time for which it hides the message.
    bench.proxy.hold("ReceiveMessage", Duration::from_secs(1));
    let mut reader = Reader::open(&bench.short()).await;
    let held = reader.collect(1).await;
    bench.proxy.cut();
    let direct = SqsConnector::new(&bench.url).client(bench.direct.clone());
    let mut other = Reader::open(&direct.wait_time(Duration::from_secs(1))).await;
    assert_eq!(payloads(&other.collect(1).await), ["a1"]);
    assert!(has_lost(&reader, &held[0].0));
}

#[tokio::test]
async fn what_is_being_settled_or_was_is_not_put_off_any_more() {
    let bench = Bench::standard().await;
    bench.publish_numbered(1).await;
    let connector = bench
        .connector()
        .visibility_timeout(Duration::from_secs(60))
        .heartbeat(Duration::from_millis(200));
    let mut reader = Reader::open(&connector).await;
    let read = reader.collect(1).await;
    soon("a beat", async {
        while bench.proxy.calls(HIDE) == 0 {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // Five beats long, and it comes to nothing: SQS would take the beats.
    bench.proxy.fail_entries(DELETE, 1);
    bench.proxy.hold(DELETE, Duration::from_secs(1));
    let before = bench.proxy.entries(HIDE);
    assert_eq!(reader.settle(&read, &Settlement::Ack).await, [Outcome::Failed]);
    let during = bench.proxy.entries(HIDE) - before;
    assert!(
        during <= 1,
        "{during} beats, of which one may have been under way"
    );
    reader.ack(&read).await;
    let before = bench.proxy.entries(HIDE);
    assert!(reader.within(Duration::from_secs(1), 1).await.is_empty());
    assert_eq!(bench.proxy.entries(HIDE), before);
}

#[tokio::test]
async fn a_release_is_not_undone_by_a_beat_that_was_under_way() {
    let bench = Bench::standard().await;
    bench.publish_numbered(1).await;
    let connector = bench
        .connector()
        .visibility_timeout(Duration::from_secs(60))
        .heartbeat(Duration::from_millis(200));
    let mut reader = Reader::open(&connector).await;
    let read = reader.collect(1).await;
    // The answer is late, the call itself is not: what matters is that the release waits for it.
    bench.proxy.hold(HIDE, Duration::from_millis(700));
    soon("a beat", async {
        while bench.proxy.calls(HIDE) == 0 {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let began = rt::now();
    assert_eq!(reader.settle(&read, &Settlement::Release).await, [Outcome::Sent]);
    assert!(
        began.elapsed() >= Duration::from_millis(500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(reader.collect(1).await.len(), 1);
}
