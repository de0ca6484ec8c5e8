//! Sequences: what comes behind a gap in the numbers of its key is held, reported or given up.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Capabilities, DeduplicateSpec, Host, IdBy, Message, OnGap, OrderBy, Ordering, PipelineSpec, Reason,
    SequenceSpec,
};

use crate::support::{Log, Rig, non_zero, scripted, until};

fn header(name: &str) -> OrderBy {
    let Ordering::By(by) = Ordering::by_header(name) else {
        unreachable!()
    };
    by
}

fn numbered(key: &str, number: u64) -> Message {
    Message::new(format!("{key}{number}"))
        .with_key(key.to_owned())
        .with_header("seq", &number.to_string())
}

fn rig(on_gap: OnGap, set: impl FnOnce(&mut PipelineSpec)) -> (Log, Rig) {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.sequence = Some(SequenceSpec {
            on_gap,
            ..SequenceSpec::new(header("seq"))
        });
        set(spec);
    });
    (log, rig)
}

impl Rig {
    fn publish_numbers(&self, key: &str, numbers: &[u64]) {
        self.queue
            .publish_all(numbers.iter().map(|number| numbered(key, *number)));
    }
}

fn of(log: &Log, key: &str) -> Vec<String> {
    log.ended()
        .into_iter()
        .filter(|payload| payload.starts_with(key))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_a_gap_is_held_until_the_gap_is_filled() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish_numbers("a", &[7, 10, 9]);
    rig.publish_numbers("b", &[1, 2]);
    until(|| log.ended().len() == 3).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let status = rig.pipeline().status();
    assert_eq!((status.held, status.in_flight), (2, 2));
    assert_eq!(of(&log, "b"), ["b1", "b2"], "other keys go on");
    rig.publish_numbers("a", &[8, 11]);
    rig.settled().await;
    assert_eq!(of(&log, "a"), ["a7", "a8", "a9", "a10", "a11"]);
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.sequence_gaps, counts.sequence_held), (0, 2));
}

/// P2, P8: what is held is neither lost nor stuck, however long it waits.
#[tokio::test(start_paused = true)]
async fn what_is_held_for_long_is_no_leak_and_no_stall() {
    let (log, rig) = rig(OnGap::Hold, |spec| {
        if let Some(sequence) = &mut spec.sequence {
            sequence.wait = Duration::from_secs(200);
        }
    });
    rig.publish_numbers("a", &[1, 3]);
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a3"]);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_waited_for_and_then_done_without() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    let started = tokio::time::Instant::now();
    rig.publish_numbers("a", &[1, 3, 4, 6]);
    until(|| log.ended().len() == 3).await;
    assert!(started.elapsed() >= SequenceSpec::WAIT);
    assert_eq!(log.ended(), ["a1", "a3", "a4"]);
    rig.settled().await;
    assert!(
        started.elapsed() >= SequenceSpec::WAIT * 2,
        "the next gap has a time of its own"
    );
    rig.publish_numbers("a", &[2, 7]);
    rig.settled().await;
    assert_eq!(
        log.ended(),
        ["a1", "a3", "a4", "a6", "a2", "a7"],
        "what was missing runs when it comes"
    );
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.sequence_gaps, counts.sequence_repeats), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_is_filled_in_part_waits_anew() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish_numbers("a", &[1, 4]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    rig.publish_numbers("a", &[2]);
    tokio::time::sleep(Duration::from_secs(20)).await;
    rig.publish_numbers("a", &[3]);
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a2", "a3", "a4"]);
    assert_eq!(rig.pipeline().status().counts.sequence_gaps, 0);
}

#[tokio::test(start_paused = true)]
async fn a_gap_that_is_only_reported_holds_nothing() {
    let (log, rig) = rig(OnGap::Report, |_| {});
    rig.publish_numbers("a", &[1, 3, 4, 2, 4, 5]);
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a3", "a4", "a2", "a4", "a5"]);
    let counts = rig.pipeline().status().counts;
    assert_eq!(
        (
            counts.sequence_gaps,
            counts.sequence_repeats,
            counts.sequence_held
        ),
        (1, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn what_comes_behind_a_gap_is_given_up_until_the_gap_is_filled() {
    let (log, rig) = rig(OnGap::DeadLetter, |_| {});
    rig.publish_numbers("a", &[1, 3, 4]);
    rig.settled().await;
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 2);
    for (_, rejection) in &dead {
        assert_eq!(rejection.reason, Reason::Gap);
        assert_eq!(
            rejection.error,
            "the message with the number 2 is missing before it"
        );
    }
    let started = tokio::time::Instant::now();
    rig.publish_numbers("a", &[5]);
    rig.settled().await;
    assert_eq!(rig.queue.dead().len(), 3);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "it was waited for once"
    );
    // What was given up comes again, in order, with what was missing.
    rig.publish_numbers("a", &[2, 3, 4, 5]);
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a2", "a3", "a4", "a5"]);
    assert_eq!(rig.pipeline().status().counts.sequence_gaps, 1);
}

/// P4: what is held is bounded, and nothing is dropped for it.
#[tokio::test(start_paused = true)]
async fn p4_a_gap_is_given_up_when_too_much_is_held() {
    let (log, rig) = rig(OnGap::Hold, |spec| {
        if let Some(sequence) = &mut spec.sequence {
            sequence.held = non_zero(3);
        }
    });
    let started = tokio::time::Instant::now();
    rig.publish_numbers("a", &[1, 3, 4]);
    rig.publish_numbers("b", &[1, 3]);
    until(|| rig.pipeline().status().held == 3).await;
    rig.publish_numbers("a", &[5]);
    until(|| of(&log, "a").len() == 4).await;
    rig.publish_numbers("c", &[1, 3, 4, 7]);
    until(|| rig.pipeline().status().held == 2).await;
    assert_eq!(of(&log, "a"), ["a1", "a3", "a4", "a5"]);
    assert!(started.elapsed() < Duration::from_secs(1));
    rig.settled().await;
    assert_eq!(of(&log, "c"), ["c1", "c3", "c4", "c7"]);
}

#[tokio::test(start_paused = true)]
async fn messages_without_a_number_or_a_key_pass() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish(&["no key"]);
    rig.publish_keyed(&[("a", "no number")]);
    rig.queue.publish(
        Message::new("no digits")
            .with_key("a")
            .with_header("seq", "first"),
    );
    rig.settled().await;
    assert_eq!(log.ended().len(), 3);
    assert_eq!(rig.pipeline().status().counts.unnumbered, 3);
}

/// P6: what is held goes back as soon as a drain begins.
#[tokio::test(start_paused = true)]
async fn p6_a_drain_gives_back_what_is_held() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish_numbers("a", &[1, 3, 4]);
    until(|| rig.pipeline().status().held == 2).await;
    let report = rig.pipeline().drain(Duration::from_secs(30)).await;
    assert_eq!((report.released, report.left), (2, 0), "{report}");
    assert!(report.took < Duration::from_secs(1));
    assert_eq!((rig.queue.leased(), log.len()), (0, 2));
}

/// P2: what is held dies with its connection, and what comes then begins anew.
#[tokio::test(start_paused = true)]
async fn what_is_held_is_lost_with_its_connection() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish_numbers("a", &[1, 3]);
    until(|| rig.pipeline().status().held == 1).await;
    rig.queue.break_connection();
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a3"]);
    let status = rig.pipeline().status();
    assert_eq!((status.held, status.counts.sequence_gaps), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_leaves_no_gap() {
    let (log, rig) = rig(OnGap::Hold, |spec| {
        spec.deduplicate = Some(DeduplicateSpec {
            by: IdBy::By(header("id")),
            ..DeduplicateSpec::new()
        });
    });
    rig.queue.publish(numbered("b", 1).with_header("id", "x"));
    rig.settled().await;
    rig.queue.publish_all([
        numbered("a", 1),
        numbered("a", 3),
        numbered("a", 2).with_header("id", "x"),
    ]);
    rig.settled().await;
    assert_eq!(log.ended(), ["b1", "a1", "a3"]);
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.sequence_gaps, counts.duplicates), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_delivered_too_often_leaves_no_gap() {
    let (log, rig) = rig(OnGap::Hold, |_| {});
    rig.publish_numbers("a", &[1]);
    rig.settled().await;
    let deadly = Message {
        deliveries: 17,
        ..numbered("a", 2)
    };
    rig.queue.publish(deadly);
    rig.settled().await;
    let suspect = Message {
        deliveries: 5,
        ..numbered("a", 3)
    };
    rig.queue.publish(suspect);
    rig.settled().await;
    rig.publish_numbers("a", &[4]);
    rig.settled().await;
    assert_eq!(log.ended(), ["a1", "a3", "a4"]);
    assert_eq!(rig.pipeline().status().counts.sequence_held, 0);
}

/// P3: however messages of a key are mixed up within the bound, they run in the order of their numbers.
#[tokio::test(start_paused = true)]
async fn p3_what_is_mixed_up_runs_in_the_order_of_its_numbers() {
    let (log, rig) = rig(OnGap::Hold, |spec| spec.limits.per_key = non_zero(3));
    let mut drawn = 11_u32;
    let mut draw = |below: usize| {
        drawn = drawn.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        (drawn >> 16) as usize % below
    };
    let mut messages = Vec::new();
    for block in 0..40 {
        let mut numbers: Vec<(usize, u64)> = (0..5)
            .flat_map(|key| (1..=10).map(move |number| (key, block * 10 + number)))
            .collect();
        // Each key begins with its first.
        let from = if block == 0 { 5 } else { 0 };
        numbers.sort_by_key(|(_, number)| *number);
        for index in (from + 1..numbers.len()).rev() {
            numbers.swap(index, from + draw(index + 1 - from));
        }
        messages.extend(numbers);
    }
    for (key, number) in messages {
        rig.queue.publish(numbered(&format!("k{key}_"), number));
    }
    rig.settled().await;
    for key in 0..5 {
        let key = format!("k{key}_");
        let expected: Vec<_> = (1..=400).map(|number| format!("{key}{number}")).collect();
        assert_eq!(of(&log, &key), expected);
    }
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.sequence_gaps, counts.sequence_repeats), (0, 0));
    rig.assert_sound();
}

#[test]
fn a_sequence_needs_keys_and_room() {
    let start = |set: &dyn Fn(&mut PipelineSpec)| {
        let (_, flow) = scripted();
        let mut spec = PipelineSpec::new("test", std::sync::Arc::new(MemoryQueue::new()), flow);
        spec.ordering = Ordering::Key;
        spec.sequence = Some(SequenceSpec::new(header("seq")));
        set(&mut spec);
        millstream_core::Host::start([spec]).unwrap_err().to_string()
    };
    let error = start(&|spec| spec.ordering = Ordering::Partition);
    assert!(error.contains("order by key"), "{error}");
    let error = start(&|spec| spec.limits.in_flight = non_zero(1_000));
    assert!(error.contains("hold fewer"), "{error}");
}

/// P8: where each delivery is a new beginning no gap would ever be found, and a pipeline says so before it starts.
#[tokio::test(start_paused = true)]
async fn a_source_that_leases_each_message_by_itself_is_refused() {
    let start = |leases_singly| {
        let queue = MemoryQueue::with_capabilities(Capabilities {
            keeps_rejected: true,
            leases_singly,
            ..Capabilities::default()
        });
        let (_, flow) = scripted();
        let mut spec = PipelineSpec::new("test", Arc::new(queue), flow);
        spec.ordering = Ordering::Key;
        spec.sequence = Some(SequenceSpec::new(header("seq")));
        Host::start([spec]).map(drop)
    };
    let error = start(true).unwrap_err().to_string();
    assert!(error.contains("would find no gap"), "{error}");
    start(false).unwrap();
}
