//! An offset that stays unsettled.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;

use millstream_core::{Ordering, OriginId};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::support::{Done, Member, Topic, keyed, until};

/// P4 P5 P7, and Broadway Kafka's 100 and 139: a message that does not end holds back its own partition once the window
/// is full, and no other; once it ends, all goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_offset_stops_its_partition_at_a_bound() {
    const WINDOW: usize = 200;
    /// What is read before it is handed over, for which nobody looks at the window.
    const BATCH: usize = 500;
    let topic = Topic::make("stuck", 2).await;
    let sent = keyed(0..4_000, 40);
    topic.publish(&sent).await;
    let (done, gate) = (Done::default(), Arc::new(Semaphore::new(0)));
    let stuck: Arc<Mutex<Option<OriginId>>> = Arc::default();
    let beside = Arc::new(Mutex::new(0));
    let (counted, waiting, at, besides) = (
        done.clone(),
        Arc::clone(&gate),
        Arc::clone(&stuck),
        Arc::clone(&beside),
    );
    let member = Member::start(
        topic.reads().window(WINDOW),
        |spec| spec.limits.in_flight = NonZeroUsize::new(50).unwrap(),
        move |message| {
            let (counted, waiting, at) = (counted.clone(), Arc::clone(&waiting), Arc::clone(&at));
            let besides = Arc::clone(&besides);
            async move {
                if message.payload == "key0-0" {
                    *at.lock() = Some(message.origin);
                    waiting.acquire().await?.forget();
                } else if *at.lock() == Some(message.origin) {
                    *besides.lock() += 1;
                }
                counted.add(&message);
                Ok(())
            }
        },
    );
    // Which of them is not stuck shows in that its end is reached.
    until("the other partition is at its end", || {
        topic.has_a_partition_at_its_end()
    })
    .await;
    until("the first message is stuck", || async { stuck.lock().is_some() }).await;
    assert!(
        *beside.lock() <= WINDOW + BATCH,
        "{} messages went by the stuck one",
        *beside.lock()
    );
    // P8: what waits at the broker is told, every few seconds.
    until("it says how many wait", || async {
        member
            .pipeline()
            .status()
            .depth
            .is_some_and(|depth| depth > 1_000)
    })
    .await;
    until("it says which partition is held", || async {
        let partitions = member.pipeline().measures().partitions.unwrap_or_default();
        let held = partitions.iter().filter(|partition| partition.held);
        held.map(|partition| partition.lag > Some(1_000)).eq([true])
    })
    .await;
    gate.add_permits(1);
    done.reaches(sent.len()).await;
    member.drain().await;
    assert_eq!(done.total(), sent.len());
    assert_eq!(topic.total_committed().await, sent.len() as u64);
}

/// P5 P3: the tail of a key that does not end goes back to its partition, which waits; the other one goes on to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_key_holds_its_partition_alone() {
    let topic = Topic::make("stuck-key", 2).await;
    let sent = keyed(0..4_000, 40);
    topic.publish(&sent).await;
    let (done, gate) = (Done::default(), Arc::new(Semaphore::new(0)));
    let (counted, waiting) = (done.clone(), Arc::clone(&gate));
    let order: Arc<Mutex<BTreeMap<String, Vec<usize>>>> = Arc::default();
    let noted = Arc::clone(&order);
    let member = Member::start(
        topic.reads(),
        |spec| {
            spec.ordering = Ordering::Key;
            spec.limits.per_key = NonZeroUsize::new(5).unwrap();
        },
        move |message| {
            let (counted, waiting) = (counted.clone(), Arc::clone(&waiting));
            let noted = Arc::clone(&noted);
            async move {
                if message.payload == "key0-0" {
                    waiting.acquire().await?.forget();
                }
                let text = String::from_utf8_lossy(&message.payload);
                let (key, number) = text.split_once('-').unwrap();
                noted
                    .lock()
                    .entry(key.to_owned())
                    .or_default()
                    .push(number.parse().unwrap());
                counted.add(&message);
                Ok(())
            }
        },
    );
    // Which of them is not stuck shows in that its end is reached.
    until("the other partition is at its end", || {
        topic.has_a_partition_at_its_end()
    })
    .await;
    assert!(member.pipeline().status().counts.returned > 0);
    gate.add_permits(1);
    done.reaches(sent.len()).await;
    member.drain().await;
    for (key, numbers) in &*order.lock() {
        assert_eq!(*numbers, (0..100).collect::<Vec<_>>(), "{key}");
    }
}
