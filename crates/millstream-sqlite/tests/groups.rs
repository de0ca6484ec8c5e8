//! Groups: each sees every message, once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod common;

use common::*;
use millstream_core::Settlement;
use millstream_sqlite::Counts;

async fn reader(place: &Place, group: &str) -> Reader {
    Reader::open(&place.connector().group(group)).await
}

#[tokio::test]
async fn each_group_sees_every_message() {
    let place = Place::new();
    let (mut mail, mut stock) = (reader(&place, "mail").await, reader(&place, "stock").await);
    place
        .publish(&[keyed("a", "one").with_header("tenant", "acme"), message("two")])
        .await;
    for group in [&mut mail, &mut stock] {
        let got = group.collect(2).await;
        assert_eq!(payloads(&got), ["one", "two"]);
        assert_eq!(
            (got[0].1.key.as_deref(), got[0].1.headers.get("tenant")),
            (Some(&b"a"[..]), Some("acme"))
        );
        group.ack(&got).await;
        assert!(group.finds_nothing().await);
    }
    assert_eq!(place.queue().groups().unwrap(), ["mail", "stock"]);
    assert_eq!(place.queue().counts().unwrap(), Counts::default());
}

#[tokio::test]
async fn the_first_group_takes_what_was_there_before_it() {
    let place = Place::new();
    place.publish(&[message("one"), message("two")]).await;
    let mut mail = reader(&place, "mail").await;
    assert_eq!(payloads(&mail.collect(2).await), ["one", "two"]);
    assert_eq!(
        place.queue().counts().unwrap(),
        Counts {
            leased: 2,
            ..Counts::default()
        }
    );
}

#[tokio::test]
async fn a_later_group_begins_with_what_is_still_there_in_its_order() {
    let place = Place::new();
    let (mut mail, mut stock) = (reader(&place, "mail").await, reader(&place, "stock").await);
    place
        .publish(&[message("one"), message("two"), message("three"), message("four")])
        .await;
    let (one, two) = (mail.collect(4).await, stock.collect(4).await);
    // One is done by both, two by the first alone, three by the second alone.
    mail.ack(&one[..2]).await;
    stock.ack(&[two[0].clone(), two[2].clone()]).await;
    let mut late = reader(&place, "late").await;
    let got = late.collect(3).await;
    assert_eq!(payloads(&got), ["two", "three", "four"]);
    assert!(got.iter().all(|(_, message)| message.deliveries == 1));
    assert!(late.finds_nothing().await);
}

#[tokio::test]
async fn a_groups_own_retry_delays_no_other_group() {
    let place = Place::new();
    let mut mail = reader(&place, "mail").await;
    place.publish(&[message("one")]).await;
    let (ticket, _) = mail.one().await;
    let hour = std::time::Duration::from_secs(3600);
    mail.settle(
        ticket,
        Settlement::Retry {
            after: hour,
            failures: 1,
        },
    )
    .await;
    let (_, copy) = reader(&place, "late").await.one().await;
    assert_eq!((copy.failures, copy.deliveries), (0, 1));
}

#[tokio::test]
async fn a_group_that_is_removed_leaves_nothing_behind() {
    let place = Place::new();
    let queue = place.queue();
    queue.add_group("mail").unwrap();
    queue.add_group("stock").unwrap();
    place.publish(&[message("one")]).await;
    assert_eq!(queue.counts().unwrap().ready, 2);
    assert_eq!(queue.group_counts("mail").unwrap().ready, 1);
    queue.remove_group("mail").unwrap();
    assert_eq!(queue.groups().unwrap(), ["stock"]);
    assert_eq!(queue.counts().unwrap().ready, 1);
}

#[tokio::test]
async fn a_dead_letter_goes_back_to_the_group_that_gave_it_up() {
    let place = Place::new();
    let (mut mail, mut stock) = (reader(&place, "mail").await, reader(&place, "stock").await);
    place.publish(&[message("one")]).await;
    let (ticket, _) = mail.one().await;
    mail.settle(ticket, rejection("no")).await;
    let got = stock.collect(1).await;
    stock.ack(&got).await;
    let queue = place.queue();
    let position = queue.dead().next().unwrap().unwrap().position;
    queue.replay(&[position]).unwrap();
    assert!(stock.finds_nothing().await);
    assert_eq!(payloads(&[mail.one().await]), ["one"]);
}

#[tokio::test]
async fn queues_of_one_database_do_not_mix() {
    let place = Place::new();
    let other = millstream_sqlite::Queue::open(place.path(), "invoices").unwrap();
    other.publish(&[message("invoice")]).unwrap();
    place.publish(&[message("order")]).await;
    let mut orders = place.reader().await;
    assert_eq!(payloads(&orders.read(10).await), ["order"]);
    assert!(orders.finds_nothing().await);
    assert_eq!(
        other.counts().unwrap(),
        Counts {
            ready: 1,
            ..Counts::default()
        }
    );
}
