//! Offsets that do not follow each other.

use std::time::Duration;

use millstream_core::{Outgoing, rt};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer, ThreadedProducer};

use crate::support::{Done, Member, SOON, Topic, config, keyed, until};

/// P7, and Parallel Consumer's 329 and 409: markers of transactions take offsets, and what was aborted leaves gaps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_transactions_take_hold_nothing_back() {
    let topic = Topic::make("transactions", 1).await;
    let to = topic.clone();
    tokio::task::spawn_blocking(move || {
        let producer: ThreadedProducer<DefaultProducerContext> = config(&to.brokers)
            .set("transactional.id", "gaps")
            .create()
            .unwrap();
        producer.init_transactions(SOON).unwrap();
        for round in 0..10 {
            producer.begin_transaction().unwrap();
            for number in 0..3 {
                let payload = format!("{round}-{number}");
                producer
                    .send(BaseRecord::<(), str>::to(&to.name).payload(&payload))
                    .unwrap();
            }
            if round % 2 == 0 {
                producer.commit_transaction(SOON).unwrap();
            } else {
                producer.flush(SOON).unwrap();
                producer.abort_transaction(SOON).unwrap();
            }
        }
    })
    .await
    .unwrap();
    let done = Done::default();
    let member = Member::counts(topic.reads(), &done);
    done.reaches(15).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!((done.total(), done.times("1-0")), (15, 0));
    // Ten rounds of three messages and a marker; the last three and their marker were aborted, and nobody has seen
    // them. Where the last message was is where the group is.
    assert_eq!(topic.committed().await[0].0, Some(35));
}

/// P7, and Parallel Consumer's 409: a topic of which the cleaner has taken most is read to its end, and committed there. A
/// message of each segment stays, so that gaps are between what is read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_that_compaction_takes_hold_nothing_back() {
    let brokers = crate::support::brokers().await;
    let settings = [
        ("cleanup.policy", "compact"),
        ("segment.ms", "100"),
        ("min.cleanable.dirty.ratio", "0.01"),
        ("max.compaction.lag.ms", "100"),
    ];
    let topic = Topic::with(&brokers, "compacted", 1, &settings).await;
    // The cleaner leaves the segment that is written to, so each of these ends one.
    let mut sent = 0_u64;
    let mut gone = false;
    for round in 0..60 {
        let stays = format!("stays{round}");
        let mut messages = keyed(round * 10..round * 10 + 10, 5);
        messages.push(Outgoing::new(stays.clone()).with_key(stays));
        topic.publish(&messages).await;
        sent += 11;
        if seen(&topic, &format!("look{round}")).await < sent as usize {
            gone = true;
            break;
        }
    }
    assert!(gone, "the cleaner took nothing");
    topic.publish(&[Outgoing::new("last").with_key("last")]).await;
    let done = Done::default();
    let member = Member::counts(topic.reads(), &done);
    until("the last is done", || async { done.times("last") == 1 }).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(done.times("stays0"), 1);
    assert_eq!(topic.committed().await[0].0, Some(sent + 1));
}

/// How many messages a group that has seen nothing sees.
async fn seen(topic: &Topic, group: &str) -> usize {
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{Message as _, Offset, TopicPartitionList};
    let (topic, group) = (topic.clone(), group.to_owned());
    // The cleaner works in its own time.
    rt::sleep(Duration::from_millis(200)).await;
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = config(&topic.brokers).set("group.id", &group).create().unwrap();
        let mut all = TopicPartitionList::new();
        all.add_partition_offset(&topic.name, 0, Offset::Beginning)
            .unwrap();
        let (_, end) = consumer.fetch_watermarks(&topic.name, 0, SOON).unwrap();
        consumer.assign(&all).unwrap();
        let mut seen = 0;
        loop {
            if let Some(message) = consumer.poll(SOON) {
                seen += 1;
                if message.unwrap().offset() + 1 == end {
                    return seen;
                }
            }
        }
    })
    .await
    .unwrap()
}
