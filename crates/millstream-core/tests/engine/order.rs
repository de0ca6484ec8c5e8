//! P3: the messages of one key, one at a time and in source order, through the processor and into batches.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{BatcherSpec, Capabilities, Flow, Ordering};

use crate::support::{Event, Log, Rig, Scripted, ScriptedBatches, What, keyed, non_zero, scripted, until};

/// A queue that says it keeps keys in order.
fn ordering_queue() -> MemoryQueue {
    MemoryQueue::with_capabilities(Capabilities {
        delay: true,
        keeps_rejected: true,
        counts_deliveries: true,
        orders_keys: true,
        ..Capabilities::default()
    })
}

/// The order in which the messages of each key ended, first completions only.
fn by_key(events: &[Event]) -> HashMap<String, Vec<String>> {
    let mut ended: HashMap<String, Vec<String>> = HashMap::new();
    for event in events.iter().filter(|event| event.what == What::Ended) {
        let of_key = ended.entry(event.key.clone().unwrap_or_default()).or_default();
        if !of_key.contains(&event.payload) {
            of_key.push(event.payload.clone());
        }
    }
    ended
}

/// Fails if two messages of one key ever ran at the same time.
fn assert_never_overlapped(events: &[Event]) {
    let mut running: HashMap<Option<String>, usize> = HashMap::new();
    for event in events {
        let of_key = running.entry(event.key.clone()).or_default();
        match event.what {
            What::Began => *of_key += 1,
            What::Ended => *of_key -= 1,
        }
        assert!(
            *of_key <= 1,
            "two messages of {:?} ran at the same time",
            event.key
        );
    }
}

fn assert_in_order(log: &Log, keys: usize, per_key: usize) {
    let ended = by_key(&log.events());
    assert_eq!(ended.len(), keys);
    for (key, payloads) in ended {
        let numbers: Vec<usize> = payloads
            .iter()
            .map(|payload| payload.rsplit('#').next().unwrap().parse().unwrap())
            .collect();
        assert_eq!(numbers, (0..per_key).collect::<Vec<_>>(), "key {key}");
    }
}

#[tokio::test(start_paused = true)]
async fn p3_messages_of_a_key_run_one_at_a_time_and_in_order() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.ordering = Ordering::Key);
    for number in 0..50 {
        for key in 0..20 {
            let pause = (number * 7 + key * 3) % 5;
            rig.queue
                .publish(keyed(&format!("k{key}"), &format!("sleep={pause} #{number}")));
        }
    }
    rig.settled().await;
    assert_never_overlapped(&log.events());
    assert_in_order(&log, 20, 50);
}

#[tokio::test(start_paused = true)]
async fn p3_a_retry_holds_what_follows_it_and_nothing_else() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.retry.backoff = Duration::from_secs(10);
    });
    rig.publish_keyed(&[("a", "fail-once #0"), ("a", "#1"), ("b", "#0"), ("b", "#1")]);
    until(|| log.ended().len() == 2).await;
    assert!(
        log.events()
            .iter()
            .all(|event| event.what == What::Began || event.key.as_deref() == Some("b"))
    );
    rig.settled().await;
    assert_eq!(by_key(&log.events())["a"], ["fail-once #0", "#1"]);
}

#[tokio::test(start_paused = true)]
async fn p3_a_rejected_message_lets_its_key_go_on() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.ordering = Ordering::Key);
    rig.publish_keyed(&[("a", "reject"), ("a", "panic"), ("a", "ok")]);
    rig.settled().await;
    assert_eq!(log.ended(), ["ok"]);
}

#[tokio::test(start_paused = true)]
async fn p3_order_by_a_header_or_by_the_place_of_origin() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.ordering = Ordering::by_header("account"));
    for number in 0..10 {
        rig.queue.publish(
            millstream_core::Message::new(format!("sleep={} #{number}", 10 - number))
                .with_header("account", "7"),
        );
    }
    rig.settled().await;
    assert_in_order(&log, 1, 10);

    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.ordering = Ordering::Partition);
    for number in 0..10 {
        rig.queue.publish(keyed(
            &format!("k{number}"),
            &format!("sleep={} #{number}", 10 - number),
        ));
    }
    rig.settled().await;
    let ended: Vec<_> = log.ended();
    assert_eq!(ended.len(), 10);
    assert!(
        ended
            .iter()
            .enumerate()
            .all(|(number, payload)| payload.ends_with(&format!("#{number}")))
    );
}

#[tokio::test(start_paused = true)]
async fn p3_messages_without_a_key_are_unordered_and_do_not_wait() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.ordering = Ordering::Key);
    rig.publish(&["sleep=1000 slow", "fast"]);
    until(|| log.ended() == ["fast"]).await;
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p3_batches_that_share_a_key_never_run_at_the_same_time() {
    let batches = ScriptedBatches::default();
    let (log, seen, overlaps) = {
        let processor = Scripted::default();
        (
            processor.log.clone(),
            Arc::clone(&batches.seen),
            Arc::clone(&batches.overlaps),
        )
    };
    let processor = Scripted {
        log,
        ..Scripted::default()
    };
    let rig = Rig::start(Flow::process(processor).batch("out", batches), |spec| {
        spec.ordering = Ordering::Key;
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(3),
                concurrency: non_zero(4),
                ..BatcherSpec::default()
            },
        );
    });
    for number in 0..60 {
        let key = format!("k{}", number % 5);
        let fate = if number % 11 == 0 {
            "item-fail-once"
        } else {
            "batch-sleep=7"
        };
        rig.queue.publish(keyed(&key, &format!("{key} {fate} #{number}")));
    }
    rig.settled().await;
    assert_eq!(overlaps.load(SeqCst), 0);
    // Successes of each key, in the order in which they happened.
    let mut last: HashMap<String, usize> = HashMap::new();
    for batch in seen.lock().iter() {
        for item in &batch.items {
            let failed = item.contains("item-fail-once") && batch.attempt == 1;
            let key = item.split_whitespace().next().unwrap().to_owned();
            let number: usize = item.rsplit('#').next().unwrap().parse().unwrap();
            if !failed && batch.attempt == 1 || batch.attempt > 1 {
                let before = last.insert(key.clone(), number);
                assert!(
                    before.is_none_or(|before| before <= number || batch.attempt > 1),
                    "{key}: {before:?} {number}"
                );
            }
        }
    }
    assert_eq!(last.len(), 5);
}

#[tokio::test(start_paused = true)]
async fn p3_later_items_of_a_retried_items_key_are_retried_with_it_and_later_batches_wait() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.ordering = Ordering::Key;
        spec.processor.concurrency = non_zero(1);
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(7),
                ..BatcherSpec::default()
            },
        );
        spec.retry.backoff = Duration::from_secs(10);
    });
    rig.publish_keyed(&[
        ("a", "a item-fail-once #0"),
        ("b", "b #0"),
        ("c", "c #0"),
        ("d", "d #0"),
        ("e", "e #0"),
        ("a", "a #1"),
        ("b", "b #1"),
        ("c", "c #1"),
        ("a", "a #2"),
    ]);
    rig.settled().await;
    let items: Vec<_> = seen.lock().iter().map(|batch| batch.items.clone()).collect();
    assert_eq!(
        items,
        [
            vec![
                "a item-fail-once #0",
                "b #0",
                "c #0",
                "d #0",
                "e #0",
                "a #1",
                "b #1"
            ],
            vec!["c #1"],
            vec!["a item-fail-once #0", "a #1"],
            vec!["a #2"],
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn p5_a_long_lane_makes_intake_wait_where_the_store_cannot_keep_its_tail() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(5);
    });
    for number in 0..20 {
        rig.queue.publish(keyed("hot", &format!("sleep=100 #{number}")));
    }
    until(|| log.len() > 0).await;
    assert!(rig.pipeline().status().waiting <= 5);
    rig.settled().await;
    assert_in_order(&log, 1, 20);
}

#[tokio::test(start_paused = true)]
async fn p5_a_long_lane_goes_back_to_a_store_that_keeps_keys_in_order() {
    let queue = ordering_queue();
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(5);
        spec.limits.in_flight = non_zero(12);
    });
    for number in 0..20 {
        rig.queue.publish(keyed("hot", &format!("sleep=10000 #{number}")));
    }
    rig.queue.publish(keyed("cold", "cold"));
    // The tail of the hot key leaves its places to the cold one.
    until(|| log.ended() == ["cold"]).await;
    assert!(rig.pipeline().status().counts.returned > 0);
}

/// The store knows the order of its own keys alone.
#[tokio::test(start_paused = true)]
async fn p3_a_long_lane_of_anything_but_the_stores_keys_does_not_go_back() {
    for ordering in [Ordering::by_header("tenant"), Ordering::Partition] {
        let (log, flow) = scripted();
        let rig = Rig::on(ordering_queue(), flow, |spec| {
            spec.ordering = ordering;
            spec.limits.per_key = non_zero(5);
        });
        for number in 0..20 {
            let message = millstream_core::Message::new(format!("sleep=100 #{number}"));
            rig.queue.publish(message.with_header("tenant", "acme"));
        }
        rig.settled().await;
        assert_in_order(&log, 1, 20);
        assert_eq!(rig.pipeline().status().counts.returned, 0);
    }
}

/// The store may hand out more of the key until it knows, and by then the lane may have room.
#[tokio::test(start_paused = true)]
async fn p3_nothing_is_read_while_the_tail_of_a_long_lane_is_on_its_way_back() {
    let queue = ordering_queue();
    let (log, flow) = scripted();
    for number in 0..3 {
        queue.publish(keyed("hot", &format!("#{number}")));
    }
    queue.fail_settlements(usize::MAX);
    let rig = Rig::on(queue, flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(2);
    });
    until(|| log.ended() == ["#0", "#1"]).await;
    rig.queue.publish(keyed("hot", "#3"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(rig.pipeline().status().counts.received, 3);
    assert_eq!(log.ended(), ["#0", "#1"]);
    rig.queue.fail_settlements(0);
    rig.settled().await;
    assert_eq!(log.ended().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_empties_into_a_batch_lets_intake_go_on() {
    let flow = Flow::process(Scripted::default()).batch("out", ScriptedBatches::default());
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Partition;
        spec.limits.per_key = non_zero(10);
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(500),
                max_age: Duration::from_secs(3_600),
                ..BatcherSpec::default()
            },
        );
    });
    let started = tokio::time::Instant::now();
    rig.publish(&["a"; 1_000]);
    rig.settled().await;
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
}
