//! Two processes that copy a topic exactly once, and are killed within their transactions (P1, P7, and no repeats).

use std::time::Duration;

use millstream_brokers::Kafka;
use millstream_core::SinkConnector;
use millstream_core::rt::Instant;
use millstream_kafka::KafkaSink;
use millstream_tests::ledger::Ledger;
use millstream_tests::{Actor, QUEUE, Report, Scale, Work};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message as _;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use crate::alone;
use crate::place::SOON;

const MEMBERS: u32 = 2;
const PARTITIONS: i32 = 4;

/// How long offsets are asked for that may be in a transaction: much longer than those of a member that runs stay there,
/// and for all partitions together shorter than a session.
const PENDING: Duration = Duration::from_millis(250);

/// Each member writes to a topic of its own, so that it can be told whose transaction is open.
fn out(member: u32) -> String {
    format!("out-{member}")
}

#[test]
fn p1_p7_every_input_is_found_exactly_once_whoever_is_killed_amid_a_transaction() {
    let _machine = alone();
    let scale = Scale::of("kafka_exactly_once");
    let mut report = Report::begin(&scale, "");
    let messages: u32 = scale.get("messages");
    let kills: u32 = scale.get("kills");
    let mut chance = fastrand::Rng::with_seed(scale.seed());
    let work = Work {
        seed: scale.seed(),
        keys: 500,
        bytes: 64,
    };
    let broker = Kafka::builder().start().unwrap_or_else(|error| panic!("{error}"));
    report.add("Kafka", broker.version());
    let watch = Watch::new(broker.brokers(), messages);
    watch.prepare(&work);

    let (ledger, _records) = Ledger::new().unwrap();
    let start = |member: u32, number: u32| {
        let arguments = vec![
            "copy".to_owned(),
            format!("brokers={}", watch.brokers),
            format!("topic={QUEUE}"),
            format!("out={}", out(member)),
            format!("id=copies-{member}"),
            format!("in_flight={}", scale.get::<u32>("in_flight")),
            format!("longest_us={}", scale.get::<u32>("longest_us")),
        ];
        Actor::start(env!("CARGO_BIN_EXE_actor"), number, &ledger, &arguments)
    };
    let mut members: Vec<Actor> = (0..MEMBERS).map(|member| start(member, member)).collect();
    // Each kill in a stretch of its own, all before the last fifth: enough is left to write while an open transaction is
    // looked for. Of three stretches each partition has more than the thousand offsets within which three unclean ends
    // make suspects of its messages. Those run one by one, each in a transaction of its own, which is another test's
    // matter and takes minutes on a slow machine.
    let stretch = messages / 5 * 4 / kills;
    let mut frozen = 0;
    for kill in 0..kills {
        let moment = kill * stretch + chance.u32(stretch / 10..stretch);
        watch.until("so much is committed", u64::from(moment));
        // Every other one when it has told the offsets too, and not committed: were they told by themselves, there would be
        // no such moment, and inputs without outputs after it.
        let (victim, looks) = freeze_within_a_transaction(&watch, &mut members, &mut chance, kill % 2 == 1);
        frozen += looks;
        let member = u32::try_from(victim).unwrap();
        members[victim].kill();
        members[victim] = start(member, MEMBERS + kill);
    }
    watch.until("everything is committed", u64::from(messages));
    assert_eq!(watch.committed(), u64::from(messages), "each was published once");
    for member in &mut members {
        member.dismiss();
        assert!(member.wait().success(), "a member drains and ends");
    }
    let mut found = vec![0_u32; messages as usize];
    let shares: Vec<u32> = (0..MEMBERS)
        .map(|member| watch.read(&out(member), &mut found))
        .collect();
    let missing = found.iter().filter(|times| **times == 0).count();
    let repeated = found.iter().filter(|times| **times > 1).count();
    report.add("messages found exactly once", messages);
    report.add("members killed within a transaction", kills);
    report.add("  frozen to find one open", frozen);
    report.add("written by each member", format_args!("{shares:?}"));
    report.print();
    assert_eq!((missing, repeated), (0, 0), "missing, and found more than once");
}

/// Freezes a member while a transaction of its is open: which, and how often one was frozen for that.
///
/// A member without partitions, or one that lags, has none open, and is left alone. One is frozen only if it seems to have
/// one, since a member that is frozen again and again gets nothing done.
///
/// # Panics
/// If none is found while there is something left to write.
fn freeze_within_a_transaction(
    watch: &Watch,
    members: &mut [Actor],
    chance: &mut fastrand::Rng,
    with_offsets: bool,
) -> (usize, u32) {
    let mut frozen = 0;
    let mut patience = Patience::new();
    loop {
        let one = chance.usize(..members.len());
        let topic = out(u32::try_from(one).unwrap());
        let member = &mut members[one];
        assert_eq!(member.ended(), None, "a member ended by itself");
        if watch.seems_open(&topic) {
            member.freeze();
            frozen += 1;
            if watch.is_open(&topic) && (!with_offsets || watch.holds_offsets()) {
                return (one, frozen);
            }
            member.thaw();
        }
        let committed = watch.committed();
        assert!(
            committed < u64::from(watch.messages),
            "no transaction was found open (with its offsets: {with_offsets}) in {frozen} tries, and nothing is left to write"
        );
        patience.goes_on(committed, "an open transaction");
        std::thread::sleep(Duration::from_micros(chance.u64(10_000..100_000)));
    }
}

/// How long is waited for something: as long as the group gets on, however slowly.
struct Patience {
    committed: u64,
    until: Instant,
}

impl Patience {
    fn new() -> Self {
        Self {
            committed: 0,
            until: Instant::now() + SOON,
        }
    }

    /// # Panics
    /// If no more than this has been committed for too long.
    fn goes_on(&mut self, committed: u64, what: &str) {
        if committed > self.committed {
            *self = Self {
                committed,
                ..Self::new()
            };
        }
        assert!(
            Instant::now() < self.until,
            "not in time: {what}; {committed} have been committed for {SOON:?}"
        );
    }
}

/// What a broker says, which it may not know at once: as long as it loads what it answers for.
fn answer<T>(ask: impl Fn() -> Result<T, KafkaError>) -> T {
    let until = Instant::now() + SOON;
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reader(brokers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", brokers)
        .set("group.id", QUEUE)
        .set("enable.auto.commit", "false");
    config
}

/// What the brokers have.
struct Watch {
    brokers: String,
    messages: u32,
    /// Sees what is committed alone, and everything.
    stable: BaseConsumer,
    all: BaseConsumer,
}

impl Watch {
    fn new(brokers: String, messages: u32) -> Self {
        let consumer = |level| {
            let mut config = reader(&brokers);
            config.set("isolation.level", level).create().unwrap()
        };
        Self {
            stable: consumer("read_committed"),
            all: consumer("read_uncommitted"),
            brokers,
            messages,
        }
    }

    /// Makes the topics, and publishes everything.
    fn prepare(&self, work: &Work) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let admin: AdminClient<_> = reader(&self.brokers).create().unwrap();
            let names: Vec<String> = (0..MEMBERS).map(out).chain([QUEUE.to_owned()]).collect();
            let topics: Vec<_> = names
                .iter()
                .map(|name| NewTopic::new(name, PARTITIONS, TopicReplication::Fixed(1)))
                .collect();
            let made = admin.create_topics(&topics, &AdminOptions::new()).await.unwrap();
            made.into_iter().for_each(|made| drop(made.unwrap()));
            let sink = KafkaSink::new(&self.brokers, QUEUE);
            // A broker may hear of a topic a little later than it was made.
            let until = Instant::now() + SOON;
            let mut sink = loop {
                match SinkConnector::open(&sink).await {
                    Ok(sink) => break sink,
                    Err(error) => assert!(Instant::now() < until, "{error}"),
                }
            };
            work.publish(&mut sink, 0..self.messages).await;
        });
    }

    /// Waits until so much is committed.
    fn until(&self, what: &str, wanted: u64) {
        let mut patience = Patience::new();
        loop {
            let committed = self.committed();
            if committed >= wanted {
                return;
            }
            patience.goes_on(committed, what);
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How far the group has come.
    fn committed(&self) -> u64 {
        let mut all = TopicPartitionList::new();
        all.add_partition_range(QUEUE, 0, PARTITIONS - 1);
        // It does not wait for what is not committed.
        let committed = answer(|| self.all.committed_offsets(all.clone(), SOON));
        let offsets = committed.elements();
        offsets
            .iter()
            .filter_map(|partition| match partition.offset() {
                Offset::Offset(offset) => u64::try_from(offset).ok(),
                _ => None,
            })
            .sum()
    }

    /// Where each partition of the topic ends, for this reader.
    fn ends(reader: &BaseConsumer, topic: &str) -> Vec<i64> {
        let end = |partition| answer(|| reader.fetch_watermarks(topic, partition, SOON)).1;
        (0..PARTITIONS).map(end).collect()
    }

    /// Whether something was written to the topic a moment ago that was not committed a moment before.
    fn seems_open(&self, topic: &str) -> bool {
        Self::ends(&self.stable, topic) != Self::ends(&self.all, topic)
    }

    /// Whether something was written to the topic that is neither committed nor aborted, while its writer is frozen.
    fn is_open(&self, topic: &str) -> bool {
        // Nobody else writes to it meanwhile; but what the victim had sent may arrive, its commit too.
        let all = Self::ends(&self.all, topic);
        let stable = Self::ends(&self.stable, topic);
        all != stable && all == Self::ends(&self.all, topic) && stable == Self::ends(&self.stable, topic)
    }

    /// Whether offsets of the group are in a transaction that does not end for a while.
    fn holds_offsets(&self) -> bool {
        (0..PARTITIONS).any(|partition| {
            let mut one = TopicPartitionList::new();
            one.add_partition(QUEUE, partition);
            let stable = self.stable.committed_offsets(one.clone(), PENDING);
            let is_known = stable.is_ok_and(|found| found.elements().iter().all(|one| one.error().is_ok()));
            // A broker that says nothing at all says nothing of that.
            !is_known && self.all.committed_offsets(one, PENDING).is_ok()
        })
    }

    /// Counts what is committed in the topic; how much it is.
    ///
    /// Who commits is answered once the coordinator has noted it, and partitions are told of that afterwards. Until each
    /// was, this reader would find the end before what is committed.
    fn read(&self, topic: &str, found: &mut [u32]) -> u32 {
        let until = Instant::now() + SOON;
        while self.seems_open(topic) {
            assert!(Instant::now() < until, "a transaction stays open");
            std::thread::sleep(Duration::from_millis(20));
        }
        let consumer: BaseConsumer = reader(&self.brokers)
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .unwrap();
        let mut all = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            all.add_partition_offset(topic, partition, Offset::Beginning)
                .unwrap();
        }
        consumer.assign(&all).unwrap();
        let (mut open, mut read) = (PARTITIONS, 0);
        while open > 0 {
            match consumer.poll(SOON).expect("the end is reached in time") {
                Ok(message) => {
                    let payload = bytes::Bytes::copy_from_slice(message.payload().unwrap());
                    found[Work::number(&payload).unwrap() as usize] += 1;
                    read += 1;
                }
                Err(KafkaError::PartitionEOF(_)) => open -= 1,
                Err(error) => panic!("{error}"),
            }
        }
        read
    }
}
