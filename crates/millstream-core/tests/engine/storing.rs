//! A store of ids that does not answer: what it need not know of does not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::memory::MemoryQueue;
use millstream_core::{
    BoxFuture, DedupError, DedupStore, DeduplicateSpec, Host, IdBy, MemoryStore, Message, OnStoreFailure,
    Ordering, PipelineSpec,
};

use crate::support::{Log, Rig, Slow, non_zero, scripted, until};

const SECOND: Duration = Duration::from_secs(1);

/// A store in memory that takes note of nothing while it hangs.
#[derive(Clone)]
struct Hanging(Arc<MemoryStore>, Arc<AtomicBool>);

impl DedupStore for Hanging {
    fn seen<'a>(&'a self, ids: &'a [Bytes]) -> BoxFuture<'a, Result<Vec<bool>, DedupError>> {
        self.0.seen(ids)
    }

    fn enter<'a>(&'a self, ids: &'a [Bytes], window: Duration) -> BoxFuture<'a, Result<usize, DedupError>> {
        if self.1.load(SeqCst) {
            return Box::pin(std::future::pending());
        }
        self.0.enter(ids, window)
    }
}

fn message(id: &str, payload: &str) -> Message {
    Message::new(payload.to_owned()).with_header("id", id)
}

fn rig(on_store_failure: OnStoreFailure) -> (Rig, Log, Arc<AtomicBool>) {
    let hangs = Arc::new(AtomicBool::new(true));
    let store = Hanging(
        Arc::new(MemoryStore::new(DeduplicateSpec::MAX_ENTRIES)),
        Arc::clone(&hangs),
    );
    let Ordering::By(by) = Ordering::by_header("id") else {
        unreachable!()
    };
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.deduplicate = Some(DeduplicateSpec {
            by: IdBy::By(by),
            store: Arc::new(store),
            on_store_failure,
            ..DeduplicateSpec::new()
        });
    });
    (rig, log, hangs)
}

/// P5: what was given up, and what has no id, is settled at once; what succeeded is, as soon as the store has it.
#[tokio::test(start_paused = true)]
async fn what_did_not_succeed_is_settled_while_the_store_hangs() {
    for on_store_failure in [OnStoreFailure::Run, OnStoreFailure::Wait] {
        let (rig, log, hangs) = rig(on_store_failure);
        rig.queue.publish(message("a", "ok"));
        until(|| log.ended().len() == 1).await;
        let began = tokio::time::Instant::now();
        rig.queue.publish(message("b", "reject"));
        rig.publish(&["without an id"]);
        until(|| rig.queue.len() == 1).await;
        assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
        assert_eq!(rig.queue.dead().len(), 1);
        hangs.store(false, SeqCst);
        rig.settled().await;
        rig.queue.publish(message("c", "later"));
        rig.queue.publish(message("b", "ok again"));
        rig.settled().await;
        assert_eq!(log.ended().len(), 4);
        assert_eq!(rig.pipeline().status().counts.acked, 4);
        rig.assert_sound();
    }
}

/// P6: the drain does not spend its time on a store that does not answer.
#[tokio::test(start_paused = true)]
async fn p6_a_drain_has_less_patience_with_the_store() {
    let (rig, log, _) = rig(OnStoreFailure::Run);
    rig.queue.publish(message("a", "ok"));
    until(|| log.ended().len() == 1).await;
    let report = rig.pipeline().drain(30 * SECOND).await;
    assert_eq!((report.done, report.left), (1, 0), "{report}");
    assert!(report.took < SECOND, "{report}");
}

/// P2: a stage that dies with its connection leaves nothing behind.
#[tokio::test(start_paused = true)]
async fn p2_a_connection_that_is_lost_while_the_store_hangs_loses_no_settlement() {
    let (rig, log, hangs) = rig(OnStoreFailure::Wait);
    rig.queue.publish_all([message("a", "ok"), message("b", "ok")]);
    until(|| log.ended().len() == 2).await;
    rig.queue.publish(message("c", "ok"));
    until(|| log.ended().len() == 3).await;
    rig.queue.break_connection();
    tokio::time::sleep(SECOND).await;
    hangs.store(false, SeqCst);
    rig.settled().await;
    rig.assert_sound();
    assert_eq!(rig.pipeline().status().in_flight, 0);
}

/// P5: while one call of the acknowledger follows the other, the store's answer is heard.
#[tokio::test(start_paused = true)]
async fn the_store_is_heard_while_there_is_always_something_to_settle() {
    let Ordering::By(by) = Ordering::by_header("id") else {
        unreachable!()
    };
    let queue = MemoryQueue::new();
    let mut spec = PipelineSpec::new(
        "test",
        Arc::new(Slow(queue.clone(), Duration::from_millis(5))),
        scripted().1,
    );
    spec.processor.concurrency = non_zero(2);
    spec.deduplicate = Some(DeduplicateSpec {
        by: IdBy::By(by),
        ..DeduplicateSpec::new()
    });
    let host = Host::start([spec]).unwrap();
    let counts = || host.pipeline("test").unwrap().status().counts;
    queue.publish_all((0..100).map(|_| Message::new("sleep=1 reject")));
    queue.publish(message("a", "ok"));
    queue.publish_all((0..2_000).map(|_| Message::new("sleep=1 reject")));
    until(|| counts().acked == 1).await;
    let rejected = counts().rejected;
    assert!(rejected < 500, "it waited until {rejected} others were settled");
}
