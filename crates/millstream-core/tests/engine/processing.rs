//! P1, P2: what a message's run comes to.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Condition, DeadLetter, Delivered, OpenError, Outgoing, Reason, Sink, SinkConnector, SinkError,
};

use crate::support::{Rig, What, non_zero, scripted, until};

#[tokio::test(start_paused = true)]
async fn p1_a_message_is_acknowledged_once_its_processor_returned_ok() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["sleep=100 a"]);
    until(|| log.count(What::Began, "sleep=100 a") == 1).await;
    assert_eq!(rig.queue.len(), 1, "acknowledged before it was done");
    rig.settled().await;
    assert_eq!(log.ended(), ["sleep=100 a"]);
    assert_eq!(rig.pipeline().status().counts.acked, 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_is_tried_again_with_growing_waits() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    let started = tokio::time::Instant::now();
    rig.publish(&["fail"]);
    rig.settled().await;
    assert_eq!(log.count(What::Began, "fail"), 5);
    let attempts: Vec<_> = log.events().iter().map(|event| event.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4, 5]);
    let took = started.elapsed();
    assert!(
        (1_500..1_600).contains(&took.as_millis()),
        "100 + 200 + 400 + 800 ms, and it took {took:?}"
    );
    let dead = rig.queue.dead();
    assert_eq!(dead[0].1.reason, Reason::Attempts);
    assert_eq!(dead[0].1.attempts, 5);
    assert_eq!(dead[0].1.error, "scripted");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_fails_once_is_done_the_second_time() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["fail-once"]);
    rig.settled().await;
    assert_eq!(log.ended(), ["fail-once"]);
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_rejected_message_is_not_tried_again() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["reject"]);
    rig.settled().await;
    assert_eq!(log.count(What::Began, "reject"), 1);
    assert_eq!(rig.queue.dead()[0].1.reason, Reason::Rejected);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_does_not_decode_is_rejected_unrun() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.queue.publish(millstream_core::Message::new(vec![0xff]));
    rig.settled().await;
    assert_eq!(log.len(), 0);
    assert_eq!(rig.queue.dead()[0].1.reason, Reason::Decode);
}

#[tokio::test(start_paused = true)]
async fn p5_a_panicking_handler_fails_its_message_alone() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["a", "panic", "b"]);
    rig.settled().await;
    assert_eq!(log.count(What::Ended, "a") + log.count(What::Ended, "b"), 2);
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].1.error, "the handler panicked: scripted panic");
    assert_eq!(rig.pipeline().status().counts.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_run_that_takes_too_long_is_cancelled_and_tried_again() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.processor.timeout = Duration::from_secs(1);
        spec.retry.attempts = std::num::NonZeroU32::new(2).unwrap();
    });
    rig.publish(&["hang"]);
    rig.settled().await;
    assert_eq!(log.count(What::Began, "hang"), 2);
    assert!(rig.queue.dead()[0].1.error.contains("timeout of 1s"));
    assert_eq!(rig.pipeline().status().counts.timed_out, 2);
}

#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_is_acknowledged_only_once_its_sink_has_it() {
    let (_, flow) = scripted();
    let dead = MemoryQueue::new();
    let rig = Rig::start(flow, |spec| {
        spec.dead_letter = DeadLetter::Sink(Arc::new(dead.clone()));
    });
    rig.queue
        .publish(crate::support::keyed("k", "reject").with_header("tenant", "acme"));
    rig.settled().await;
    let letters = dead.messages();
    assert_eq!(letters[0].payload, "reject");
    assert_eq!(letters[0].key.as_deref(), Some(&b"k"[..]));
    let headers = &letters[0].headers;
    assert_eq!(headers.get("tenant"), Some("acme"));
    assert_eq!(headers.get("millstream-pipeline"), Some("test"));
    assert_eq!(headers.get("millstream-stage"), Some("processor"));
    assert_eq!(headers.get("millstream-reason"), Some("rejected"));
    assert_eq!(headers.get("millstream-error"), Some("scripted reject"));
    assert_eq!(headers.get("millstream-origin"), Some("memory@0"));
    assert!(rig.queue.dead().is_empty());
    assert_eq!(rig.pipeline().status().counts.dead_lettered, 1);
}

/// Takes no message so often, and then each.
#[derive(Clone)]
struct Reluctant(Arc<AtomicUsize>);

impl SinkConnector for Reluctant {
    type Sink = Self;

    async fn open(&self) -> Result<Self, OpenError> {
        Ok(self.clone())
    }
}

impl Sink for Reluctant {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let left = self.0.load(SeqCst);
        self.0.store(left.saturating_sub(1), SeqCst);
        results.extend(messages.iter().map(|_| match left {
            0 => Delivered::Confirmed,
            _ => Delivered::Failed("not now".to_owned()),
        }));
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn p1_a_dead_letter_that_its_sink_does_not_take_is_not_acknowledged() {
    let (_, flow) = scripted();
    let left = Arc::new(AtomicUsize::new(3));
    let rig = Rig::start(flow, |spec| {
        spec.dead_letter = DeadLetter::Sink(Arc::new(Reluctant(Arc::clone(&left))));
    });
    rig.publish(&["reject"]);
    until(|| left.load(SeqCst) == 0).await;
    assert_eq!(rig.queue.leased(), 1);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.outbox_retries, counts.dead_lettered), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn p8_a_discarded_message_is_counted() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.dead_letter = DeadLetter::Discard);
    rig.publish(&["reject"]);
    rig.settled().await;
    assert_eq!(rig.pipeline().status().counts.discarded, 1);
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn settle_now_settles_before_the_work_is_done_and_only_once() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["settle sleep=1000", "settle fail"]);
    until(|| rig.queue.is_empty()).await;
    assert_eq!(log.ended().len(), 0);
    until(|| log.ended().len() == 1).await;
    assert_eq!(rig.queue.settlements(), 2);
    let counts = rig.pipeline().status().counts;
    assert_eq!(
        (counts.settled_early, counts.acked, counts.rejected, counts.stale),
        (2, 2, 0, 0)
    );
    assert_eq!(rig.pipeline().status().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn fair_takes_leave_nobody_waiting_behind_a_slow_message_while_a_worker_idles() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(2));
    // The pace of these makes the next take large.
    let fast: Vec<String> = (0..1_000).map(|number| format!("warm-{number}")).collect();
    rig.publish(&fast.iter().map(String::as_str).collect::<Vec<_>>());
    rig.settled().await;
    let started = tokio::time::Instant::now();
    rig.publish(&["sleep=10000 slow", "a", "b", "c", "d"]);
    until(|| log.ended().len() == 1_004).await;
    assert!(
        started.elapsed() < Duration::from_millis(10),
        "they waited for {:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn no_more_run_at_a_time_than_the_concurrency() {
    let processor = crate::support::Scripted::default();
    let most = Arc::clone(&processor.most_running);
    let rig = Rig::start(millstream_core::Flow::process(processor), |spec| {
        spec.processor.concurrency = non_zero(3);
    });
    rig.publish(&["sleep=10"; 50]);
    rig.settled().await;
    assert_eq!(most.load(std::sync::atomic::Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn p4_in_flight_never_exceeds_its_limits() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.limits.in_flight = non_zero(10);
        spec.limits.bytes = non_zero(60);
    });
    rig.publish(&["sleep=100"; 30]);
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(
            rig.queue.leased() <= 7,
            "nine bytes each, so seven reach the limit of 60"
        );
        assert!(rig.pipeline().status().bytes < 60 + 9);
    }
    rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn p4_an_oversized_message_travels_alone() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.limits.bytes = non_zero(10));
    let large = format!("sleep=100 {}", "x".repeat(1_000));
    rig.publish(&[&large, "sleep=100 b", "sleep=100 c"]);
    until(|| log.len() == 1).await;
    assert_eq!(rig.queue.leased(), 1);
    rig.settled().await;
    assert_eq!(log.ended().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_paused_pipeline_fetches_nothing_and_ends_what_it_has() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.limits.in_flight = non_zero(2));
    rig.publish(&["sleep=100"; 6]);
    until(|| rig.queue.leased() == 2).await;
    rig.pipeline().pause();
    assert_eq!(rig.pipeline().status().condition, Condition::Paused);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!((rig.queue.len(), rig.queue.leased()), (4, 0));
    rig.pipeline().resume();
    rig.settled().await;
    assert_eq!(log.ended().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn the_rate_limit_holds_back_fetching() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.rate_limit = Some(millstream_core::RateLimit {
            messages: std::num::NonZeroU32::new(100).unwrap(),
            per: Duration::from_secs(1),
            burst: std::num::NonZeroU32::new(50).unwrap(),
            key: None,
            weights: std::collections::BTreeMap::new(),
        });
    });
    rig.publish(&["a"; 1_000]);
    for seconds in 1..=5_u32 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let received = u32::try_from(rig.pipeline().status().counts.received).unwrap();
        let allowed = 50 + 100 * seconds;
        assert!(received <= allowed, "{received} after {seconds} s");
        assert!(received >= allowed - 60, "{received} after {seconds} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_says_how_long_to_wait_and_too_long_is_cut_and_counted() {
    struct Later(Duration);
    impl millstream_core::Processor for Later {
        type Input = ();
        type Output = ();
        async fn process(
            &self,
            (): (),
            cx: &mut millstream_core::Context<'_>,
        ) -> Result<(), millstream_core::Failure> {
            if cx.attempt() == 1 {
                Err(millstream_core::Failure::retry_after(self.0, "later"))
            } else {
                Ok(())
            }
        }
    }
    for (wanted, waited, cut) in [(Duration::from_secs(60), 60, 0), (Duration::MAX, 86_400, 1)] {
        let rig = Rig::start(millstream_core::Flow::process(Later(wanted)), |_| {});
        let started = tokio::time::Instant::now();
        rig.publish(&["a"]);
        while !rig.queue.is_empty() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(
            (waited..waited + 3).contains(&started.elapsed().as_secs()),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(rig.pipeline().status().counts.waits_cut, cut);
    }
}
