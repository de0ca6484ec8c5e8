//! The store of ids in a database.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::DedupStore as _;
use millstream_sqlite::{Queue, SqliteStore};

const HOUR: Duration = Duration::from_secs(3_600);

fn ids(range: std::ops::Range<usize>) -> Vec<Bytes> {
    range.map(|number| Bytes::from(format!("id {number}"))).collect()
}

/// Waits until the condition holds, for half a minute at most.
async fn until(condition: impl AsyncFn() -> bool) {
    for _ in 0..3_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the condition never came true");
}

#[tokio::test]
async fn what_one_process_has_entered_another_sees_and_another_pipeline_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ids.db");
    let one = SqliteStore::new(&path, "orders");
    assert_eq!(one.enter(&ids(0..3), HOUR).await.unwrap(), 0);
    let two = SqliteStore::new(&path, "orders");
    assert_eq!(two.seen(&ids(1..5)).await.unwrap(), [true, true, false, false]);
    let other = SqliteStore::new(&path, "audit");
    assert_eq!(other.seen(&ids(0..1)).await.unwrap(), [false]);
    drop((one, two));
    let later = SqliteStore::new(&path, "orders");
    assert_eq!(
        later.seen(&ids(0..1)).await.unwrap(),
        [true],
        "after a restart too"
    );
}

#[tokio::test]
async fn an_id_is_forgotten_when_its_window_is_over_and_its_row_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ids.db");
    let store = SqliteStore::new(&path, "orders");
    store.enter(&ids(0..50), Duration::from_millis(50)).await.unwrap();
    until(async || store.seen(&ids(0..1)).await.unwrap() == [false]).await;
    store.enter(&ids(100..150), HOUR).await.unwrap();
    let rows: i64 = millstream_sqlite::rusqlite::Connection::open(&path)
        .unwrap()
        .query_row("SELECT count(*) FROM millstream_done", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 50);
    store
        .enter(&ids(100..101), Duration::from_millis(1))
        .await
        .unwrap();
    until(async || store.seen(&ids(100..102)).await.unwrap() == [false, true]).await;
}

/// P4: the table is bounded, and what is forgotten for it is told.
#[tokio::test]
async fn p4_the_oldest_ids_make_room_and_are_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::new(directory.path().join("ids.db"), "orders")
        .max_entries(NonZeroUsize::new(160).unwrap());
    let mut forgotten = 0;
    for chunk in 0..40 {
        let window = HOUR + Duration::from_secs(chunk as u64);
        forgotten += store
            .enter(&ids(chunk * 10..chunk * 10 + 10), window)
            .await
            .unwrap();
    }
    assert_eq!(forgotten, 240);
    assert!(store.seen(&ids(0..240)).await.unwrap().iter().all(|seen| !seen));
    assert!(store.seen(&ids(240..400)).await.unwrap().iter().all(|seen| *seen));
}

#[tokio::test]
async fn it_shares_a_file_with_a_queue() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("orders.db");
    let queue = Queue::open(&path, "orders").unwrap();
    let store = SqliteStore::new(&path, "orders");
    queue.publish(&[millstream_core::Outgoing::new("one")]).unwrap();
    store.enter(&ids(0..1), HOUR).await.unwrap();
    queue.publish(&[millstream_core::Outgoing::new("two")]).unwrap();
    assert_eq!(store.seen(&ids(0..2)).await.unwrap(), [true, false]);
    assert_eq!(queue.counts().unwrap().ready, 2);
}

#[tokio::test]
async fn a_database_that_cannot_be_opened_is_named_and_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("later").join("ids.db");
    let store = SqliteStore::new(&path, "orders");
    let error = store.seen(&ids(0..1)).await.unwrap_err().to_string();
    assert!(error.contains("ids.db"), "{error}");
    std::fs::create_dir(directory.path().join("later")).unwrap();
    assert_eq!(store.seen(&ids(0..1)).await.unwrap(), [false]);
}
