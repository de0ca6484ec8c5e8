//! What a transactional source holds back: retry topics, halts, and the note of unclean ends.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    BatcherSpec, Context, DeadLetter, Failure, Flow, Message, Ordering, Outgoing, PipelineSpec, Processor,
    RetrySpec, RetryStrategy,
};
use millstream_kafka::KafkaConnector;
use parking_lot::Mutex;
use rdkafka::producer::{BaseProducer, Producer};

use crate::support::{Member, SOON, Topic, config, keyed, outputs, until};

/// Writes what it reads, unless told otherwise.
struct Copy<F>(F);

impl<F: Fn(&Message) -> Result<(), Failure> + Send + Sync + 'static> Processor for Copy<F> {
    type Input = Message;
    type Output = Outgoing;

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<Outgoing, Failure> {
        (self.0)(&message)?;
        Ok(Outgoing::new(message.payload))
    }
}

/// A pipeline from this source to this topic.
fn copies(
    source: &KafkaConnector,
    out: &Topic,
    each: impl Fn(&Message) -> Result<(), Failure> + Send + Sync + 'static,
) -> PipelineSpec {
    let mut spec = PipelineSpec::new(
        "copies",
        Arc::new(source.clone()),
        Flow::process(Copy(each)).sink("out"),
    );
    spec.dead_letter = DeadLetter::Discard;
    let batcher = BatcherSpec {
        max_age: Duration::from_millis(20),
        concurrency: NonZeroUsize::new(2).unwrap(),
        sink: Some(Arc::new(source.sink(&out.name).unwrap())),
        ..BatcherSpec::default()
    };
    spec.batchers.insert("out".to_owned(), batcher);
    spec
}

/// Another producer takes the id: what the source's had not committed is gone.
async fn fence(topic: &Topic, id: &str) {
    let (brokers, id) = (topic.brokers.clone(), id.to_owned());
    tokio::task::spawn_blocking(move || {
        let other: BaseProducer = config(&brokers).set("transactional.id", &id).create().unwrap();
        other.init_transactions(SOON).unwrap();
    })
    .await
    .unwrap();
}

/// P1 P8, and no repeats: a message goes to its retry topic in the transaction that has its offset, so each is put off
/// once and comes out once, also when transactions are aborted; and that is counted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_put_off_within_transactions_comes_again_exactly_once() {
    let topic = Topic::make("once-later", 2).await;
    let out = Topic::make("once-later.out", 2).await;
    let sent = keyed(0..2_000, 40);
    topic.publish(&sent).await;
    let policy = RetrySpec {
        attempts: 5.try_into().unwrap(),
        backoff: Duration::from_millis(500),
        max_backoff: Duration::from_millis(500),
        jitter: false,
        strategy: RetryStrategy::Redeliver,
        ..RetrySpec::default()
    };
    let source = topic.reads().retry_topics(&policy).transactional("once-later-1");
    let repeated: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    let fails = |payload: &str| payload.ends_with(['1', '4', '7']);
    let again = Arc::clone(&repeated);
    let mut spec = copies(&source, &out, move |message| {
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        if message.failures > 0 {
            again.lock().insert(payload);
        } else if fails(&payload) {
            return Err(Failure::from("not yet"));
        }
        Ok(())
    });
    spec.retry = policy;
    let member = Member::run(spec);
    for share in [200, 600] {
        until("it is amid its work", || async {
            outputs(&out).await.len() >= share
        })
        .await;
        fence(&topic, "once-later-1").await;
    }
    until("all of it is written", || async {
        outputs(&out).await.len() == sent.len()
    })
    .await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    let counts = member.pipeline().status().counts;
    assert!(counts.commit_failures > 0, "transactions were aborted");
    let late = sent
        .iter()
        .filter(|message| fails(&String::from_utf8_lossy(&message.payload)))
        .count();
    assert_eq!(repeated.lock().len(), late, "each was put off");
    let waits = Topic {
        name: format!("{}.retry.500ms", topic.name),
        ..topic.clone()
    };
    for (topic, expected) in [(&waits, late), (&out, sent.len())] {
        let found = outputs(topic).await;
        let doubled: Vec<_> = found.iter().filter(|(_, times)| **times > 1).collect();
        assert!(doubled.is_empty(), "{}: {doubled:?}", topic.name);
        assert_eq!(found.len(), expected, "{}", topic.name);
    }
}

/// P3 P7: a partition of a transactional source halts, and what is before the halt is committed with its outputs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_halts_within_transactions() {
    let topic = Topic::make("once-halts", 1).await;
    let out = Topic::make("once-halts.out", 1).await;
    topic.publish(&keyed(0..200, 1)).await;
    let source = topic.reads().transactional("once-halts-1");
    let mut spec = copies(&source, &out, |message| match &message.payload[..] {
        b"key0-50" => Err(Failure::reject("no such sku")),
        _ => Ok(()),
    });
    spec.dead_letter = DeadLetter::Halt;
    spec.ordering = Ordering::Partition;
    let member = Member::run(spec);
    until("it stands still", || async {
        let status = member.pipeline().status();
        status.halted == 1 && topic.committed().await[0].0 == Some(50)
    })
    .await;
    let report = member.drain().await;
    assert_eq!(report.left, 0, "{report}");
    assert_eq!(topic.committed().await[0].0, Some(50), "P7");
    assert_eq!(outputs(&out).await.len(), 50, "nothing after it has run");

    let mended = Member::run(copies(&source, &out, |_| Ok(())));
    until("it goes on", || async { topic.total_committed().await == 200 }).await;
    mended.drain().await;
    let found = outputs(&out).await;
    assert!(found.len() == 200 && found.values().all(|times| *times == 1));
}

/// P2: the group keeps the note of a transactional member while it has the partition, and not after it has left. Who is
/// given a partition in good order counts no unclean end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_note_of_a_transactional_member_is_kept_and_taken_back() {
    let topic = Topic::make("once-noted", 2).await;
    let out = Topic::make("once-noted.out", 1).await;
    let start = |id: &str| {
        let source = topic.reads().transactional(id);
        let seen: Arc<Mutex<Vec<u32>>> = Arc::default();
        let deliveries = Arc::clone(&seen);
        let spec = copies(&source, &out, move |message| {
            deliveries.lock().push(message.deliveries);
            Err(Failure::retry_after(Duration::from_secs(3_600), "not now"))
        });
        (Member::run(spec), seen)
    };
    let texts = || async {
        let committed = topic.committed().await;
        committed.into_iter().map(|(_, text)| text).collect::<Vec<_>>()
    };
    topic.publish(&keyed(0..100, 20)).await;
    let (first, seen) = start("once-noted-1");
    until("all of them run", || async { seen.lock().len() == 100 }).await;
    let noted = texts().await;
    assert!(noted.iter().all(|text| !text.is_empty()), "{noted:?}");
    let (second, seen) = start("once-noted-2");
    until("a partition has moved", || async { !seen.lock().is_empty() }).await;
    for member in [first, second] {
        let report = member.drain().await;
        assert_eq!(report.left, 0, "{report}");
    }
    until("both have left", || async {
        texts().await.iter().all(String::is_empty)
    })
    .await;
    assert!(seen.lock().iter().all(|deliveries| *deliveries == 1));
}
