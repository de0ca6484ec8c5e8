//! Delayed redelivery.

use std::time::Duration;

use millstream_brokers::Series;
use millstream_core::rt::Instant;
use millstream_core::{Delivered, Outgoing, SinkConnector};
use millstream_rabbitmq::RetrySink;
use millstream_rabbitmq::lapin::types::FieldTable;

use crate::tools::{BROKER, Client, dial, send, start};

fn delayed(payload: &str, millis: u64) -> Outgoing {
    let mut message = Outgoing::new(payload.to_owned());
    message.delay = Duration::from_millis(millis);
    message
}

/// Messages come back in the order of their delays and none before its time, whatever order they were sent in.
async fn delays(broker: &millstream_brokers::RabbitMq) {
    let client = Client::of(broker).await;
    client.declare("orders", FieldTable::default()).await;
    let mut sink = RetrySink::new(dial(broker), "orders").open().await.unwrap();
    let sent = Instant::now();
    let messages = [
        delayed("2000", 2000),
        delayed("700", 650),
        delayed("0", 0),
        delayed("100", 1),
        delayed("300", 201).with_header("millstream-failures", "2"),
    ];
    let results = send(&mut sink, &messages).await.unwrap();
    assert_eq!(results, vec![Delivered::Confirmed; 5]);
    for expected in ["0", "100", "300", "700", "2000"] {
        let message = client.wait_for("orders").await;
        let after = sent.elapsed();
        assert_eq!(String::from_utf8(message.data).unwrap(), expected);
        let due = Duration::from_millis(expected.parse().unwrap());
        assert!(after >= due, "{expected} came after {after:?}");
        assert!(
            after < due + Duration::from_secs(5),
            "{expected} came after {after:?}"
        );
        if expected == "300" {
            let headers = message.properties.headers().clone().unwrap();
            let failures = headers.inner().get("millstream-failures").unwrap();
            assert_eq!(failures.as_long_string().unwrap().as_bytes(), b"2");
        }
    }
}

#[tokio::test]
async fn p1_delays_are_kept_by_the_broker_of_the_third_series() {
    delays(&start(Series::V3)).await;
}

#[tokio::test]
async fn p1_delays_are_kept_by_the_broker_of_the_fourth_series() {
    delays(&start(Series::V4)).await;
}

#[tokio::test]
async fn p1_what_waits_outlives_the_broker() {
    let mut broker = start(Series::V3);
    Client::of(&broker)
        .await
        .declare("orders", FieldTable::default())
        .await;
    let mut sink = RetrySink::new(dial(&broker), "orders").open().await.unwrap();
    let results = send(&mut sink, &[delayed("x", 2000)]).await.unwrap();
    assert_eq!(results, [Delivered::Confirmed]);
    broker.kill();
    broker.start_again().unwrap();
    let message = Client::of(&broker).await.wait_for("orders").await;
    assert_eq!(message.data, b"x");
}

#[tokio::test]
async fn a_retry_queue_that_is_deleted_is_declared_anew_and_nothing_is_confirmed_meanwhile() {
    let client = Client::of(&BROKER).await;
    client.declare("parcels", FieldTable::default()).await;
    let mut sink = RetrySink::new(dial(&BROKER), "parcels").open().await.unwrap();
    assert_eq!(
        send(&mut sink, &[delayed("a", 100)]).await.unwrap(),
        [Delivered::Confirmed]
    );
    assert_eq!(client.wait_for("parcels").await.data, b"a");
    client.delete("parcels.retry.100ms").await;
    let gone = send(&mut sink, &[delayed("b", 100)]).await.unwrap();
    assert!(
        matches!(&gone[..], [Delivered::Failed(why)] if why.contains("parcels.retry.100ms")),
        "{gone:?}"
    );
    assert_eq!(
        send(&mut sink, &[delayed("c", 100)]).await.unwrap(),
        [Delivered::Confirmed]
    );
    assert_eq!(client.wait_for("parcels").await.data, b"c");
}

#[tokio::test]
async fn a_retry_goes_nowhere_while_its_queue_is_missing() {
    let mut sink = RetrySink::new(dial(&BROKER), "missing").open().await.unwrap();
    let results = send(&mut sink, &[delayed("a", 0)]).await.unwrap();
    assert_eq!(
        results,
        [Delivered::Failed("there is no queue `missing`".to_owned())]
    );
}
