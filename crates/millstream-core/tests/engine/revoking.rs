//! A scope that is revoked: what does not run is given up at once, wherever it waits, and what runs has until the deadline.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    BatcherSpec, BoxFuture, BreakerSpec, BreakerState, Capabilities, Connector, DedupError, DedupStore,
    DeduplicateSpec, Drained, EngineHandle, Flow, Host, Message, OnStoreFailure, OpenError, Ordering,
    Pipeline, PipelineSpec, RateLimit, Scope,
};

use crate::support::{Scripted, ScriptedBatches, What, keyed, non_zero, until};

const SECOND: Duration = Duration::from_secs(1);

fn batches_of_one(spec: &mut PipelineSpec) {
    let size = non_zero(1);
    let batcher = BatcherSpec {
        size,
        ..BatcherSpec::default()
    };
    spec.batchers.insert("out".to_owned(), batcher);
}

/// A connector that hands its test the engine's handle, on a queue in memory.
struct Watched(MemoryQueue, Arc<parking_lot::Mutex<Option<EngineHandle>>>);

impl Connector for Watched {
    type Source = MemorySource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, MemoryAcknowledger), OpenError> {
        *self.1.lock() = Some(engine.clone());
        Connector::open(&self.0, engine).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_scope_ends_what_runs_flushes_its_batches_and_drops_the_rest() {
    let (queue, engine) = (MemoryQueue::new(), Arc::new(parking_lot::Mutex::new(None)));
    let processor = Scripted::default();
    let log = processor.log.clone();
    let flow = Flow::process(processor).batch("out", ScriptedBatches::default());
    let mut spec = PipelineSpec::new(
        "test",
        Arc::new(Watched(queue.clone(), Arc::clone(&engine))),
        flow,
    );
    spec.processor.concurrency = non_zero(2);
    spec.batchers.insert(
        "out".to_owned(),
        BatcherSpec {
            max_age: Duration::from_secs(3_600),
            ..BatcherSpec::default()
        },
    );
    let host = Host::start([spec]).unwrap();
    let pipeline = host.pipeline("test").unwrap();
    queue.publish(Message::new("batched"));
    until(|| pipeline.status().batchers[0].1 == 1).await;
    pipeline.pause();
    pipeline.resume();
    queue.publish_all(["sleep=1000 ends", "hang", "unstarted"].map(Message::new));
    until(|| pipeline.status().in_flight == 4 && log.len() == 4).await;
    pipeline.pause();
    let handle = engine.lock().clone().unwrap();
    let by = tokio::time::Instant::now() + Duration::from_secs(5);
    let drained = handle.revoke(Scope::Generation(1), by).await;
    assert_eq!((drained.ended, drained.dropped, drained.cancelled), (2, 1, 1));
    assert!(tokio::time::Instant::now() <= by + Duration::from_millis(200));
    assert_eq!(pipeline.status().in_flight, 0);
    assert_eq!(log.count(What::Began, "unstarted"), 0);
}

/// A pipeline with one batcher on a queue whose places a test may revoke.
struct Revocable {
    queue: MemoryQueue,
    engine: Arc<parking_lot::Mutex<Option<EngineHandle>>>,
    scripted: Scripted,
    batches: ScriptedBatches,
    host: Host,
}

impl Revocable {
    fn start(set: impl FnOnce(&mut PipelineSpec)) -> Self {
        let (queue, engine) = (MemoryQueue::new(), Arc::default());
        let (scripted, batches) = (Scripted::default(), ScriptedBatches::default());
        let flow = Flow::process(scripted.clone()).batch("out", batches.clone());
        let source = Watched(queue.clone(), Arc::clone(&engine));
        let mut spec = PipelineSpec::new("test", Arc::new(source), flow);
        spec.retry.backoff = 600 * SECOND;
        spec.retry.max_backoff = 600 * SECOND;
        set(&mut spec);
        Self {
            queue,
            engine,
            scripted,
            batches,
            host: Host::start([spec]).unwrap(),
        }
    }

    fn pipeline(&self) -> Pipeline {
        self.host.pipeline("test").unwrap()
    }

    /// Revokes all there is, within an hour; what came of it, and how long that took.
    async fn revoke(&self) -> (Drained, Duration) {
        // Nothing more is read, as the source would see to.
        self.pipeline().pause();
        let handle = self.engine.lock().clone().unwrap();
        let began = tokio::time::Instant::now();
        let drained = handle.revoke(Scope::Generation(1), began + 3_600 * SECOND).await;
        (drained, began.elapsed())
    }

    /// Revokes all there is, none of which runs: so many messages.
    async fn revokes_at_once(&self, messages: usize) {
        let (drained, took) = self.revoke().await;
        assert!(took < SECOND, "{took:?}");
        assert_eq!(
            (drained.ended, drained.dropped, drained.cancelled),
            (0, messages, 0)
        );
        assert_eq!(self.pipeline().status().in_flight, 0);
        let fired = self.pipeline().measures().sentinels;
        assert!(fired.iter().all(|(_, times)| *times == 0), "{fired:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_under_a_limit_does_not_hold_up_a_revocation() {
    let rig = Revocable::start(|spec| {
        // It waits in the process.
        spec.ordering = Ordering::Key;
        spec.rate_limit = Some(RateLimit {
            messages: NonZeroU32::MIN,
            per: 3_600 * SECOND,
            burst: NonZeroU32::MIN,
            key: Some("tenant".to_owned()),
            weights: BTreeMap::new(),
        });
    });
    rig.queue
        .publish_all((0..4).map(|_| Message::new("done").with_key("a")));
    until(|| rig.queue.len() == 3 && rig.pipeline().status().in_flight == 3).await;
    rig.revokes_at_once(3).await;
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_room_in_its_lane_is_dropped_before_what_runs_has_ended() {
    let rig = Revocable::start(|spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(1);
    });
    rig.queue
        .publish_all((0..5).map(|_| keyed("a", "sleep=10000 done")));
    until(|| rig.scripted.log.len() == 1 && rig.pipeline().status().in_flight == 5).await;
    let meanwhile = async {
        tokio::time::sleep(SECOND).await;
        assert_eq!(rig.pipeline().status().counts.lost, 4);
    };
    let ((drained, took), ()) = tokio::join!(rig.revoke(), meanwhile);
    assert_eq!((drained.ended, drained.dropped, drained.cancelled), (1, 4, 0));
    assert!(took < 10 * SECOND, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_does_not_hold_up_a_revocation() {
    let rig = Revocable::start(batches_of_one);
    rig.queue.publish(Message::new("batch-fail"));
    until(|| rig.batches.seen.lock().len() == 1).await;
    rig.revokes_at_once(1).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_breaker_holds_in_a_batcher_does_not_hold_up_a_revocation() {
    let rig = Revocable::start(|spec| {
        spec.processor.concurrency = non_zero(1);
        spec.breaker = Some(BreakerSpec {
            minimum: NonZeroU32::MIN,
            open_for: 3_600 * SECOND,
            ..BreakerSpec::default()
        });
        let max_age = 3_600 * SECOND;
        let batcher = BatcherSpec {
            max_age,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.queue.publish_all(["collected", "fail"].map(Message::new));
    until(|| rig.pipeline().status().breaker == Some(BreakerState::Open)).await;
    rig.revokes_at_once(2).await;
}

/// A store of ids that never answers.
struct Silent;

impl DedupStore for Silent {
    fn seen<'a>(&'a self, _: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        Box::pin(std::future::pending())
    }

    fn enter<'a>(&'a self, _: &'a [Bytes], _: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_the_store_of_ids_does_not_hold_up_a_revocation() {
    let rig = Revocable::start(|spec| {
        spec.deduplicate = Some(DeduplicateSpec {
            store: Arc::new(Silent),
            on_store_failure: OnStoreFailure::Wait,
            ..DeduplicateSpec::new()
        });
    });
    rig.queue.publish_all(["a", "b"].map(Message::new));
    until(|| rig.pipeline().status().in_flight == 2).await;
    rig.revokes_at_once(2).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_while_it_is_revoked_is_not_waited_for_until_its_next_attempt() {
    let rig = Revocable::start(batches_of_one);
    rig.queue
        .publish_all(["sleep=5000 fail", "batch-sleep=5000 batch-fail"].map(Message::new));
    until(|| rig.scripted.log.len() == 3 && rig.batches.seen.lock().len() == 1).await;
    let (drained, took) = rig.revoke().await;
    assert!(took < 6 * SECOND, "{took:?}");
    assert_eq!((drained.ended, drained.dropped, drained.cancelled), (0, 2, 0));
    assert_eq!(rig.pipeline().status().in_flight, 0);
}

/// What fails before it is revoked may come back to the queue after that was looked through.
#[tokio::test(start_paused = true)]
async fn what_has_failed_in_a_take_that_goes_on_does_not_hold_up_a_revocation() {
    let rig = Revocable::start(|spec| {
        spec.processor.concurrency = non_zero(1);
        spec.batchers.insert("out".to_owned(), BatcherSpec::default());
    });
    // Runs that take no time: from then on several are taken at once.
    for _ in 0..50 {
        rig.queue.publish(Message::new("done"));
        until(|| rig.queue.is_empty()).await;
    }
    let log = &rig.scripted.log;
    rig.queue
        .publish_all(["fail", "sleep=5000 done"].map(Message::new));
    // No time passes meanwhile: the take has not handed over what has failed.
    for _ in 0..10_000 {
        if log.count(What::Began, "sleep=5000 done") == 1 {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(log.count(What::Began, "fail"), 1);
    assert_eq!(log.count(What::Began, "sleep=5000 done"), 1);
    let (drained, took) = rig.revoke().await;
    assert!(took < 6 * SECOND, "{took:?}");
    assert_eq!((drained.ended, drained.dropped, drained.cancelled), (1, 1, 0));
}

/// Nor does what goes through the processor again, since its handler has taken the items.
#[tokio::test(start_paused = true)]
async fn what_a_handler_took_out_and_failed_while_it_is_revoked_is_dropped() {
    let rig = Revocable::start(batches_of_one);
    rig.queue.publish(Message::new("batch-sleep=5000 batch-take"));
    until(|| rig.batches.seen.lock().len() == 1).await;
    let (drained, took) = rig.revoke().await;
    assert!(took < 6 * SECOND, "{took:?}");
    assert_eq!((drained.ended, drained.dropped, drained.cancelled), (0, 1, 0));
}
