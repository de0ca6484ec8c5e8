//! What is a probe of a half-open breaker and what is not: a message that does not run wastes none, and what began before
//! says nothing.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Batch, BatchHandler, BatcherSpec, BreakerSpec, BreakerState, Context, DeduplicateSpec, Failure, Flow,
    IdBy, Message, Ordering, PipelineSpec, Processor,
};

use crate::support::{Rig, Scripted, keyed, non_zero, until};

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

/// Fails for an hour what says so.
struct Later;

impl BatchHandler for Later {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        match batch.items().iter().any(|item| item == "fails") {
            true => Err(Failure::retry_after(Duration::from_secs(3_600), "not yet")),
            false => Ok(()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_behind_a_failed_batch_of_its_key_that_would_probe_leaves_its_turn_to_the_next() {
    let flow = Flow::process(Scripted::default()).batch("out", Later);
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.breaker = Some(BreakerSpec {
            minimum: NonZeroU32::new(2).unwrap(),
            probes: NonZeroU32::MIN,
            ..BreakerSpec::default()
        });
        let size = non_zero(1);
        let batcher = BatcherSpec {
            size,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.publish_keyed(&[("a", "fails"), ("b", "fails")]);
    until(|| state(&rig) == BreakerState::Open).await;
    let opened = tokio::time::Instant::now();
    rig.queue
        .publish_all([keyed("a", "waits"), keyed("b", "waits"), keyed("c", "runs")]);
    until(|| state(&rig) == BreakerState::Closed).await;
    let took = opened.elapsed();
    assert!(took < Duration::from_millis(5_500), "it closed after {took:?}");
    rig.assert_sound();
}

/// Calls what it names: `quick`, `slow`, or both, which is down for it, and takes ten seconds then if it is for one.
#[derive(Clone, Default)]
struct Calls {
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    runs: Arc<AtomicUsize>,
}

impl Processor for Calls {
    type Input = String;
    type Output = ();

    async fn process(&self, text: String, cx: &mut Context<'_>) -> Result<(), Failure> {
        let call = async |name, fails: bool| {
            let answer = async { if fails { Err("down") } else { Ok(()) } };
            cx.dependency(name).call(answer).await
        };
        self.runs.fetch_add(1, SeqCst);
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(running, SeqCst);
        match &*text {
            "both fail" => {
                let answers = [call("quick", true).await, call("slow", true).await];
                self.running.fetch_sub(1, SeqCst);
                return answers.into_iter().collect();
            }
            "quick fails" => drop(call("quick", true).await),
            _ => call("slow", false).await?,
        }
        tokio::time::sleep(Duration::from_secs(10)).await;
        self.running.fetch_sub(1, SeqCst);
        Ok(())
    }
}

/// Whatever breakers do while it runs: one opens and is half open again, or one closes for which it might take longer.
#[tokio::test(start_paused = true)]
async fn one_message_at_a_time_probes_for_all_breakers() {
    for text in ["quick fails", "slow succeeds"] {
        let calls = Calls::default();
        let rig = Rig::start(Flow::process(calls.clone()), |spec| {
            for (name, open_for) in [("quick", 1), ("slow", 60)] {
                let breaker = BreakerSpec {
                    minimum: NonZeroU32::MIN,
                    probes: NonZeroU32::MIN,
                    open_for: Duration::from_secs(open_for),
                    ..BreakerSpec::default()
                };
                spec.dependencies.insert(name.to_owned(), breaker);
            }
        });
        rig.publish(&["both fail"]);
        until(|| calls.runs.load(SeqCst) == 1).await;
        rig.publish(&[text; 5]);
        until(|| calls.runs.load(SeqCst) >= 3).await;
        assert_eq!(calls.most.load(SeqCst), 1, "`{text}`");
    }
}
