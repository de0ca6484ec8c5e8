//! Settlements: ten to a call, and what SQS says of each.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use millstream_core::rt;
use millstream_core::{Acknowledger as _, Connector as _, EngineHandle, OpenError, Outgoing};
use millstream_core::{Outcome, Reason, Rejection, Settle, Settlement};
use millstream_sqs::SqsConnector;

use crate::bench::{Bench, Reader, payloads, soon};

const DELETE: &str = "DeleteMessageBatch";
const HIDE: &str = "ChangeMessageVisibilityBatch";

fn rejection(error: &str) -> Settlement {
    Settlement::Reject(Arc::new(Rejection {
        pipeline: "orders".into(),
        stage: "processor".into(),
        reason: Reason::Rejected,
        error: error.to_owned(),
        attempts: 1,
        deliveries: 1,
        origin: "orders@1".to_owned(),
        first_at: SystemTime::now(),
        at: SystemTime::now(),
    }))
}

#[tokio::test]
async fn what_is_received_is_acknowledged_and_gone() {
    let bench = Bench::standard().await;
    bench
        .publish(&[Outgoing::new("one").with_header("tenant", "acme").with_key("k")])
        .await;
    let mut reader = bench.open().await;
    let read = reader.collect(1).await;
    let (_, message) = &read[0];
    assert_eq!(
        (&*message.payload, message.key.as_deref()),
        (&b"one"[..], Some(&b"k"[..]))
    );
    assert_eq!(message.headers.get("tenant"), Some("acme"));
    assert!(message.timestamp.unwrap().elapsed().unwrap() < Duration::from_secs(600));
    reader.ack(&read).await;
    bench.empties().await;
}

#[tokio::test]
async fn deletions_are_split_into_batches_of_ten() {
    let bench = Bench::standard().await;
    bench.publish_numbered(25).await;
    let mut reader = bench.open().await;
    let read = reader.collect(25).await;
    reader.ack(&read).await;
    assert_eq!((bench.proxy.calls(DELETE), bench.proxy.entries(DELETE)), (3, 25));
    bench.empties().await;
}

#[tokio::test]
async fn settlements_wait_until_there_are_ten() {
    let bench = Bench::standard().await;
    bench.publish_numbered(10).await;
    let mut reader = bench.open().await;
    let read = reader.collect(10).await;
    let mut outcomes = Vec::new();
    for (ticket, _) in &read {
        assert_eq!(bench.proxy.calls(DELETE), 0);
        let settle = Settle {
            ticket: *ticket,
            settlement: Settlement::Ack,
        };
        reader.acknowledger.settle(&[settle], &mut outcomes).await;
    }
    reader.acknowledger.flush(&mut outcomes).await;
    assert_eq!((bench.proxy.calls(DELETE), outcomes.len()), (1, 10));
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Sent));
}

#[tokio::test]
async fn a_deletion_that_fails_in_a_batch_fails_alone_and_can_be_tried_again() {
    let bench = Bench::standard().await;
    bench.publish_numbered(3).await;
    let mut reader = Reader::open(&bench.short()).await;
    let read = reader.collect(3).await;
    bench.proxy.fail_entries(DELETE, 1);
    let outcomes = reader.settle(&read, &Settlement::Ack).await;
    assert_eq!(outcomes, [Outcome::Failed, Outcome::Sent, Outcome::Sent]);
    assert!(reader.told.degraded().unwrap().contains("as planned"));
    // Longer than it is hidden: it is held on until its settlement has arrived.
    assert!(reader.within(Duration::from_secs(7), 10).await.is_empty());
    reader.ack(&read[..1]).await;
    assert_eq!(reader.told.degraded(), None);
    bench.empties().await;
}

/// P6: what a drain has not heard of by its deadline counts as left, though SQS has taken it.
#[tokio::test]
async fn p6_what_sqs_has_taken_is_answered_for_while_another_call_waits() {
    let bench = Bench::standard().await;
    bench.publish_numbered(40).await;
    let mut reader = bench.open().await;
    let read = reader.collect(40).await;
    bench.proxy.hold(HIDE, Duration::from_secs(600));
    let settlements: Vec<_> = read
        .iter()
        .map(|(ticket, _)| Settle {
            ticket: *ticket,
            settlement: Settlement::Release,
        })
        .collect();
    let mut outcomes = Vec::new();
    soon("the answers of three calls of four", async {
        reader.acknowledger.settle(&settlements, &mut outcomes).await;
        while outcomes.len() < 30 {
            reader.acknowledger.flush(&mut outcomes).await;
        }
    })
    .await;
    assert_eq!(outcomes.len(), 30);
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Sent));
}

#[tokio::test]
async fn no_more_than_so_many_calls_settle_or_put_off_at_a_time() {
    const MOST: usize = 32;
    const MESSAGES: usize = 10 * (MOST + 8);
    let bench = Bench::standard().await;
    bench.publish_numbered(MESSAGES).await;
    for action in [HIDE, DELETE] {
        for _ in 0..MESSAGES / 10 {
            bench.proxy.hold(action, Duration::from_millis(300));
        }
    }
    let connector = bench
        .connector()
        .visibility_timeout(Duration::from_secs(60))
        .heartbeat(Duration::from_secs(2));
    let mut reader = Reader::open(&connector).await;
    let read = reader.collect(MESSAGES).await;
    soon("a beat for each", async {
        while bench.proxy.entries(HIDE) < MESSAGES {
            rt::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    reader.ack(&read).await;
    for (action, allowed) in [(HIDE, MOST / 2), (DELETE, MOST)] {
        let most = bench.proxy.most_at_once(action);
        assert!((2..=allowed).contains(&most), "{most} of {action}");
    }
    bench.empties().await;
}

#[tokio::test]
async fn p2_a_message_twice_in_a_batch_spoils_no_settlement() {
    let bench = Bench::standard().await;
    bench.publish_numbered(3).await;
    bench.proxy.double(1);
    let mut reader = bench.open().await;
    let read = reader.collect(4).await;
    let outcomes = reader.settle(&read, &Settlement::Ack).await;
    assert_eq!(bench.proxy.calls(DELETE), 1);
    assert!(!outcomes.contains(&Outcome::Failed), "{outcomes:?}");
    bench.empties().await;
}

#[tokio::test]
async fn a_release_makes_it_visible_at_once_and_counts_as_no_delivery() {
    let bench = Bench::standard().await;
    bench.publish_numbered(1).await;
    let mut reader = bench.open().await;
    for _ in 0..6 {
        let began = rt::now();
        let read = reader.collect(1).await;
        assert!(began.elapsed() < Duration::from_secs(20));
        assert_eq!(read[0].1.deliveries, 1);
        assert_eq!(reader.settle(&read, &Settlement::Release).await, [Outcome::Sent]);
    }
}

#[tokio::test]
async fn a_retry_hides_it_for_as_long_and_carries_the_failures_within_the_process() {
    let bench = Bench::standard().await;
    bench.publish_numbered(1).await;
    let connector = bench.connector();
    let mut reader = Reader::open(&connector).await;
    let read = reader.collect(1).await;
    let retry = Settlement::Retry {
        after: Duration::from_millis(1500),
        failures: 3,
    };
    let began = rt::now();
    assert_eq!(reader.settle(&read, &retry).await, [Outcome::Sent]);
    // The same connector opened again knows it still.
    drop(reader);
    let mut reader = Reader::open(&connector).await;
    let again = reader.collect(1).await;
    assert!(
        began.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        began.elapsed()
    );
    assert_eq!((again[0].1.deliveries, again[0].1.failures), (1, 3));
    drop(reader);
    // Another one does not: SQS keeps nothing but its count.
    let again = bench.open().await.collect(1).await;
    assert_eq!((again[0].1.deliveries, again[0].1.failures), (3, 0));
}

#[tokio::test]
async fn settlements_of_one_kind_share_a_call_whatever_their_times() {
    let bench = Bench::standard().await;
    bench.publish_numbered(10).await;
    let mut reader = bench.open().await;
    let read = reader.collect(10).await;
    let settlements: Vec<_> = read
        .iter()
        .enumerate()
        .map(|(index, (ticket, _))| Settle {
            ticket: *ticket,
            settlement: match index {
                0..4 => Settlement::Release,
                _ => Settlement::Retry {
                    after: Duration::from_secs(index as u64 * 60),
                    failures: 1,
                },
            },
        })
        .collect();
    let mut outcomes = Vec::new();
    reader.acknowledger.settle(&settlements, &mut outcomes).await;
    reader.acknowledger.flush(&mut outcomes).await;
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == Outcome::Sent));
    assert_eq!((bench.proxy.calls(HIDE), bench.proxy.entries(HIDE)), (1, 10));
    assert_eq!(reader.collect(4).await.len(), 4);
}

#[tokio::test]
async fn p1_what_is_rejected_is_in_the_dead_letter_queue_before_it_is_gone() {
    let bench = Bench::standard().await;
    let sent = Outgoing::new("bad").with_key("k").with_header("tenant", "acme");
    bench.publish(&[sent]).await;
    let mut reader = bench.open().await;
    let read = reader.collect(1).await;
    let mut dead = {
        let connector = SqsConnector::new(&bench.dead_url).client(bench.direct.clone());
        let (engine, told) = EngineHandle::detached();
        told.rejects_elsewhere();
        let (source, acknowledger) = connector.open(engine).await.unwrap();
        Reader {
            source,
            acknowledger,
            told,
        }
    };
    // While its copy does not arrive it is kept, and held.
    bench.proxy.fail_entries("SendMessageBatch", 1);
    assert_eq!(
        reader.settle(&read, &rejection("no such sku")).await,
        [Outcome::Failed]
    );
    assert_eq!(bench.counts().await, (0, 1));
    // When its copy has arrived and it cannot be deleted, it is tried again.
    bench.proxy.fail_entries(DELETE, 1);
    assert_eq!(
        reader.settle(&read, &rejection("no such sku")).await,
        [Outcome::Failed]
    );
    assert_eq!(
        reader.settle(&read, &rejection("no such sku")).await,
        [Outcome::Sent]
    );
    bench.empties().await;
    for (_, letter) in dead.collect(2).await {
        assert_eq!(
            (&*letter.payload, letter.key.as_deref()),
            (&b"bad"[..], Some(&b"k"[..]))
        );
        for (name, value) in [
            ("tenant", "acme"),
            ("millstream-error", "no such sku"),
            ("millstream-reason", "rejected"),
        ] {
            assert_eq!(letter.headers.get(name), Some(value));
        }
    }
}

#[tokio::test]
async fn p1_a_queue_without_a_redrive_policy_is_refused_unless_dead_letters_go_elsewhere() {
    let bench = Bench::standard().await;
    // The dead-letter queue has none itself.
    let connector = SqsConnector::new(&bench.dead_url).client(bench.direct.clone());
    let (engine, told) = EngineHandle::detached();
    let refused = connector.open(engine.clone()).await.map(drop);
    let Err(OpenError::Refused(why)) = refused else {
        panic!("{refused:?}");
    };
    for part in ["redrive policy", "dead_letter"] {
        assert!(why.contains(part), "{why}");
    }
    told.rejects_elsewhere();
    connector.open(engine).await.map(drop).unwrap();
}

#[tokio::test]
async fn a_queue_that_is_not_there_is_refused_and_a_broker_that_is_not_there_is_awaited() {
    let bench = Bench::standard().await;
    let (engine, _) = EngineHandle::detached();
    let connector = SqsConnector::new("no-such-queue").client(bench.direct.clone());
    let refused = connector.open(engine.clone()).await.map(drop);
    assert!(
        matches!(&refused, Err(OpenError::Refused(why)) if why.contains("no-such-queue")),
        "{refused:?}"
    );
    bench.proxy.cut();
    let unavailable = bench.connector().open(engine).await.map(drop);
    assert!(
        matches!(unavailable, Err(OpenError::Unavailable(_))),
        "{unavailable:?}"
    );
}

#[tokio::test]
async fn what_a_closed_connector_held_comes_again_at_once_with_its_delivery_counted() {
    let bench = Bench::standard().await;
    bench.publish_numbered(12).await;
    // Without a gift it would take the hour.
    let connector = bench.connector().visibility_timeout(Duration::from_secs(3600));
    let mut reader = Reader::open(&connector).await;
    let read = reader.collect(12).await;
    reader.ack(&read[..2]).await;
    drop(reader);
    let mut again = soon("the rest", async {
        Reader::open(&connector).await.collect(10).await
    })
    .await;
    again.sort_by_key(|(_, message)| message.payload.clone());
    let mut expected = payloads(&read[2..]);
    expected.sort();
    assert_eq!(payloads(&again), expected);
    assert!(again.iter().all(|(_, message)| message.deliveries == 2));
}
