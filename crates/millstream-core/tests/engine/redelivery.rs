//! `retry.strategy = "redeliver"`, and sources that cannot hold a delivery back themselves.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Capabilities, Condition, Context, Failure, Flow, Host, Ordering, PipelineSpec, Processor, RetryStrategy,
    Settlement,
};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::support::{Rig, Scripted, ScriptedBatches, What, keyed, non_zero, scripted, until};

/// A queue that cannot hold a delivery back, but can take a message for later.
fn undelayed() -> MemoryQueue {
    MemoryQueue::with_capabilities(Capabilities {
        delay: false,
        keeps_rejected: true,
        counts_deliveries: true,
        orders_keys: false,
        ..Capabilities::default()
    })
}

fn redeliver(spec: &mut PipelineSpec) {
    spec.retry.strategy = RetryStrategy::Redeliver;
    spec.retry.backoff = Duration::from_secs(10);
}

#[tokio::test(start_paused = true)]
async fn a_redelivered_message_waits_at_its_source_and_comes_with_its_failures() {
    for queue in [MemoryQueue::new(), undelayed()] {
        let (log, flow) = scripted();
        let rig = Rig::on(queue, flow, redeliver);
        let started = tokio::time::Instant::now();
        rig.publish(&["fail-once", "ok"]);
        until(|| log.events().len() == 3 && rig.pipeline().status().in_flight == 0).await;
        assert_eq!(rig.queue.len(), 1, "it waits at the source, out of flight");
        rig.settled().await;
        assert!(
            started.elapsed() >= Duration::from_secs(10),
            "{:?}",
            started.elapsed()
        );
        let attempts: Vec<_> = log
            .events()
            .iter()
            .filter(|event| event.what == What::Began && event.payload == "fail-once")
            .map(|event| event.attempt)
            .collect();
        assert_eq!(attempts, [1, 2]);
        let counts = rig.pipeline().status().counts;
        assert_eq!(counts.returned + counts.put_off, 1);
        assert_eq!(counts.acked, 2 + counts.put_off);
    }
}

#[tokio::test(start_paused = true)]
async fn redelivery_ends_with_the_last_attempt_and_the_dead_letter_shows_no_trace_of_it() {
    let (log, flow) = scripted();
    let rig = Rig::on(undelayed(), flow, |spec| {
        redeliver(spec);
        spec.retry.attempts = 3.try_into().unwrap();
    });
    rig.publish(&["fail"]);
    rig.settled().await;
    assert_eq!(log.count(What::Began, "fail"), 3);
    let dead = rig.queue.dead();
    let (message, rejection) = dead.first().unwrap();
    assert_eq!((dead.len(), rejection.attempts), (1, 3));
    assert!(message.headers.is_empty(), "{:?}", message.headers);
    assert!(rejection.first_at < rejection.at, "{rejection:?}");
}

#[tokio::test(start_paused = true)]
async fn p1_a_message_is_acknowledged_only_once_the_retry_sink_has_it() {
    let (log, flow) = scripted();
    let queue = undelayed();
    let rig = Rig::on(queue.clone(), flow, redeliver);
    rig.publish(&["fail-once"]);
    rig.queue.fail_writes(3);
    until(|| rig.pipeline().status().counts.outbox_retries == 3).await;
    assert_eq!(
        (rig.queue.len(), rig.queue.leased()),
        (1, 1),
        "the delivery still stands"
    );
    rig.settled().await;
    assert_eq!(log.count(What::Ended, "fail-once"), 1);
    assert_eq!(rig.pipeline().status().counts.put_off, 1);
}

#[tokio::test(start_paused = true)]
async fn a_put_off_message_whose_connection_breaks_is_not_written_as_well() {
    let (log, flow) = scripted();
    let rig = Rig::on(undelayed(), flow, redeliver);
    rig.publish(&["fail-once"]);
    rig.queue.fail_writes(1);
    until(|| rig.pipeline().status().counts.outbox_retries == 1).await;
    rig.queue.break_connection();
    rig.settled().await;
    // The twin is handed out anew and knows nothing of the failure.
    assert_eq!(log.count(What::Began, "fail-once"), 3);
    assert_eq!(rig.pipeline().status().counts.put_off, 1);
}

/// Fails the first run of all.
struct FailsFirst(AtomicBool);

impl Processor for FailsFirst {
    type Input = String;
    type Output = ();

    async fn process(&self, _: String, _: &mut Context<'_>) -> Result<(), Failure> {
        if self.0.swap(true, SeqCst) {
            Ok(())
        } else {
            Err("the first".into())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_is_well_again_once_what_its_sink_did_not_take_is_gone() {
    let rig = Rig::on(
        undelayed(),
        Flow::process(FailsFirst(AtomicBool::new(false))),
        redeliver,
    );
    rig.queue.fail_writes(1);
    rig.publish(&["a"]);
    until(|| matches!(rig.pipeline().status().condition, Condition::Degraded(_))).await;
    rig.queue.break_connection();
    rig.settled().await;
    until(|| rig.pipeline().status().condition == Condition::Running).await;
    assert_eq!(rig.pipeline().status().counts.put_off, 0, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn p6_what_the_retry_sink_has_not_taken_is_released_by_a_drain() {
    let (_, flow) = scripted();
    let rig = Rig::on(undelayed(), flow, redeliver);
    rig.publish(&["fail-once", "fail-once", "ok"]);
    rig.queue.fail_writes(usize::MAX);
    until(|| rig.pipeline().status().counts.outbox_retries > 2).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!(
        (report.in_flight, report.released, report.left),
        (2, 2, 0),
        "{report}"
    );
    assert_eq!((rig.queue.len(), rig.queue.leased()), (2, 0));
}

/// P6: what waits in place does not leave its queue for the retry sink, which may keep it less well.
#[tokio::test(start_paused = true)]
async fn p6_what_waits_in_place_when_a_drain_begins_is_released_where_it_is() {
    let (_, flow) = scripted();
    let rig = Rig::on(undelayed(), flow, |spec| {
        spec.retry.backoff = Duration::from_secs(30);
    });
    rig.publish(&["fail-once", "fail-once"]);
    until(|| rig.pipeline().status().parked == 2).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!((report.done, report.released, report.left), (0, 2, 0), "{report}");
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.released, counts.put_off), (2, 0));
    assert_eq!((rig.queue.len(), rig.queue.leased()), (2, 0));
    rig.assert_sound();
}

/// P6: nor does what fails while it drains, in the processor and in a batch.
#[tokio::test(start_paused = true)]
async fn p6_what_would_wait_in_place_and_fails_in_a_drain_is_released_where_it_is() {
    let batches = ScriptedBatches::default();
    let flow = Flow::process(Scripted::default()).batch("out", batches.clone());
    let rig = Rig::on(undelayed(), flow, |_| {});
    rig.publish(&["batch-sleep=3000 batch-fail", "sleep=3000 fail"]);
    until(|| batches.seen.lock().len() == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!((report.done, report.released, report.left), (0, 2, 0), "{report}");
    assert_eq!(rig.pipeline().status().counts.put_off, 0);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn p5_what_a_stuck_batcher_cannot_take_waits_at_a_source_that_has_a_retry_sink() {
    let batches = ScriptedBatches::default();
    let flow = Flow::process(Scripted::default())
        .batch("slow", batches.clone())
        .batch("fast", batches.clone());
    let rig = Rig::on(undelayed(), flow, |spec| {
        spec.limits.in_flight = non_zero(10);
        spec.batchers.entry("slow".to_owned()).or_default().size = non_zero(1);
        spec.batchers.entry("fast".to_owned()).or_default().size = non_zero(1);
    });
    rig.publish(&["to=slow batch-sleep=5000"; 5]);
    until(|| rig.pipeline().status().counts.throttled > 0).await;
    rig.publish(&["to=slow later"; 3]);
    rig.publish(&["to=fast now"; 20]);
    let fast = || {
        batches
            .seen
            .lock()
            .iter()
            .filter(|seen| seen.items == ["to=fast now"])
            .count()
    };
    until(|| fast() == 20).await;
    assert!(rig.pipeline().status().counts.put_off > 0, "nothing was put off");
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p3_an_ordered_message_is_never_put_behind_what_follows_it() {
    let (log, flow) = scripted();
    let rig = Rig::on(undelayed(), flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.retry.backoff = Duration::from_secs(30);
    });
    rig.publish_keyed(&[("a", "fail-once"), ("a", "second")]);
    until(|| rig.pipeline().status().parked == 1).await;
    rig.pipeline().drain(Duration::from_secs(10)).await;
    rig.pipeline().start().unwrap();
    rig.settled().await;
    assert_eq!(log.ended(), ["fail-once", "second"]);
}

#[tokio::test(start_paused = true)]
async fn redelivery_is_refused_where_it_would_break_the_order() {
    let start = |queue: MemoryQueue, ordering: Ordering| {
        let (_, flow) = scripted();
        let mut spec = PipelineSpec::new("test", Arc::new(queue), flow);
        spec.ordering = ordering;
        redeliver(&mut spec);
        Host::start([spec]).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(start(undelayed(), Ordering::None), Ok(()));
    assert_eq!(
        start(undelayed(), Ordering::Key),
        Err("pipeline `test`: redelivery breaks the order: retry in place".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_redelivered_message_by_message() {
    let batches = ScriptedBatches::default();
    let flow = Flow::process(Scripted::default()).batch("out", batches.clone());
    let rig = Rig::on(undelayed(), flow, redeliver);
    rig.publish(&["batch-fail-once"]);
    rig.queue.publish(keyed("k", "other"));
    until(|| rig.pipeline().status().counts.put_off == 2).await;
    assert_eq!(rig.pipeline().status().in_flight, 0);
    rig.pipeline().drain(Duration::from_secs(10)).await;
    let failures: Vec<_> = rig
        .queue
        .messages()
        .iter()
        .map(|message| message.failures)
        .collect();
    assert_eq!(failures, [1, 1]);
}

/// P3: until the source knows that a message comes back to it, it hands out what follows.
#[tokio::test(start_paused = true)]
async fn p3_what_the_source_hands_out_behind_a_message_on_its_way_back_does_not_run_before_it() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        delay: true,
        keeps_rejected: true,
        orders_keys: true,
        ..Capabilities::default()
    });
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| {
        redeliver(spec);
        spec.ordering = Ordering::Key;
    });
    rig.queue.fail_settlements(1_000);
    rig.queue.publish(keyed("a", "fail-once"));
    until(|| rig.pipeline().status().counts.settle_retries > 0).await;
    rig.queue.publish(keyed("a", "ok"));
    rig.queue.publish(keyed("b", "ok"));
    until(|| rig.pipeline().status().counts.received == 3 && log.len() == 3).await;
    assert!(rig.pipeline().status().counts.throttled > 0);
    let began: Vec<_> = log
        .events()
        .into_iter()
        .map(|event| (event.payload, event.key))
        .collect();
    assert!(
        !began.contains(&("ok".to_owned(), Some("a".to_owned()))),
        "{began:?}"
    );
    rig.queue.fail_settlements(0);
    rig.settled().await;
}

/// Settles each message early the first time: to come again later.
struct Early {
    wait: Duration,
    began: Arc<Mutex<Vec<(Instant, u32)>>>,
}

impl Processor for Early {
    type Input = String;
    type Output = ();

    async fn process(&self, _: String, cx: &mut Context<'_>) -> Result<(), Failure> {
        let first = {
            let mut began = self.began.lock();
            began.push((Instant::now(), cx.attempt()));
            began.len() == 1
        };
        if first {
            cx.settle_now(Settlement::Retry {
                after: self.wait,
                failures: 1,
            });
        }
        Ok(())
    }
}

/// The source alone would give it out again at once, round and round.
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_settled_early_keeps_its_wait_where_the_source_cannot() {
    let wait = Duration::from_secs(60);
    for ordering in [Ordering::None, Ordering::Key] {
        let began = Arc::default();
        let early = Early {
            wait,
            began: Arc::clone(&began),
        };
        let put_off = u64::from(!ordering.is_ordered());
        let rig = Rig::on(undelayed(), Flow::process(early), |spec| spec.ordering = ordering);
        rig.publish_keyed(&[("k", "a")]);
        rig.settled().await;
        let began = began.lock().clone();
        let [(first, 1), (second, attempt)] = began[..] else {
            panic!("{began:?}");
        };
        assert!(second - first >= wait, "{:?}", second - first);
        // Only what goes through the sink can say how often it has failed.
        assert_eq!(u64::from(attempt), 1 + put_off);
        let counts = rig.pipeline().status().counts;
        assert_eq!((counts.put_off, counts.settled_early), (put_off, 1));
        rig.assert_sound();
    }
}

/// P6: a drain does not wait for it.
#[tokio::test(start_paused = true)]
async fn p6_a_retry_that_is_settled_early_goes_back_in_a_drain() {
    let began = Arc::default();
    let early = Early {
        wait: Duration::from_secs(3_600),
        began: Arc::clone(&began),
    };
    let rig = Rig::on(undelayed(), Flow::process(early), |spec| {
        spec.ordering = Ordering::Key;
    });
    rig.publish_keyed(&[("k", "a")]);
    until(|| began.lock().len() == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!((report.released, report.left), (1, 0), "{report}");
    assert!(report.took < Duration::from_secs(1), "{report}");
}

/// P4: a delivery that is lost meanwhile does not hold its place until then.
#[tokio::test(start_paused = true)]
async fn p4_a_retry_that_is_settled_early_and_lost_gives_up_its_place() {
    let began = Arc::default();
    let early = Early {
        wait: Duration::from_secs(3_600),
        began: Arc::clone(&began),
    };
    let rig = Rig::on(undelayed(), Flow::process(early), |spec| {
        spec.ordering = Ordering::Key;
    });
    rig.publish_keyed(&[("k", "a")]);
    until(|| began.lock().len() == 1).await;
    let lost = tokio::time::Instant::now();
    rig.queue.break_connection();
    rig.settled().await;
    assert!(lost.elapsed() < Duration::from_secs(60), "{:?}", lost.elapsed());
    assert_eq!(began.lock().len(), 2, "it came again");
    rig.assert_sound();
}
