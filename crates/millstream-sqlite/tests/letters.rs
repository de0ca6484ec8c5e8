//! Dead letters in a queue, looked after.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use millstream_core::{Outgoing, SinkConnector as _, Visit};
use millstream_sqlite::rusqlite::Connection;
use millstream_sqlite::{Queue, SqliteSink};

/// What a consumer leases while letters are purged is left to it, and not counted as removed.
#[tokio::test]
async fn a_purge_counts_what_it_has_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("q.db");
    let dead = Queue::open(&path, "dead").unwrap();
    let letters: Vec<_> = (0..5).map(|number| Outgoing::new(number.to_string())).collect();
    dead.publish(&letters).unwrap();
    let letters = SqliteSink::new(&path, "dead").letters().unwrap();
    let mut visit = letters.open(Visit::Purge).await.unwrap();
    let given = visit.next(9).await.unwrap();
    let handles: Vec<_> = given.iter().map(|letter| letter.handle).collect();
    assert_eq!(handles.len(), 5);
    let consumer = Connection::open(&path).unwrap();
    let leased = consumer.execute(
        "UPDATE millstream_messages SET lease = 7 WHERE payload IN (X'31', X'33')",
        [],
    );
    assert_eq!(leased.unwrap(), 2);
    assert_eq!(visit.remove(&handles).await.unwrap(), 3);
    visit.close().await.unwrap();
    assert_eq!(dead.list(0, 9).unwrap().len(), 2);
}
