//! Connections, channels, queues and brokers that go away.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{OpenError, Outcome, Scope, Settlement};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::{Declare, Topology};

use crate::tools::{
    BROKER, Client, PLENTY, Reading, counts, filled, number, numbers, settings, start, tickets, until,
};

/// Reads and acknowledges until each of so many has been acknowledged.
async fn finish(reading: &mut Reading, missing: &mut BTreeSet<usize>) {
    while !missing.is_empty() {
        let messages = reading.read(PLENTY).await;
        reading.settle(&tickets(&messages), &Settlement::Ack).await;
        reading.flush().await;
        for (settle, outcome) in reading.outcomes.drain(..) {
            if outcome == Outcome::Sent
                && let Some((_, message)) = messages.iter().find(|(ticket, _)| *ticket == settle.ticket)
            {
                missing.remove(&number(message));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ack_never_reaches_another_generations_deliveries() {
    let broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "foreign";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..300).await;
    let mut settings = settings(&broker, queue);
    settings.prefetch = Some(100);
    let mut reading = Reading::open(settings).await;
    let messages = reading.take(100).await;
    let given = tickets(&messages);
    // Kept back behind the first.
    reading.settle(&given[1..41], &Settlement::Ack).await;
    assert!(reading.outcomes.is_empty());
    broker.close_all_connections("for the test").unwrap();
    let lost = Scope::Generation(given[0].generation);
    until("the loss is known", || reading.engine.lost() == [lost]).await;
    // Now the same tags are out again, in another generation.
    let again = reading.take(100).await;
    assert_eq!(numbers(&again), (0..100).collect::<Vec<_>>());
    assert_ne!(again[0].0.generation, given[0].generation);
    reading.settle(&given[..1], &Settlement::Ack).await;
    reading.settle(&given[41..], &Settlement::Ack).await;
    reading.flush().await;
    let mut stale: Vec<_> = reading
        .outcomes
        .drain(..)
        .map(|(settle, outcome)| {
            assert_eq!(outcome, Outcome::Stale);
            settle.ticket
        })
        .collect();
    stale.sort_by_key(|ticket| ticket.sequence);
    assert_eq!(stale, given, "each is answered once");
    assert_eq!(counts(&broker, queue), (200, 100, 1), "and none was acknowledged");
    let mut missing: BTreeSet<_> = (100..300).collect();
    reading.settle_now(&tickets(&again), &Settlement::Ack).await;
    finish(&mut reading, &mut missing).await;
    until("the queue is empty", || counts(&broker, queue) == (0, 0, 1)).await;
    let log = std::fs::read_to_string(broker.log_path()).unwrap();
    assert!(!log.contains("PRECONDITION_FAILED"), "{log}");
    assert_eq!(reading.engine.degraded(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_ahead_over_a_lost_connection_is_not_read() {
    let broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "ahead";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..100).await;
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let first = reading.read(PLENTY).await;
    until("all is underway", || counts(&broker, queue) == (0, 100, 1)).await;
    broker.close_all_connections("for the test").unwrap();
    until("the loss is known", || !reading.engine.lost().is_empty()).await;
    let again = reading.take(100).await;
    assert_eq!(numbers(&again), (0..100).collect::<Vec<_>>());
    assert!(
        again
            .iter()
            .all(|(ticket, _)| ticket.generation != first[0].0.generation)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_broker_loses_and_repeats_nothing_that_was_confirmed_and_settled() {
    let mut broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "killed";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..200).await;
    broker.flush_declarations().unwrap();
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let messages = reading.take(50).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    broker.kill();
    until("it is degraded", || reading.engine.degraded().is_some()).await;
    let broker = tokio::task::spawn_blocking(move || {
        broker.start_again().unwrap();
        broker
    })
    .await
    .unwrap();
    let mut missing: BTreeSet<_> = (50..200).collect();
    finish(&mut reading, &mut missing).await;
    assert_eq!(reading.engine.degraded(), None);
    drop(broker);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_deleted_is_declared_anew() {
    let queue = "deleted";
    let client = filled(queue, 3).await;
    let mut settings = settings(&BROKER, queue);
    settings.topology = Topology::new(queue).declare(Declare::default());
    let mut reading = Reading::open(settings).await;
    let first = reading.take(3).await;
    client.delete(queue).await;
    let consumed = || {
        let known = format!("rabbit_amqqueue:exists(rabbit_misc:r(<<\"/\">>,queue,<<\"{queue}\">>))");
        BROKER.eval(&known).unwrap() == "true" && counts(&BROKER, queue).2 == 1
    };
    until("it is consumed again", consumed).await;
    client.publish(queue, 10..12).await;
    let second = reading.take(2).await;
    assert_eq!(numbers(&second), [10, 11]);
    assert_eq!(
        second[0].0.generation, first[0].0.generation,
        "the channel lives on"
    );
    // The broker takes acks for what went with the queue.
    reading.settle_now(&tickets(&first), &Settlement::Ack).await;
    reading.settle_now(&tickets(&second), &Settlement::Ack).await;
    until("it is empty", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_nobody_declares_is_waited_for() {
    let queue = "waited-for";
    let client = filled(queue, 1).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let first = reading.take(1).await;
    client.delete(queue).await;
    until("it is degraded", || reading.engine.degraded().is_some()).await;
    let cause = reading.engine.degraded().unwrap();
    assert!(cause.contains("there is no queue `waited-for`"), "{cause}");
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 5..6).await;
    let second = reading.take(1).await;
    assert_eq!(numbers(&second), [5]);
    assert_ne!(second[0].0.generation, first[0].0.generation);
    assert_eq!(reading.engine.degraded(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_was_never_there_is_refused() {
    let refused = Reading::try_open(settings(&BROKER, "never-there")).await;
    let Err(OpenError::Refused(why)) = refused.map(drop) else {
        panic!("it is to be refused");
    };
    assert!(why.contains("there is no queue `never-there`"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_that_the_broker_closes_is_replaced_on_the_same_connection() {
    let broker = RabbitMq::builder(Series::V3)
        .consumer_timeout(Duration::from_secs(1))
        .start()
        .unwrap();
    let client = Client::of(&broker).await;
    let queue = "timeout";
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..2).await;
    let mut reading = Reading::open(settings(&broker, queue)).await;
    let first = reading.take(2).await;
    until("the loss is known", || !reading.engine.lost().is_empty()).await;
    assert_eq!(reading.engine.lost(), [Scope::Generation(first[0].0.generation)]);
    let again = reading.take(2).await;
    assert!(again.iter().all(|(_, message)| message.deliveries == 2));
    assert_eq!(broker.connections().unwrap(), 2, "the client's and the reader's");
    reading.settle(&tickets(&first), &Settlement::Ack).await;
    assert!(
        reading
            .outcomes
            .drain(..)
            .all(|(_, outcome)| outcome == Outcome::Stale)
    );
    reading.settle_now(&tickets(&again), &Settlement::Ack).await;
    until("the queue is empty", || counts(&broker, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loss_is_heard_of_while_nothing_is_wanted() {
    let broker = start(Series::V3);
    let client = Client::of(&broker).await;
    let queue = "idle";
    client.declare(queue, FieldTable::default()).await;
    let reading = Reading::open(settings(&broker, queue)).await;
    broker.close_all_connections("for the test").unwrap();
    until("the loss is known", || !reading.engine.lost().is_empty()).await;
    until("it is back", || reading.engine.degraded().is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_answered_for_is_settled_though_both_sides_go_at_once() {
    let queue = "answered-for";
    filled(queue, 1_000).await;
    for round in 1..=10 {
        let mut reading = Reading::open(settings(&BROKER, queue)).await;
        let taken = tickets(&reading.take(100).await);
        // Every other one, so that each takes an operation of its own.
        let acked: Vec<_> = taken.into_iter().step_by(2).collect();
        reading.settle_now(&acked, &Settlement::Ack).await;
        drop(reading);
        until("all others are back", || {
            counts(&BROKER, queue) == (1_000 - 50 * round, 0, 0)
        })
        .await;
    }
}

/// P8: what was so before the queue went is no word on what waits now.
#[tokio::test(flavor = "multi_thread")]
async fn a_depth_that_is_not_known_any_more_is_not_told() {
    let queue = "deep";
    let client = filled(queue, 7).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let first = reading.take(1).await;
    until("it is told", || reading.engine.depth().is_some()).await;
    client.delete(queue).await;
    until("it is not told any more", || reading.engine.depth().is_none()).await;
    client.declare(queue, FieldTable::default()).await;
    client.publish(queue, 0..3).await;
    until("it is told again", || reading.engine.depth().is_some()).await;
    drop(first);
}
