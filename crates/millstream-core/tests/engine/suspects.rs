//! Messages that may end their process run alone, and the culprit alone is given up.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{
    Batch, BatchHandler, BatcherSpec, BreakerSpec, BreakerState, Context, Failure, Flow, Message,
    OnStoreFailure, Ordering, Processor, Reason,
};
use tokio::time::Instant;

use crate::sharing::{Runs, Store, by_tenant};
use crate::support::{Rig, Scripted, ScriptedBatches, What, non_zero, scripted, until};

const SECOND: Duration = Duration::from_secs(1);

fn delivered(payload: &str, deliveries: u32) -> Message {
    Message {
        deliveries,
        ..Message::new(payload.to_owned())
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_runs_alone_and_what_was_fetched_with_it_is_released() {
    let processor = crate::support::Scripted::default();
    let (log, running) = (processor.log.clone(), Arc::clone(&processor.running));
    let rig = Rig::start(millstream_core::Flow::process(processor), |_| {});
    let mut most_running = 0;
    rig.queue
        .publish_all((0..5).map(|_| delivered("sleep=100 innocent", 0)));
    rig.queue.publish(delivered("sleep=100 suspect", 3));
    rig.queue
        .publish_all((0..5).map(|_| delivered("sleep=100 innocent", 0)));
    until(|| log.count(What::Began, "sleep=100 suspect") == 1).await;
    while log.count(What::Ended, "sleep=100 suspect") == 0 {
        most_running = running
            .load(std::sync::atomic::Ordering::SeqCst)
            .max(most_running);
        assert!(
            rig.queue.leased() <= 1,
            "something else was held beside the suspect"
        );
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert_eq!(most_running, 1);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.suspects, counts.released, counts.acked), (1, 10, 11));
}

#[tokio::test(start_paused = true)]
async fn only_the_culprit_is_given_up_unrun() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.queue.publish(delivered("innocent", 3));
    rig.queue.publish(delivered("culprit", 16));
    rig.queue.publish(delivered("innocent", 15));
    rig.settled().await;
    assert_eq!(log.count(What::Began, "culprit"), 0);
    assert_eq!(log.count(What::Ended, "innocent"), 2);
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 1);
    assert_eq!(dead[0].1.reason, Reason::Deliveries);
    assert_eq!(dead[0].0.payload, "culprit");
}

#[tokio::test(start_paused = true)]
async fn a_suspect_does_not_wait_for_its_batch_to_fill() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(
        millstream_core::Flow::process(Scripted::default()).batch("out", batches),
        |spec| {
            let batcher = millstream_core::BatcherSpec {
                max_age: std::time::Duration::from_secs(3_600),
                ..Default::default()
            };
            spec.batchers.insert("out".to_owned(), batcher);
        },
    );
    let started = tokio::time::Instant::now();
    rig.queue.publish(delivered("suspect", 5));
    rig.settled().await;
    assert!(started.elapsed().as_secs() < 1);
    assert_eq!(seen.lock()[0].closed_by, millstream_core::ClosedBy::Flush);
}

/// A breaker that this many failures open and one success closes.
fn breaker(minimum: u32) -> BreakerSpec {
    BreakerSpec {
        minimum: NonZeroU32::new(minimum).unwrap(),
        probes: NonZeroU32::MIN,
        ..BreakerSpec::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_suspect_does_not_begin_beside_a_batch_that_runs_on_while_a_breaker_is_not_closed() {
    let (processor, batches) = (Scripted::default(), ScriptedBatches::default());
    let (log, running) = (processor.log.clone(), Arc::clone(&batches.running));
    let rig = Rig::start(Flow::process(processor).batch("out", batches), |spec| {
        spec.breaker = Some(breaker(2));
        spec.retry.backoff = 600 * SECOND;
        spec.retry.max_backoff = 600 * SECOND;
        let size = non_zero(1);
        let batcher = BatcherSpec {
            size,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    let began = Instant::now();
    rig.publish(&["innocent batch-sleep=20000"]);
    until(|| !running.lock().is_empty()).await;
    rig.publish(&["fail", "fail"]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    rig.queue.publish(delivered("suspect done", 3));
    until(|| log.count(What::Began, "suspect done") == 1).await;
    assert!(running.lock().is_empty(), "a batch runs beside it");
    let waited = began.elapsed();
    assert!(
        waited < 21 * SECOND,
        "it waited for {waited:?}, and what failed waits for longer"
    );
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Closed)).await;
    rig.assert_sound();
}

/// One that a breaker holds up, in a batch that is open.
#[tokio::test(start_paused = true)]
async fn a_suspect_runs_without_what_its_batch_has_collected_before_it() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let flow = Flow::process(Scripted::default()).batch("out", batches);
    let rig = Rig::start(flow, |spec| {
        spec.breaker = Some(breaker(2));
        spec.retry.backoff = 600 * SECOND;
        spec.retry.max_backoff = 600 * SECOND;
        let batcher = BatcherSpec {
            max_age: 3_600 * SECOND,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.publish(&["innocent"]);
    until(|| rig.pipeline().status().batchers[0].1 == 1).await;
    rig.publish(&["fail", "fail"]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    rig.queue.publish(delivered("suspect", 3));
    let with_it = || {
        let seen = seen.lock();
        let mut batches = seen.iter().map(|batch| batch.items.clone());
        batches.find(|items| items.iter().any(|item| item == "suspect"))
    };
    until(|| with_it().is_some()).await;
    assert_eq!(with_it().unwrap(), ["suspect"]);
    rig.assert_sound();
}

/// Calls what may be down, and takes a while if it is not.
#[derive(Clone, Default)]
struct Calls {
    down: Arc<AtomicBool>,
    running: Arc<AtomicUsize>,
    began: Arc<AtomicUsize>,
    beside: Arc<AtomicUsize>,
}

impl Processor for Calls {
    type Input = String;
    type Output = ();

    async fn process(&self, text: String, cx: &mut Context<'_>) -> Result<(), Failure> {
        self.began.fetch_add(1, SeqCst);
        let down = self.down.load(SeqCst);
        let answer = async { if down { Err("down") } else { Ok(()) } };
        cx.dependency("db").call(answer).await?;
        self.running.fetch_add(1, SeqCst);
        for _ in 0..100 {
            tokio::time::sleep(SECOND / 100).await;
            if text == "suspect" {
                self.beside.fetch_max(self.running.load(SeqCst) - 1, SeqCst);
            }
        }
        self.running.fetch_sub(1, SeqCst);
        Ok(())
    }
}

/// Nor any message that the breaker has held back, when that closes while the suspect runs.
#[tokio::test(start_paused = true)]
async fn nothing_begins_beside_a_suspect_that_has_closed_the_breaker() {
    let calls = Calls::default();
    calls.down.store(true, SeqCst);
    let rig = Rig::start(Flow::process(calls.clone()), |spec| {
        spec.dependencies.insert("db".to_owned(), breaker(1));
    });
    rig.publish(&["a", "b", "c"]);
    until(|| rig.pipeline().measures().breakers[0].state == BreakerState::Open).await;
    rig.queue.publish(delivered("suspect", 3));
    // Each of them has failed once when there is nothing else to probe with than the suspect.
    until(|| calls.began.load(SeqCst) == 3).await;
    calls.down.store(false, SeqCst);
    rig.settled().await;
    assert_eq!(rig.pipeline().status().counts.suspects, 1);
    assert_eq!(calls.beside.load(SeqCst), 0, "ran beside the suspect");
    rig.assert_sound();
}

/// Takes no time.
struct Collects;

impl BatchHandler for Collects {
    type Input = ();

    async fn handle(&self, _: &mut Batch<()>) -> Result<(), Failure> {
        Ok(())
    }
}

/// What waits for a suspect that takes its time has not stalled.
#[tokio::test(start_paused = true)]
async fn a_batch_that_waits_for_a_suspect_to_end_is_no_stall() {
    let calls = Calls::default();
    let rig = Rig::start(Flow::process(calls.clone()).batch("out", Collects), |spec| {
        let db = BreakerSpec {
            open_for: 10 * SECOND,
            ..breaker(1)
        };
        spec.dependencies.insert("db".to_owned(), db);
        spec.retry.backoff = 600 * SECOND;
        spec.retry.max_backoff = 600 * SECOND;
        spec.supervisor.stall_after = SECOND / 10;
        let batcher = BatcherSpec {
            // Old enough while the suspect runs.
            max_age: 10 * SECOND + SECOND / 5,
            timeout: SECOND / 100,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.publish(&["collected"]);
    until(|| rig.pipeline().status().batchers[0].1 == 1).await;
    calls.down.store(true, SeqCst);
    rig.publish(&["a"]);
    until(|| rig.pipeline().measures().breakers[0].state == BreakerState::Open).await;
    calls.down.store(false, SeqCst);
    rig.queue.publish(delivered("suspect", 3));
    until(|| calls.began.load(SeqCst) == 3).await;
    let state = || rig.pipeline().measures().breakers[0].state;
    until(|| state() == BreakerState::Closed && rig.queue.len() == 1).await;
    assert_eq!(rig.pipeline().status().counts.suspects, 1);
    rig.assert_sound();
}

/// The limit spares what handlers call, and that is called for a suspect as well.
#[tokio::test(start_paused = true)]
async fn suspects_have_their_turns_under_a_limit_like_all_others() {
    for (ordered, shared) in [(false, false), (true, false), (false, true), (true, true)] {
        let (runs, store) = (Runs::default(), Store::new());
        let rig = Rig::start(Flow::process(runs.clone()), |spec| {
            spec.rate_limit = Some(by_tenant(1, 1));
            spec.shared_rate = shared.then(|| store.spec(OnStoreFailure::Wait));
            if ordered {
                spec.ordering = Ordering::Key;
            }
        });
        let suspect = || delivered("suspect", 3).with_header("tenant", "a");
        rig.queue.publish_all((0..4).map(|_| suspect()));
        rig.settled().await;
        let at = runs.of("a");
        let waits: Vec<_> = at.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let early = SECOND - Duration::from_millis(5);
        assert!(
            waits.len() == 3 && waits.iter().all(|wait| *wait >= early),
            "{waits:?}"
        );
    }
}
