//! Kafka goes away, and comes back.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Condition, Rebalance, rt};

use crate::support::{Done, Member, OwnKafka, Topic, keyed, until};

fn is_degraded(member: &Member) -> bool {
    matches!(member.pipeline().status().condition, Condition::Degraded(_))
}

/// P1 P7 P8: a broker that is killed amid the work is reported, and nothing is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_reported_and_costs_nothing() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "killed", 2, &[]).await;
    let sent = keyed(0..400, 20);
    topic.publish(&sent).await;
    let done = Done::default();
    let counted = done.clone();
    let member = Member::start(
        topic.reads(),
        |_| {},
        move |message| {
            let counted = counted.clone();
            async move {
                rt::sleep(Duration::from_millis(10)).await;
                counted.add(&message);
                Ok(())
            }
        },
    );
    done.reaches(100).await;
    kafka.kill().await;
    until("it is reported", || async { is_degraded(&member) }).await;
    kafka.start_again().await;
    topic.publish(&keyed(400..500, 20)).await;
    done.reaches(500).await;
    until("it is well again", || async { !is_degraded(&member) }).await;
    topic.all_committed(500).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
}

/// P2, and Parallel Consumer's 826: an assignment that is lost, since the group could not hear the member for longer than
/// its session, takes with it what was held. Late settlements are stale, nothing of them is committed, and all of it comes
/// again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_lost_assignment_held_comes_again() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "lost", 1, &[]).await;
    topic.publish(&keyed(0..8, 8)).await;
    let (done, runs) = (Done::default(), Done::default());
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    let (counted, ran, waiting) = (done.clone(), runs.clone(), Arc::clone(&gate));
    let member = Member::start(
        topic.reads(),
        |_| {},
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
    kafka.kill().await;
    until("what it held is lost", || async {
        member.pipeline().status().counts.lost == 8
    })
    .await;
    let rebalances = member.pipeline().measures().rebalances;
    assert!(rebalances.contains(&(Rebalance::Lost, 1)), "{rebalances:?}");
    kafka.start_again().await;
    until("all of it runs again", || async { runs.total() == 16 }).await;
    assert_eq!(topic.total_committed().await, 0, "P7");
    gate.add_permits(8);
    done.reaches(8).await;
    member.drain().await;
    assert_eq!((done.total(), runs.total()), (8, 16));
    assert_eq!(topic.total_committed().await, 8);
}
