//! How much the broker sends ahead, and when.

use std::time::Duration;

use millstream_core::{Chunk, Credit, Settlement, Source, rt};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};

use crate::tools::{BROKER, Client, PLENTY, Reading, counts, filled, numbers, settings, tickets, until};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_before_there_is_demand() {
    let queue = "no-demand";
    let _client = filled(queue, 10).await;
    let reading = Reading::open(settings(&BROKER, queue)).await;
    until("the depth is known", || reading.engine.depth() == Some(10)).await;
    assert_eq!(counts(&BROKER, queue), (10, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_prefetch_is_never_exceeded() {
    let queue = "prefetch";
    let _client = filled(queue, 500).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(37);
    settings.connections = 3;
    let mut reading = Reading::open(settings).await;
    let mut read = 0;
    while read < 500 {
        let messages = reading.read(PLENTY).await;
        read += messages.len();
        assert!(counts(&BROKER, queue).1 <= 37);
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    assert_eq!(read, 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_setting_no_more_is_underway_than_there_was_credit_for() {
    let queue = "credit";
    let _client = filled(queue, 100).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let credit = Credit {
        messages: 10,
        ..PLENTY
    };
    let messages = reading.read(credit).await;
    until("ten are underway", || counts(&BROKER, queue) == (90, 10, 1)).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    until("ten are underway again", || {
        counts(&BROKER, queue) == (90 - messages.len(), 10, 1)
    })
    .await;
}

/// With 2,000 at most, four thousand workers of which half had slow messages left the rest of the queue to nobody.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_setting_as_much_is_sent_ahead_as_can_be_worked_on() {
    for kind in ["classic", "quorum"] {
        let queue = format!("capacity-{kind}");
        let client = Client::of(&BROKER).await;
        let mut arguments = FieldTable::default();
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        client.declare(&queue, arguments).await;
        client.publish(&queue, 0..3_000).await;
        let mut reading = Reading::open(settings(&BROKER, &queue)).await;
        reading.engine.has_capacity(3_000);
        let mut held = 0;
        while held < 3_000 {
            let credit = Credit {
                messages: 10_000 - held,
                ..PLENTY
            };
            // Not one of them is settled.
            held += reading.read(credit).await.len();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_is_not_refilled_by_acks() {
    let queue = "pause";
    let _client = filled(queue, 500).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(50);
    let mut reading = Reading::open(settings).await;
    let messages = reading.read(PLENTY).await;
    until("the prefetch is used up", || {
        counts(&BROKER, queue) == (450, 50, 1)
    })
    .await;
    reading.source.pause();
    until("nobody consumes", || counts(&BROKER, queue) == (450, 50, 0)).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    let unread = 50 - messages.len();
    until("the acks have arrived", || {
        counts(&BROKER, queue) == (450, unread, 0)
    })
    .await;
    // What was here already comes first, then what is fetched anew.
    let mut next = messages.len();
    while next < 500 {
        let messages = reading.read(PLENTY).await;
        assert_eq!(
            numbers(&messages),
            (next..next + messages.len()).collect::<Vec<_>>()
        );
        next += messages.len();
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn p4_pause_after_pause_brings_no_more_than_one_prefetch() {
    let queue = "pauses";
    let _client = filled(queue, 1_000).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(50);
    let mut reading = Reading::open(settings).await;
    let few = Credit {
        messages: 10,
        ..PLENTY
    };
    let first = reading.read(PLENTY).await;
    until("the prefetch is used up", || counts(&BROKER, queue).1 == 50).await;
    reading.settle_now(&tickets(&first), &Settlement::Ack).await;
    for _ in 0..8 {
        reading.source.pause();
        until("nobody consumes", || counts(&BROKER, queue).2 == 0).await;
        let messages = reading.read(few).await;
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
        // Ten were never settled.
        until("no more is underway than a prefetch", || {
            counts(&BROKER, queue).1 <= 60
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_after_a_pause_fetches_one_message() {
    let queue = "probe";
    let _client = filled(queue, 100).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let messages = reading.take(100).await;
    reading.source.pause();
    until("nobody consumes", || counts(&BROKER, queue) == (0, 100, 0)).await;
    reading
        .settle_now(&tickets(&messages), &Settlement::Release)
        .await;
    let probe = Credit {
        messages: 1,
        ..PLENTY
    };
    let messages = reading.read(probe).await;
    until("one is underway", || counts(&BROKER, queue) == (99, 1, 1)).await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    assert_eq!(reading.take(99).await.len(), 99);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_ends_with_the_message_that_exceeds_the_bytes() {
    let queue = "bytes";
    let _client = filled(queue, 10).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    for _ in 0..10 {
        let credit = Credit { bytes: 1, ..PLENTY };
        assert_eq!(reading.read(credit).await.len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_read_loses_nothing() {
    let queue = "dropped-read";
    let client = filled(queue, 0).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let publishing = rt::spawn(async move { client.publish(queue, 0..500).await });
    let mut read = Vec::new();
    while read.len() < 500 {
        let mut chunk = Chunk::new();
        // Dropped over and over while messages arrive.
        let reads = reading.source.read(PLENTY, &mut chunk);
        tokio::time::timeout(Duration::from_micros(200), reads).await.ok();
        read.extend(chunk.drain());
    }
    publishing.await.unwrap();
    assert_eq!(numbers(&read), (0..500).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_connections_share_the_queue() {
    let queue = "connections";
    let _client = filled(queue, 300).await;
    let mut settings = settings(&BROKER, queue);
    settings.connections = 3;
    settings.prefetch = Some(90);
    let mut reading = Reading::open(settings).await;
    let first = reading.read(PLENTY).await;
    until("all three consume", || counts(&BROKER, queue).2 == 3).await;
    reading.settle_now(&tickets(&first), &Settlement::Ack).await;
    let mut generations = std::collections::BTreeSet::new();
    let mut read = first.len();
    while read < 300 {
        let messages = reading.read(PLENTY).await;
        read += messages.len();
        generations.extend(messages.iter().map(|(ticket, _)| ticket.generation));
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    assert_eq!(generations.len(), 3, "each has a generation of its own");
    until("the queue is empty", || counts(&BROKER, queue) == (0, 0, 3)).await;
}

/// A prefetch below the number of connections left all but the first without anything to do.
#[tokio::test(flavor = "multi_thread")]
async fn each_connection_reads_however_small_the_prefetch() {
    let queue = "few-for-many";
    let _client = filled(queue, 30).await;
    let mut settings = settings(&BROKER, queue);
    settings.connections = 3;
    settings.prefetch = Some(1);
    let mut reading = Reading::open(settings).await;
    let mut generations = std::collections::BTreeSet::new();
    let mut read = 0;
    while read < 30 {
        let messages = reading.read(PLENTY).await;
        read += messages.len();
        generations.extend(messages.iter().map(|(ticket, _)| ticket.generation));
        until("all three consume", || counts(&BROKER, queue).2 == 3).await;
        assert!(counts(&BROKER, queue).1 <= 3, "one at a time for each");
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
    assert_eq!(generations.len(), 3);
}

/// P4: what there is room for is less than that.
#[tokio::test(flavor = "multi_thread")]
async fn p4_connections_without_room_for_a_message_each_stay_within_it() {
    let queue = "one-for-many";
    let _client = filled(queue, 10).await;
    let mut settings = settings(&BROKER, queue);
    settings.connections = 3;
    settings.prefetch = Some(1);
    let mut reading = Reading::open(settings).await;
    for _ in 0..10 {
        let messages = reading.take(1).await;
        assert!(counts(&BROKER, queue).1 <= 1);
        reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_leaves_nothing_unacknowledged() {
    let queue = "drain";
    let _client = filled(queue, 200).await;
    let mut settings = settings(&BROKER, queue);
    settings.prefetch = Some(100);
    let mut reading = Reading::open(settings).await;
    let messages = reading.read(PLENTY).await;
    until("the prefetch is used up", || counts(&BROKER, queue).1 == 100).await;
    reading.drain().await;
    reading.settle_now(&tickets(&messages), &Settlement::Ack).await;
    let left = 200 - messages.len();
    until("nothing is underway", || counts(&BROKER, queue) == (left, 0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_says_goodbye_and_leaves_everything_to_the_broker() {
    let queue = "goodbye";
    let _client = filled(queue, 20).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    reading.take(20).await;
    drop(reading);
    until("all is back", || counts(&BROKER, queue) == (20, 0, 0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn large_messages_are_sent_ahead_as_far_as_there_is_room_for_their_bytes() {
    let queue = "large";
    let client = filled(queue, 0).await;
    client.publish_large(queue, 200, 64 << 10).await;
    let mut reading = Reading::open(settings(&BROKER, queue)).await;
    let credit = Credit {
        messages: 1_000,
        bytes: 1 << 20,
    };
    let first = reading.read(credit).await;
    assert!(counts(&BROKER, queue).1 <= 100, "their size is not known yet");
    let mut given = tickets(&first);
    while counts(&BROKER, queue).0 > 50 {
        reading.settle_now(&given, &Settlement::Ack).await;
        given = tickets(&reading.read(credit).await);
    }
    let underway = counts(&BROKER, queue).1;
    assert!(
        underway <= 16,
        "1 MiB in pieces of 64 KiB, not {underway} of them"
    );
}
