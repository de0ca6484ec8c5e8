//! Batchers: what closes a batch, and what comes of its messages (P1).

use std::sync::Arc;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{BatcherSpec, ClosedBy, Flow, PipelineSpec, Reason};
use parking_lot::Mutex;

use crate::support::{Log, Rig, Scripted, ScriptedBatches, Seen, What, non_zero, until};

struct Batching {
    rig: Rig,
    log: Log,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Batching {
    fn start(batcher: BatcherSpec, set: impl FnOnce(&mut PipelineSpec)) -> Self {
        let (processor, batches) = (Scripted::default(), ScriptedBatches::default());
        let (log, seen) = (processor.log.clone(), Arc::clone(&batches.seen));
        let rig = Rig::start(Flow::process(processor).batch("out", batches), |spec| {
            spec.processor.concurrency = non_zero(1);
            spec.batchers.insert("out".to_owned(), batcher);
            set(spec);
        });
        Self { rig, log, seen }
    }

    fn batches(&self) -> Vec<(Vec<String>, ClosedBy)> {
        self.seen
            .lock()
            .iter()
            .map(|seen| (seen.items.clone(), seen.closed_by))
            .collect()
    }
}

fn batch(items: &[&str], by: ClosedBy) -> (Vec<String>, ClosedBy) {
    (items.iter().map(|item| (*item).to_owned()).collect(), by)
}

fn of_size(size: usize) -> BatcherSpec {
    BatcherSpec {
        size: non_zero(size),
        ..BatcherSpec::default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_closes_at_its_size_and_the_rest_at_its_age() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["a", "b", "c"]);
    batching.rig.settled().await;
    assert_eq!(
        batching.batches(),
        [batch(&["a", "b"], ClosedBy::Size), batch(&["c"], ClosedBy::Age)]
    );
}

#[tokio::test(start_paused = true)]
async fn age_is_that_of_the_oldest_message_and_no_debounce() {
    let batching = Batching::start(BatcherSpec::default(), |_| {});
    let started = tokio::time::Instant::now();
    let first = batching.rig.queue.clone();
    for _ in 0..9 {
        first.publish(millstream_core::Message::new("a"));
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    until(|| !batching.batches().is_empty()).await;
    assert!(started.elapsed() < Duration::from_millis(1_900));
    batching.rig.settled().await;
    let sizes: Vec<_> = batching.batches().iter().map(|(items, _)| items.len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 9);
    assert!(sizes[0] >= 5, "{sizes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_closes_before_it_would_overflow_and_a_large_message_is_one_alone() {
    let spec = BatcherSpec {
        bytes: non_zero(10),
        ..BatcherSpec::default()
    };
    let batching = Batching::start(spec, |_| {});
    batching
        .rig
        .publish(&["aaaa", "bbbb", "cccc", "dddddddddddddddddddd", "e"]);
    batching.rig.settled().await;
    assert_eq!(
        batching.batches(),
        [
            batch(&["aaaa", "bbbb"], ClosedBy::Bytes),
            batch(&["cccc"], ClosedBy::Bytes),
            batch(&["dddddddddddddddddddd"], ClosedBy::Bytes),
            batch(&["e"], ClosedBy::Age),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn messages_are_batched_by_their_batch_key() {
    let batching = Batching::start(of_size(2), |_| {});
    batching
        .rig
        .publish(&["batch-key=x 1", "batch-key=y 1", "batch-key=x 2", "batch-key=y 2"]);
    batching.rig.settled().await;
    let seen = batching.seen.lock().clone();
    assert_eq!(
        seen.iter()
            .map(|batch| batch.key.clone().unwrap())
            .collect::<Vec<_>>(),
        ["x", "y"]
    );
    assert_eq!(seen[0].items, ["batch-key=x 1", "batch-key=x 2"]);
}

#[tokio::test(start_paused = true)]
async fn a_failed_message_does_not_enter_its_batcher() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["a", "reject", "fail", "panic", "b"]);
    batching.rig.settled().await;
    assert_eq!(batching.batches(), [batch(&["a", "b"], ClosedBy::Size)]);
    assert_eq!(batching.rig.queue.dead().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn each_batch_key_closes_by_its_own_size_and_age() {
    let batching = Batching::start(of_size(2), |_| {});
    batching
        .rig
        .publish(&["batch-key=x 1", "batch-key=y 1", "batch-key=x 2", "batch-key=x 3"]);
    batching.rig.settled().await;
    let mut batches = batching.batches();
    batches.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        batches,
        [
            batch(&["batch-key=x 1", "batch-key=x 2"], ClosedBy::Size),
            batch(&["batch-key=x 3"], ClosedBy::Age),
            batch(&["batch-key=y 1"], ClosedBy::Age),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn each_of_several_batchers_closes_by_its_own_size_and_age() {
    let (first, second) = (ScriptedBatches::default(), ScriptedBatches::default());
    let seen = [Arc::clone(&first.seen), Arc::clone(&second.seen)];
    let flow = Flow::process(Scripted::default())
        .batch("first", first)
        .batch("second", second);
    let rig = Rig::start(flow, |spec| {
        spec.processor.concurrency = non_zero(1);
        spec.batchers.insert("first".to_owned(), of_size(2));
        let slow = BatcherSpec {
            max_age: Duration::from_secs(60),
            ..of_size(3)
        };
        spec.batchers.insert("second".to_owned(), slow);
    });
    let payloads: Vec<_> = (0..4)
        .flat_map(|number| ["first", "second"].map(|name| format!("to={name} {number}")))
        .chain(["to=first 4".to_owned()])
        .collect();
    let started = tokio::time::Instant::now();
    rig.publish(&payloads.iter().map(String::as_str).collect::<Vec<_>>());
    until(|| seen[0].lock().len() == 3).await;
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "it waited for the other"
    );
    rig.settled().await;
    let closed = |seen: &Mutex<Vec<Seen>>| -> Vec<_> {
        let seen = seen.lock();
        seen.iter()
            .map(|batch| (batch.items.len(), batch.closed_by))
            .collect()
    };
    assert_eq!(
        closed(&seen[0]),
        [(2, ClosedBy::Size), (2, ClosedBy::Size), (1, ClosedBy::Age)]
    );
    assert_eq!(closed(&seen[1]), [(3, ClosedBy::Size), (1, ClosedBy::Age)]);
}

/// Takes all items out, fails one twice and some that are not there.
struct Sloppy;

impl millstream_core::BatchHandler for Sloppy {
    type Input = String;

    async fn handle(
        &self,
        batch: &mut millstream_core::Batch<String>,
    ) -> Result<(), millstream_core::Failure> {
        batch.take_items();
        for index in [1, 1, 3, usize::MAX] {
            batch.fail(index, millstream_core::Failure::reject("sloppy"));
        }
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn p2_a_batch_handler_can_neither_lose_a_message_nor_make_one_up() {
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", Sloppy), |spec| {
        spec.processor.concurrency = non_zero(1);
        spec.batchers.insert("out".to_owned(), of_size(3));
    });
    rig.publish(&["a", "b", "c"]);
    rig.settled().await;
    let counts = rig.pipeline().status().counts;
    assert_eq!((counts.acked, counts.rejected, counts.stale), (2, 1, 0));
    assert_eq!(rig.queue.settlements(), 3);
    assert_eq!(rig.queue.dead()[0].0.payload, "b");
}

#[tokio::test(start_paused = true)]
async fn flush_closes_the_batch_with_the_message_in_it() {
    let batching = Batching::start(of_size(10), |_| {});
    batching.rig.publish(&["a", "flush", "c"]);
    batching.rig.settled().await;
    assert_eq!(
        batching.batches(),
        [
            batch(&["a", "flush"], ClosedBy::Flush),
            batch(&["c"], ClosedBy::Age)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn done_skips_the_batcher() {
    let batching = Batching::start(of_size(10), |_| {});
    batching.rig.publish(&["done"]);
    batching.rig.settled().await;
    assert!(batching.batches().is_empty());
    assert_eq!(batching.log.ended(), ["done"]);
}

#[tokio::test(start_paused = true)]
async fn p1_a_batched_message_is_acknowledged_only_after_its_batch() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["batch-sleep=5000", "b"]);
    until(|| !batching.batches().is_empty()).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(batching.rig.queue.len(), 2);
    batching.rig.settled().await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_batch_comes_again_with_the_same_items_and_without_the_processor() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["batch-fail-once", "b"]);
    batching.rig.settled().await;
    assert_eq!(batching.log.count(What::Began, "b"), 1);
    let attempts: Vec<_> = batching
        .seen
        .lock()
        .iter()
        .map(|seen| (seen.items.len(), seen.attempt))
        .collect();
    assert_eq!(attempts, [(2, 1), (2, 2)]);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_takes_its_items_out_forgoes_that() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["batch-take", "b"]);
    batching.rig.settled().await;
    assert_eq!(batching.log.count(What::Began, "b"), 2);
}

#[tokio::test(start_paused = true)]
async fn of_a_partly_failed_batch_the_others_succeed() {
    let batching = Batching::start(of_size(3), |_| {});
    batching.rig.publish(&["a", "item-fail-once", "c"]);
    until(|| batching.rig.queue.len() == 1).await;
    batching.rig.settled().await;
    let items: Vec<_> = batching
        .seen
        .lock()
        .iter()
        .map(|seen| seen.items.clone())
        .collect();
    assert_eq!(items, [vec!["a", "item-fail-once", "c"], vec!["item-fail-once"]]);
}

#[tokio::test(start_paused = true)]
async fn rejected_items_and_rejected_batches_go_to_the_dead_letter() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["a", "item-reject", "batch-reject", "d"]);
    batching.rig.settled().await;
    let dead = batching.rig.queue.dead();
    assert_eq!(dead.len(), 3);
    assert!(
        dead.iter()
            .all(|(_, why)| why.reason == Reason::Rejected && &*why.stage == "out")
    );
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_keeps_failing_is_given_up_after_its_attempts() {
    let batching = Batching::start(of_size(2), |_| {});
    batching.rig.publish(&["batch-fail", "b"]);
    batching.rig.settled().await;
    assert_eq!(batching.seen.lock().len(), 5);
    assert!(
        batching
            .rig
            .queue
            .dead()
            .iter()
            .all(|(_, why)| why.reason == Reason::Attempts && why.attempts == 5)
    );
}

#[tokio::test(start_paused = true)]
async fn a_panicking_or_hung_batch_fails_as_a_whole_and_the_next_one_runs() {
    let spec = BatcherSpec {
        timeout: Duration::from_secs(1),
        ..of_size(2)
    };
    let batching = Batching::start(spec, |spec| {
        spec.retry.attempts = std::num::NonZeroU32::MIN;
    });
    batching
        .rig
        .publish(&["batch-panic", "b", "batch-hang", "d", "e", "f"]);
    batching.rig.settled().await;
    assert_eq!(batching.rig.queue.dead().len(), 4);
    let counts = batching.rig.pipeline().status().counts;
    assert_eq!(
        (counts.panicked, counts.timed_out, counts.acked, counts.restarts),
        (2, 2, 2, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn with_several_batchers_the_processor_must_choose_an_existing_one() {
    let (first, second) = (ScriptedBatches::default(), ScriptedBatches::default());
    let (seen_first, seen_second) = (Arc::clone(&first.seen), Arc::clone(&second.seen));
    let flow = Flow::process(Scripted::default())
        .batch("first", first)
        .batch("second", second);
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["to=first", "to=second", "neither", "to=third", "done"]);
    rig.settled().await;
    assert_eq!(seen_first.lock()[0].items, ["to=first"]);
    assert_eq!(seen_second.lock()[0].items, ["to=second"]);
    let dead = rig.queue.dead();
    assert_eq!(dead.len(), 2);
    assert!(dead.iter().all(|(_, why)| why.reason == Reason::Route));
    assert!(
        dead.iter()
            .any(|(_, why)| why.error.contains("no batcher `third`"))
    );
}

#[tokio::test(start_paused = true)]
async fn a_flow_that_ends_in_a_sink_writes_there_before_it_acknowledges() {
    let out = MemoryQueue::new();
    let rig = Rig::start(Flow::process(Scripted::default()).sink("out"), |spec| {
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                sink: Some(Arc::new(out.clone())),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish(&["a", "b"]);
    rig.settled().await;
    let payloads: Vec<_> = out
        .messages()
        .into_iter()
        .map(|message| message.payload)
        .collect();
    assert_eq!(payloads, ["a", "b"]);
}
