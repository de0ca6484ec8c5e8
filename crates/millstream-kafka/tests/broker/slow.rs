//! Handlers that take longer than a group has patience for.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Message, Rebalance, rt};
use tokio::sync::Semaphore;

use crate::support::{Done, Member, Topic, keyed, until};

/// What `Topic::reads` sets.
const SESSION: Duration = Duration::from_secs(3);

/// P1 P2, and Broadway Kafka's 92 and 121, in which a member that waits within a revocation is given up, and the group
/// is balanced without end: a handler that takes longer than a session is waited for, and its message is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_that_waits_for_a_slow_handler_costs_no_membership() {
    let topic = Topic::make("slow", 2).await;
    topic.publish(&keyed(0..8, 8)).await;
    let (done, runs) = (Done::default(), Done::default());
    let gate = Arc::new(Semaphore::new(0));
    let start = |gate: &Arc<Semaphore>, mine: &Done| {
        let (counted, ran, waiting) = (done.clone(), runs.clone(), Arc::clone(gate));
        let mine = mine.clone();
        Member::start(
            topic.reads(),
            |_| {},
            move |message| {
                let (counted, ran, waiting) = (counted.clone(), ran.clone(), Arc::clone(&waiting));
                let mine = mine.clone();
                async move {
                    ran.add(&message);
                    waiting.acquire().await?.forget();
                    counted.add(&message);
                    mine.add(&message);
                    Ok(())
                }
            },
        )
    };
    let (by_first, by_second) = (Done::default(), Done::default());
    let first = start(&gate, &by_first);
    runs.reaches(8).await;
    let second = start(&Arc::new(Semaphore::new(1_000)), &by_second);
    rt::sleep(SESSION * 2).await;
    assert_eq!((done.total(), runs.total()), (0, 8), "all of it still runs, once");
    gate.add_permits(1_000);
    done.reaches(8).await;
    topic.publish(&keyed(8..64, 8)).await;
    done.reaches(64).await;
    until("both have a partition", || async {
        by_first.total() > 8 && by_second.total() > 0
    })
    .await;
    assert_eq!(first.pipeline().status().counts.lost, 0);
    for member in [first, second] {
        let report = member.drain().await;
        assert_eq!((report.left, report.lost), (0, 0), "{report}");
    }
    assert_eq!((done.total(), runs.total()), (64, 64));
    assert_eq!(topic.total_committed().await, 64);
}

/// Counts a message whose handler is dropped.
struct Dropped(Done, Message);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add(&self.1);
    }
}

/// P2 P7, and Broadway Kafka's 43, 46 and 47, in which a revocation waits for ever: a handler that does not end is
/// cancelled after half of `max.poll.interval.ms`, and whoever is given its partition runs what it had.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_does_not_end_is_cancelled_and_its_partition_given_up() {
    let topic = Topic::make("endless", 2).await;
    topic.publish(&keyed(0..16, 16)).await;
    let (runs, cancelled) = (Done::default(), Done::default());
    let (ran, ended) = (runs.clone(), cancelled.clone());
    let source = topic.reads().property("max.poll.interval.ms", "6000").unwrap();
    let first = Member::start(
        source,
        // Nothing else ends it, and messages of both partitions run.
        |spec| {
            spec.processor.timeout = Duration::from_secs(3_600);
            spec.processor.concurrency = NonZeroUsize::new(16).unwrap();
        },
        move |message| {
            ran.add(&message);
            let dropped = Dropped(ended.clone(), message);
            async move {
                let _dropped = dropped;
                std::future::pending().await
            }
        },
    );
    runs.reaches(16).await;
    let done = Done::default();
    let second = Member::counts(topic.reads(), &done);
    until("one partition is done", || async {
        let (committed, ends) = (topic.committed().await, topic.ends().await);
        committed
            .iter()
            .zip(ends)
            .any(|((offset, _), end)| *offset == Some(end))
    })
    .await;
    assert!(cancelled.total() > 0, "what ran was cancelled");
    // Where it waits for ever the group goes on without it, and the second one has all.
    let measures = first.pipeline().measures();
    let number = |of| {
        measures
            .rebalances
            .iter()
            .find(|(how, _)| *how == of)
            .map_or(0, |(_, number)| *number)
    };
    assert!(
        number(Rebalance::Revoked) > 0,
        "it gave its partitions up by itself"
    );
    assert_eq!(number(Rebalance::Lost), 0);
    rt::sleep(SESSION * 2).await;
    assert!(done.total() < 16, "it is still a member, and has the other");
    let total = topic.total_committed().await;
    assert_eq!(total, done.total() as u64, "P7: nothing of what did not end");
    let report = first.pipeline().drain(Duration::from_secs(2)).await;
    assert_eq!(report.left, 0, "{report}");
    done.reaches(16).await;
    second.drain().await;
    assert_eq!(done.total(), 16);
}

/// P4, and Broadway Kafka's 160 and Parallel Consumer's 857: a member whose workers all hang still polls, and is not given
/// up after `max.poll.interval.ms`, though there is more to read than it has room for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_that_hang_cost_no_membership() {
    /// More than is read ahead.
    const SENT: usize = 9_000;
    let interval = Duration::from_secs(4);
    let topic = Topic::make("wedged", 1).await;
    topic.publish(&keyed(0..SENT, SENT)).await;
    let (done, runs) = (Done::default(), Done::default());
    let gate = Arc::new(Semaphore::new(0));
    let (counted, ran, waiting) = (done.clone(), runs.clone(), Arc::clone(&gate));
    let source = topic
        .reads()
        .property("max.poll.interval.ms", &interval.as_millis().to_string())
        .unwrap();
    let member = Member::start(
        source,
        |spec| spec.limits.in_flight = NonZeroUsize::new(10).unwrap(),
        move |message| {
            let (counted, ran, waiting) = (counted.clone(), ran.clone(), Arc::clone(&waiting));
            async move {
                ran.add(&message);
                waiting.acquire().await?.forget();
                counted.add(&message);
                Ok(())
            }
        },
    );
    runs.reaches(8).await;
    rt::sleep(interval * 2).await;
    gate.add_permits(10_000);
    done.reaches(SENT).await;
    assert_eq!(member.pipeline().status().counts.lost, 0);
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!((done.total(), runs.total()), (SENT, SENT), "none ran twice");
}
