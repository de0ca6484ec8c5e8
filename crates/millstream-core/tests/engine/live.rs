//! Settings that somebody changes while a pipeline runs, beside a spec that is applied to it: each key is the last one's that
//! had something new to say of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BatcherSpec, BreakerSpec, BreakerState, Change, Flow, PipelineSpec, RateLimit, SequenceSpec,
};

use crate::support::{Rig, Scripted, ScriptedBatches, non_zero, scripted, until};

fn keys(changes: Vec<Change>) -> Vec<String> {
    changes.into_iter().map(|change| change.key).collect()
}

/// Applies what this makes of the settings that a rig begins with.
fn apply(rig: &Rig, set: impl FnOnce(&mut PipelineSpec)) -> Vec<String> {
    let mut spec = PipelineSpec::new("test", Arc::new(MemoryQueue::new()), scripted().1);
    spec.retry.jitter = false;
    set(&mut spec);
    keys(rig.pipeline().apply(&spec).unwrap())
}

fn change(rig: &Rig, set: impl FnOnce(&mut PipelineSpec)) -> Vec<String> {
    keys(rig.pipeline().change(set).unwrap())
}

fn attempts(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

#[tokio::test(start_paused = true)]
async fn retries_that_were_changed_stay_while_the_spec_says_the_same_of_them() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    let changed = change(&rig, |spec| {
        spec.retry.attempts = attempts(2);
        spec.retry.backoff = Duration::from_millis(7);
    });
    assert_eq!(changed, ["retry.attempts", "retry.backoff"]);
    assert_eq!(apply(&rig, |spec| spec.limits.in_flight = non_zero(50)).len(), 1);
    rig.publish(&["fail"]);
    until(|| rig.queue.dead().len() == 1).await;
    assert_eq!(log.len(), 2, "two attempts, as was said");
    // The spec has something new to say of one of them.
    apply(&rig, |spec| {
        spec.limits.in_flight = non_zero(50);
        spec.retry.attempts = attempts(3);
        spec.retry.max_backoff = Duration::from_secs(1);
    });
    let began = tokio::time::Instant::now();
    rig.publish(&["fail"]);
    until(|| rig.queue.dead().len() == 2).await;
    assert_eq!(log.len(), 5);
    let took = began.elapsed().as_millis();
    assert!((21..50).contains(&took), "7 ms and twice that: {took}");
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_was_changed_stays_while_the_spec_says_the_same_of_it() {
    let limit = RateLimit {
        messages: NonZeroU32::MIN,
        per: Duration::from_secs(3_600),
        burst: NonZeroU32::MIN,
        key: None,
        weights: std::collections::BTreeMap::new(),
    };
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.rate_limit = Some(limit.clone()));
    assert_eq!(change(&rig, |spec| spec.rate_limit = None), ["rate_limit"]);
    apply(&rig, |spec| {
        spec.rate_limit = Some(limit.clone());
        spec.limits.in_flight = non_zero(50);
    });
    rig.publish(&["ok"; 100]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(log.ended().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_was_changed_stays_while_the_spec_says_the_same_of_it() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    let breaker = BreakerSpec {
        minimum: NonZeroU32::MIN,
        ..BreakerSpec::default()
    };
    change(&rig, |spec| spec.breaker = Some(breaker));
    apply(&rig, |spec| spec.limits.in_flight = non_zero(50));
    rig.publish(&["fail"]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
}

#[tokio::test(start_paused = true)]
async fn limits_and_batchers_change_as_policies_do_and_stay_as_they_do() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let flow = || Flow::process(Scripted::default()).batch("db", ScriptedBatches::default());
    let rig = Rig::start(Flow::process(Scripted::default()).batch("db", batches), |_| {});
    let changed = change(&rig, |spec| {
        spec.batchers.entry("db".to_owned()).or_default().size = non_zero(3);
        spec.limits.in_flight = non_zero(9);
    });
    assert_eq!(changed, ["limits.in_flight", "batchers.db.size"]);
    let mut spec = PipelineSpec::new("test", Arc::new(MemoryQueue::new()), flow());
    let batcher = BatcherSpec {
        max_age: Duration::from_secs(5),
        ..BatcherSpec::default()
    };
    spec.batchers.insert("db".to_owned(), batcher);
    spec.retry.jitter = false;
    assert_eq!(
        keys(rig.pipeline().apply(&spec).unwrap()),
        ["batchers.db.max_age"]
    );
    rig.publish(&["a batch-sleep=1000"; 30]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(rig.pipeline().status().in_flight, 9);
    assert_eq!(seen.lock()[0].items.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_ends_with_the_run_and_what_was_applied_does_not() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    change(&rig, |spec| {
        spec.processor.concurrency = non_zero(2);
        spec.limits.in_flight = non_zero(7);
    });
    apply(&rig, |spec| spec.limits.in_flight = non_zero(5));
    assert_eq!(rig.pipeline().status().concurrency, 2);
    assert_eq!(rig.pipeline().measures().demand.messages, 5);
    rig.pipeline().stop().await;
    rig.pipeline().start().unwrap();
    until(|| rig.pipeline().measures().demand.messages == 5).await;
    assert_eq!(rig.pipeline().status().concurrency, 16);
}

#[tokio::test(start_paused = true)]
async fn what_does_not_fit_changes_nothing() {
    let (_, flow) = scripted();
    let millstream_core::Ordering::By(by) = millstream_core::Ordering::by_header("seq") else {
        unreachable!()
    };
    let rig = Rig::start(flow, |spec| {
        spec.ordering = millstream_core::Ordering::Key;
        spec.sequence = Some(SequenceSpec::new(by));
    });
    let set = |spec: &mut PipelineSpec| {
        spec.processor.concurrency = non_zero(3);
        spec.limits.in_flight = SequenceSpec::HELD;
    };
    assert!(rig.pipeline().change(set).is_err());
    let nowhere = |spec: &mut PipelineSpec| {
        spec.processor.concurrency = non_zero(3);
        spec.batchers.insert("nowhere".to_owned(), BatcherSpec::default());
    };
    let error = rig.pipeline().change(nowhere).unwrap_err().to_string();
    assert_eq!(error, "pipeline `test`: its flow has no batcher `nowhere`");
    assert_eq!(rig.pipeline().status().concurrency, 16);
}

/// What a sequence holds at most follows the limit where nothing else is said, and so it does when that is lowered.
#[tokio::test(start_paused = true)]
async fn what_a_sequence_holds_at_most_changes_with_the_limit_that_it_follows() {
    let sequence = |held: usize| {
        let millstream_core::Ordering::By(by) = millstream_core::Ordering::by_header("seq") else {
            unreachable!()
        };
        SequenceSpec {
            held: non_zero(held),
            ..SequenceSpec::new(by)
        }
    };
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = millstream_core::Ordering::Key;
        spec.sequence = Some(sequence(1_000));
    });
    let numbered = |number: u32| {
        let header = number.to_string();
        crate::support::keyed("a", "ok").with_header("seq", &header)
    };
    rig.queue.publish_all([numbered(1), numbered(3), numbered(4)]);
    until(|| rig.pipeline().status().held == 2).await;
    let changed = apply(&rig, |spec| {
        spec.limits.in_flight = non_zero(6);
        spec.sequence = Some(sequence(3));
    });
    assert_eq!(changed, ["limits.in_flight", "sequence.held"]);
    rig.queue.publish_all([numbered(5)]);
    until(|| rig.pipeline().status().held == 3).await;
    // One more than may be held: the key goes on without what is missing.
    rig.queue.publish_all([numbered(6)]);
    let began = tokio::time::Instant::now();
    rig.settled().await;
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(rig.pipeline().status().counts.sequence_gaps, 1);
}
