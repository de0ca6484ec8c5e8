//! Publishing with confirms.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_brokers::Series;
use millstream_core::{Delivered, OpenError, Outgoing, Sink as _, SinkConnector, rt};
use millstream_rabbitmq::lapin::ExchangeKind;
use millstream_rabbitmq::lapin::options::{ExchangeDeclareOptions, QueueBindOptions};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::{Binding, Declare, RabbitSink, RoutingKey, Topology};

use crate::tools::{BROKER, Client, dial, numbered, send, start};

fn refused(opened: Result<impl Sized, OpenError>) -> String {
    match opened {
        Err(OpenError::Refused(why)) => why,
        Err(OpenError::Unavailable(why)) => panic!("unavailable: {why}"),
        Ok(_) => panic!("it opened"),
    }
}

#[tokio::test]
async fn p1_messages_are_in_the_queue_in_order_once_they_are_confirmed() {
    let topology = Topology::new("in order").declare(Declare::default());
    let mut sink = RabbitSink::queue(dial(&BROKER), topology).open().await.unwrap();
    let results = send(&mut sink, &numbered(5000)).await.unwrap();
    assert!(results.iter().all(|result| *result == Delivered::Confirmed));
    let found = Client::of(&BROKER).await.payloads("in order").await;
    assert_eq!(
        found,
        (0..5000).map(|number| number.to_string()).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn p8_what_no_queue_takes_is_refused_and_its_neighbours_are_not() {
    let client = Client::of(&BROKER).await;
    client
        .channel
        .exchange_declare(
            "routes".into(),
            ExchangeKind::Direct,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    client.declare("odd", FieldTable::default()).await;
    client
        .channel
        .queue_bind(
            "odd".into(),
            "routes".into(),
            "1".into(),
            QueueBindOptions::default(),
            FieldTable::default(),
        )
        .await
        .unwrap();
    let mut sink = RabbitSink::exchange(dial(&BROKER), "routes", RoutingKey::key())
        .open()
        .await
        .unwrap();
    let messages: Vec<_> = (0..2000)
        .map(|number| Outgoing::new((number / 7).to_string()).with_key((number % 2).to_string()))
        .collect();
    let results = send(&mut sink, &messages).await.unwrap();
    for (number, result) in results.into_iter().enumerate() {
        let expected = if number % 2 == 1 {
            Delivered::Confirmed
        } else {
            Delivered::Refused("no queue is bound to exchange `routes` for routing key `0`".to_owned())
        };
        assert_eq!(result, expected, "{number}");
    }
    assert_eq!(client.payloads("odd").await.len(), 1000);
}

#[tokio::test]
async fn a_message_that_amqp_cannot_carry_is_refused_alone() {
    let topology = Topology::new("carried").declare(Declare::default());
    let mut sink = RabbitSink::queue(dial(&BROKER), topology).open().await.unwrap();
    let messages = [
        Outgoing::new("a"),
        Outgoing::new("b").with_header(&"n".repeat(300), "long name"),
        Outgoing::new("c").with_header("long", &"v".repeat(200_000)),
        Outgoing::new("d").with_header("amqp-message-id", &"v".repeat(300)),
        Outgoing::new("e")
            .with_header("amqp-reply-to", "amq.rabbitmq.reply-to")
            .with_header("amqp-user-id", "somebody"),
    ];
    let results = send(&mut sink, &messages).await.unwrap();
    let is_confirmed: Vec<_> = results
        .iter()
        .map(|result| *result == Delivered::Confirmed)
        .collect();
    assert_eq!(is_confirmed, [true, false, false, false, true], "{results:?}");
    assert_eq!(Client::of(&BROKER).await.payloads("carried").await, ["a", "e"]);
}

#[tokio::test]
async fn a_message_that_is_too_large_for_the_broker_fails_no_other_for_ever() {
    let broker = millstream_brokers::RabbitMq::builder(Series::V3)
        .setting("max_message_size", "1000")
        .start()
        .unwrap();
    let topology = Topology::new("small").declare(Declare::default());
    let mut sink = RabbitSink::queue(dial(&broker), topology).open().await.unwrap();
    let messages = [
        Outgoing::new("a"),
        Outgoing::new(vec![0; 1001]),
        Outgoing::new("b"),
    ];
    let first = send(&mut sink, &messages).await.unwrap();
    assert!(
        matches!(&first[1], Delivered::Refused(why) if why.contains("1001")),
        "{first:?}"
    );
    // The channel is closed; the next call has another.
    let again = send(&mut sink, &[Outgoing::new("a"), Outgoing::new("b")])
        .await
        .unwrap();
    assert_eq!(again, [Delivered::Confirmed, Delivered::Confirmed]);
}

#[tokio::test]
async fn a_full_queue_fails_the_message_and_keeps_the_channel() {
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), AMQPValue::LongInt(1));
    arguments.insert(
        "x-overflow".into(),
        AMQPValue::LongString("reject-publish".into()),
    );
    let topology = Topology::new("full").declare(with(arguments));
    let mut sink = RabbitSink::queue(dial(&BROKER), topology).open().await.unwrap();
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
    let full = send(&mut sink, &numbered(1)).await.unwrap();
    assert!(matches!(&full[..], [Delivered::Failed(_)]), "{full:?}");
    assert_eq!(Client::of(&BROKER).await.payloads("full").await, ["0"]);
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
}

fn with(arguments: FieldTable) -> Declare {
    let mut declare = Declare::default();
    declare.arguments = arguments;
    declare
}

#[tokio::test]
async fn a_declared_queue_that_is_deleted_is_declared_anew() {
    let topology = Topology::new("deleted").declare(Declare::default());
    let mut sink = RabbitSink::queue(dial(&BROKER), topology).open().await.unwrap();
    let client = Client::of(&BROKER).await;
    client.delete("deleted").await;
    let gone = send(&mut sink, &numbered(1)).await.unwrap();
    assert!(matches!(&gone[..], [Delivered::Failed(_)]), "{gone:?}");
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
    assert_eq!(client.payloads("deleted").await, ["0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_broker_that_is_killed_while_messages_are_published_has_all_that_was_confirmed() {
    let mut broker = start(Series::V3);
    let topology = Topology::new("killed").declare(Declare::default());
    let connector = RabbitSink::queue(dial(&broker), topology);
    let mut sink = connector.open().await.unwrap();
    let begun = Arc::new(AtomicBool::new(false));
    let publishing = rt::spawn({
        let begun = Arc::clone(&begun);
        async move {
            let mut confirmed = Vec::new();
            let mut number = 0;
            loop {
                let messages: Vec<_> = (number..number + 500)
                    .map(|number| Outgoing::new(number.to_string()))
                    .collect();
                let mut results = Vec::new();
                let sent = sink.send(&messages, &mut results).await;
                let done = results
                    .iter()
                    .zip(number..)
                    .filter(|(result, _)| **result == Delivered::Confirmed);
                confirmed.extend(done.map(|(_, number)| number.to_string()));
                let failed = results
                    .iter()
                    .any(|result| matches!(result, Delivered::Failed(why) if !why.is_empty()));
                if sent.is_err() || failed {
                    return confirmed;
                }
                number += 500;
                begun.store(true, Ordering::Relaxed);
            }
        }
    });
    while !begun.load(Ordering::Relaxed) {
        tokio::task::yield_now().await;
    }
    broker.kill();
    let confirmed = tokio::time::timeout(Duration::from_secs(60), publishing)
        .await
        .unwrap()
        .unwrap();
    assert!(confirmed.len() >= 500);
    broker.start_again().unwrap();
    let mut left = HashMap::new();
    for payload in Client::of(&broker).await.payloads("killed").await {
        *left.entry(payload).or_insert(0) += 1;
    }
    for payload in confirmed {
        assert!(
            left.contains_key(&payload),
            "{payload} was confirmed and is not there"
        );
    }
    // An open sink finds the broker again by itself, and a new one too.
    assert_eq!(
        send(&mut connector.open().await.unwrap(), &numbered(1))
            .await
            .unwrap(),
        [Delivered::Confirmed]
    );
}

#[tokio::test]
async fn a_connection_that_went_between_two_calls_costs_nothing() {
    let broker = start(Series::V3);
    let topology = Topology::new("between").declare(Declare::default());
    let mut sink = RabbitSink::queue(dial(&broker), topology).open().await.unwrap();
    assert_eq!(
        send(&mut sink, &numbered(1)).await.unwrap(),
        [Delivered::Confirmed]
    );
    assert_eq!(broker.close_all_connections("for the test").unwrap(), 1);
    while broker.connections().unwrap() > 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // The news is on its way to lapin.
    let results = loop {
        match send(&mut sink, &numbered(1)).await {
            Ok(results) => break results,
            Err(error) => assert!(error.to_string().contains("for the test"), "{error}"),
        }
    };
    assert_eq!(results, [Delivered::Confirmed]);
}

#[tokio::test]
async fn what_is_missing_is_told_with_what_to_do() {
    let broker = start(Series::V3);
    let sink = || dial(&broker);
    let why = refused(RabbitSink::queue(sink(), Topology::new("nowhere")).open().await);
    assert_eq!(
        why,
        "there is no queue `nowhere`: make it, or let `declare` make it"
    );
    let why = refused(
        RabbitSink::exchange(sink(), "nowhere", RoutingKey::default())
            .open()
            .await,
    );
    assert_eq!(why, "there is no exchange `nowhere`: make it first");
    let client = Client::of(&broker).await;
    client.declare("plain", FieldTable::default()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(1000));
    let why = refused(
        RabbitSink::queue(sink(), Topology::new("plain").declare(with(arguments)))
            .open()
            .await,
    );
    assert!(
        why.starts_with("queue `plain` is there with other properties than `declare` gives it")
            && why.contains("x-message-ttl"),
        "{why}"
    );
    let bound = |exchange| Topology::new("plain").bind(Binding::new(exchange, "key"));
    let why = refused(RabbitSink::queue(sink(), bound("nowhere")).open().await);
    assert_eq!(
        why,
        "queue `plain` cannot be bound: there is no exchange `nowhere`; make it first"
    );
    let why = refused(RabbitSink::queue(sink(), bound("")).open().await);
    assert!(
        why.starts_with("nothing can be bound to the default exchange"),
        "{why}"
    );
    // What has worked once is waited for.
    let worked = sink();
    let _open = RabbitSink::queue(worked.clone(), Topology::new("plain"))
        .open()
        .await
        .unwrap();
    let opened = RabbitSink::queue(worked, Topology::new("nowhere")).open().await;
    assert!(matches!(opened, Err(OpenError::Unavailable(_))));
}

#[tokio::test]
async fn exchanges_get_the_routing_key_that_the_sink_is_told() {
    let client = Client::of(&BROKER).await;
    for (queue, key) in [
        ("by fixed", "fixed"),
        ("by header", "acme"),
        ("by default", "nobody"),
    ] {
        client.declare(queue, FieldTable::default()).await;
        client
            .channel
            .queue_bind(
                queue.into(),
                "amq.direct".into(),
                key.into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
    }
    let message = Outgoing::new("x").with_header("tenant", "acme");
    for (key, message) in [
        (RoutingKey::fixed("fixed"), Outgoing::new("x")),
        (RoutingKey::header("tenant").or("nobody"), message),
        (RoutingKey::header("tenant").or("nobody"), Outgoing::new("x")),
    ] {
        let mut sink = RabbitSink::exchange(dial(&BROKER), "amq.direct", key)
            .open()
            .await
            .unwrap();
        assert_eq!(send(&mut sink, &[message]).await.unwrap(), [Delivered::Confirmed]);
    }
    for queue in ["by fixed", "by header", "by default"] {
        assert_eq!(client.payloads(queue).await, ["x"], "{queue}");
    }
}
