//! Files that are not ours to write to are refused by name, and left as they are.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use std::path::Path;

use common::*;
use millstream_core::{Connector as _, EngineHandle, OpenError, SinkConnector as _};
use millstream_sqlite::rusqlite::Connection;
use millstream_sqlite::{Queue, SqliteConnector, SqliteSink};

/// Every way to open refuses the file, says these words, and leaves its bytes alone.
async fn is_refused(path: &Path, words: &[&str]) {
    let before = std::fs::read(path).unwrap();
    let error = Queue::open(path, "orders").unwrap_err();
    assert!(error.is_refused(), "{error}");
    let mut texts = vec![error.to_string()];
    let (engine, _) = EngineHandle::detached();
    match SqliteConnector::new(path, "orders").open(engine).await.map(drop) {
        Err(OpenError::Refused(text)) => texts.push(text),
        other => panic!("{other:?}"),
    }
    match SqliteSink::new(path, "orders").open().await.map(drop) {
        Err(OpenError::Refused(text)) => texts.push(text),
        other => panic!("{other:?}"),
    }
    for text in texts {
        assert!(text.contains("queue.db"), "it names the file: {text}");
        for word in words {
            assert!(text.contains(word), "{word} in: {text}");
        }
    }
    assert_eq!(std::fs::read(path).unwrap(), before);
}

#[tokio::test]
async fn a_file_that_is_no_database() {
    let place = Place::new();
    std::fs::write(place.path(), "id,sku\n1,anvil\n".repeat(100)).unwrap();
    is_refused(&place.path(), &["not an SQLite database", "move the file away"]).await;
}

#[tokio::test]
async fn a_database_that_was_cut_off() {
    let place = Place::new();
    place
        .queue()
        .publish(&vec![message(&"x".repeat(500)); 1000])
        .unwrap();
    let whole = std::fs::read(place.path()).unwrap();
    std::fs::write(place.path(), &whole[..whole.len() / 2]).unwrap();
    is_refused(&place.path(), &["damaged", "backup"]).await;
}

#[tokio::test]
async fn a_database_with_a_page_overwritten() {
    let place = Place::new();
    place
        .queue()
        .publish(&vec![message(&"x".repeat(500)); 1000])
        .unwrap();
    let mut bytes = std::fs::read(place.path()).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(place.path(), bytes).unwrap();
    is_refused(&place.path(), &["damaged"]).await;
}

#[tokio::test]
async fn tables_of_a_newer_release() {
    let place = Place::new();
    drop(place.queue());
    place
        .raw()
        .execute("UPDATE millstream_format SET version = 7", [])
        .unwrap();
    is_refused(&place.path(), &["newer release", "format 7"]).await;
}

#[tokio::test]
async fn a_version_that_says_nothing() {
    let place = Place::new();
    drop(place.queue());
    place.raw().execute("DELETE FROM millstream_format", []).unwrap();
    is_refused(&place.path(), &["millstream_format", "empty"]).await;
}

#[tokio::test]
async fn a_table_of_our_name_with_other_columns() {
    let place = Place::new();
    place
        .raw()
        .execute_batch("CREATE TABLE millstream_messages (id INTEGER PRIMARY KEY, body TEXT)")
        .unwrap();
    is_refused(&place.path(), &["millstream_messages", "not Millstream's"]).await;
}

#[tokio::test]
async fn our_tables_with_a_column_more() {
    let place = Place::new();
    drop(place.queue());
    place
        .raw()
        .execute_batch("ALTER TABLE millstream_dead ADD COLUMN note TEXT")
        .unwrap();
    is_refused(&place.path(), &["millstream_dead", "other columns"]).await;
}

#[tokio::test]
async fn our_tables_with_one_missing() {
    let place = Place::new();
    drop(place.queue());
    place.raw().execute_batch("DROP TABLE millstream_dead").unwrap();
    is_refused(&place.path(), &["without millstream_dead"]).await;
}

#[tokio::test]
async fn a_database_in_another_encoding() {
    let place = Place::new();
    place
        .raw()
        .execute_batch("PRAGMA encoding = 'UTF-16'; CREATE TABLE t (a)")
        .unwrap();
    is_refused(&place.path(), &["UTF-8"]).await;
}

#[test]
fn paths_that_cannot_hold_a_database() {
    let place = Place::new();
    for (path, word) in [
        (place.path().join("missing").join("queue.db"), "does not exist"),
        (place.path().parent().unwrap().to_owned(), "directory"),
        (":memory:".into(), "no file"),
        ("".into(), "no file"),
    ] {
        let error = Queue::open(&path, "orders").unwrap_err();
        assert!(error.is_refused() && error.to_string().contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_group_without_a_name() {
    let place = Place::new();
    let (engine, _) = EngineHandle::detached();
    let opened = place.connector().group("").open(engine).await.map(drop);
    assert!(matches!(opened, Err(OpenError::Refused(text)) if text.contains("group without a name")));
    assert!(place.queue().add_group("").unwrap_err().is_refused());
}

#[test]
fn a_users_own_database_gets_the_tables_and_keeps_its_marks() {
    let place = Place::new();
    let shop = Connection::open(place.path()).unwrap();
    shop.execute_batch("PRAGMA user_version = 42; PRAGMA application_id = 99; CREATE TABLE orders (id)")
        .unwrap();
    place.queue().publish(&[message("one")]).unwrap();
    let mark = |name: &str| {
        shop.query_row(&format!("PRAGMA {name}"), [], |row| row.get::<_, i64>(0))
            .unwrap()
    };
    assert_eq!((mark("user_version"), mark("application_id")), (42, 99));
    assert_eq!(place.queue().counts().unwrap().ready, 1);
}

#[test]
fn a_missing_index_is_made_again() {
    let place = Place::new();
    place.queue().publish(&[message("one")]).unwrap();
    place
        .raw()
        .execute_batch("DROP INDEX millstream_ready; DROP TRIGGER millstream_arrival")
        .unwrap();
    assert_eq!(place.queue().counts().unwrap().ready, 1);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_are_opened_or_refused(
        bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..2000),
        header in proptest::bool::ANY,
    ) {
        let place = Place::new();
        let bytes = if header { [&b"SQLite format 3\0"[..], &bytes].concat() } else { bytes };
        std::fs::write(place.path(), &bytes).unwrap();
        if Queue::open(place.path(), "orders").and_then(|queue| queue.publish(&[message("x")])).is_err() {
            assert_eq!(std::fs::read(place.path()).unwrap(), bytes);
        }
    }

    #[test]
    fn a_database_with_any_bytes_changed_is_read_or_refused(
        changes in proptest::collection::vec((0_usize..100_000, proptest::num::u8::ANY), 1..40),
    ) {
        let place = Place::new();
        let all: Vec<_> = (0..50).map(|number| keyed("k", &number.to_string())).collect();
        place.queue().publish(&all).unwrap();
        let mut bytes = std::fs::read(place.path()).unwrap();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        std::fs::write(place.path(), &bytes).unwrap();
        if let Ok(queue) = Queue::open(place.path(), "orders") {
            queue.counts().ok();
            queue.list(0, 100).ok();
            queue.publish(&all).ok();
            queue.dead().take(10).for_each(drop);
        }
    }
}
