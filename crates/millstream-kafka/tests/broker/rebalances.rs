//! Rebalances that come while something else goes on.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{Rebalance, rt};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};
use tokio::sync::Semaphore;

use crate::support::{Done, Member, SOON, Topic, config, keyed, until};

/// What `Topic::reads` sets.
const SESSION: Duration = Duration::from_secs(3);

/// How many members the group of this topic has, once it is balanced or waits to be.
async fn members(topic: &Topic) -> usize {
    let topic = topic.clone();
    tokio::task::spawn_blocking(move || {
        let anybody: BaseConsumer = config(&topic.brokers).create().unwrap();
        let found = anybody.fetch_group_list(Some(&topic.name), SOON).unwrap();
        found.groups().iter().map(|group| group.members().len()).sum()
    })
    .await
    .unwrap()
}

fn times(member: &Member, event: Rebalance) -> u64 {
    let rebalances = member.pipeline().measures().rebalances;
    rebalances
        .into_iter()
        .find_map(|(found, times)| (found == event).then_some(times))
        .unwrap_or_default()
}

/// P7, and Backbeat's 2818, in which a revocation that was put off until the work had ended took away what had been
/// assigned since: a member is asked for a partition while a handler runs, and the one who was to have it leaves. The first
/// goes on with both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_comes_back_after_a_revocation_that_waited_is_read_on() {
    let topic = Topic::make("comes-back", 2).await;
    topic.publish(&keyed(0..8, 8)).await;
    let (done, runs) = (Done::default(), Done::default());
    let gate = Arc::new(Semaphore::new(0));
    let (counted, ran, waiting) = (done.clone(), runs.clone(), Arc::clone(&gate));
    let first = Member::start(
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
    let others = Done::default();
    let second = Member::counts(topic.reads(), &others);
    until("another has joined", || async { members(&topic).await == 2 }).await;
    second.drain().await;
    until("the other has left", || async { members(&topic).await == 1 }).await;
    rt::sleep(SESSION).await;
    assert_eq!(
        times(&first, Rebalance::Assigned),
        1,
        "nothing is assigned while a revocation goes on"
    );
    gate.add_permits(1_000);
    done.reaches(8).await;
    topic.publish(&keyed(8..64, 8)).await;
    done.reaches(64).await;
    topic.all_committed(64).await;
    let report = first.drain().await;
    assert_eq!((report.left, report.lost), (0, 0), "{report}");
    assert_eq!((done.total(), others.total()), (64, 0));
}

/// P7: a member keeps a partition while another comes and goes, and most of its log, with markers of transactions, is
/// fetched and not read. librdkafka drops that each time, and nothing of it is left out.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_partition_that_is_kept_is_read_on_from_where_its_reader_was() {
    const TRANSACTIONS: usize = 24;
    const MESSAGES: usize = 4 * TRANSACTIONS;
    let topic = Topic::make("kept", 2).await;
    let to = topic.clone();
    let publish = move || {
        let producer: ThreadedProducer<DefaultProducerContext> = config(&to.brokers)
            .set("transactional.id", "kept")
            .create()
            .unwrap();
        producer.init_transactions(SOON).unwrap();
        for number in 0..MESSAGES {
            if number % 4 == 0 {
                producer.begin_transaction().unwrap();
            }
            let payload = number.to_string();
            let record = BaseRecord::<(), str>::to(&to.name).payload(&payload);
            producer.send(record.partition((number % 2) as i32)).unwrap();
            if number % 4 == 3 {
                producer.commit_transaction(SOON).unwrap();
            }
        }
    };
    tokio::task::spawn_blocking(publish).await.unwrap();
    let done = Done::default();
    let member = || {
        let counted = done.clone();
        Member::start(
            topic.reads().window(10),
            |spec| spec.processor.concurrency = NonZeroUsize::MIN,
            move |message| {
                let counted = counted.clone();
                async move {
                    rt::sleep(Duration::from_millis(50)).await;
                    counted.add(&message);
                    Ok(())
                }
            },
        )
    };
    let first = member();
    done.reaches(10).await;
    let second = member();
    until("another was assigned what the first gave up", || async {
        times(&first, Rebalance::Revoked) == 1 && times(&second, Rebalance::Assigned) > 0
    })
    .await;
    second.drain().await;
    until("the first has both again", || async {
        times(&first, Rebalance::Assigned) > 1
    })
    .await;
    assert!(done.distinct() < MESSAGES, "there is nothing left to leave out");
    done.reaches(MESSAGES).await;
    first.drain().await;
    // The last of each is a marker, which nobody reads.
    assert_eq!(
        topic.total_committed().await,
        (MESSAGES + 2 * TRANSACTIONS) as u64 - 2
    );
}

/// P6, and Parallel Consumer's 857, in which a member that drained polled no more, and the group waited for it: one that
/// drains gives up what the group takes from it, and stays a member.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_drains_still_answers_its_group() {
    let topic = Topic::make("draining", 2).await;
    topic.publish(&keyed(0..16, 16)).await;
    let runs = Done::default();
    let ran = runs.clone();
    let source = topic.reads().property("max.poll.interval.ms", "6000").unwrap();
    let first = Member::start(
        source,
        |_| {},
        move |message| {
            ran.add(&message);
            std::future::pending()
        },
    );
    runs.reaches(8).await;
    let draining = first.pipeline().clone();
    let drain = rt::spawn(async move { draining.drain(Duration::from_secs(15)).await });
    let done = Done::default();
    let second = Member::counts(topic.reads(), &done);
    until("one partition was given up", || async {
        times(&first, Rebalance::Revoked) == 1
    })
    .await;
    assert!(!drain.is_finished(), "it was to be drained meanwhile");
    let report = drain.await.unwrap();
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(times(&first, Rebalance::Lost), 0);
    done.reaches(16).await;
    second.drain().await;
    assert_eq!(done.total(), 16);
}
