//! What the broker makes of settlements.

use std::time::Duration;

use millstream_core::{Outcome, Settlement, rt};
use millstream_rabbitmq::OnFailure;
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};

use crate::tools::{
    BROKER, Client, PLENTY, Reading, counts, filled, numbers, rejected, settings, tickets, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_and_acknowledged_is_gone() {
    let queue = "read-and-acknowledged";
    let _client = filled(queue, 1_000).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let messages = reading.take(1_000).await;
    assert_eq!(numbers(&messages), (0..1_000).collect::<Vec<_>>());
    assert!(messages.iter().all(|(_, message)| message.deliveries == 1));
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    until("the queue is empty", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn acks_in_any_order_are_each_answered_once_and_all_arrive() {
    let queue = "any-order";
    let _client = filled(queue, 500).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let mut given = tickets(&reading.take(500).await);
    fastrand::Rng::with_seed(7).shuffle(&mut given);
    for few in given.chunks(7) {
        reading.settle(few, &Settlement::Ack).await;
    }
    reading.flush().await;
    let mut answered: Vec<_> = reading
        .outcomes
        .iter()
        .map(|(settle, outcome)| {
            assert_eq!(*outcome, Outcome::Sent);
            settle.ticket
        })
        .collect();
    answered.sort_by_key(|ticket| ticket.sequence);
    given.sort_by_key(|ticket| ticket.sequence);
    assert_eq!(answered, given);
    until("the queue is empty", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_goes_to_the_dead_letter_exchange_and_a_release_back_to_the_queue() {
    let (queue, dead) = ("rejects", "rejects.dead");
    let client = Client::of(&BROKER).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert(
        "x-dead-letter-routing-key".into(),
        AMQPValue::LongString(dead.into()),
    );
    client.declare(dead, FieldTable::default()).await;
    client.declare(queue, arguments).await;
    client.publish(queue, 0..4).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let messages = reading.take(4).await;
    let given = tickets(&messages);
    // Around a reject and a release that are decided later, in one cumulative ack.
    reading.settle(&[given[3]], &Settlement::Ack).await;
    reading.settle(&[given[1]], &rejected()).await;
    reading.settle(&[given[2]], &Settlement::Release).await;
    reading.settle(&[given[0]], &Settlement::Ack).await;
    reading.flush().await;
    assert!(
        reading
            .outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Sent)
    );
    assert_eq!(reading.outcomes.len(), 4);
    let again = reading.take(1).await;
    assert_eq!(numbers(&again), [2]);
    assert_eq!(again[0].1.deliveries, 2);
    until("the rejected one is dead", || counts(&BROKER, dead).0 == 1).await;
    assert_eq!(counts(&BROKER, queue), (0, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reject_can_mean_to_try_once_more() {
    let queue = "once-more";
    let _client = filled(queue, 1).await;
    let mut settings = settings(&BROKER, queue);
    settings.on_failure = OnFailure::RequeueOnce;
    let mut reading = Reading::open(settings).await;
    for deliveries in [1, 2] {
        let messages = reading.take(1).await;
        assert_eq!(messages[0].1.deliveries, deliveries);
        reading.settle_now(&tickets(&messages), &rejected()).await;
    }
    until("it is gone", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_slow_message_does_not_starve_the_others() {
    let queue = "slow-head";
    let _client = filled(queue, 1_000).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(20);
    let mut reading = Reading::open(settings).await;
    let slow = reading.take(1).await;
    let mut others = 0;
    while others < 999 {
        let messages = reading.read(PLENTY).await;
        others += messages.len();
        // Nobody flushes: with settlements arriving all the time nothing would.
        reading.settle(&tickets(&messages), &Settlement::Ack).await;
    }
    reading.flush().await;
    until("all others are gone", || counts(&BROKER, queue) == (0, 1, 1)).await;
    reading.outcomes.clear();
    reading.settle_now(&tickets(&slow), &Settlement::Ack).await;
    until("it is gone too", || counts(&BROKER, queue) == (0, 0, 1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_settlement_for_one_delivery_is_stale_and_does_no_harm() {
    let queue = "twice";
    let _client = filled(queue, 3).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let messages = reading.take(2).await;
    let given = tickets(&messages);
    reading.settle_now(&given, &Settlement::Ack).await;
    reading.settle(&given, &Settlement::Ack).await;
    assert!(
        reading
            .outcomes
            .iter()
            .all(|(_, outcome)| *outcome == Outcome::Stale)
    );
    let last = reading.take(1).await;
    assert_eq!(
        last[0].0.generation, given[0].generation,
        "the channel is the same"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trickle_of_acks_does_not_wait_for_a_long_run() {
    let queue = "trickle";
    let _client = filled(queue, 100).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(1_000);
    let mut reading = Reading::open(settings).await;
    let mut given = Vec::new();
    while given.len() < 100 {
        given.extend(tickets(&reading.read(PLENTY).await));
    }
    // Often enough that nobody ever flushes.
    for ticket in &given[..50] {
        reading.settle(&[*ticket], &Settlement::Ack).await;
        rt::sleep(Duration::from_millis(2)).await;
    }
    assert!(reading.outcomes.len() > 25, "{}", reading.outcomes.len());
    // And behind one that is slow.
    for ticket in &given[51..] {
        reading.settle(&[*ticket], &Settlement::Ack).await;
        rt::sleep(Duration::from_millis(4)).await;
    }
    assert!(reading.outcomes.len() > 60, "{}", reading.outcomes.len());
}
