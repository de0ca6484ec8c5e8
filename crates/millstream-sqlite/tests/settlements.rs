//! Settlements: what each does to its message.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::time::Duration;

use common::*;
use millstream_core::{Outcome, Settle, Settlement};
use millstream_sqlite::Counts;

const LATER: Duration = Duration::from_millis(250);

#[tokio::test]
async fn a_retry_waits_for_its_time_and_carries_the_failures() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut reader = Reader::open(&place.connector().poll(Duration::from_secs(3600))).await;
    let (ticket, _) = reader.one().await;
    let not_before = now() + 250;
    let retry = Settlement::Retry {
        after: LATER,
        failures: 3,
    };
    assert_eq!(reader.settle(ticket, retry.clone()).await, Outcome::Sent);
    assert_eq!(
        place.queue().counts().unwrap(),
        Counts {
            delayed: 1,
            ..Counts::default()
        }
    );
    assert_eq!(
        reader.settle(ticket, retry).await,
        Outcome::Stale,
        "P2: it is settled"
    );
    let (_, again) = reader.one().await;
    assert!(now() >= not_before);
    assert_eq!(
        (again.failures, again.deliveries),
        (3, 1),
        "an outcome ends the count of deliveries"
    );
}

#[tokio::test]
async fn a_release_leaves_the_message_as_if_it_had_not_been_handed_out() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    drop({
        let mut reader = place.reader().await;
        reader.one().await;
        reader
    });
    let mut reader = place.reader().await;
    for _ in 0..3 {
        let (ticket, message) = reader.one().await;
        assert_eq!(message.deliveries, 2);
        assert_eq!(reader.settle(ticket, Settlement::Release).await, Outcome::Sent);
    }
}

#[tokio::test]
async fn p1_a_rejected_message_is_kept_with_its_failure() {
    let place = Place::new();
    let sent = keyed("customer-7", "one").with_header("tenant", "acme");
    place.publish(&[sent.clone(), message("two")]).await;
    let mut reader = place.reader().await;
    let got = reader.collect(2).await;
    assert_eq!(
        reader.settle(got[0].0, rejection("empty order")).await,
        Outcome::Sent
    );
    assert_eq!(reader.settle(got[0].0, rejection("twice")).await, Outcome::Stale);
    let queue = place.queue();
    assert_eq!(
        queue.counts().unwrap(),
        Counts {
            leased: 1,
            dead: 1,
            ..Counts::default()
        }
    );
    let letters: Vec<_> = queue.dead().map(Result::unwrap).collect();
    let [letter] = &letters[..] else {
        panic!("one letter")
    };
    assert_eq!(
        (&letter.payload, &letter.key, &letter.headers),
        (&sent.payload, &sent.key, &sent.headers)
    );
    assert_eq!(
        (&*letter.reason, &*letter.error, &*letter.stage),
        ("rejected", "empty order", "processor")
    );
    assert_eq!(
        (&*letter.pipeline, &*letter.origin, &*letter.group),
        ("orders", "orders@1", "default")
    );
    assert_eq!((letter.attempts, letter.deliveries), (2, 1));
    let at = letter
        .failed_at
        .duration_since(std::time::SystemTime::UNIX_EPOCH)
        .unwrap();
    assert_eq!(at.as_millis(), 1_700_000_000_123);
    let first = letter.failed_at.duration_since(letter.first_failed_at).unwrap();
    assert_eq!(first.as_millis(), 123);
}

#[tokio::test]
async fn dead_letters_are_listed_page_by_page_replayed_and_purged() {
    let place = Place::new();
    let all: Vec<_> = (0..250).map(|number| message(&number.to_string())).collect();
    place.publish(&all).await;
    let mut reader = place.reader().await;
    let got = reader.collect(250).await;
    let settlements: Vec<_> = got
        .iter()
        .map(|(ticket, _)| Settle {
            ticket: *ticket,
            settlement: rejection("no"),
        })
        .collect();
    assert_eq!(reader.settle_all(&settlements).await, vec![Outcome::Sent; 250]);
    let queue = place.queue();
    let positions: Vec<u64> = queue.dead().map(|letter| letter.unwrap().position).collect();
    assert_eq!(positions.len(), 250);
    assert_eq!(queue.dead().after(positions[199]).count(), 50);
    assert_eq!(queue.replay(&positions[..2]).unwrap(), 2);
    assert_eq!(queue.replay(&positions[..2]).unwrap(), 0);
    assert_eq!(queue.purge(&positions[2..]).unwrap(), 248);
    assert_eq!(queue.counts().unwrap().dead, 0);
    let again = reader.collect(2).await;
    assert_eq!(payloads(&again), ["0", "1"]);
    assert!(again.iter().all(|(_, message)| message.deliveries == 1));
}

#[tokio::test]
async fn settlements_that_share_a_transaction_each_have_their_own_outcome() {
    let place = Place::new();
    place
        .publish(&[message("one"), message("two"), message("three"), message("four")])
        .await;
    let mut reader = place.reader().await;
    let tickets: Vec<_> = reader
        .collect(4)
        .await
        .into_iter()
        .map(|(ticket, _)| ticket)
        .collect();
    reader.settle(tickets[1], Settlement::Ack).await;
    let settlements: Vec<_> = tickets
        .iter()
        .zip([
            Settlement::Ack,
            Settlement::Ack,
            rejection("no"),
            Settlement::Release,
        ])
        .map(|(ticket, settlement)| Settle {
            ticket: *ticket,
            settlement,
        })
        .collect();
    let outcomes = reader.settle_all(&settlements).await;
    assert_eq!(
        outcomes,
        [Outcome::Sent, Outcome::Stale, Outcome::Sent, Outcome::Sent]
    );
    assert_eq!(
        place.queue().counts().unwrap(),
        Counts {
            ready: 1,
            dead: 1,
            ..Counts::default()
        }
    );
}

#[tokio::test]
async fn a_published_delay_and_priority_are_honoured() {
    let place = Place::new();
    let mut delayed = message("delayed");
    delayed.delay = LATER;
    let mut urgent = message("urgent");
    urgent.priority = 5;
    let due = now() + 250;
    place.publish(&[delayed, message("plain"), urgent]).await;
    let mut reader = place.reader().await;
    assert_eq!(payloads(&reader.collect(2).await), ["urgent", "plain"]);
    assert_eq!(payloads(&[reader.one().await]), ["delayed"]);
    assert!(now() >= due);
}

#[tokio::test]
async fn messages_can_be_listed_and_removed_without_reading_them() {
    let place = Place::new();
    place
        .publish(&[keyed("a", "one"), message("two"), message("three")])
        .await;
    let queue = place.queue();
    let listed = queue.list(0, 2).unwrap();
    assert_eq!(
        listed
            .iter()
            .map(|message| &message.payload[..])
            .collect::<Vec<_>>(),
        [b"one", b"two"]
    );
    assert_eq!(
        (listed[0].group.as_deref(), listed[0].leased, listed[0].not_before),
        (None, false, None)
    );
    let mut reader = place.reader().await;
    reader.one().await;
    assert_eq!(queue.remove(&[1, 2]).unwrap(), 1, "a leased one stays");
    let left = queue.list(listed[0].position - 1, 10).unwrap();
    assert_eq!(
        left.iter()
            .map(|message| (message.position, message.leased))
            .collect::<Vec<_>>(),
        [(1, true), (3, false)]
    );
}

#[tokio::test]
async fn a_database_that_stays_locked_fails_settlements_and_loses_none() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut reader = place.reader().await;
    let (ticket, _) = reader.one().await;
    let hog = place.raw();
    hog.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(reader.settle(ticket, Settlement::Ack).await, Outcome::Failed);
    assert!(
        reader
            .told
            .degraded()
            .is_some_and(|cause| cause.contains("queue.db"))
    );
    hog.execute_batch("ROLLBACK").unwrap();
    assert_eq!(reader.settle(ticket, Settlement::Ack).await, Outcome::Sent);
    assert_eq!(reader.told.degraded(), None);
    assert_eq!(place.queue().counts().unwrap(), Counts::default());
}
