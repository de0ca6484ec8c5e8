//! The user's own `INSERT`, in the user's own transaction and table space, is a publish.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::*;
use millstream_sqlite::{Counts, Queue, SCHEMA};

const INSERT: &str =
    "INSERT INTO millstream_messages (queue, key, payload) VALUES ('orders', 'customer-7', 'one')";

#[tokio::test]
async fn p1_a_message_is_there_if_the_users_transaction_commits_and_not_otherwise() {
    let place = Place::new();
    let mut shop = place.raw();
    let migration = shop.transaction().unwrap();
    migration
        .execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, sku TEXT)")
        .unwrap();
    migration.execute_batch(SCHEMA).unwrap();
    migration.commit().unwrap();

    let undone = shop.transaction().unwrap();
    undone
        .execute("INSERT INTO orders (sku) VALUES ('anvil')", [])
        .unwrap();
    undone.execute(INSERT, []).unwrap();
    undone.rollback().unwrap();
    let mut reader = place.reader().await;
    assert!(reader.finds_nothing().await);

    let done = shop.transaction().unwrap();
    done.execute("INSERT INTO orders (sku) VALUES ('anvil')", [])
        .unwrap();
    done.execute(INSERT, []).unwrap();
    assert!(reader.finds_nothing().await, "it is not there before the commit");
    done.commit().unwrap();
    let got = reader.collect(1).await;
    assert_eq!(payloads(&got), ["one"]);
    assert_eq!(got[0].1.key.as_deref(), Some(&b"customer-7"[..]));
    let age = got[0].1.timestamp.unwrap().elapsed().unwrap();
    assert!(age.as_secs() < 60, "published_at has a default: {age:?}");
    reader.ack(&got).await;
    let orders: i64 = shop
        .query_row("SELECT count(*) FROM orders", [], |row| row.get(0))
        .unwrap();
    assert_eq!(orders, 1);
}

#[tokio::test]
async fn an_insert_reaches_every_group_and_is_adopted_by_the_first() {
    let place = Place::new();
    let shop = place.raw();
    Queue::create(&shop).unwrap();
    shop.execute(INSERT, []).unwrap();
    let queue = place.queue();
    assert_eq!(queue.counts().unwrap().ready, 1);
    queue.add_group("mail").unwrap();
    queue.add_group("stock").unwrap();
    shop.execute(INSERT, []).unwrap();
    for group in ["mail", "stock"] {
        let mut reader = Reader::open(&place.connector().group(group)).await;
        let got = reader.collect(2).await;
        assert_eq!(payloads(&got), ["one", "one"]);
        reader.ack(&got).await;
    }
    assert_eq!(queue.counts().unwrap(), Counts::default());
}

/// A key that is written as text by one and as bytes by another is one key.
#[tokio::test]
async fn p3_the_users_text_keys_are_the_same_as_a_sinks() {
    let place = Place::new();
    place.publish(&[keyed("customer-7", "zero")]).await;
    place.raw().execute(INSERT, []).unwrap();
    let connector = place.connector().ordered(true);
    let (mut one, mut two) = (Reader::open(&connector).await, Reader::open(&connector).await);
    assert_eq!(payloads(&[one.one().await]), ["zero"]);
    assert!(two.finds_nothing().await);
}

#[tokio::test]
async fn whatever_an_insert_puts_into_the_columns_is_refused_there_or_can_be_read() {
    let place = Place::new();
    let shop = place.raw();
    Queue::create(&shop).unwrap();
    for (columns, values) in [
        ("headers", "'no json'"),
        ("headers", "'[1]'"),
        ("headers", "'{a:1}'"),
        ("headers", "x'7b7d'"),
        ("priority", "'high'"),
        ("not_before", "-1"),
        ("not_before", "'tomorrow'"),
    ] {
        let sql = format!(
            "INSERT INTO millstream_messages (queue, payload, {columns}) VALUES ('orders', 'x', {values})"
        );
        assert!(shop.execute(&sql, []).is_err(), "{sql}");
    }
    assert!(
        shop.execute(
            "INSERT INTO millstream_messages (queue, payload) VALUES ('orders', NULL)",
            []
        )
        .is_err()
    );
    for (columns, values) in [
        ("payload", "5"),
        ("payload", "1.5"),
        ("payload", "x'00ff'"),
        ("payload, key", "'x', 7"),
        ("payload, headers", r#"'x', '{"n": 1, "s": "t"}'"#),
        ("payload, published_at", "'x', 'yesterday'"),
        ("payload, deliveries, failures", "'x', 'many', -4"),
        ("payload, id", "'x', -5"),
    ] {
        shop.execute(
            &format!("INSERT INTO millstream_messages (queue, {columns}) VALUES ('orders', {values})"),
            [],
        )
        .unwrap();
    }
    let mut reader = place.reader().await;
    let got = reader.collect(8).await;
    assert_eq!(got[0].1.position, (-5_i64).cast_unsigned());
    assert_eq!(
        (&got[1].1.payload[..], &got[2].1.payload[..]),
        (&b"5"[..], &b"1.5"[..])
    );
    assert_eq!(got[4].1.key.as_deref(), Some(&b"7"[..]));
    assert_eq!(
        (got[5].1.headers.get("n"), got[5].1.headers.get("s")),
        (Some("1"), Some("t"))
    );
    reader.ack(&got).await;
}
