//! Settings that change while a pipeline runs: from then on they hold, and nothing is lost over it.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BatcherSpec, BreakerSpec, BreakerState, ClosedBy, Flow, Host, Message, PipelineSpec, RateLimit,
};

use crate::support::{Rig, Scripted, ScriptedBatches, keyed, non_zero, scripted, until};

/// Applies what this makes of the settings that `set` made; what has changed, by its keys.
fn change(rig: &Rig, set: impl FnOnce(&mut PipelineSpec)) -> Vec<String> {
    let (flow, queue) = (scripted().1, MemoryQueue::new());
    let mut spec = PipelineSpec::new("test", std::sync::Arc::new(queue), flow);
    spec.retry.jitter = false;
    set(&mut spec);
    let changes = rig.pipeline().apply(&spec).unwrap();
    changes.into_iter().map(|change| change.key).collect()
}

async fn later(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test(start_paused = true)]
async fn p2_more_workers_run_at_once_and_fewer_finish_what_they_have() {
    let processor = Scripted::default();
    let (log, running) = (processor.log.clone(), std::sync::Arc::clone(&processor.running));
    let rig = Rig::start(Flow::process(processor), |spec| {
        spec.processor.concurrency = non_zero(2);
    });
    rig.queue
        .publish_all((0..40).map(|number| Message::new(format!("sleep=100 {number}"))));
    later(50).await;
    assert_eq!(running.load(Ordering::SeqCst), 2);
    let keys = change(&rig, |spec| spec.processor.concurrency = non_zero(8));
    assert_eq!(keys, ["processor.concurrency"]);
    later(10).await;
    assert_eq!(running.load(Ordering::SeqCst), 8);
    change(&rig, |spec| spec.processor.concurrency = non_zero(1));
    later(10).await;
    assert_eq!(running.load(Ordering::SeqCst), 8, "what runs goes on");
    later(150).await;
    assert_eq!(running.load(Ordering::SeqCst), 1);
    rig.settled().await;
    let mut ended = log.ended();
    ended.sort();
    ended.dedup();
    assert_eq!((ended.len(), log.ended().len()), (40, 40));
    assert_eq!(rig.pipeline().status().counts.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn concurrency_adapts_from_then_on_and_is_fixed_again() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    let keys = change(&rig, |spec| {
        spec.processor.concurrency = non_zero(6);
        spec.processor.adapts_from = Some(non_zero(2));
    });
    assert_eq!(keys, ["processor.concurrency", "processor.adapts_from"]);
    assert!((2..=6).contains(&rig.pipeline().status().concurrency));
    change(&rig, |spec| spec.processor.concurrency = non_zero(9));
    assert_eq!(rig.pipeline().status().concurrency, 9);
    rig.resize(4);
    change(&rig, |spec| {
        spec.processor.concurrency = non_zero(9);
        spec.limits.in_flight = non_zero(50);
    });
    let now = rig.pipeline().status().concurrency;
    assert_eq!(now, 4, "what somebody said stays while its setting does");
}

#[tokio::test(start_paused = true)]
async fn p4_limits_that_are_lowered_lose_nothing_and_hold_from_then_on() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(2));
    rig.queue
        .publish_all((0..100).map(|number| Message::new(format!("sleep=10 {number}"))));
    until(|| rig.pipeline().status().in_flight == 100).await;
    let keys = change(&rig, |spec| {
        spec.processor.concurrency = non_zero(2);
        spec.limits.in_flight = non_zero(3);
    });
    assert_eq!(keys, ["limits.in_flight"]);
    rig.queue
        .publish_all((100..150).map(|number| Message::new(format!("sleep=10 {number}"))));
    until(|| rig.pipeline().status().in_flight <= 3).await;
    while !rig.queue.is_empty() {
        assert!(rig.pipeline().status().in_flight <= 3);
        later(1).await;
    }
    let mut ended = log.ended();
    ended.sort();
    ended.dedup();
    assert_eq!(ended.len(), 150);

    rig.queue.publish_all((0..50).map(|_| Message::new("hang")));
    until(|| rig.pipeline().status().in_flight == 3).await;
    change(&rig, |spec| spec.limits.in_flight = non_zero(40));
    until(|| rig.pipeline().status().in_flight == 40).await;
    change(&rig, |spec| spec.limits.bytes = non_zero(1));
    assert_eq!(
        rig.pipeline().measures().demand.messages,
        0,
        "the bytes are used up"
    );
}

#[tokio::test(start_paused = true)]
async fn p5_a_longer_lane_takes_in_what_waited_for_room() {
    let (_, flow) = scripted();
    let set = |per_key: usize| {
        move |spec: &mut PipelineSpec| {
            spec.ordering = millstream_core::Ordering::Key;
            spec.limits.per_key = non_zero(per_key);
        }
    };
    let queue = MemoryQueue::with_capabilities(millstream_core::Capabilities {
        keeps_rejected: true,
        ..millstream_core::Capabilities::default()
    });
    let rig = Rig::on(queue, flow, set(2));
    rig.queue.publish_all((0..20).map(|_| keyed("a", "hang")));
    later(100).await;
    assert_eq!(rig.pipeline().status().waiting, 2);
    assert_eq!(change(&rig, set(10)), ["limits.per_key"]);
    later(100).await;
    assert_eq!(rig.pipeline().status().waiting, 10);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_raised_or_taken_away_holds_at_once() {
    let hourly = |messages: u32| {
        move |spec: &mut PipelineSpec| {
            spec.rate_limit = Some(RateLimit {
                messages: NonZeroU32::new(messages).unwrap(),
                per: Duration::from_secs(3_600),
                burst: NonZeroU32::MIN,
                key: None,
                weights: std::collections::BTreeMap::new(),
            });
        }
    };
    let (log, flow) = scripted();
    let rig = Rig::start(flow, hourly(1));
    rig.queue.publish_all((0..2_000).map(|_| Message::new("ok")));
    later(60_000).await;
    assert_eq!(log.ended().len(), 1);
    assert_eq!(change(&rig, hourly(3_600)), ["rate_limit"]);
    later(100_000).await;
    let ended = log.ended().len();
    assert!((100..=103).contains(&ended), "one a second: {ended}");
    assert_eq!(change(&rig, |_| {}), ["rate_limit"]);
    later(1_000).await;
    assert_eq!(log.ended().len(), 2_000);
}

/// A pipeline that ends in a batcher with these settings.
fn batching(batcher: BatcherSpec, ordered: bool) -> (Rig, ScriptedBatches) {
    let batches = ScriptedBatches::default();
    let rig = Rig::start(scripted().1.batch("db", batches.clone()), |spec| {
        spec.batchers.insert("db".to_owned(), batcher);
        spec.limits.in_flight = non_zero(100);
        if ordered {
            spec.ordering = millstream_core::Ordering::Key;
        }
    });
    (rig, batches)
}

/// Applies these settings of the batcher.
fn change_batcher(rig: &Rig, batcher: BatcherSpec) -> Vec<String> {
    let mut spec = PipelineSpec::new(
        "test",
        std::sync::Arc::new(MemoryQueue::new()),
        scripted().1.batch("db", ScriptedBatches::default()),
    );
    spec.retry.jitter = false;
    spec.batchers.insert("db".to_owned(), batcher);
    spec.limits.in_flight = non_zero(100);
    let changes = rig.pipeline().apply(&spec).unwrap();
    changes.into_iter().map(|change| change.key).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_in_an_open_batch_leaves_by_the_new_size_and_the_new_age() {
    let patient = BatcherSpec {
        size: non_zero(100),
        max_age: Duration::from_secs(3_600),
        ..BatcherSpec::default()
    };
    let (rig, batches) = batching(patient.clone(), false);
    let seen = || {
        let seen = batches.seen.lock();
        seen.iter()
            .map(|seen| (seen.items.len(), seen.closed_by))
            .collect::<Vec<_>>()
    };
    rig.queue.publish_all((0..10).map(|_| Message::new("a")));
    later(1_000).await;
    assert_eq!(seen(), []);
    let smaller = BatcherSpec {
        size: non_zero(5),
        ..patient.clone()
    };
    assert_eq!(change_batcher(&rig, smaller.clone()), ["batchers.db.size"]);
    later(10).await;
    assert_eq!(seen(), [(10, ClosedBy::Size)]);
    rig.queue.publish_all((0..7).map(|_| Message::new("b")));
    later(10).await;
    assert_eq!(seen()[1..], [(5, ClosedBy::Size)]);
    let hasty = BatcherSpec {
        max_age: Duration::from_secs(1),
        ..smaller.clone()
    };
    assert_eq!(change_batcher(&rig, hasty), ["batchers.db.max_age"]);
    later(500).await;
    assert_eq!(seen().len(), 2);
    later(600).await;
    assert_eq!(seen()[2..], [(2, ClosedBy::Age)]);
    rig.publish(&["c"]);
    later(500).await;
    change_batcher(&rig, smaller);
    later(60_000).await;
    assert_eq!(seen().len(), 3, "it may grow old again");
    rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!(seen().len(), 4);
    assert!(rig.queue.is_empty());
}

#[tokio::test(start_paused = true)]
async fn p3_batch_workers_come_and_go_and_batches_of_a_key_never_run_at_the_same_time() {
    for ordered in [false, true] {
        let with = |concurrency| BatcherSpec {
            size: non_zero(2),
            max_age: Duration::from_millis(5),
            concurrency: non_zero(concurrency),
            ..BatcherSpec::default()
        };
        let (rig, batches) = batching(with(1), ordered);
        let running = || batches.running.lock().len();
        // Each key twice, so that none stays in the batcher for long.
        let keys = (0..2_000).map(|number| format!("k{}", number / 2));
        let messages: Vec<_> = keys
            .map(|key| keyed(&key, &format!("{key} batch-sleep=10")))
            .collect();
        rig.queue.publish_all(messages);
        let soon = |wanted: usize| {
            let reached = async move {
                while running() != wanted {
                    later(1).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(2), reached)
        };
        soon(2).await.unwrap();
        for concurrency in [4, 1, 6, 2] {
            assert_eq!(
                change_batcher(&rig, with(concurrency)),
                ["batchers.db.concurrency"]
            );
            soon(2 * concurrency).await.unwrap();
            later(50).await;
            assert!(running() <= 2 * concurrency);
        }
        rig.settled().await;
        let items: usize = batches.seen.lock().iter().map(|seen| seen.items.len()).sum();
        assert_eq!((items, rig.pipeline().status().counts.restarts), (2_000, 0));

        // One key all the time: one batch at a time, however many workers come and go.
        rig.queue
            .publish_all((0..100).map(|_| keyed("z", "z batch-sleep=10")));
        for concurrency in [1, 5, 3, 1, 4].into_iter().cycle() {
            if rig.queue.is_empty() {
                break;
            }
            change_batcher(&rig, with(concurrency));
            later(15).await;
        }
        if ordered {
            assert_eq!(batches.overlaps.load(Ordering::SeqCst), 0);
        }
        assert!(
            rig.pipeline()
                .measures()
                .sentinels
                .iter()
                .all(|(_, fired)| *fired == 0)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn timeout_and_retries_hold_for_what_fails_from_then_on() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.retry.attempts = NonZeroU32::new(100).unwrap());
    rig.publish(&["fail"]);
    until(|| log.len() >= 3).await;
    let keys = change(&rig, |spec| {
        spec.retry.attempts = NonZeroU32::new(4).unwrap();
        spec.processor.timeout = Duration::from_secs(1);
    });
    assert_eq!(keys, ["processor.timeout", "retry.attempts"]);
    until(|| rig.pipeline().status().counts.given_up == 1).await;
    assert!(log.len() <= 5, "{}", log.len());
    rig.publish(&["hang"]);
    let began = tokio::time::Instant::now();
    until(|| rig.pipeline().status().counts.timed_out == 1).await;
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_breaker_comes_changes_and_goes() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    let breaker = |open_for| {
        move |spec: &mut PipelineSpec| {
            spec.breaker = Some(BreakerSpec {
                minimum: NonZeroU32::MIN,
                open_for: Duration::from_secs(open_for),
                ..BreakerSpec::default()
            });
        }
    };
    rig.publish(&["fail"]);
    until(|| rig.pipeline().status().counts.failed > 0).await;
    assert_eq!(rig.pipeline().status().breaker, None);
    assert_eq!(change(&rig, breaker(3_600)), ["breaker"]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    later(60_000).await;
    rig.publish(&["ok"]);
    assert_eq!(change(&rig, |_| {}), ["breaker"]);
    until(|| rig.pipeline().status().counts.acked == 1).await;
    assert_eq!(rig.pipeline().status().breaker, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_the_same_is_no_change_and_what_does_not_fit_changes_nothing() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    assert_eq!(change(&rig, |_| {}), [""; 0]);
    let (flow, queue) = (scripted().1, std::sync::Arc::new(MemoryQueue::new()));
    let mut spec = PipelineSpec::new("test", queue, flow);
    spec.processor.concurrency = non_zero(3);
    spec.batchers.insert("nowhere".to_owned(), BatcherSpec::default());
    let error = rig.pipeline().apply(&spec).unwrap_err().to_string();
    assert_eq!(error, "pipeline `test`: its flow has no batcher `nowhere`");
    assert_eq!(rig.pipeline().status().concurrency, 16);
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_holds_in_the_next_run_too() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    change(&rig, |spec| spec.processor.concurrency = non_zero(3));
    rig.pipeline().stop().await;
    rig.pipeline().start().unwrap();
    assert_eq!(rig.pipeline().status().concurrency, 3);
}

#[tokio::test(start_paused = true)]
async fn p2_a_restart_with_another_spec_drains_first_and_a_wrong_one_leaves_it_as_it_is() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["sleep=1000"]);
    until(|| log.len() == 1).await;
    let other = MemoryQueue::new();
    other.publish(Message::new("elsewhere"));
    let spec =
        |queue: &MemoryQueue| PipelineSpec::new("any", std::sync::Arc::new(queue.clone()), scripted().1);
    let mut wrong = spec(&other);
    wrong
        .batchers
        .insert("nowhere".to_owned(), BatcherSpec::default());
    let pipeline = rig.pipeline();
    assert!(pipeline.restart(wrong, Duration::from_secs(10)).await.is_err());
    assert_eq!(pipeline.status().in_flight, 1);
    let report = pipeline
        .restart(spec(&other), Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!((report.done, report.left), (1, 0), "{report}");
    until(|| other.is_empty()).await;
    assert!(rig.queue.is_empty());
    assert_eq!(rig.host.pipeline("test").unwrap().name(), "test");
}

#[tokio::test(start_paused = true)]
async fn a_host_takes_in_pipelines_and_lets_go_of_them() {
    let spec = |name: &str, queue: &MemoryQueue| {
        PipelineSpec::new(name, std::sync::Arc::new(queue.clone()), scripted().1)
    };
    let (one, two) = (MemoryQueue::new(), MemoryQueue::new());
    let host = Host::start([spec("one", &one)]).unwrap();
    assert!(host.add(spec("one", &two)).is_err());
    host.add(spec("two", &two)).unwrap();
    two.publish(Message::new("a"));
    until(|| two.is_empty()).await;
    let report = host.remove("one", Duration::from_secs(10)).await;
    assert_eq!(report.map(|report| report.left), Some(0));
    assert!(host.remove("one", Duration::from_secs(10)).await.is_none());
    let names: Vec<_> = host
        .pipelines()
        .map(|pipeline| pipeline.name().to_owned())
        .collect();
    assert_eq!(names, ["two"]);
    one.publish(Message::new("nobody reads it"));
    later(1_000).await;
    assert_eq!(one.len(), 1);
}
