//! Dead letters in a queue, looked after.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Letter, Letters, OpenError, SinkConnector as _, Visit};
use millstream_rabbitmq::lapin::options::{
    BasicGetOptions, BasicPublishOptions, BasicRejectOptions, ExchangeDeclareOptions, QueueBindOptions,
};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::lapin::{BasicProperties, ExchangeKind, PublisherConfirm};
use millstream_rabbitmq::{Dial, RabbitSink, Topology};

use crate::tools::{BROKER, BROKER_4, Client, counts, start, until};

fn quorum(limit: i32) -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(limit));
    arguments
}

async fn visit(url: &str, queue: &str, visit: Visit) -> Result<Box<dyn Letters>, OpenError> {
    let dial = Dial::new([url]).unwrap().name("millstream tests");
    let letters = RabbitSink::queue(dial, Topology::new(queue)).letters().unwrap();
    letters.open(visit).await
}

async fn look(broker: &RabbitMq, queue: &str, most: usize) -> Vec<Letter> {
    let mut visit = visit(&broker.url(), queue, Visit::Look).await.unwrap();
    let mut all = Vec::new();
    loop {
        let mut letters = visit.next(most).await.unwrap();
        if letters.is_empty() {
            visit.close().await.unwrap();
            return all;
        }
        all.append(&mut letters);
    }
}

fn payloads(letters: &[Letter]) -> Vec<String> {
    let payloads = letters.iter().map(|letter| letter.payload.to_vec());
    payloads
        .map(|payload| String::from_utf8(payload).unwrap())
        .collect()
}

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

/// P1: a letter keeps its name, its order and what is said of it however often it is looked at, wherever it came from; the
/// broker drops none that is delivered more than once.
#[tokio::test(flavor = "multi_thread")]
async fn a_letter_in_a_quorum_queue_stays_as_it_is_however_often_it_is_looked_at() {
    for broker in [&*BROKER, &*BROKER_4] {
        let (exchange, work, dead) = ("looked-at.x", "looked-at", "looked-at.dead");
        let client = Client::of(broker).await;
        client.declare(dead, quorum(1)).await;
        let mut arguments = quorum(0);
        arguments.insert(
            "x-dead-letter-exchange".into(),
            AMQPValue::LongString(exchange.into()),
        );
        client.declare(work, arguments).await;
        let channel = &client.channel;
        channel
            .exchange_declare(
                exchange.into(),
                ExchangeKind::Fanout,
                ExchangeDeclareOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        channel
            .queue_bind(
                dead.into(),
                exchange.into(),
                "".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await
            .unwrap();
        // The broker's own letter: it has an `x-death`, and comes through an exchange.
        let mut headers = FieldTable::default();
        headers.insert("tenant".into(), AMQPValue::LongString("a".into()));
        headers.insert("number".into(), AMQPValue::LongInt(7));
        let properties = BasicProperties::default()
            .with_headers(headers)
            .with_user_id("guest".into())
            .with_priority(9)
            .with_delivery_mode(2);
        let publish = channel.basic_publish(
            "".into(),
            work.into(),
            BasicPublishOptions::default(),
            b"rejected",
            properties,
        );
        publish.await.unwrap().await.unwrap();
        let got = channel
            .basic_get(work.into(), BasicGetOptions { no_ack: false })
            .await
            .unwrap()
            .unwrap();
        let rejected = channel.basic_reject(got.delivery.delivery_tag, BasicRejectOptions::default());
        rejected.await.unwrap();
        until("it is a letter", || counts(broker, dead).0 == 1).await;
        client.publish(dead, 0..40).await;

        let first = look(broker, dead, 7).await;
        assert_eq!(first.len(), 41);
        let rejected = first.iter().find(|letter| letter.payload == "rejected").unwrap();
        for (name, value) in [
            ("tenant", "a"),
            ("number", "7"),
            ("amqp-exchange", exchange),
            ("amqp-routing-key", work),
            ("amqp-user-id", "guest"),
            ("amqp-priority", "9"),
        ] {
            assert_eq!(rejected.headers.get(name), Some(value), "{name}");
        }
        assert!(
            rejected
                .headers
                .get("x-death")
                .is_some_and(|death| death.contains("rejected"))
        );
        for _ in 0..30 {
            let again = look(broker, dead, 7).await;
            let same = |letters: &[Letter]| {
                let of = letters.iter().filter(|letter| letter.payload != "rejected");
                of.map(|letter| (letter.id.clone(), letter.payload.clone()))
                    .collect::<Vec<_>>()
            };
            assert_eq!(same(&again), same(&first));
            let again = again.iter().find(|letter| letter.payload == "rejected").unwrap();
            assert_eq!((&again.id, &again.headers), (&rejected.id, &rejected.headers));
        }
    }
}

/// What is removed is gone, and what is passed over stays in its order.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_over_is_put_back_in_its_order() {
    let queue = "passed-over";
    let client = Client::of(&BROKER).await;
    client.declare(queue, quorum(1)).await;
    client.publish(queue, 0..60).await;
    for round in 0..5 {
        let mut visit = visit(&BROKER.url(), queue, Visit::Purge).await.unwrap();
        let mut seen = 0;
        loop {
            let letters = visit.next(9).await.unwrap();
            if letters.is_empty() {
                break;
            }
            seen += letters.len();
            let chosen = letters
                .iter()
                .filter(|letter| letter.payload == format!("{round}"));
            let chosen: Vec<_> = chosen.map(|letter| letter.handle).collect();
            assert_eq!(visit.remove(&chosen).await.unwrap(), chosen.len() as u64);
        }
        assert_eq!((seen, visit.close().await.unwrap()), (60 - round, 0));
    }
    assert_eq!(payloads(&look(&BROKER, queue, 500).await), numbers(5..60));
    // The look has put them back.
    assert_eq!(payloads(&look(&BROKER, queue, 500).await), numbers(5..60));
}

/// How many messages a quorum queue has now, those that are underway included; its counts are as of some seconds ago.
fn total(broker: &RabbitMq, queue: &str) -> usize {
    let expression = format!(
        "{{ok,{{_,N}},_}}=ra:local_query({{list_to_atom(\"%2F_{queue}\"),node()}}, \
         fun rabbit_fifo:query_messages_total/1), N"
    );
    broker.eval(&expression).unwrap().trim().parse().unwrap()
}

/// Has the log that all quorum queues share write 16 MiB, so that acknowledgements wait for it.
async fn burden(client: &Client) -> Vec<PublisherConfirm> {
    let body = vec![b'x'; 256 << 10];
    let mut confirms = Vec::new();
    for _ in 0..64 {
        let options = BasicPublishOptions::default();
        let properties = BasicProperties::default();
        let published = client
            .channel
            .basic_publish("".into(), "burden".into(), options, &body, properties);
        confirms.push(published.await.unwrap());
    }
    confirms.remove(0).await.unwrap();
    confirms
}

/// P1: a quorum queue forgets no acknowledgement of a letter that was said to be removed, however soon the visit ends.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_removed_is_gone_also_where_the_visit_ends_at_once() {
    for broker in [&*BROKER, &*BROKER_4] {
        let queue = "removed";
        let client = Client::of(broker).await;
        client.declare("burden", quorum(20)).await;
        client.declare(queue, quorum(20)).await;
        client.publish(queue, 0..300).await;
        let mut visit = visit(&broker.url(), queue, Visit::Purge).await.unwrap();
        let (mut removed, mut unconfirmed) = (0, Vec::new());
        loop {
            let letters = visit.next(500).await.unwrap();
            if letters.is_empty() {
                break;
            }
            let handles: Vec<_> = letters.iter().map(|letter| letter.handle).collect();
            if removed + handles.len() as u64 == 300 {
                unconfirmed = burden(&client).await;
            }
            removed += visit.remove(&handles).await.unwrap();
        }
        visit.close().await.unwrap();
        for confirm in unconfirmed {
            confirm.await.unwrap();
        }
        assert_eq!(removed, 300);
        until("none is left", || total(broker, queue) == 0).await;
    }
}

/// P1: what a call of `next` got that was broken off is not acknowledged with what a later one has given.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_broken_off_call_got_is_not_acknowledged() {
    let queue = "broken-off";
    let client = Client::of(&BROKER).await;
    client.declare(queue, quorum(20)).await;
    client.publish(queue, 0..60).await;
    let mut visit = visit(&BROKER.url(), queue, Visit::Purge).await.unwrap();
    // The first call gets one.
    let mut removed = 0;
    for _ in 0..2 {
        let letters = visit.next(16).await.unwrap();
        let handles: Vec<_> = letters.iter().map(|letter| letter.handle).collect();
        removed += visit.remove(&handles).await.unwrap();
    }
    assert!(visit.next(16).now_or_never().is_none(), "it has asked, and waits");
    let letters = visit.next(16).await.unwrap();
    let handles: Vec<_> = letters.iter().map(|letter| letter.handle).collect();
    assert_eq!(
        handles,
        (34..50).collect::<Vec<_>>(),
        "the call that was broken off has got 16"
    );
    removed += visit.remove(&handles).await.unwrap();
    visit.close().await.unwrap();
    assert_eq!(removed, 33);
    assert_eq!(payloads(&look(&BROKER, queue, 500).await).len(), 27);
}

/// P1: a visit whose connections are cut half way leaves letters there twice at worst.
#[tokio::test(flavor = "multi_thread")]
async fn a_visit_that_is_cut_off_loses_no_letter() {
    let broker = start(Series::V3);
    let queue = "cut-off";
    let client = Client::of(&broker).await;
    client.declare(queue, quorum(20)).await;
    client.publish(queue, 0..300).await;
    drop(client);
    let broker = Arc::new(broker);
    for most in [1, 20, 100] {
        let url = broker.url();
        // Again and again, until it is cut off somewhere.
        let going = async {
            loop {
                let mut visit = visit(&url, queue, Visit::Look)
                    .await
                    .map_err(|error| error.to_string())?;
                while !visit
                    .next(most)
                    .await
                    .map_err(|error| error.to_string())?
                    .is_empty()
                {}
                visit.close().await.map_err(|error| error.to_string())?;
            }
        };
        // Between two visits there is nothing to cut.
        let is_cut = Arc::new(AtomicBool::new(false));
        let (cut, ends) = (Arc::clone(&broker), Arc::clone(&is_cut));
        let cut = tokio::task::spawn_blocking(move || {
            while !ends.load(Ordering::Relaxed) {
                cut.close_all_connections("test").unwrap();
            }
        });
        let ended: Result<(), String> = tokio::time::timeout(Duration::from_secs(60), going)
            .await
            .expect("it is cut off");
        assert!(ended.is_err());
        is_cut.store(true, Ordering::Relaxed);
        cut.await.unwrap();
    }
    // The queue takes back what was held in its own time.
    let all_there = async {
        loop {
            let there: BTreeSet<String> = payloads(&look(&broker, queue, 500).await).into_iter().collect();
            if there.len() == 300 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_there)
        .await
        .expect("all are there");
}

/// P1: who may not publish cannot put back, and takes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_put_letters_back_does_not_get_them() {
    let broker = start(Series::V3);
    let queue = "read-only";
    let client = Client::of(&broker).await;
    client.declare(queue, quorum(0)).await;
    client.publish(queue, 0..1).await;
    broker.ctl(&["add_user", "reader", "secret"]).unwrap();
    broker.ctl(&["set_permissions", "reader", "", "", ".*"]).unwrap();
    let url = broker.url().replace("guest:guest", "reader:secret");
    for _ in 0..3 {
        let Err(OpenError::Refused(why)) = visit(&url, queue, Visit::Look).await else {
            panic!("it is not refused");
        };
        assert!(
            why.contains("ACCESS_REFUSED")
                && why.contains(r"`amq\.default` in the pattern of its write permission"),
            "{why}"
        );
    }
    assert_eq!(payloads(&look(&broker, queue, 9).await), ["0"]);
}
