//! Messages that are given up: dead letters, and partitions that halt.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    Condition, DeadLetter, Failure, Letters, Message, PipelineSpec, Rejection, SharedLetterBox,
    SinkConnector as _, Visit,
};
use millstream_kafka::KafkaSink;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::support::{Done, Member, OwnKafka, Topic, keyed, until};

fn cause(member: &Member) -> Option<String> {
    match member.pipeline().status().condition {
        Condition::Degraded(cause) => Some(cause),
        _ => None,
    }
}

/// Rejects these keys.
fn rejects(
    topic: &Topic,
    set: impl FnOnce(&mut PipelineSpec),
    done: &Done,
    bad: &'static [&'static str],
) -> Member {
    let counted = done.clone();
    Member::start(topic.reads(), set, move |message| {
        let counted = counted.clone();
        async move {
            let key = message.key.clone().unwrap_or_default();
            if bad.iter().any(|bad| bad.as_bytes() == key) {
                return Err(Failure::reject("no such sku"));
            }
            counted.add(&message);
            Ok(())
        }
    })
}

/// All that a topic has.
async fn read_all(topic: &Topic, number: usize) -> Vec<Message> {
    let seen: Arc<Mutex<Vec<Message>>> = Arc::default();
    let all = Arc::clone(&seen);
    let member = Member::start(
        topic.reads(),
        |_| {},
        move |message| {
            all.lock().push(message);
            async { Ok(()) }
        },
    );
    until("all of it is read", || async { seen.lock().len() >= number }).await;
    member.drain().await;
    seen.lock().clone()
}

/// P1 P8: a dead letter says where it came from and why it was given up, and what was given up is committed once its
/// letter is confirmed and not before: here its topic is missing for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_dead_letter_topic_loses_nothing() {
    let topic = Topic::make("letters", 1).await;
    topic.publish(&keyed(0..6, 6)).await;
    let done = Done::default();
    let sink = KafkaSink::new(&topic.brokers, "letters.dead");
    let set = |spec: &mut PipelineSpec| spec.dead_letter = DeadLetter::Sink(Arc::new(sink));
    let member = rejects(&topic, set, &done, &["key1", "key4"]);
    done.reaches(4).await;
    until("the pipeline says so", || async {
        cause(&member).is_some_and(|cause| cause.contains("letters.dead"))
    })
    .await;
    until("what is before it is committed", || async {
        topic.committed().await[0].0 == Some(1)
    })
    .await;
    let dead = Topic::with(&topic.brokers, "letters.dead", 1, &[]).await;
    until("all is committed", || async {
        topic.committed().await[0].0 == Some(6)
    })
    .await;
    until("it is well again", || async { cause(&member).is_none() }).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");

    let letters = read_all(&dead, 2).await;
    let [first, _] = &letters[..] else {
        panic!("{letters:?}")
    };
    assert_eq!(
        (&*first.payload, first.key.as_deref()),
        (&b"key1-0"[..], Some(&b"key1"[..]))
    );
    let says: Vec<_> = Rejection::HEADERS
        .iter()
        .map(|name| first.headers.get(name).unwrap())
        .collect();
    assert_eq!(
        says[..7],
        [
            "orders",
            "processor",
            "rejected",
            "no such sku",
            "0",
            "1",
            "letters[0]@1"
        ]
    );
}

/// P1: a broker that goes away while dead letters are on their way, and comes back, loses none of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_outlive_an_outage_of_their_broker() {
    let kafka = OwnKafka::start().await;
    let dead = Topic::with(&kafka.brokers(), "outage.dead", 1, &[]).await;
    let topic = Topic::make("outage", 2).await;
    topic.publish(&keyed(0..20, 20)).await;
    let done = Done::default();
    let sink = KafkaSink::new(&dead.brokers, &dead.name)
        .property("message.timeout.ms", "2000")
        .unwrap();
    let set = |spec: &mut PipelineSpec| spec.dead_letter = DeadLetter::Sink(Arc::new(sink));
    let member = rejects(&topic, set, &done, &["bad"]);
    done.reaches(20).await;
    kafka.kill().await;
    let bad: Vec<_> = (0..10)
        .map(|number| millstream_core::Outgoing::new(format!("bad-{number}")).with_key("bad"))
        .collect();
    topic.publish(&bad).await;
    until("the pipeline says so", || async { cause(&member).is_some() }).await;
    assert_eq!(member.pipeline().status().counts.dead_lettered, 0);
    assert_eq!(topic.total_committed().await, 20, "P1");
    kafka.start_again().await;
    topic.all_committed(30).await;
    member.drain().await;
    let letters = read_all(&dead, 10).await;
    let mut payloads: Vec<_> = letters.iter().map(|letter| letter.payload.clone()).collect();
    payloads.sort_unstable();
    payloads.dedup();
    assert_eq!(payloads.len(), 10);
}

/// P1 P3 P8: a partition stops at a message that is given up: nothing after it runs, the committed offset stays at it,
/// the pipeline says where, other partitions go on, and a restart hands it out again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_halts_at_a_message_that_is_given_up_until_it_is_assigned_anew() {
    let topic = Topic::make("halts", 2).await;
    // In one partition of the two, and followed there by others.
    topic.publish(&keyed(0..200, 1)).await;
    let home = home_of(&topic).await;
    let done = Done::default();
    let counted = done.clone();
    let member = Member::start(
        topic.reads(),
        |spec| {
            spec.dead_letter = DeadLetter::Halt;
            spec.ordering = millstream_core::Ordering::Partition;
        },
        move |message| {
            let counted = counted.clone();
            async move {
                if message.payload == "key0-50" {
                    return Err(Failure::reject("no such sku"));
                }
                counted.add(&message);
                Ok(())
            }
        },
    );
    let stopped = format!("halt: stopped at halts[{home}]@50");
    until("the pipeline says so", || async {
        cause(&member).as_deref() == Some(&*stopped)
    })
    .await;
    assert_eq!(member.pipeline().status().halted, 1);
    until("what is before it is committed", || async {
        topic.committed().await[home].0 == Some(50)
    })
    .await;
    // Keys enough that the other partition has some.
    let others: Vec<_> = (0..40)
        .map(|number| {
            millstream_core::Outgoing::new(format!("other{number}")).with_key(format!("other{number}"))
        })
        .collect();
    topic.publish(&others).await;
    let elsewhere = topic.ends().await[1 - home];
    assert!(elsewhere > 0);
    until("the other partition goes on", || async {
        topic.committed().await[1 - home].0 == Some(elsewhere)
    })
    .await;
    assert_eq!(done.total() as u64, 50 + elsewhere, "nothing after it has run");
    assert_eq!(topic.committed().await[home].0, Some(50), "P7");
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(topic.committed().await[home].0, Some(50), "P7");

    let mended = rejects(&topic, |_| {}, &done, &[]);
    done.reaches(240).await;
    mended.drain().await;
    assert_eq!(done.total(), 240, "each once");
}

/// The partition that has messages.
async fn home_of(topic: &Topic) -> usize {
    let ends = topic.ends().await;
    ends.iter().position(|end| *end > 0).unwrap()
}

/// P8: a halt ends where its partition is taken: its next holder says so, and who had it no longer does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_goes_with_its_partition() {
    let topic = Topic::make("halt-moves", 1).await;
    topic.publish(&keyed(0..10, 10)).await;
    let done = Done::default();
    let halt = |spec: &mut PipelineSpec| spec.dead_letter = DeadLetter::Halt;
    let first = rejects(&topic, halt, &done, &["key5"]);
    until("it halts", || async { first.pipeline().status().halted == 1 }).await;
    first.drain().await;
    let second = rejects(&topic, halt, &done, &["key5"]);
    until("the next halts at it too", || async {
        cause(&second).as_deref() == Some("halt: stopped at halt-moves[0]@5")
    })
    .await;
    assert_eq!(topic.committed().await[0].0, Some(5));
    tokio::time::timeout(Duration::from_secs(30), second.drain())
        .await
        .unwrap();
}

/// How much has been committed at these brokers, for whatever groups.
async fn commits(brokers: &str) -> i64 {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", brokers);
    let sum = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let topic = "__consumer_offsets";
        let wait = Duration::from_secs(30);
        let metadata = consumer.fetch_metadata(Some(topic), wait).unwrap();
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        partitions
            .map(|partition| consumer.fetch_watermarks(topic, partition.id(), wait).unwrap().1)
            .sum()
    });
    sum.await.unwrap()
}

/// The ids of the letters that such a visit gives.
async fn given(letters: &SharedLetterBox, kind: Visit) -> Vec<String> {
    let mut visit = letters.open(kind).await.unwrap();
    let (_, ids) = all_of(&mut *visit).await;
    visit.close().await.unwrap();
    ids
}

/// The handles and the ids of all that a visit gives, in the order of the ids.
async fn all_of(visit: &mut dyn Letters) -> (Vec<u64>, Vec<String>) {
    let mut all = Vec::new();
    loop {
        let some = visit.next(9).await.unwrap();
        if some.is_empty() {
            break;
        }
        all.extend(some.into_iter().map(|letter| (letter.id, letter.handle)));
    }
    all.sort();
    all.into_iter().map(|(id, handle)| (handle, id)).unzip()
}

/// Brokers forget what a group without members has committed, so long after they heard of it last: a replay tells them
/// again what was replayed, and changes nothing of it. Visits that replay nothing tell them nothing: what they have found
/// would undo what a replay beside them commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replayed_is_committed_anew_by_a_replay_and_by_nobody_else() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "anew.dead", 2, &[]).await;
    topic.publish(&keyed(0..6, 6)).await;
    let letters = KafkaSink::new(&topic.brokers, &topic.name).letters().unwrap();
    let mut visit = letters.open(Visit::Replay).await.unwrap();
    let (handles, ids) = all_of(&mut *visit).await;
    // In between as well, so that there is something to note.
    let handles: Vec<_> = handles.into_iter().step_by(2).collect();
    assert_eq!(visit.remove(&handles).await.unwrap(), 3);
    visit.close().await.unwrap();
    let left: Vec<_> = ids.into_iter().skip(1).step_by(2).collect();
    for kind in [Visit::Look, Visit::Purge, Visit::Replay, Visit::Look] {
        let before = commits(&topic.brokers).await;
        let mut visit = letters.open(kind).await.unwrap();
        assert_eq!(all_of(&mut *visit).await.1, left, "{kind:?}");
        let after = commits(&topic.brokers).await;
        assert_eq!(
            after > before,
            kind == Visit::Replay,
            "{kind:?}: {before}, {after}"
        );
        if kind != Visit::Purge {
            visit.close().await.unwrap();
        }
    }
}

/// P1: where a topic has lost its end, what was replayed says nothing of the letters that came since: all are given, and
/// none is deleted that was not. So it is also once there are as many letters as there were.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_letters_behind_a_loss_are_given_before_they_are_deleted() {
    let kafka = OwnKafka::start().await;
    let topic = Topic::with(&kafka.brokers(), "loses.dead", 1, &[]).await;
    let letters = KafkaSink::new(&topic.brokers, &topic.name).letters().unwrap();
    let ids = |range: std::ops::Range<usize>| range.map(|at| format!("0@{at}")).collect::<Vec<_>>();
    topic.publish(&keyed(0..4, 1)).await;
    let replay = async || {
        let mut visit = letters.open(Visit::Replay).await.unwrap();
        let (handles, ids) = all_of(&mut *visit).await;
        visit.remove(&handles).await.unwrap();
        visit.close().await.unwrap();
        ids
    };
    assert_eq!(replay().await, ids(0..4));
    assert_eq!(given(&letters, Visit::Look).await, ids(0..0));

    kafka
        .while_stopped(|folder| {
            for file in fs::read_dir(folder.join("data/loses.dead-0")).unwrap() {
                let file = file.unwrap().path();
                // What tells whose the folder is stays.
                if !file.ends_with("partition.metadata") {
                    fs::remove_file(file).unwrap();
                }
            }
        })
        .await;
    for (more, all) in [(4..7, 3), (7..11, 7)] {
        topic.publish(&keyed(more, 1)).await;
        assert_eq!(topic.ends().await, [all as u64]);
        for kind in [Visit::Look, Visit::Purge, Visit::Replay, Visit::Look] {
            assert_eq!(given(&letters, kind).await, ids(0..all), "{kind:?}");
        }
    }
    assert_eq!(replay().await, ids(0..7));
    assert_eq!(given(&letters, Visit::Look).await, ids(0..0));
    topic.publish(&keyed(11..12, 1)).await;
    assert_eq!(given(&letters, Visit::Look).await, ids(7..8));
}
