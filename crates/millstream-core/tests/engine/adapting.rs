//! Concurrency that follows latency and errors: it finds what the downstream can do, and fetches no more than that needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use millstream_core::{Context, Failure, Flow, PipelineSpec, Processor};
use tokio::sync::Semaphore;

use crate::support::{Rig, non_zero, until};

/// Needs one of so many servers for 20 ms.
#[derive(Clone)]
struct Needs {
    servers: Arc<Semaphore>,
    refuses: Arc<AtomicBool>,
    most: Arc<AtomicUsize>,
    running: Arc<AtomicUsize>,
}

impl Processor for Needs {
    type Input = ();
    type Output = ();

    async fn process(&self, (): (), _: &mut Context<'_>) -> Result<(), Failure> {
        let running = self.running.fetch_add(1, SeqCst) + 1;
        self.most.fetch_max(running, SeqCst);
        let server = self.servers.acquire().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        drop(server);
        self.running.fetch_sub(1, SeqCst);
        if self.refuses.load(SeqCst) {
            return Err("refused".into());
        }
        Ok(())
    }
}

fn start(servers: usize, set: impl FnOnce(&mut PipelineSpec)) -> (Rig, Needs) {
    let needs = Needs {
        servers: Arc::new(Semaphore::new(servers)),
        refuses: Arc::default(),
        most: Arc::default(),
        running: Arc::default(),
    };
    let rig = Rig::start(Flow::process(needs.clone()), |spec| {
        spec.processor.concurrency = non_zero(200);
        spec.processor.adapts_from = Some(non_zero(1));
        set(spec);
    });
    (rig, needs)
}

#[tokio::test(start_paused = true)]
async fn it_begins_at_the_least_and_finds_what_the_downstream_can_do() {
    let (rig, needs) = start(20, |_| {});
    assert_eq!(rig.pipeline().status().concurrency, 1);
    rig.publish(&["a"; 60_000]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    for _ in 0..50 {
        let limit = rig.pipeline().status().concurrency;
        assert!((10..=40).contains(&limit), "{limit} for 20 servers");
        tokio::time::sleep(Duration::from_millis(97)).await;
    }
    needs.servers.add_permits(60);
    let before = rig.pipeline().status().counts.acked;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let limit = rig.pipeline().status().concurrency;
    assert!((40..=160).contains(&limit), "{limit} for 80 servers");
    let done = rig.pipeline().status().counts.acked - before;
    assert!(done > 80 * 50 * 10 * 3 / 4, "{done} of {}", 80 * 50 * 10);
}

#[tokio::test(start_paused = true)]
async fn what_little_there_is_to_do_raises_nothing() {
    let (rig, needs) = start(100, |_| {});
    for _ in 0..200 {
        rig.publish(&["a", "b"]);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    rig.settled().await;
    let limit = rig.pipeline().status().concurrency;
    assert!(limit <= 8, "{limit} for two messages at a time");
    assert!(needs.most.load(SeqCst) <= 2);
}

#[tokio::test(start_paused = true)]
async fn failures_lower_it_to_the_least_and_it_comes_back() {
    let (rig, needs) = start(50, |spec| {
        spec.retry.attempts = std::num::NonZeroU32::new(1_000).unwrap();
    });
    rig.publish(&["a"; 30_000]);
    until(|| rig.pipeline().status().concurrency >= 30).await;
    needs.refuses.store(true, SeqCst);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(rig.pipeline().status().concurrency, 1, "everything fails");
    needs.refuses.store(false, SeqCst);
    until(|| rig.pipeline().status().concurrency >= 30).await;
    rig.settled().await;
    assert!(rig.queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn p4_what_is_fetched_is_in_proportion_to_it() {
    let (rig, _) = start(10, |_| {});
    rig.publish(&["a"; 20_000]);
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        let status = rig.pipeline().status();
        // Sixteen for each worker, at the most there were of late, and what runs.
        let most = 17 * status.concurrency.max(40);
        assert!(
            status.in_flight <= most,
            "{} in flight for {} at a time",
            status.in_flight,
            status.concurrency
        );
    }
}

#[tokio::test(start_paused = true)]
async fn bounds_are_set_while_it_runs_and_a_fixed_number_stays() {
    let (rig, needs) = start(50, |_| {});
    rig.publish(&["a"; 60_000]);
    until(|| rig.pipeline().status().concurrency >= 30).await;
    rig.adapt(2, 8);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!((2..=8).contains(&rig.pipeline().status().concurrency));
    rig.resize(5);
    tokio::time::sleep(Duration::from_secs(2)).await;
    needs.most.store(0, SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        (needs.most.load(SeqCst), rig.pipeline().status().concurrency),
        (5, 5)
    );
    rig.adapt(10, 100);
    until(|| rig.pipeline().status().concurrency >= 30).await;
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_is_applied_sets_bounds_and_takes_them_away() {
    let (rig, needs) = start(50, |_| {});
    let apply = |least: Option<usize>, most: usize| {
        let queue = millstream_core::memory::MemoryQueue::new();
        let mut spec = PipelineSpec::new("test", Arc::new(queue), Flow::process(needs.clone()));
        spec.retry.jitter = false;
        spec.processor.concurrency = non_zero(most);
        spec.processor.adapts_from = least.map(non_zero);
        rig.pipeline().apply(&spec).unwrap()
    };
    rig.publish(&["a"; 60_000]);
    until(|| rig.pipeline().status().concurrency >= 30).await;
    assert_eq!(apply(Some(1), 8).len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(rig.pipeline().status().concurrency <= 8);
    let keys: Vec<_> = apply(None, 8).into_iter().map(|change| change.key).collect();
    assert_eq!(keys, ["processor.adapts_from"]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(rig.pipeline().status().concurrency, 8);
    apply(Some(4), 100);
    until(|| rig.pipeline().status().concurrency >= 30).await;
}
