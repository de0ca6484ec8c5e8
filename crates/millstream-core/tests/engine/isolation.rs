//! P5: what is stuck holds itself alone.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::{BatcherSpec, Flow, Message, Ordering};

use crate::support::{Log, Rig, Scripted, ScriptedBatches, What, keyed, non_zero, scripted, until};

const SPAN: Duration = Duration::from_secs(10);

/// How many of the messages that `which` picks ended within a while, with a steady load of eight kinds.
async fn ended_within_a_while(rig: &Rig, log: &Log, message: impl Fn(usize, usize) -> Message) -> usize {
    let started = tokio::time::Instant::now();
    let mut number = 0;
    while started.elapsed() < SPAN {
        rig.queue.publish_all((0..8).map(|kind| message(kind, number)));
        number += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    log.ended()
        .iter()
        .filter(|payload| !payload.contains("stuck"))
        .count()
}

#[tokio::test(start_paused = true)]
async fn p5_one_hung_key_among_eight_leaves_the_others_their_pace_and_its_timeout_frees_it() {
    let run = |stuck: bool| async move {
        let (log, flow) = scripted();
        let rig = Rig::start(flow, |spec| {
            spec.ordering = Ordering::Key;
            spec.processor.timeout = 2 * SPAN;
            spec.limits.per_key = non_zero(5_000);
        });
        let others = ended_within_a_while(&rig, &log, |kind, number| {
            let hangs = stuck && kind == 0 && number == 0;
            keyed(
                &format!("k{kind}"),
                if hangs {
                    "hang stuck"
                } else if kind == 0 {
                    "sleep=2 stuck"
                } else {
                    "sleep=2"
                },
            )
        })
        .await;
        (others, rig, log)
    };
    let (free, ..) = run(false).await;
    let (beside_a_hung_one, rig, log) = run(true).await;
    println!("{free} without, {beside_a_hung_one} beside a hung key");
    assert!(beside_a_hung_one * 10 >= free * 9);
    assert_eq!(log.count(What::Ended, "sleep=2 stuck"), 0);
    until(|| rig.pipeline().status().counts.timed_out == 1).await;
    until(|| log.count(What::Began, "hang stuck") == 2).await;
}

#[tokio::test(start_paused = true)]
async fn p5_one_hung_batcher_among_eight_leaves_the_others_their_pace_and_its_timeout_frees_it() {
    let run = |stuck: bool| async move {
        let processor = Scripted::default();
        let log = processor.log.clone();
        let mut flow = Flow::process(processor);
        for kind in 0..8 {
            flow = flow.batch(&format!("b{kind}"), ScriptedBatches::default());
        }
        let rig = Rig::start(flow, |spec| {
            spec.limits.in_flight = non_zero(1_000);
            for kind in 0..8 {
                spec.batchers.insert(
                    format!("b{kind}"),
                    BatcherSpec {
                        size: non_zero(10),
                        timeout: 2 * SPAN,
                        ..BatcherSpec::default()
                    },
                );
            }
        });
        let others = ended_within_a_while(&rig, &log, |kind, _| {
            let fate = if kind == 0 && stuck {
                "batch-hang stuck"
            } else if kind == 0 {
                "stuck"
            } else {
                ""
            };
            Message::new(format!("to=b{kind} {fate}"))
        })
        .await;
        (others, rig)
    };
    let (free, _) = run(false).await;
    let (beside_a_hung_one, rig) = run(true).await;
    println!("{free} without, {beside_a_hung_one} beside a hung batcher");
    assert!(beside_a_hung_one * 10 >= free * 9);
    let held: Vec<_> = rig.pipeline().status().batchers;
    assert!(
        held[0].1 <= 500 + 100,
        "the hung batcher holds {} of 1,000 places",
        held[0].1
    );
    until(|| rig.pipeline().status().counts.timed_out >= 1).await;
}

#[tokio::test(start_paused = true)]
async fn p5_a_busy_batcher_holds_back_intake_and_gives_nothing_back() {
    let batches = ScriptedBatches::default();
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.limits.in_flight = non_zero(100);
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(10),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish(&vec!["batch-sleep=10"; 500]);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.acked, counts.returned, counts.released), (500, 0, 0));
    assert!(counts.throttled > 0);
}

#[tokio::test(start_paused = true)]
async fn p5_a_killed_worker_fails_what_ran_returns_the_rest_and_restarts_no_sibling() {
    let processor = Scripted::default();
    let log = processor.log.clone();
    let rig = Rig::start(Flow::process(processor), |spec| {
        spec.processor.concurrency = non_zero(2);
        spec.processor.timeout = Duration::from_secs(1);
        spec.retry.attempts = std::num::NonZeroU32::new(2).unwrap();
        spec.supervisor.max_restarts = 2;
    });
    // Its future panics when the timeout drops it: outside of what is caught, so the worker itself dies.
    rig.publish(&["bomb", "sleep=1500 b", "c", "d"]);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!(
        counts.restarts, 2,
        "once for each attempt, and the sibling went on"
    );
    assert_eq!(
        log.count(What::Began, "sleep=1500 b"),
        2,
        "its own timeout, not a restart, ended its first run"
    );
    let mut ended = log.ended();
    ended.sort();
    assert_eq!(ended, ["c", "d"]);
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 2);
    assert!(
        dead.iter()
            .any(|(message, why)| message.payload == "bomb" && why.error.contains("worker died"))
    );
}

/// Its future panics when the timeout drops it, where nobody catches that: the worker dies.
struct Bombs;

impl millstream_core::BatchHandler for Bombs {
    type Input = String;

    async fn handle(
        &self,
        batch: &mut millstream_core::Batch<String>,
    ) -> Result<(), millstream_core::Failure> {
        struct Bomb;
        impl Drop for Bomb {
            fn drop(&mut self) {
                assert!(std::thread::panicking(), "dropped");
            }
        }
        if batch.items().iter().any(|item| item == "batch-bomb") {
            let _bomb = Bomb;
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn p5_a_killed_batch_worker_fails_its_batch_alone_and_the_next_one_runs() {
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", Bombs), |spec| {
        spec.processor.concurrency = non_zero(1);
        spec.retry.attempts = std::num::NonZeroU32::new(2).unwrap();
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(2),
                timeout: Duration::from_secs(1),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish(&["batch-bomb", "b", "c", "d"]);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.restarts, counts.acked, counts.rejected), (2, 2, 2));
    let dead = rig.queue.dead();
    let mut payloads: Vec<_> = dead.iter().map(|(message, _)| message.payload.clone()).collect();
    payloads.sort();
    assert_eq!(payloads, ["b", "batch-bomb"], "its batch, and no other");
}

#[tokio::test(start_paused = true)]
async fn p2_a_lost_connection_drops_what_has_not_started_and_cancels_what_runs() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(2));
    rig.publish(&["sleep=1000 a", "sleep=1000 b", "sleep=1000 c", "sleep=1000 d"]);
    until(|| log.len() == 2).await;
    rig.queue.break_connection();
    rig.settled().await;
    let status = rig.pipeline().status();
    assert_eq!(status.in_flight, 0);
    let mut ended = log.ended();
    ended.sort();
    ended.dedup();
    assert_eq!(ended.len(), 4);
    assert_eq!(log.ended().len(), 4, "cancelled runs did not end");
    assert_eq!(status.counts.received, 8);
    assert_eq!(status.counts.lost + status.counts.stale, 4);
}

#[tokio::test(start_paused = true)]
async fn p3_the_twin_of_a_lost_message_waits_for_a_run_that_still_goes_on() {
    let batches = ScriptedBatches::default();
    let (seen, overlaps) = (Arc::clone(&batches.seen), Arc::clone(&batches.overlaps));
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.ordering = Ordering::Key;
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(1),
                concurrency: non_zero(4),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish_keyed(&[("a", "a batch-sleep=5000")]);
    until(|| seen.lock().len() == 1).await;
    rig.queue.break_connection();
    rig.settled().await;
    assert_eq!(seen.lock().len(), 2);
    assert_eq!(overlaps.load(std::sync::atomic::Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn intake_goes_on_after_a_full_queue_was_lost() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(1));
    rig.publish(&["sleep=1000"]);
    until(|| log.len() == 1).await;
    rig.publish(&["a"; 5_000]);
    until(|| rig.pipeline().status().ready >= 1_024).await;
    rig.queue.break_connection();
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn intake_goes_on_after_a_full_lane_was_lost() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(5);
    });
    for _ in 0..20 {
        rig.queue.publish(keyed("hot", "sleep=1000"));
    }
    until(|| log.len() == 1).await;
    rig.queue.break_connection();
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p5_a_panic_while_decoding_gives_up_its_message_alone() {
    struct Fragile;
    impl millstream_core::Decode for Fragile {
        fn decode(message: &Message) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
            assert!(message.payload != "bad", "fragile");
            Ok(Self)
        }
    }
    struct Accepting;
    impl millstream_core::Processor for Accepting {
        type Input = Fragile;
        type Output = ();
        async fn process(
            &self,
            _: Fragile,
            _: &mut millstream_core::Context<'_>,
        ) -> Result<(), millstream_core::Failure> {
            Ok(())
        }
    }
    let rig = Rig::start(Flow::process(Accepting), |spec| spec.supervisor.max_restarts = 0);
    rig.publish(&["bad", "good", "bad"]);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.acked, counts.rejected, counts.restarts), (1, 2, 0));
    assert!(rig.queue.dead()[0].1.error.contains("decoding panicked: fragile"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_in_what_messages_are_ordered_by_leaves_that_one_unordered() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::By(Arc::new(|message| {
            assert!(message.payload != "bad", "fragile");
            message.key.clone()
        }));
    });
    rig.publish(&["a", "bad", "c"]);
    rig.settled().await;
    assert_eq!(rig.pipeline().status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_closed_batch_finds_the_worker_that_is_free() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(1),
                concurrency: non_zero(2),
                max_age: Duration::from_secs(3_600),
                timeout: Duration::from_secs(3_600),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish(&["batch-sleep=60000"]);
    until(|| seen.lock().len() == 1).await;
    for number in 2..20 {
        rig.publish(&["batch-sleep=10"]);
        let started = tokio::time::Instant::now();
        until(|| seen.lock().len() == number).await;
        assert!(
            started.elapsed() < Duration::from_secs(1),
            "batch {number} waited for {:?}",
            started.elapsed()
        );
        until(|| rig.queue.len() == 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_is_idle_only_after_a_quiet_time_and_not_as_soon_as_it_is_empty() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["sleep=10000"]);
    until(|| log.len() == 1).await;
    let started = tokio::time::Instant::now();
    rig.host.idle(Duration::from_secs(2)).await;
    assert!(
        started.elapsed() >= Duration::from_secs(11),
        "{:?}",
        started.elapsed()
    );
}
