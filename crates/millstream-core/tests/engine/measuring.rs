//! What a pipeline measures of each stage (P8): times, sizes, reasons, ages.

use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BatcherSpec, ClosedBy, Distribution, Failed, Flow, Host, PipelineSpec, Reason, StageMeasures, StartError,
};

use crate::support::{Rig, Scripted, ScriptedBatches, non_zero, scripted, until};

/// The buckets that hold anything, and the sum.
fn filled(distribution: &Distribution) -> (Vec<(f64, u64)>, f64) {
    let filled = distribution.buckets.iter().filter(|(_, number)| *number > 0);
    (filled.copied().collect(), distribution.sum)
}

fn failed(stage: &StageMeasures) -> Vec<(Failed, u64)> {
    let failed = stage.failed.iter().filter(|(_, number)| *number > 0);
    failed.copied().collect()
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_is_timed_by_itself_and_those_ready_at_once_share_the_rest() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(1));
    rig.publish(&["a", "b", "sleep=40", "c"]);
    rig.settled().await;
    until(|| rig.pipeline().measures().processor.took.count == 4).await;
    let processor = rig.pipeline().measures().processor;
    assert_eq!((&*processor.name, processor.succeeded), ("processor", 4));
    assert_eq!(filled(&processor.took), (vec![(0.0001, 3), (0.05, 1)], 0.04));
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_by_stage_and_reason() {
    let rig = Rig::start(
        Flow::process(Scripted::default()).batch("out", ScriptedBatches::default()),
        |spec| {
            spec.retry.attempts = std::num::NonZeroU32::MIN;
            spec.processor.timeout = Duration::from_secs(1);
            spec.batchers.insert(
                "out".to_owned(),
                BatcherSpec {
                    size: non_zero(3),
                    ..BatcherSpec::default()
                },
            );
        },
    );
    rig.publish(&[
        "fail",
        "reject",
        "panic",
        "hang",
        "item-fail",
        "item-reject",
        "well",
    ]);
    rig.settled().await;
    let measures = rig.pipeline().measures();
    let each = [Failed::Failure, Failed::Rejected, Failed::Panic, Failed::Timeout].map(|kind| (kind, 1));
    assert_eq!(failed(&measures.processor), each);
    let out = &measures.batchers[0];
    assert_eq!((&*out.stage.name, out.stage.succeeded, out.held), ("out", 1, 0));
    assert_eq!(failed(&out.stage), each[..2]);
    assert_eq!(filled(&out.sizes), (vec![(5.0, 1)], 3.0));
    assert_eq!(
        out.closed,
        ClosedBy::ALL.map(|by| (by, u64::from(by == ClosedBy::Size)))
    );
    assert_eq!(
        measures.given_up,
        Reason::ALL.map(|reason| (
            reason,
            match reason {
                Reason::Rejected => 2,
                Reason::Attempts => 4,
                _ => 0,
            }
        ))
    );
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.failed, counts.batch_failed, counts.given_up), (3, 1, 6));
}

#[tokio::test(start_paused = true)]
async fn a_batch_counts_once_and_its_runs_each_time() {
    let rig = Rig::start(
        Flow::process(Scripted::default()).batch("out", ScriptedBatches::default()),
        |spec| {
            spec.batchers.insert(
                "out".to_owned(),
                BatcherSpec {
                    size: non_zero(2),
                    ..BatcherSpec::default()
                },
            );
        },
    );
    rig.publish(&["batch-fail-once", "batch-sleep=70"]);
    rig.settled().await;
    let out = rig.pipeline().measures().batchers.remove(0);
    assert_eq!((out.sizes.count, out.stage.took.count), (1, 2));
    assert_eq!(filled(&out.stage.took), (vec![(0.0001, 1), (0.1, 1)], 0.07));
    assert_eq!(rig.pipeline().status().counts.batches, 2);
}

#[tokio::test(start_paused = true)]
async fn age_is_from_receipt_to_settlement() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.processor.concurrency = non_zero(4);
        spec.retry.backoff = Duration::from_millis(400);
    });
    assert_eq!(rig.pipeline().measures().oldest, None);
    rig.publish(&["sleep=2000", "fail-once"]);
    until(|| rig.pipeline().status().in_flight == 2).await;
    tokio::time::sleep(Duration::from_millis(900)).await;
    rig.publish(&["sleep=800"]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    // Of the two that are in flight, the older one's.
    assert_eq!(rig.pipeline().status().in_flight, 2);
    let oldest = rig.pipeline().measures().oldest.unwrap();
    assert!((Duration::from_millis(990)..Duration::from_millis(1010)).contains(&oldest));
    rig.settled().await;
    until(|| rig.pipeline().status().in_flight == 0).await;
    let measures = rig.pipeline().measures();
    assert_eq!(measures.oldest, None);
    let (buckets, sum) = filled(&measures.settled_after);
    assert_eq!(buckets, [(0.5, 1), (1.0, 1), (2.5, 1)]);
    assert!((3.19..3.23).contains(&sum), "{sum}");
}

#[tokio::test(start_paused = true)]
async fn demand_is_what_the_limits_leave_and_none_while_paused() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.limits.in_flight = non_zero(10));
    rig.publish(&["hang", "hang"]);
    until(|| rig.pipeline().status().in_flight == 2).await;
    assert_eq!(rig.pipeline().measures().demand.messages, 8);
    rig.pipeline().pause();
    assert_eq!(rig.pipeline().measures().demand.messages, 0);
    rig.pipeline().resume();
    assert_eq!(rig.pipeline().measures().demand.messages, 8);
}

#[tokio::test]
async fn stages_have_names_of_their_own() {
    for (flow, cause) in [
        (
            Flow::process(Scripted::default()).batch("processor", ScriptedBatches::default()),
            "a batcher cannot be named `processor`: another stage is",
        ),
        (
            Flow::process(Scripted::default())
                .batch("out", ScriptedBatches::default())
                .batch("out", ScriptedBatches::default()),
            "its flow has two batchers `out`",
        ),
    ] {
        let spec = PipelineSpec::new("test", std::sync::Arc::new(MemoryQueue::new()), flow);
        match Host::start([spec]) {
            Err(StartError::Pipeline { cause: said, .. }) => assert_eq!(said, cause),
            other => panic!("{other:?}"),
        }
    }
}
