//! What is a probe of a half-open breaker and what is not: a message that does not run wastes none, and what began before
//! says nothing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BreakerSpec, BreakerState, Context, DeduplicateSpec, Failure, Flow, IdBy, Message, Ordering,
    PipelineSpec, Processor,
};

use crate::support::{Rig, non_zero, until};

/// Sleeps for the number of milliseconds that a message begins with, and fails if it says so, or while what it needs is
/// down and it does not say otherwise.
#[derive(Clone, Default)]
struct Timed(Arc<AtomicBool>);

impl Processor for Timed {
    type Input = String;
    type Output = ();

    async fn process(&self, text: String, _: &mut Context<'_>) -> Result<(), Failure> {
        let (time, how) = text.split_once(' ').unwrap();
        tokio::time::sleep(Duration::from_millis(time.parse().unwrap())).await;
        match how {
            "ok" => Ok(()),
            "fails" => Err("for ever".into()),
            _ if self.0.load(SeqCst) => Err("down".into()),
            _ => Ok(()),
        }
    }
}

/// A pipeline whose breaker two failures open and one probe closes, and what says that what it needs is down, as it is.
fn rig(set: impl FnOnce(&mut PipelineSpec)) -> (Rig, Arc<AtomicBool>) {
    let timed = Timed::default();
    let down = Arc::clone(&timed.0);
    down.store(true, SeqCst);
    let rig = Rig::on(MemoryQueue::new(), Flow::process(timed), |spec| {
        spec.breaker = Some(BreakerSpec {
            minimum: NonZeroU32::new(2).unwrap(),
            probes: NonZeroU32::MIN,
            ..BreakerSpec::default()
        });
        set(spec);
    });
    (rig, down)
}

fn state(rig: &Rig) -> BreakerState {
    rig.pipeline().status().breaker.unwrap()
}

async fn at(began: tokio::time::Instant, milliseconds: u64) {
    tokio::time::sleep_until(began + Duration::from_millis(milliseconds)).await;
}

fn with_id(id: &str, text: &str) -> Message {
    Message::new(text.to_owned()).with_header("id", id)
}

#[tokio::test(start_paused = true)]
async fn a_twin_that_would_probe_leaves_its_turn_to_the_next() {
    let (rig, down) = rig(|spec| {
        let Ordering::By(by) = Ordering::by_header("id") else {
            unreachable!()
        };
        spec.deduplicate = Some(DeduplicateSpec {
            by: IdBy::By(by),
            ..DeduplicateSpec::new()
        });
        spec.processor.concurrency = non_zero(1);
    });
    // The twins wait for a worker when the breaker opens, and those that failed come back behind them.
    rig.queue.publish_all([
        with_id("a", "100 x"),
        with_id("b", "100 x"),
        with_id("a", "100 x"),
        with_id("b", "100 x"),
    ]);
    until(|| state(&rig) == BreakerState::Open).await;
    let opened = tokio::time::Instant::now();
    down.store(false, SeqCst);
    until(|| state(&rig) == BreakerState::Closed).await;
    let took = opened.elapsed();
    assert!(took < Duration::from_millis(5_500), "it closed after {took:?}");
    rig.settled().await;
    assert_eq!(rig.pipeline().status().counts.duplicates, 2);
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_lost_message_that_would_probe_leaves_its_turn_to_the_next() {
    let (rig, down) = rig(|spec| spec.processor.concurrency = non_zero(1));
    rig.publish(&["100 x"; 20]);
    until(|| state(&rig) == BreakerState::Open).await;
    let opened = tokio::time::Instant::now();
    // A probe that is under way is lost with all that is in the engine.
    at(opened, 5_050).await;
    assert_eq!(state(&rig), BreakerState::HalfOpen);
    down.store(false, SeqCst);
    rig.queue.break_connection();
    until(|| state(&rig) == BreakerState::Closed).await;
    let took = opened.elapsed();
    assert!(took < Duration::from_millis(5_500), "it closed after {took:?}");
    rig.settled().await;
    rig.assert_sound();
}

#[tokio::test(start_paused = true)]
async fn a_run_that_began_before_the_breaker_opened_is_no_probe_when_it_ends() {
    // It opens at one second and is half open at six, with a probe until seven.
    for (old, succeeds) in [("6500 ok", false), ("6500 fails", true)] {
        let (rig, down) = rig(|_| {});
        let began = tokio::time::Instant::now();
        rig.publish(&[old, "1000 x", "1000 x"]);
        at(began, 1_100).await;
        assert_eq!(state(&rig), BreakerState::Open);
        down.store(!succeeds, SeqCst);
        at(began, 6_450).await;
        assert_eq!(state(&rig), BreakerState::HalfOpen);
        at(began, 6_700).await;
        assert_eq!(state(&rig), BreakerState::HalfOpen, "`{old}` has ended");
        assert_eq!(rig.pipeline().status().running, 1, "the probe runs on, alone");
        at(began, 7_200).await;
        let then = match succeeds {
            true => BreakerState::Closed,
            false => BreakerState::Open,
        };
        assert_eq!(state(&rig), then);
    }
}

fn delivered(text: &str, deliveries: u32) -> Message {
    Message {
        deliveries,
        ..Message::new(text.to_owned())
    }
}

/// It has no outcome while the breaker is not closed, and it is all that there is to probe with.
#[tokio::test(start_paused = true)]
async fn a_suspect_that_fails_for_ever_does_not_keep_others_from_being_fetched() {
    let (rig, _) = rig(|spec| {
        spec.breaker.as_mut().unwrap().minimum = NonZeroU32::MIN;
        spec.retry.attempts = NonZeroU32::new(1_000).unwrap();
    });
    rig.queue.publish(delivered("0 fails", 3));
    until(|| state(&rig) == BreakerState::Open).await;
    rig.publish(&["0 ok"; 10]);
    let began = tokio::time::Instant::now();
    let acked = || rig.pipeline().status().counts.acked;
    until(|| acked() == 10 || began.elapsed() > Duration::from_secs(600)).await;
    assert_eq!(acked(), 10);
    // Another suspect has its turn too, which the first must not have to end for.
    until(|| state(&rig) == BreakerState::Open).await;
    rig.queue.publish(delivered("0 ok", 3));
    until(|| acked() == 11 || began.elapsed() > Duration::from_secs(1_200)).await;
    assert_eq!(acked(), 11);
    assert_eq!(rig.pipeline().status().counts.suspects, 2);
}
