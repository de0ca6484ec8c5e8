//! What the engine is told of the partitions.

use std::sync::Arc;

use millstream_core::{Partition, Rebalance};
use tokio::sync::Semaphore;

use crate::support::{Done, Member, Topic, keyed, until};

fn partitions(member: &Member) -> Vec<Partition> {
    member.pipeline().measures().partitions.unwrap_or_default()
}

fn lags(member: &Member) -> Vec<Option<u64>> {
    partitions(member).iter().map(|partition| partition.lag).collect()
}

fn rebalances(member: &Member, how: Rebalance) -> u64 {
    let rebalances = member.pipeline().measures().rebalances;
    rebalances
        .into_iter()
        .find_map(|(kind, times)| (kind == how).then_some(times))
        .unwrap()
}

/// P8: how far behind each partition is counts also what is in flight; a partition that goes takes its figure with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lag_of_each_partition_is_told_while_it_is_assigned() {
    let topic = Topic::make("lagging", 2).await;
    let sent = keyed(0..100, 20);
    topic.publish(&sent).await;
    let (done, gate) = (Done::default(), Arc::new(Semaphore::new(0)));
    let start = || {
        let (counted, waiting) = (done.clone(), Arc::clone(&gate));
        let source = topic.reads().property("statistics.interval.ms", "100").unwrap();
        Member::start(
            source,
            |_| {},
            move |message| {
                let (counted, waiting) = (counted.clone(), Arc::clone(&waiting));
                async move {
                    drop(waiting.acquire().await?);
                    counted.add(&message);
                    Ok(())
                }
            },
        )
    };
    let member = start();
    let behind: Vec<_> = topic.ends().await.into_iter().map(Some).collect();
    until("all of it is told, in flight or not", || async {
        lags(&member) == behind
    })
    .await;
    let found: Vec<_> = partitions(&member)
        .iter()
        .map(|partition| (partition.topic.to_string(), partition.number, partition.held))
        .collect();
    assert_eq!(
        found,
        [(topic.name.clone(), 0, false), (topic.name.clone(), 1, false)]
    );
    assert_eq!(rebalances(&member, Rebalance::Revoked), 0);

    gate.add_permits(Semaphore::MAX_PERMITS >> 1);
    done.reaches(sent.len()).await;
    until("nothing is left", || async {
        lags(&member) == [Some(0), Some(0)]
    })
    .await;

    let other = start();
    until("each has one", || async {
        partitions(&member).len() == 1 && partitions(&other).len() == 1
    })
    .await;
    assert_ne!(partitions(&member), partitions(&other));
    assert!(rebalances(&member, Rebalance::Revoked) >= 1);
    assert!(rebalances(&other, Rebalance::Assigned) >= 1);
    for member in [member, other] {
        member.drain().await;
        assert_eq!(partitions(&member), []);
    }
}
