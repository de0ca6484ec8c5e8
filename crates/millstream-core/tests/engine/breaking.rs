//! The breaker: it pauses the source and burns no attempt.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{
    Batch, BatchHandler, BreakerSpec, BreakerState, Context, Failure, Flow, Message, Ordering, Processor,
};

use crate::support::{Rig, until};

/// Fails while what it needs is down.
#[derive(Clone, Default)]
struct Dependent {
    down: Arc<AtomicBool>,
    runs: Arc<AtomicUsize>,
    most_attempts: Arc<AtomicUsize>,
}

impl Processor for Dependent {
    type Input = ();
    type Output = ();

    async fn process(&self, (): (), cx: &mut Context<'_>) -> Result<(), Failure> {
        self.runs.fetch_add(1, SeqCst);
        self.most_attempts.fetch_max(cx.attempt() as usize, SeqCst);
        if self.down.load(SeqCst) {
            Err("down".into())
        } else {
            Ok(())
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_an_hour_opens_the_breaker_and_dead_letters_nothing() {
    let processor = Dependent::default();
    let (down, runs, most_attempts) = (
        Arc::clone(&processor.down),
        Arc::clone(&processor.runs),
        Arc::clone(&processor.most_attempts),
    );
    let rig = Rig::start(Flow::process(processor), |spec| {
        spec.breaker = Some(BreakerSpec::default());
        // No pause at all between attempts: they would be burnt in no time.
        spec.retry.backoff = Duration::from_millis(100);
    });
    down.store(true, SeqCst);
    rig.publish(&["a"; 100]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    let received = rig.pipeline().status().counts.received;
    rig.publish(&["b"; 100]);
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let fetched = rig.pipeline().status().counts.received - received;
    assert!(
        fetched <= 7,
        "the source fetched {fetched} while the breaker was open: one each time that all have failed again is enough"
    );
    let probes = runs.load(SeqCst);
    assert!(
        probes < 200 + 3_600 / 5 + 10,
        "{probes} runs: one probe each five seconds, and no more"
    );
    down.store(false, SeqCst);
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
    assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Closed));
    assert!(
        most_attempts.load(SeqCst) <= 3,
        "attempts were burnt: {}",
        most_attempts.load(SeqCst)
    );
}

/// Not one, for as long as it is open, and no attempt is counted; soon after it is over all is as it was.
#[tokio::test(start_paused = true)]
async fn while_the_breaker_is_open_the_source_fetches_nothing() {
    let processor = Dependent::default();
    let (down, most_attempts) = (Arc::clone(&processor.down), Arc::clone(&processor.most_attempts));
    let rig = Rig::start(Flow::process(processor), |spec| {
        spec.limits.in_flight = crate::support::non_zero(50);
        spec.breaker = Some(BreakerSpec {
            open_for: Duration::from_secs(3_600),
            ..BreakerSpec::default()
        });
    });
    down.store(true, SeqCst);
    rig.publish(&["a"; 200]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    let leased = rig.queue.leased();
    let counts = rig.pipeline().status().counts;
    tokio::time::sleep(Duration::from_secs(3_595)).await;
    let now = rig.pipeline().status();
    assert_eq!(now.breaker, Some(BreakerState::Open));
    assert_eq!(now.counts.received, counts.received);
    assert_eq!(
        (now.counts.retried, now.counts.failed),
        (counts.retried, counts.failed)
    );
    assert_eq!(rig.queue.leased(), leased, "the store agrees");
    down.store(false, SeqCst);
    let began = tokio::time::Instant::now();
    rig.settled().await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    assert!(rig.queue.dead().is_empty());
    assert!(most_attempts.load(SeqCst) <= 2);
}

/// Apalis' breaker, while it was open, had nobody woken once it was not. Here nothing waits but at the source, so only the
/// breaker's own time can wake anybody, and then only intake has anything to try it with.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_wakes_its_pipeline_by_itself_and_has_one_message_fetched() {
    let processor = Dependent::default();
    let down = Arc::clone(&processor.down);
    let rig = Rig::start(Flow::process(processor), |spec| {
        spec.breaker = Some(BreakerSpec {
            minimum: NonZeroU32::MIN,
            ..BreakerSpec::default()
        });
        spec.retry.attempts = NonZeroU32::MIN;
    });
    down.store(true, SeqCst);
    rig.publish(&["a"]);
    until(|| rig.queue.dead().len() == 1).await;
    assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Open));
    down.store(false, SeqCst);
    rig.publish(&["b"; 10]);
    rig.settled().await;
    assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Closed));
}

#[tokio::test(start_paused = true)]
async fn rejects_never_feed_the_failure_rate() {
    let (_, flow) = crate::support::scripted();
    let rig = Rig::start(flow, |spec| spec.breaker = Some(BreakerSpec::default()));
    rig.publish(&["reject"; 100]);
    rig.settled().await;
    assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Closed));
    assert_eq!(rig.queue.dead().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn failing_batches_open_it_and_a_batch_probes_for_them() {
    use crate::support::{Scripted, ScriptedBatches, non_zero};
    let rig = Rig::start(
        Flow::process(Scripted::default()).batch("out", ScriptedBatches::default()),
        |spec| {
            spec.breaker = Some(BreakerSpec {
                minimum: NonZeroU32::new(4).unwrap(),
                ..BreakerSpec::default()
            });
            spec.batchers.insert(
                "out".to_owned(),
                millstream_core::BatcherSpec {
                    size: non_zero(2),
                    ..Default::default()
                },
            );
        },
    );
    rig.publish(&[
        "batch-fail-once",
        "batch-fail-once",
        "batch-fail-once",
        "batch-fail-once",
    ]);
    until(|| rig.pipeline().status().counts.breaker_opened == 1).await;
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_failed_probe_in_a_batch_waits_for_the_next_time_the_breaker_lets_it() {
    use crate::support::{Scripted, ScriptedBatches, non_zero};
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.breaker = Some(BreakerSpec {
            minimum: NonZeroU32::new(2).unwrap(),
            ..BreakerSpec::default()
        });
        spec.batchers.insert(
            "out".to_owned(),
            millstream_core::BatcherSpec {
                size: non_zero(1),
                ..Default::default()
            },
        );
    });
    rig.publish(&["batch-fail"; 10]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    let before = seen.lock().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let probes = seen.lock().len() - before;
    assert!(
        (1..=13).contains(&probes),
        "{probes} runs in a minute, of one probe each five seconds"
    );
}

/// Fails while what it needs is down, and with some messages for ever.
#[derive(Clone, Default)]
struct Partly(Arc<AtomicBool>);

impl Processor for Partly {
    type Input = String;
    type Output = String;

    async fn process(&self, text: String, _: &mut Context<'_>) -> Result<String, Failure> {
        match self.0.load(SeqCst) || text == "fails" {
            true => Err("down".into()),
            false => Ok(text),
        }
    }
}

/// Others probe next, so that it is not all that the breaker hears of.
#[tokio::test(start_paused = true)]
async fn a_message_that_fails_for_ever_does_not_keep_the_breaker_open() {
    for ordered in [false, true] {
        let processor = Partly::default();
        let down = Arc::clone(&processor.0);
        let rig = Rig::start(Flow::process(processor), |spec| {
            spec.breaker = Some(BreakerSpec::default());
            if ordered {
                spec.ordering = Ordering::Key;
            }
        });
        down.store(true, SeqCst);
        for number in 0..100 {
            let text = if number < 5 { "fails" } else { "succeeds" };
            rig.queue.publish(Message::new(text).with_key(number.to_string()));
        }
        until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        down.store(false, SeqCst);
        rig.settled().await;
        assert_eq!(rig.queue.dead().len(), 5, "what fails for ever is given up");
        assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Closed));
    }
}

/// Fails items for ever.
struct Picky(Arc<AtomicBool>);

impl BatchHandler for Picky {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        for index in 0..batch.len() {
            if self.0.load(SeqCst) || batch.items()[index] == "fails in its batch" {
                batch.fail(index, "down");
            }
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn nor_does_one_that_fails_in_its_batch() {
    let down = Arc::new(AtomicBool::new(true));
    let flow = Flow::process(Partly::default()).batch("out", Picky(Arc::clone(&down)));
    let rig = Rig::start(flow, |spec| {
        spec.breaker = Some(BreakerSpec::default());
        let batcher = millstream_core::BatcherSpec {
            size: crate::support::non_zero(1),
            ..Default::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.publish(&["fails in its batch"]);
    rig.publish(&["succeeds"; 100]);
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    down.store(false, SeqCst);
    rig.settled().await;
    assert_eq!(rig.queue.dead().len(), 1, "what fails for ever is given up");
    assert_eq!(rig.pipeline().status().breaker, Some(BreakerState::Closed));
}
