//! Leases: who has a message, for how long, and what happens when its process does not end well.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::*;
use millstream_core::{Chunk, Credit, Outcome, Read, Scope, Settlement, Source as _};
use millstream_sqlite::{Counts, SqliteConnector};

#[tokio::test]
async fn p1_a_message_is_handed_out_until_it_is_acknowledged_and_no_longer() {
    let place = Place::new();
    let sent = keyed("customer-7", "one").with_header("tenant", "acme");
    place.publish(&[sent.clone(), message("two")]).await;
    let mut reader = place.reader().await;
    let got = reader.collect(2).await;
    assert_eq!(payloads(&got), ["one", "two"]);
    let (ticket, first) = &got[0];
    assert_eq!((&first.key, &first.headers), (&sent.key, &sent.headers));
    assert_eq!((first.deliveries, first.failures, first.position), (1, 0, 1));
    assert_eq!((ticket.sequence, ticket.origin), (1, first.origin));
    assert!(first.timestamp.is_some());
    assert_eq!(
        place.queue().counts().unwrap(),
        Counts {
            leased: 2,
            ..Counts::default()
        }
    );
    reader.ack(&got).await;
    assert_eq!(place.queue().counts().unwrap(), Counts::default());
    drop(reader);
    assert!(place.reader().await.finds_nothing().await);
}

#[tokio::test]
async fn p1_what_was_read_and_not_settled_is_handed_out_again_after_a_clean_close_and_counted() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut reader = place.reader().await;
    assert_eq!(reader.one().await.1.deliveries, 1);
    drop(reader);
    assert_eq!(place.reader().await.one().await.1.deliveries, 2);
}

#[tokio::test]
async fn a_clean_close_leaves_no_session_and_no_lock_file() {
    let place = Place::new();
    let reader = place.reader().await;
    let raw = place.raw();
    let sessions = || {
        raw.query_row("SELECT count(*) FROM millstream_sessions", [], |row| {
            row.get::<_, i64>(0)
        })
    };
    assert_eq!(sessions().unwrap(), 1);
    assert!(place.files().contains(&"queue.db-session-1".to_owned()));
    drop(reader);
    until("the session's end", || sessions().unwrap() == 0).await;
    until("the lock file's end", || {
        !place.files().iter().any(|name| name.contains("session"))
    })
    .await;
}

#[tokio::test]
async fn p2_a_settlement_by_a_session_that_was_ended_touches_nothing() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut hung = Reader::open(&place.connector().poll(Duration::from_secs(60))).await;
    let (late, _) = hung.one().await;
    // Another has ended the session, as if its lease had expired while the process was suspended.
    place
        .raw()
        .execute_batch("BEGIN IMMEDIATE; DELETE FROM millstream_sessions; UPDATE millstream_messages SET lease = NULL; COMMIT")
        .unwrap();
    let mut other = place.reader().await;
    let taken = other.one().await;
    assert_eq!(taken.1.deliveries, 2);
    for settlement in [
        Settlement::Ack,
        Settlement::Release,
        Settlement::Retry {
            after: Duration::ZERO,
            failures: 1,
        },
        rejection("late"),
    ] {
        assert_eq!(hung.settle(late, settlement).await, Outcome::Stale);
    }
    assert_eq!(
        hung.told.lost(),
        [Scope::Generation(0)],
        "the engine learns that its messages are gone"
    );
    assert_eq!(
        place.queue().counts().unwrap(),
        Counts {
            leased: 1,
            ..Counts::default()
        }
    );
    other.ack(&[taken]).await;

    place.publish(&[message("two")]).await;
    drop(other);
    let (ticket, _) = hung.one().await;
    assert_eq!(ticket.generation, 1, "it goes on with a session of its own");
    assert_eq!(hung.settle(ticket, Settlement::Ack).await, Outcome::Sent);
}

#[tokio::test]
async fn p1_the_messages_of_a_process_that_hangs_are_free_when_its_lease_expires_and_not_before() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    // A process that lives, and so holds its lock, but renews nothing.
    let held = File::create(place.path().with_file_name("queue.db-session-90")).unwrap();
    held.lock().unwrap();
    let expires_at = now() + 400;
    let raw = place.raw();
    raw.execute(
        "INSERT INTO millstream_sessions (token, queue, grp, expires_at, holder) VALUES (90, 'orders', 'default', ?1, '')",
        [expires_at],
    )
    .unwrap();
    place.queue().add_group("default").unwrap();
    raw.execute("UPDATE millstream_messages SET lease = 90, deliveries = 1", [])
        .unwrap();
    let (_, message) = place.reader().await.one().await;
    assert!(now() >= expires_at);
    assert_eq!(message.deliveries, 2);
}

#[tokio::test]
async fn a_lease_is_renewed_for_as_long_as_its_process_lives() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut reader = Reader::open(&place.connector().lease(Duration::from_millis(300))).await;
    let held = reader.one().await;
    let raw = place.raw();
    let expiry = || {
        raw.query_row(
            "SELECT expires_at FROM millstream_sessions WHERE token = 1",
            [],
            |row| row.get(0),
        )
    };
    let first: i64 = expiry().unwrap();
    until("three leases to pass", || now() > first + 900).await;
    assert!(expiry().unwrap() > first);
    let mut other = place.reader().await;
    assert!(other.finds_nothing().await);
    reader.ack(&[held]).await;
    assert_eq!(reader.told.lost(), []);
}

#[tokio::test]
async fn p1_the_messages_of_a_killed_process_are_free_at_once() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_to_kill", "--ignored", "--nocapture"])
        .env("MILLSTREAM_TEST_DATABASE", place.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(
        lines
            .map_while(Result::ok)
            .any(|line| line.contains("it has the message"))
    );
    let mut reader = place.reader().await;
    assert!(reader.finds_nothing().await);
    child.kill().unwrap();
    child.wait().unwrap();
    // Its lease of an hour has nothing to say about it.
    assert_eq!(reader.one().await.1.deliveries, 2);
    let lock_files = place
        .files()
        .iter()
        .filter(|name| name.contains("session"))
        .count();
    assert_eq!(lock_files, 1, "the dead one's is gone");
}

/// Not a test of its own: what the one above starts and kills.
#[tokio::test]
#[ignore = "hangs until it is killed"]
async fn the_process_to_kill() {
    let path = std::env::var_os("MILLSTREAM_TEST_DATABASE").unwrap();
    let mut reader =
        Reader::open(&SqliteConnector::new(path, "orders").lease(Duration::from_secs(3600))).await;
    let _held = reader.one().await;
    println!("it has the message");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn rows_whose_session_is_unknown_are_freed_when_a_connector_opens() {
    let place = Place::new();
    place.publish(&[message("one")]).await;
    place.queue().add_group("default").unwrap();
    place
        .raw()
        .execute("UPDATE millstream_messages SET lease = 12345", [])
        .unwrap();
    assert_eq!(payloads(&[place.reader().await.one().await]), ["one"]);
}

#[tokio::test]
async fn a_read_that_is_dropped_loses_nothing() {
    let place = Place::new();
    let mut reader = place.reader().await;
    let all: Vec<_> = (0..300).map(|number| message(&number.to_string())).collect();
    place.publish(&all).await;
    let mut got = Vec::new();
    let mut patience = 0;
    while got.len() < all.len() {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages: 7,
            bytes: usize::MAX,
        };
        let wait = Duration::from_micros(patience % 700);
        patience += 50;
        tokio::time::timeout(wait, reader.source.read(credit, &mut chunk))
            .await
            .ok();
        got.extend(chunk.drain());
    }
    let expected: Vec<_> = (0..300).map(|number| number.to_string()).collect();
    assert_eq!(payloads(&got), expected, "each once, in order");
    reader.ack(&got).await;
}

#[tokio::test]
async fn p4_bytes_exceed_the_credit_by_one_message_at_most() {
    let place = Place::new();
    place.publish(&vec![message(&"x".repeat(100)); 10]).await;
    let mut reader = place.reader().await;
    let mut chunk = Chunk::new();
    reader
        .source
        .read(
            Credit {
                messages: 10,
                bytes: 250,
            },
            &mut chunk,
        )
        .await
        .unwrap();
    assert_eq!(chunk.len(), 3);
    assert_eq!(place.queue().counts().unwrap().leased, 3);
}

#[tokio::test]
async fn p6_draining_releases_what_was_fetched_and_not_read_and_still_takes_settlements() {
    let place = Place::new();
    let mut reader = place.reader().await;
    // A fetch that completes though nobody waits for it any more.
    {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages: 9,
            bytes: usize::MAX,
        };
        let read = reader.source.read(credit, &mut chunk);
        tokio::pin!(read);
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(read.as_mut().poll(cx))).await;
        assert!(polled.is_pending());
        place.publish(&vec![message("x"); 10]).await;
        until("the fetch", || place.queue().counts().unwrap().leased >= 9).await;
    }
    let first = reader.one().await;
    reader.source.drain();
    let mut chunk = Chunk::new();
    let read = reader
        .source
        .read(
            Credit {
                messages: 9,
                bytes: usize::MAX,
            },
            &mut chunk,
        )
        .await
        .unwrap();
    assert_eq!((read, chunk.len()), (Read::Ended, 0));
    until("the release", || place.queue().counts().unwrap().ready == 9).await;
    reader.ack(&[first]).await;
    drop(reader);
    let again = place.reader().await.collect(9).await;
    assert!(
        again.iter().all(|(_, message)| message.deliveries == 1),
        "a release takes the delivery back"
    );
}

#[tokio::test]
async fn a_publish_of_this_process_wakes_a_reader_that_polls_seldom() {
    let place = Place::new();
    let mut reader = Reader::open(&place.connector().poll(Duration::from_secs(3600))).await;
    assert!(reader.finds_nothing().await);
    let (got, ()) = tokio::join!(reader.read(1), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        place.publish(&[message("one")]).await;
    });
    assert_eq!(payloads(&got), ["one"]);
}
