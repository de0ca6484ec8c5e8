//! Members that join, leave and die.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_core::{Message, rt};
use millstream_kafka::KafkaConnector;
use parking_lot::Mutex;

use crate::support::{Done, Member, Topic, keyed, until};

/// P6 P7: a drain leaves nothing uncommitted of what it did.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_commits_all_that_was_done() {
    let topic = Topic::make("drained", 3).await;
    let sent = keyed(0..300, 16);
    topic.publish(&sent).await;
    let done = Done::default();
    // It commits when it drains, or not at all.
    let source = topic.reads().commit_interval(Duration::from_secs(3_600));
    let member = Member::counts(source, &done);
    done.reaches(sent.len()).await;
    assert_eq!(topic.total_committed().await, 0);
    let report = member.drain().await;
    assert_eq!((report.left, report.lost), (0, 0), "{report}");
    assert_eq!(topic.total_committed().await, sent.len() as u64);
    assert_eq!(done.total(), sent.len());
}

/// P1 P7: what a drain releases is not committed, what it had done beyond is not done again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_beyond_an_unsettled_message_is_not_done_again() {
    let topic = Topic::make("beyond", 1).await;
    topic.publish(&keyed(0..100, 100)).await;
    let done = Done::default();
    let counted = done.clone();
    let member = Member::start(
        topic.reads(),
        |_| {},
        move |message| {
            let counted = counted.clone();
            async move {
                if message.payload == "key7-0" {
                    std::future::pending::<()>().await;
                }
                counted.add(&message);
                Ok(())
            }
        },
    );
    done.reaches(99).await;
    until("what is done beyond it is written down", || async {
        let committed = topic.committed().await.remove(0);
        committed.0 == Some(7) && !committed.1.is_empty()
    })
    .await;
    let report = member.pipeline().drain(Duration::from_secs(2)).await;
    assert_eq!((report.released, report.left), (1, 0), "{report}");
    assert_eq!(topic.committed().await[0].0, Some(7), "P7");

    let member = Member::counts(topic.reads(), &done);
    done.reaches(100).await;
    member.drain().await;
    assert_eq!(done.total(), 100, "one was left, and one is done");
    assert_eq!(topic.committed().await[0], (Some(100), String::new()));
}

/// Who runs what, over all members.
#[derive(Clone, Default)]
struct Watch {
    done: Done,
    /// For each key: what ran last, by its number, and how many run.
    keys: Arc<Mutex<BTreeMap<String, (usize, usize)>>>,
    broken: Arc<Mutex<Vec<String>>>,
    running: Arc<AtomicUsize>,
}

impl Watch {
    async fn run(self, message: Message, takes: Duration) {
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        let (key, number) = payload.rsplit_once('-').unwrap();
        let number: usize = number.parse().unwrap();
        {
            let mut keys = self.keys.lock();
            let (next, runs) = keys.entry(key.to_owned()).or_default();
            // What comes again begins before where it was; nothing is left out and no two run at once.
            if number > *next || *runs > 0 {
                self.broken
                    .lock()
                    .push(format!("{payload} ran, {next} was next, {runs} ran already"));
            }
            (*next, *runs) = (number + 1, *runs + 1);
        }
        self.running.fetch_add(1, Ordering::SeqCst);
        rt::sleep(takes).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        if let Some((_, runs)) = self.keys.lock().get_mut(key) {
            *runs -= 1;
        }
        self.done.add(&message);
    }

    fn member(&self, source: KafkaConnector, takes: Duration) -> Member {
        let watch = self.clone();
        Member::start(
            source,
            |spec| {
                spec.ordering = millstream_core::Ordering::Key;
                spec.limits.in_flight = NonZeroUsize::new(100).unwrap();
            },
            move |message| {
                let watch = watch.clone();
                async move {
                    watch.run(message, takes).await;
                    Ok(())
                }
            },
        )
    }

    fn assert_in_order(&self) {
        let broken = self.broken.lock();
        assert!(
            broken.is_empty(),
            "P3: {} times, first {:?}",
            broken.len(),
            broken.first()
        );
    }
}

/// P1 P3 P7, and Parallel Consumer's 857 and 826, Broadway Kafka's 92, Wolverine's 3161, Backbeat's 2818, PostHog's
/// 84535: members with a slow handler join and leave, three rounds of it. Nothing is lost, keys stay in order across
/// members, nothing comes to a stand, and what runs when its partition is taken is done once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_come_and_go_and_nothing_is_lost_or_stands_still() {
    let topic = Topic::make("rebalanced", 6).await;
    members_come_and_go(&topic, || topic.reads()).await;
}

/// The same in the newer protocol, in which the broker assigns and knows the gradual way alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_in_the_newer_group_protocol() {
    let topic = Topic::make("rebalanced-newer", 6).await;
    members_come_and_go(&topic, || topic.reads_newer()).await;
}

async fn members_come_and_go(topic: &Topic, reads: impl Fn() -> KafkaConnector) {
    let watch = Watch::default();
    let takes = Duration::from_millis(20);
    let first = watch.member(reads(), takes);
    let mut sent = 0;
    for _ in 0..3 {
        topic.publish(&keyed(sent..sent + 600, 24)).await;
        let before = watch.done.distinct();
        sent += 600;
        watch.done.reaches(before + 50).await;
        let second = watch.member(reads(), takes);
        watch.done.reaches(before + 200).await;
        let third = watch.member(reads(), takes);
        watch.done.reaches(before + 400).await;
        let report = second.drain().await;
        assert_eq!(report.left, 0, "{report}");
        let report = third.drain().await;
        assert_eq!(report.left, 0, "{report}");
        watch.done.reaches(sent).await;
    }
    let report = first.drain().await;
    assert_eq!(report.left, 0, "{report}");
    watch.assert_in_order();
    assert_eq!(watch.done.total(), sent, "an orderly rebalance repeats nothing");
    assert_eq!(topic.total_committed().await, sent as u64);
    assert_eq!(watch.running.load(Ordering::SeqCst), 0);
}

/// Set for the process that is to be killed: where its Kafka is.
const VICTIM: &str = "MILLSTREAM_KAFKA_VICTIM";

/// P1 P2 P7: a process that is killed amid its work loses nothing; what comes again is what it had in flight and
/// what it settled since its last commit.
#[test]
fn a_member_that_is_killed_loses_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if let Ok(brokers) = std::env::var(VICTIM) {
        let topic = Topic {
            brokers,
            name: "killed".to_owned(),
            partitions: 2,
        };
        runtime.block_on(async {
            let _member = Member::start(
                topic.reads(),
                |_| {},
                |_| async {
                    rt::sleep(Duration::from_millis(20)).await;
                    Ok(())
                },
            );
            std::future::pending::<()>().await;
        });
    }
    runtime.block_on(async {
        let topic = Topic::make("killed", 2).await;
        let sent = keyed(0..1_000, 50);
        topic.publish(&sent).await;
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "group::a_member_that_is_killed_loses_nothing"])
            .env(VICTIM, &topic.brokers)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        until("it is amid its work", || async {
            topic.total_committed().await > 100
        })
        .await;
        victim.kill().unwrap();
        victim.wait().unwrap();
        let committed = topic.committed().await;
        let total: u64 = committed.iter().filter_map(|(offset, _)| *offset).sum();
        assert!(total < sent.len() as u64, "it was to be killed amid its work");

        let done = Done::default();
        let counted = done.clone();
        let offsets: Arc<Mutex<Vec<u64>>> = Arc::default();
        let seen = Arc::clone(&offsets);
        let member = Member::start(
            topic.reads(),
            |_| {},
            move |message| {
                counted.add(&message);
                seen.lock().push(message.position);
                async { Ok(()) }
            },
        );
        until("the group is at its end", || async {
            topic.total_committed().await == sent.len() as u64
        })
        .await;
        member.drain().await;
        // What it had settled beyond its marks does not come, the rest does.
        assert!(done.distinct() as u64 <= sent.len() as u64 - total);
        let lowest = offsets.lock().iter().min().copied().unwrap();
        assert!(
            committed.iter().any(|(offset, _)| *offset == Some(lowest)),
            "P7: {lowest}, {committed:?}"
        );
    });
}

/// P2, and Parallel Consumer's 875 and otel-arrow's 3682: what is released is handed out again, under the same
/// assignment and once, and what was settled beyond it is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_in_place_and_a_panic_hold_their_offset_alone() {
    let topic = Topic::make("failing", 1).await;
    topic.publish(&keyed(0..50, 50)).await;
    let (done, runs) = (Done::default(), Done::default());
    let (counted, ran) = (done.clone(), runs.clone());
    let member = Member::start(
        topic.reads(),
        |_| {},
        move |message| {
            let (counted, ran) = (counted.clone(), ran.clone());
            async move {
                ran.add(&message);
                let payload = String::from_utf8_lossy(&message.payload).into_owned();
                match (&*payload, ran.times(&payload)) {
                    ("key3-0", 1 | 2) => return Err("not yet".into()),
                    ("key5-0", 1) => panic!("told to"),
                    _ => {}
                }
                counted.add(&message);
                Ok(())
            }
        },
    );
    done.reaches(50).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(
        (done.total(), runs.times("key3-0"), runs.times("key5-0")),
        (50, 3, 2)
    );
    assert_eq!(topic.total_committed().await, 50);
}

/// A member with a static id that restarts within its session gets back the partitions that it had, which nobody else was
/// given meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_static_member_comes_back_to_what_it_had() {
    let topic = Topic::make("static", 4).await;
    let ran: Arc<Mutex<BTreeMap<(u64, &str), usize>>> = Arc::default();
    let partitions = |who: &'static str| {
        let ran = ran.lock();
        ran.keys().filter(|(_, by)| *by == who).count()
    };
    let start = |who: &'static str, id: &str| {
        let ran = Arc::clone(&ran);
        Member::start(
            topic.reads().static_id(id),
            |_| {},
            move |message| {
                // The key says which partition: the first of its messages is at its beginning.
                let key = message
                    .key
                    .as_deref()
                    .map_or(0, |key| key.iter().map(|byte| u64::from(*byte)).sum());
                *ran.lock().entry((key, who)).or_default() += 1;
                async { Ok(()) }
            },
        )
    };
    let (kept, restarted) = (start("kept", "one"), start("restarted", "two"));
    until("both have partitions", || async {
        topic.publish(&keyed(0..9, 9)).await;
        partitions("kept") > 0 && partitions("restarted") > 0
    })
    .await;
    // Since then nothing was assigned anew.
    until("all is done", || async {
        topic.total_committed().await == topic.ends().await.iter().sum::<u64>()
    })
    .await;
    ran.lock().clear();
    topic.publish(&keyed(0..9, 9)).await;
    until("each key has run", || async { ran.lock().len() >= 9 }).await;
    let before: Vec<_> = ran
        .lock()
        .keys()
        .filter(|(_, by)| *by == "kept")
        .copied()
        .collect();
    restarted.drain().await;
    topic.publish(&keyed(0..9, 9)).await;
    let again = start("again", "two");
    until("all is done", || async {
        topic.total_committed().await == topic.ends().await.iter().sum::<u64>()
    })
    .await;
    let after: Vec<_> = ran
        .lock()
        .keys()
        .filter(|(_, by)| *by == "kept")
        .copied()
        .collect();
    assert_eq!(
        before, after,
        "the other member was given what was only away for a moment"
    );
    assert!(partitions("again") > 0);
    kept.drain().await;
    again.drain().await;
}
