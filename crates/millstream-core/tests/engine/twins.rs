//! Deduplication: what was done within the window is acknowledged unrun, and a twin of what is in flight waits for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BatcherSpec, BoxFuture, Capabilities, Condition, DeadLetter, DedupError, DedupStore, DeduplicateSpec,
    Flow, IdBy, MemoryStore, Message, OnStoreFailure, Ordering, PipelineSpec, Reason, RetryStrategy,
};
use parking_lot::Mutex;

use crate::support::{Rig, Scripted, ScriptedBatches, What, non_zero, scripted, until};

fn message(id: &str, payload: &str) -> Message {
    Message::new(payload.to_owned()).with_header("id", id)
}

fn by_header(name: &str) -> DeduplicateSpec {
    let Ordering::By(by) = Ordering::by_header(name) else {
        unreachable!()
    };
    DeduplicateSpec {
        by: IdBy::By(by),
        ..DeduplicateSpec::new()
    }
}

fn deduplicated(spec: &mut PipelineSpec) {
    spec.deduplicate = Some(by_header("id"));
}

/// Ids that a store was told, and how much of a queue was unsettled then.
type Told = (Vec<Bytes>, usize);

/// A store in memory that can be away, and that says how much of a queue was unsettled whenever it was told something.
#[derive(Clone)]
struct Watched {
    store: Arc<MemoryStore>,
    away: Arc<AtomicBool>,
    queue: MemoryQueue,
    told: Arc<Mutex<Vec<Told>>>,
}

impl Watched {
    fn new() -> Self {
        Self {
            store: Arc::new(MemoryStore::new(DeduplicateSpec::MAX_ENTRIES)),
            away: Arc::default(),
            queue: MemoryQueue::new(),
            told: Arc::default(),
        }
    }

    fn spec(&self, on_store_failure: OnStoreFailure) -> DeduplicateSpec {
        DeduplicateSpec {
            store: Arc::new(self.clone()),
            on_store_failure,
            ..by_header("id")
        }
    }

    fn refuse<T>(&self) -> Option<BoxFuture<'_, Result<T, DedupError>>>
    where
        T: Send + 'static,
    {
        self.away
            .load(SeqCst)
            .then(|| Box::pin(async { Err(DedupError("it is away".to_owned())) }) as _)
    }
}

impl DedupStore for Watched {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        self.refuse().unwrap_or_else(|| self.store.seen(ids))
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        if let Some(refused) = self.refuse() {
            return refused;
        }
        self.told.lock().push((ids.to_vec(), self.queue.len()));
        self.store.enter(ids, window)
    }
}

#[tokio::test(start_paused = true)]
async fn what_was_done_within_the_window_is_acknowledged_unrun_and_runs_again_after_it() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, deduplicated);
    rig.queue.publish(message("a", "one"));
    rig.settled().await;
    rig.queue
        .publish_all([message("a", "two"), message("b", "three"), message("a", "four")]);
    rig.settled().await;
    assert_eq!(log.ended(), ["one", "three"]);
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.duplicates, counts.acked), (2, 4));
    tokio::time::sleep(DeduplicateSpec::WINDOW).await;
    rig.queue.publish(message("a", "five"));
    rig.settled().await;
    assert_eq!(log.ended(), ["one", "three", "five"]);
}

#[tokio::test(start_paused = true)]
async fn messages_without_an_id_all_run_and_are_counted() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, deduplicated);
    rig.publish(&["one", "one"]);
    rig.queue
        .publish_all([message("", "two"), message(&"x".repeat(1025), "two")]);
    rig.settled().await;
    assert_eq!(log.ended().len(), 4);
    assert_eq!(rig.pipeline().status().counts.unidentified, 4);
}

#[tokio::test(start_paused = true)]
async fn an_id_that_panics_is_none() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.deduplicate = Some(DeduplicateSpec {
            by: IdBy::By(Arc::new(|_| panic!("scripted"))),
            ..DeduplicateSpec::new()
        });
    });
    rig.publish(&["one"]);
    rig.settled().await;
    assert_eq!(log.ended(), ["one"]);
}

#[tokio::test(start_paused = true)]
async fn the_place_and_position_are_an_id_where_the_source_says_so() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.deduplicate = Some(DeduplicateSpec::new()));
    rig.publish(&["one", "one"]);
    rig.settled().await;
    assert_eq!(log.ended().len(), 2, "each is another");
    assert_eq!(rig.pipeline().status().counts.unidentified, 0);
}

#[test]
fn a_source_without_ids_is_refused_unless_something_else_is_gone_by() {
    let start = |deduplicate| {
        let queue = MemoryQueue::with_capabilities(Capabilities {
            keeps_rejected: true,
            ..Capabilities::default()
        });
        let mut spec = PipelineSpec::new("test", Arc::new(queue), Flow::process(Scripted::default()));
        spec.deduplicate = Some(deduplicate);
        millstream_core::Host::start([spec]).map(drop)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let error = start(DeduplicateSpec::new()).unwrap_err().to_string();
    assert!(error.contains("gives messages no id"), "{error}");
    start(by_header("id")).unwrap();
}

/// P1: a twin says nothing of its own, so it is settled as its first is.
#[tokio::test(start_paused = true)]
async fn a_twin_waits_for_its_first_with_a_place_and_without_a_worker() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        deduplicated(spec);
        spec.processor.concurrency = non_zero(2);
    });
    rig.queue.publish_all([message("a", "sleep=100 first")]);
    until(|| log.len() == 1).await;
    rig.queue.publish_all([
        message("a", "second"),
        message("a", "third"),
        message("b", "other"),
    ]);
    until(|| log.count(What::Ended, "other") == 1).await;
    until(|| rig.pipeline().status().held == 2).await;
    let status = rig.pipeline().status();
    assert_eq!((status.in_flight, status.running), (3, 1));
    rig.settled().await;
    assert_eq!(log.ended(), ["other", "sleep=100 first"]);
    let status = rig.pipeline().status();
    assert_eq!((status.counts.duplicates, status.held), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_twin_of_what_is_dead_lettered_is_dead_lettered_for_the_same_reason() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, deduplicated);
    rig.queue.publish_all([
        message("a", "sleep=10 reject"),
        message("a", "twin"),
        message("a", "sleep=10 reject"),
    ]);
    rig.settled().await;
    assert_eq!(log.len(), 1, "one ran");
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 3);
    for (_, rejection) in &dead {
        assert_eq!(
            (rejection.reason, &*rejection.error),
            (Reason::Rejected, "scripted reject")
        );
    }
    rig.queue.publish(message("a", "again"));
    rig.settled().await;
    assert_eq!(log.ended(), ["again"], "what was given up was not done");
}

#[tokio::test(start_paused = true)]
async fn a_first_that_is_lost_leaves_its_twin_to_run() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, deduplicated);
    rig.queue.publish(message("a", "hang"));
    until(|| log.len() == 1).await;
    rig.queue.publish(message("a", "twin"));
    until(|| rig.pipeline().status().held == 1).await;
    rig.queue.break_connection();
    // All comes again: the one that hangs is the first again.
    until(|| log.count(What::Began, "hang") == 2).await;
    until(|| rig.pipeline().status().held == 1).await;
    assert_eq!(log.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_first_that_is_given_back_leaves_its_twin_to_run_and_is_then_a_duplicate() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        deduplicated(spec);
        spec.retry.strategy = RetryStrategy::Redeliver;
        spec.retry.backoff = Duration::from_secs(5);
    });
    rig.queue.publish_all([
        message("a", "sleep=10 fail-once"),
        message("a", "twin"),
        message("a", "twin"),
    ]);
    rig.settled().await;
    assert_eq!(log.ended(), ["twin"]);
    assert_eq!(log.count(What::Began, "sleep=10 fail-once"), 1);
    assert_eq!(rig.pipeline().status().counts.duplicates, 2);
}

#[tokio::test(start_paused = true)]
async fn what_comes_again_through_a_retry_sink_was_not_done() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        keeps_rejected: true,
        ..Capabilities::default()
    });
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| {
        deduplicated(spec);
        spec.retry.strategy = RetryStrategy::Redeliver;
    });
    rig.queue.publish(message("a", "fail-once"));
    rig.settled().await;
    assert_eq!(log.ended(), ["fail-once"]);
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.put_off, counts.duplicates), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_discarded_was_not_done() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        deduplicated(spec);
        spec.dead_letter = DeadLetter::Discard;
    });
    rig.queue.publish(message("a", "reject"));
    rig.settled().await;
    rig.queue.publish(message("a", "again"));
    rig.settled().await;
    assert_eq!(log.ended(), ["again"]);
}

/// P3: a twin has its turn in its lane, and what follows it waits.
#[tokio::test(start_paused = true)]
async fn p3_a_twin_holds_its_lane_until_its_first_has_ended() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        deduplicated(spec);
        spec.ordering = Ordering::Key;
    });
    rig.queue.publish_all([
        message("a", "sleep=100 first").with_key("x"),
        message("a", "twin").with_key("y"),
        message("b", "behind").with_key("y"),
        message("c", "aside").with_key("z"),
    ]);
    rig.settled().await;
    assert_eq!(log.ended(), ["aside", "sleep=100 first", "behind"]);
    assert_eq!(rig.pipeline().status().lanes, 0);
}

/// P1: done is done with its batch.
#[tokio::test(start_paused = true)]
async fn a_message_is_done_when_its_batch_is() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(
        Flow::process(Scripted::default()).batch("out", batches),
        deduplicated,
    );
    rig.queue
        .publish_all([message("a", "batch-fail-once"), message("a", "twin")]);
    rig.settled().await;
    let runs: Vec<_> = seen.lock().iter().map(|seen| seen.items.clone()).collect();
    assert_eq!(runs, [["batch-fail-once"], ["batch-fail-once"]]);
    assert_eq!(rig.pipeline().status().counts.duplicates, 1);
}

/// P8: what waits for another message, whose batch is young, is no stall.
#[tokio::test(start_paused = true)]
async fn p8_a_twin_that_waits_for_a_batch_is_no_stall_and_neither_is_what_waits_behind_it() {
    let batches = ScriptedBatches::default();
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        deduplicated(spec);
        spec.ordering = Ordering::Key;
        let batcher = BatcherSpec {
            max_age: Duration::from_secs(200),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
    });
    rig.queue.publish_all([
        message("a", "first").with_key("x"),
        message("a", "twin").with_key("y"),
        message("b", "flush behind").with_key("y"),
    ]);
    rig.settled().await;
    rig.assert_sound();
    assert_eq!(rig.pipeline().status().counts.duplicates, 1);
}

#[tokio::test(start_paused = true)]
async fn the_store_is_told_before_the_source_is() {
    let watched = Watched::new();
    let (_, flow) = scripted();
    let rig = Rig::on(watched.queue.clone(), flow, |spec| {
        spec.deduplicate = Some(watched.spec(OnStoreFailure::Run));
    });
    rig.queue
        .publish_all([message("a", "one"), message("b", "reject")]);
    rig.settled().await;
    let told = watched.told.lock().clone();
    assert_eq!(
        told.iter().map(|(ids, _)| ids.clone()).collect::<Vec<_>>(),
        [["a"]]
    );
    assert!(told.iter().all(|(_, unsettled)| *unsettled > 0), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn messages_run_while_the_store_is_away() {
    let watched = Watched::new();
    watched.away.store(true, SeqCst);
    let (log, flow) = scripted();
    let rig = Rig::on(watched.queue.clone(), flow, |spec| {
        spec.deduplicate = Some(watched.spec(OnStoreFailure::Run));
    });
    for _ in 0..2 {
        rig.queue.publish(message("a", "one"));
        rig.settled().await;
    }
    assert_eq!(log.ended(), ["one", "one"]);
    let status = rig.pipeline().status();
    assert_eq!(
        status.counts.unchecked, 4,
        "two were not asked for and not entered"
    );
    assert_eq!(
        status.condition,
        Condition::Degraded("deduplicate: it is away".to_owned())
    );
    watched.away.store(false, SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    for _ in 0..2 {
        rig.queue.publish(message("a", "two"));
        rig.settled().await;
    }
    assert_eq!(log.ended(), ["one", "one", "two"]);
    assert_eq!(rig.pipeline().status().condition, Condition::Running);
}

#[tokio::test(start_paused = true)]
async fn messages_and_acknowledgements_wait_for_the_store_where_that_is_wanted() {
    let watched = Watched::new();
    let (log, flow) = scripted();
    let rig = Rig::on(watched.queue.clone(), flow, |spec| {
        spec.deduplicate = Some(watched.spec(OnStoreFailure::Wait));
    });
    rig.queue.publish(message("a", "sleep=10 one"));
    until(|| log.len() == 1).await;
    watched.away.store(true, SeqCst);
    until(|| log.len() == 2).await;
    rig.queue.publish_all([message("b", "two")]);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(log.len(), 2, "nothing runs");
    assert_eq!(rig.queue.len(), 2, "nothing is acknowledged");
    rig.assert_sound();
    watched.away.store(false, SeqCst);
    rig.settled().await;
    assert_eq!(log.ended(), ["sleep=10 one", "two"]);
    rig.queue.publish(message("a", "again"));
    rig.settled().await;
    assert_eq!(rig.pipeline().status().counts.duplicates, 1);
}

/// P6: what waits for the store goes back.
#[tokio::test(start_paused = true)]
async fn p6_a_drain_gives_back_what_waits_for_the_store() {
    let watched = Watched::new();
    watched.away.store(true, SeqCst);
    let (log, flow) = scripted();
    let rig = Rig::on(watched.queue.clone(), flow, |spec| {
        spec.deduplicate = Some(watched.spec(OnStoreFailure::Wait));
    });
    rig.queue.publish(message("a", "one"));
    until(|| rig.pipeline().status().in_flight == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(30)).await;
    assert_eq!((report.released, report.left), (1, 0));
    assert!(report.took < Duration::from_secs(1), "{report}");
    assert_eq!((rig.queue.leased(), log.len()), (0, 0));
}

/// P6: twins wait for their first until the cut, and go back with it.
#[tokio::test(start_paused = true)]
async fn p6_a_drain_gives_back_twins_that_wait() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, deduplicated);
    rig.queue.publish_all([
        message("a", "hang"),
        message("a", "twin"),
        message("b", "sleep=100 hang"),
    ]);
    until(|| rig.pipeline().status().held == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!(
        (report.in_flight, report.released, report.left),
        (3, 3, 0),
        "{report}"
    );
    assert_eq!(rig.queue.leased(), 0);
    assert_eq!(log.count(What::Began, "twin"), 0);
}

/// P4: a window of many ids is no more than its bound, and the pipeline says what it forgot.
#[tokio::test(start_paused = true)]
async fn p4_ids_that_are_forgotten_early_are_counted() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.deduplicate = Some(DeduplicateSpec {
            store: Arc::new(MemoryStore::new(non_zero(10))),
            ..by_header("id")
        });
    });
    for number in 0..25 {
        rig.queue.publish(message(&number.to_string(), "ok"));
    }
    rig.settled().await;
    assert_eq!(rig.pipeline().status().counts.forgotten_ids, 15);
}

/// Whatever fails, and however often each is published: each id has its effect once.
#[tokio::test(start_paused = true)]
async fn among_many_twins_each_id_is_done_once() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        deduplicated(spec);
        spec.ordering = Ordering::Key;
        spec.processor.concurrency = non_zero(4);
        spec.limits.in_flight = non_zero(50);
    });
    let mut drawn = 7_u32;
    for _ in 0..2_000 {
        drawn = drawn.wrapping_mul(1_103_515_245).wrapping_add(12_345);
        let id = (drawn >> 16) % 200;
        let payload = match id % 4 {
            0 => format!("sleep=3 fail-once #{id}"),
            1 => format!("sleep=20 #{id}"),
            _ => format!("#{id}"),
        };
        let key = format!("k{}", (drawn >> 20) % 7);
        rig.queue
            .publish(message(&id.to_string(), &payload).with_key(key));
    }
    rig.settled().await;
    let mut ended = log.ended();
    ended.sort();
    let all = ended.len();
    ended.dedup();
    assert_eq!(ended.len(), all, "none was done twice");
    let status = rig.pipeline().status();
    assert_eq!(status.counts.duplicates as usize, 2_000 - all);
    assert_eq!((status.held, status.lanes), (0, 0));
    rig.assert_sound();
}
