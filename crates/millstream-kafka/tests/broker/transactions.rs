//! Exactly once: what is read with `read_committed` of what a transactional pipeline writes (P1, P7, and no repeats).

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    BatcherSpec, Context, DeadLetter, Delivered, Failure, Flow, Message, OpenError, Outgoing, PipelineSpec,
    Processor, Sink, SinkConnector, SinkError,
};
use millstream_kafka::{KafkaConnector, TransactionalSink, TransactionalWriter};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::{Done, Member, OwnKafka, SOON, Topic, config, keyed, outputs, until};

/// What becomes of a message.
enum Fate {
    Written,
    Filtered,
    Rejected,
    Later,
}

/// Writes what it reads, or does what it was told.
struct Copy<F>(F);

impl<F: Fn(&str) -> Fate + Send + Sync + 'static> Processor for Copy<F> {
    type Input = Message;
    type Output = Outgoing;

    async fn process(&self, message: Message, cx: &mut Context<'_>) -> Result<Outgoing, Failure> {
        match (self.0)(&String::from_utf8_lossy(&message.payload)) {
            Fate::Written => {}
            Fate::Filtered => {
                cx.done();
            }
            Fate::Rejected => return Err(Failure::reject("told to")),
            Fate::Later => return Err(Failure::retry_after(Duration::from_secs(3_600), "not now")),
        }
        let output = Outgoing::new(message.payload);
        Ok(match message.key {
            Some(key) => output.with_key(key),
            None => output,
        })
    }
}

/// A pipeline that writes to `out` what it reads.
struct Copies {
    source: KafkaConnector,
    spec: PipelineSpec,
}

impl Copies {
    fn new(from: &Topic, id: &str, out: &Topic, fate: impl Fn(&str) -> Fate + Send + Sync + 'static) -> Self {
        let source = from.reads().transactional(id);
        let flow = Flow::process(Copy(fate)).sink("out");
        let mut spec = PipelineSpec::new("copies", Arc::new(source.clone()), flow);
        spec.dead_letter = DeadLetter::Discard;
        spec.processor.concurrency = NonZeroUsize::new(4).unwrap();
        let batcher = BatcherSpec {
            max_age: Duration::from_millis(20),
            concurrency: NonZeroUsize::new(2).unwrap(),
            sink: Some(Arc::new(source.sink(&out.name).unwrap())),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("out".to_owned(), batcher);
        Self { source, spec }
    }

    fn start(self) -> Member {
        Member::run(self.spec)
    }
}

/// A topic for what is read, and one for what is written.
async fn topics(name: &str, partitions: i32) -> (Topic, Topic) {
    let from = Topic::make(name, partitions).await;
    let out = Topic::make(&format!("{name}.out"), 3).await;
    (from, out)
}

fn written(_: &str) -> Fate {
    Fate::Written
}

/// Every message of these was written once.
fn assert_once(found: &BTreeMap<String, usize>, sent: &[Outgoing]) {
    let repeated: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
    assert!(repeated.is_empty(), "written more than once: {repeated:?}");
    let missing = sent
        .iter()
        .map(|message| String::from_utf8_lossy(&message.payload))
        .filter(|payload| !found.contains_key(&**payload))
        .count();
    assert_eq!((missing, found.len()), (0, sent.len()), "missing, and found");
}

/// What is written, filtered and given up is committed together with its offsets; dead letters go to a topic within the
/// same transactions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_dead_letters_and_offsets_are_committed_together() {
    let (from, out) = topics("together", 2).await;
    let dead = Topic::make("together.dead", 1).await;
    let sent = keyed(0..900, 30);
    from.publish(&sent).await;
    let kind = |payload: &str| payload.bytes().map(u32::from).sum::<u32>() % 10;
    let mut copies = Copies::new(&from, "together-1", &out, move |payload| match kind(payload) {
        0 => Fate::Rejected,
        1 => Fate::Filtered,
        _ => Fate::Written,
    });
    copies.spec.dead_letter = DeadLetter::Sink(Arc::new(copies.source.sink(&dead.name).unwrap()));
    let member = copies.start();
    from.all_committed(sent.len()).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    let part = |which: fn(u32) -> bool| -> Vec<Outgoing> {
        let of = |message: &&Outgoing| which(kind(&String::from_utf8_lossy(&message.payload)));
        sent.iter().filter(of).cloned().collect()
    };
    assert_once(&outputs(&out).await, &part(|kind| kind > 1));
    assert_once(&outputs(&dead).await, &part(|kind| kind == 0));
}

/// Another producer takes the id: the source ends with an error that says so, is opened again, and nothing is lost or
/// doubled.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_source_is_opened_again_and_writes_nothing_twice() {
    let (from, out) = topics("fenced", 2).await;
    let sent = keyed(0..3_000, 30);
    from.publish(&sent).await;
    let member = Copies::new(&from, "fenced-1", &out, written).start();
    for fence in 1..=2 {
        until("it is amid its work", || async {
            outputs(&out).await.len() >= fence * 300
        })
        .await;
        let brokers = from.brokers.clone();
        tokio::task::spawn_blocking(move || {
            let other: BaseProducer = config(&brokers)
                .set("transactional.id", "fenced-1")
                .create()
                .unwrap();
            other.init_transactions(SOON).unwrap();
        })
        .await
        .unwrap();
    }
    // Whoever is fenced finds out when it writes.
    let more = keyed(3_000..3_300, 30);
    from.publish(&more).await;
    from.all_committed(sent.len() + more.len()).await;
    assert!(member.pipeline().status().counts.restarts > 0, "it was fenced");
    member.drain().await;
    assert_once(&outputs(&out).await, &[sent, more].concat());
}

/// A broker that is killed within a transaction, and comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_killed_within_a_transaction_costs_and_doubles_nothing() {
    let kafka = OwnKafka::start().await;
    let from = Topic::with(&kafka.brokers(), "killed", 2, &[]).await;
    let out = Topic::with(&kafka.brokers(), "killed.out", 3, &[]).await;
    let sent = keyed(0..5_000, 30);
    from.publish(&sent).await;
    let member = Copies::new(&from, "killed-1", &out, written).start();
    until("it is amid its work", || async {
        outputs(&out).await.len() >= 300
    })
    .await;
    kafka.kill().await;
    kafka.start_again().await;
    from.all_committed(sent.len()).await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_once(&outputs(&out).await, &sent);
}

/// Members that come and go, each with an id of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rebalance_commits_what_was_written_and_repeats_nothing() {
    let (from, out) = topics("shared", 6).await;
    let first = Copies::new(&from, "shared-1", &out, written).start();
    let mut sent = Vec::new();
    for round in 0..3_usize {
        let more = keyed(round * 4_000..(round + 1) * 4_000, 60);
        from.publish(&more).await;
        sent.extend(more);
        let second = Copies::new(&from, "shared-2", &out, written).start();
        until("the second has taken part", || async {
            second.pipeline().status().counts.acked > 0 || outputs(&out).await.len() == sent.len()
        })
        .await;
        let report = second.drain().await;
        assert_eq!(report.left, 0, "{report}");
    }
    from.all_committed(sent.len()).await;
    let report = first.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_once(&outputs(&out).await, &sent);
}

/// More is done out of order than can be told beside an offset: so much is not handed out, and nothing is repeated.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_out_of_order_is_all_told_of() {
    let (from, out) = topics("gaps", 1).await;
    let sent = keyed(0..8_000, 8_000);
    from.publish(&sent).await;
    let odd = |payload: &str| payload.bytes().nth_back(2).is_some_and(|digit| digit % 2 == 1);
    let member = Copies::new(&from, "gaps-1", &out, move |payload| {
        if odd(payload) { Fate::Later } else { Fate::Written }
    })
    .start();
    let seen = Done::default();
    until("it holds all that it may", || async {
        let before = seen.total();
        let now = outputs(&out).await.len();
        (before..now).for_each(|number| seen.add(&Message::new(number.to_string())));
        now > 1_000 && now == before
    })
    .await;
    let report = member.pipeline().drain(Duration::from_secs(5)).await;
    assert_eq!(report.left, 0, "{report}");
    let (offset, told) = from.committed().await.remove(0);
    assert!(
        offset < Some(10) && told.len() > 3_000,
        "{offset:?}, {}",
        told.len()
    );
    assert!(told.len() <= 4_096);

    let member = Copies::new(&from, "gaps-1", &out, written).start();
    from.all_committed(sent.len()).await;
    member.drain().await;
    assert_once(&outputs(&out).await, &sent);
}

/// A sink whose every other call is dropped after some milliseconds, as by a timeout.
struct Impatient(TransactionalSink);

struct ImpatientWriter(TransactionalWriter, bool);

impl SinkConnector for Impatient {
    type Sink = ImpatientWriter;

    async fn open(&self) -> Result<ImpatientWriter, OpenError> {
        Ok(ImpatientWriter(SinkConnector::open(&self.0).await?, false))
    }
}

impl Sink for ImpatientWriter {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        self.1 = !self.1;
        let patience = if self.1 {
            // From before the transaction begins to after its end.
            Duration::from_micros(fastrand::u64(0..30_000))
        } else {
            SOON
        };
        let sent = tokio::time::timeout(patience, self.0.send(messages, results)).await;
        sent.unwrap_or_else(|_| {
            results.clear();
            results.resize(messages.len(), Delivered::Failed("dropped".to_owned()));
            Ok(())
        })
    }
}

/// A call that is dropped amid its transaction, as by a batch's timeout, takes back what it wrote, or has settled it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dropped_call_wrote_is_written_once() {
    let (from, out) = topics("dropped", 2).await;
    let sent = keyed(0..1_000, 30);
    from.publish(&sent).await;
    let mut copies = Copies::new(&from, "dropped-1", &out, written);
    let batcher = copies.spec.batchers.get_mut("out").unwrap();
    batcher.sink = Some(Arc::new(Impatient(copies.source.sink(&out.name).unwrap())));
    batcher.size = NonZeroUsize::new(20).unwrap();
    copies.spec.retry.attempts = std::num::NonZeroU32::MAX;
    copies.spec.retry.backoff = Duration::from_millis(1);
    copies.spec.retry.max_backoff = Duration::from_millis(5);
    let member = copies.start();
    from.all_committed(sent.len()).await;
    assert!(
        member.pipeline().status().counts.retried > 0,
        "calls were dropped"
    );
    member.drain().await;
    assert_once(&outputs(&out).await, &sent);
}

/// A source of ours reads nothing of an aborted transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_aborted_is_not_read() {
    let topic = Topic::make("aborted", 1).await;
    let writes = topic.clone();
    tokio::task::spawn_blocking(move || {
        let producer: BaseProducer = config(&writes.brokers)
            .set("transactional.id", "aborted-1")
            .create()
            .unwrap();
        producer.init_transactions(SOON).unwrap();
        let write = |payload: &str| {
            producer.begin_transaction().unwrap();
            let record = BaseRecord::<(), str>::to(&writes.name).payload(payload);
            producer.send(record).map_err(|(error, _)| error).unwrap();
            producer.flush(SOON).unwrap();
        };
        write("aborted");
        producer.abort_transaction(SOON).unwrap();
        write("committed");
        producer.commit_transaction(SOON).unwrap();
    })
    .await
    .unwrap();
    let done = Done::default();
    let member = Member::counts(topic.reads(), &done);
    done.reaches(1).await;
    // A message and a marker of each transaction; what follows the last message is not its business.
    topic.all_committed(3).await;
    member.drain().await;
    assert_eq!((done.total(), done.times("committed")), (1, 1));
}

/// Two pipelines with one connector would fence each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_pipeline_with_the_same_connector_is_refused() {
    let (from, out) = topics("twice", 1).await;
    let copies = Copies::new(&from, "twice-1", &out, written);
    let again = copies.source.clone();
    let first = copies.start();
    from.publish(&keyed(0..10, 10)).await;
    from.all_committed(10).await;
    let flow = Flow::process(Copy(written)).sink("out");
    let mut spec = PipelineSpec::new("again", Arc::new(again), flow);
    spec.dead_letter = DeadLetter::Discard;
    let batcher = first_batcher(&from, &out);
    spec.batchers.insert("out".to_owned(), batcher);
    let second = Member::run(spec);
    until("it is refused", || async {
        format!("{:?}", second.pipeline().status().condition).contains("another pipeline's")
    })
    .await;
    first.drain().await;
}

fn first_batcher(from: &Topic, out: &Topic) -> BatcherSpec {
    let sink = from.reads().transactional("unused").sink(&out.name).unwrap();
    BatcherSpec {
        sink: Some(Arc::new(sink)),
        ..BatcherSpec::default()
    }
}
