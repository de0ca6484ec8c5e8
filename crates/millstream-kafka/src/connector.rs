//! Reading: [`KafkaConnector`], [`KafkaSource`], [`KafkaAcknowledger`].

use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, EngineHandle, Facts, Finding, Ids, OpenError,
    Outcome, Read, RetrySpec, Settle, SharedSinkConnector, Source, SourceError, rt,
};
use parking_lot::Mutex;
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaConfRes;
use rdkafka::{ClientConfig, Offset};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::callbacks::Callbacks;
use crate::check::{self, POLL_INTERVAL};
use crate::commits::Commits;
use crate::committer::Committer;
use crate::copies::Copies;
use crate::fetched::Fetched;
use crate::member::{self, Flow, Member, plain};
use crate::properties::{InvalidProperty, check_source, millis, reach};
use crate::retry::RetrySink;
use crate::shared::{Phase, Rules, Shared};
use crate::sink::KafkaSink;
use crate::tiers::Tiers;
use crate::transactions::Transactions;
use crate::transactions::producer::Producer;
use crate::transactions::sink::TransactionalSink;
use crate::transactions::work::Work;
use crate::transactions::writer::{Running, Writer};

/// How long an open waits for brokers, a settlement for its commit, and a close for the group to take note.
const REACH: Duration = Duration::from_secs(5);
/// How long to wait before brokers are asked anew.
const SOON: Duration = Duration::from_millis(50);
const COMMIT: Duration = Duration::from_secs(2);
const CLOSE: Duration = Duration::from_secs(2);

/// Where a group begins that has committed nothing, or what is no longer there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// With the oldest message there is.
    #[default]
    Earliest,
    /// With what is written from then on.
    Latest,
}

/// Reads topics as a member of a group.
///
/// ```
/// use std::time::Duration;
/// use millstream_kafka::KafkaConnector;
///
/// let orders = KafkaConnector::new("127.0.0.1:9092", "pricing", ["orders"])
///     .commit_interval(Duration::from_secs(1))
///     .property("fetch.min.bytes", "1024")?;
/// # Ok::<(), millstream_kafka::InvalidProperty>(())
/// ```
#[derive(Clone, Debug)]
pub struct KafkaConnector {
    config: ClientConfig,
    topics: Vec<String>,
    commit_interval: Duration,
    window: usize,
    tiers: Tiers,
    transactions: Option<Arc<Transactions>>,
}

impl KafkaConnector {
    /// Reads these topics for this group; a topic that begins with `^` is a pattern.
    pub fn new<T: Into<String>>(brokers: &str, group: &str, topics: impl IntoIterator<Item = T>) -> Self {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", brokers)
            .set("group.id", group)
            .set("client.id", "millstream")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // What is fetched ahead of each partition, and how soon fetching goes on after it was too much.
            .set("queued.max.messages.kbytes", "1024")
            .set("queued.min.messages", "20000")
            .set("fetch.queue.backoff.ms", "10")
            // A broker is asked for one thing at a time. While all partitions of one question are at their ends, it says so only
            // after this long, and nothing of the others comes.
            .set("fetch.wait.max.ms", "20")
            // Whatever of an answer is not taken keeps all of it in memory.
            .set("fetch.max.bytes", "4194304")
            // As Kafka's own clients do. Whoever finds his broker ten seconds after it is back may have lost his
            // partitions meanwhile, and does not know.
            .set("reconnect.backoff.max.ms", "1000")
            .set("statistics.interval.ms", "5000");
        Self {
            config,
            topics: topics.into_iter().map(Into::into).collect(),
            commit_interval: Duration::from_secs(5),
            window: 20_000,
            tiers: Tiers::none(group),
            transactions: None,
        }
    }

    /// Where the group begins that has committed nothing: with the oldest message, unless told otherwise.
    #[must_use]
    pub fn offset_reset(mut self, reset: OffsetReset) -> Self {
        let value = match reset {
            OffsetReset::Earliest => "earliest",
            OffsetReset::Latest => "latest",
        };
        self.config.set("auto.offset.reset", value);
        self
    }

    /// How often what is settled is committed, every five seconds unless told otherwise. A process that is killed
    /// repeats what it settled since.
    #[must_use]
    pub const fn commit_interval(mut self, interval: Duration) -> Self {
        self.commit_interval = interval;
        self
    }

    /// A name for this member that outlives its process: the group keeps its partitions for it while it restarts, for
    /// as long as `session.timeout.ms` says.
    #[must_use]
    pub fn static_id(mut self, id: &str) -> Self {
        self.config.set("group.instance.id", id);
        self
    }

    /// Has offsets committed in transactions, together with what [`sink`](Self::sink)s of this connector write: each input
    /// counts for what is read of their topics exactly once, as long as that is read with `read_committed`.
    ///
    /// The id is this process's own, and the same after a restart: whoever begins with it ends the transaction that the
    /// last one left open, and that one. It need not follow from what is read.
    ///
    /// A partition then has no more than about three thousand offsets under way, since it must fit beside the committed
    /// offset which of them are done.
    ///
    /// ```
    /// use millstream_kafka::KafkaConnector;
    ///
    /// let orders = KafkaConnector::new("127.0.0.1:9092", "pricing", ["orders"]).transactional("pricing-1");
    /// let priced = orders.sink("priced").expect("it is transactional");
    /// ```
    #[must_use]
    pub fn transactional(mut self, id: &str) -> Self {
        self.transactions = Some(Arc::new(Transactions::new(id)));
        self
    }

    /// The transactional id, if it has one.
    pub fn transactional_id(&self) -> Option<&str> {
        self.transactions.as_deref().map(Transactions::id)
    }

    /// Where its brokers are, as it was told.
    pub fn brokers(&self) -> &str {
        self.config.get("bootstrap.servers").unwrap_or_default()
    }

    /// A sink that writes to this topic within the transactions of this connector, for batchers and dead letters of the
    /// pipeline that reads with it; what goes to its [`retry_topics`](Self::retry_topics) does so by itself. It connects with the properties that the connector has by now. None if the connector is
    /// not [`transactional`](Self::transactional).
    pub fn sink(&self, topic: &str) -> Option<TransactionalSink> {
        let transactions = self.transactions.as_ref()?;
        Some(TransactionalSink::new(transactions, &self.config, topic))
    }

    /// How many offsets of a partition are kept from the first unsettled one on, 20000 unless told otherwise. A
    /// partition that has more is not read from.
    #[must_use]
    pub const fn window(mut self, offsets: usize) -> Self {
        self.window = offsets;
        self
    }

    /// For [`RetryStrategy::Redeliver`](millstream_core::RetryStrategy::Redeliver): a message waits for its next attempt
    /// in a topic `GROUP.retry.WAIT`, such as `pricing.retry.5s`. There is one for each wait that this policy has, rounded
    /// up to 100 ms, 200, 500, 1 s, 2, 5, 10, 20, 30, 1 m, 2, 5, 10, 20, 30, 1 h, 2, 4, 12 or 1 d; what a handler
    /// asks for beyond the longest is cut to it. Those that are missing are made when the source opens.
    #[must_use]
    pub fn retry_topics(mut self, policy: &RetrySpec) -> Self {
        let group = self.config.get("group.id").unwrap_or_default();
        self.tiers = Tiers::of(group, policy);
        self
    }

    /// A property for librdkafka.
    ///
    /// # Errors
    /// If it would break a promise, is what another setting says, or asks for what is not built in.
    pub fn property(mut self, name: &str, value: &str) -> Result<Self, InvalidProperty> {
        check_source(name, value)?;
        self.config.set(name, value);
        Ok(self)
    }

    /// All properties, with those that follow from others.
    fn config(&self) -> ClientConfig {
        let mut config = self.config.clone();
        // In the newer protocol brokers assign, and know one way of revoking: the gradual one.
        if config.get("group.protocol") != Some("consumer")
            && config.get("partition.assignment.strategy").is_none()
        {
            config.set("partition.assignment.strategy", "cooperative-sticky");
        }
        config
    }
}

impl Connector for KafkaConnector {
    type Source = KafkaSource;
    type Acknowledger = KafkaAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            delay: false,
            keeps_rejected: false,
            counts_deliveries: false,
            holds_places: true,
            orders_keys: false,
            counts_ends: true,
            halts: true,
            longest_delay: self.tiers.longest(),
            ids: Ids::Position,
            transacts: self.transactions.is_some(),
            ..Capabilities::default()
        }
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        if self.tiers.is_empty() {
            return None;
        }
        Some(Arc::new(RetrySink {
            sink: KafkaSink::with(&reach(&self.config)),
            tiers: self.tiers.clone(),
            transactions: self.transactions.clone(),
        }))
    }

    async fn open(&self, engine: EngineHandle) -> Result<(KafkaSource, KafkaAcknowledger), OpenError> {
        let config = self.config();
        let work = self.transactions.as_ref().map(|_| Arc::new(Work::default()));
        let rules = Rules {
            begins: match config.get("auto.offset.reset") {
                Some("latest") => Offset::End,
                _ => Offset::Beginning,
            },
            window: self.window.max(1),
            halts: engine.rejects_to_source(),
            tells_all: work.is_some(),
        };
        let left = self.transactions.as_ref().map(|own| Arc::clone(&own.left));
        let shared = Arc::new(Shared::new(rules).after(left.unwrap_or_default()));
        // The group gives up on a member that has not polled for this long, and callbacks run within a poll.
        let interval = millis(&config, "max.poll.interval.ms", POLL_INTERVAL);
        // What stood still in an earlier life is read again.
        engine.halted(&[]);
        let callbacks = Callbacks::new(
            Arc::clone(&shared),
            engine,
            Handle::current(),
            interval,
            self.tiers.clone(),
            work.clone(),
        );
        let mut consumer = BaseConsumer::from_config_and_context(&config, callbacks).map_err(refused)?;
        let signalled = Arc::clone(&shared);
        consumer.set_nonempty_callback(move || signalled.signal.raise());
        let consumer = Arc::new(consumer);
        let commits = match (&self.transactions, &work) {
            (Some(transactions), Some(work)) => {
                let taken = || {
                    OpenError::Refused(format!(
                        "the transactions `{}` are another pipeline's: each needs a connector and a transactional id of \
                         its own",
                        transactions.id()
                    ))
                };
                if transactions.are_open() {
                    return Err(taken());
                }
                let producer = Producer::open(transactions, &config).await?;
                let writer = Writer {
                    work: Arc::clone(work),
                    producer,
                    consumer: Arc::clone(&consumer),
                    shared: Arc::clone(&shared),
                };
                let running = Running::start(writer);
                if running.is_ok() && !transactions.begin(work) {
                    return Err(taken());
                }
                running.map(Committer::Producer)
            }
            _ => Commits::start(Arc::clone(&consumer)).map(Committer::Consumer),
        };
        let commits =
            commits.map_err(|error| OpenError::Unavailable(format!("cannot start a thread: {error}")))?;
        let fetched = Arc::new(Mutex::new(Fetched::new(&consumer)));
        consumer.context().fetched.set(Arc::downgrade(&fetched)).ok();
        let member = Member {
            fetched,
            consumer,
            commits,
            topics: self.topics.clone(),
            commit_interval: self.commit_interval,
            flow: Flow::Open,
            copies: Copies::default(),
            failed: None,
            committed_at: rt::now(),
            looked_at: rt::now(),
        };
        let closer = Arc::new(Closer(Arc::clone(&shared), work));
        let reach = reach(&self.config);
        let (answer, joined) = oneshot::channel();
        std::thread::Builder::new()
            .name("kafka".to_owned())
            .spawn(move || {
                let _ending = Ending(Arc::clone(&shared));
                let join = join(&member, &reach);
                let joined = join.is_ok();
                // An open that was dropped has closed what it began.
                answer.send(join).ok();
                if joined {
                    member::run(member);
                } else {
                    member.close();
                    shared.end(None);
                }
            })
            .map_err(|error| OpenError::Unavailable(format!("cannot start a thread: {error}")))?;
        match joined.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => return Err(OpenError::Unavailable("its thread died".to_owned())),
        }
        let source = KafkaSource {
            closer: Arc::clone(&closer),
        };
        let acknowledger = KafkaAcknowledger {
            closer,
            owed: Vec::new(),
        };
        Ok((source, acknowledger))
    }

    async fn check(&self, facts: &Facts<'_>) -> Vec<Finding> {
        check::source(self.config(), &self.topics, facts).await
    }
}

/// Has the consumer join its group, if there are brokers and topics.
fn join(member: &Member, reach: &ClientConfig) -> Result<(), OpenError> {
    let unavailable = |error: KafkaError| OpenError::Unavailable(member.unanswered(&error));
    let topic = plain(&member.topics);
    let metadata = member
        .consumer
        .fetch_metadata(topic, REACH)
        .map_err(unavailable)?;
    for found in metadata.topics() {
        if let Some(error) = found.error().filter(|_| topic.is_some()) {
            let error = RDKafkaErrorCode::from(error);
            return Err(OpenError::Unavailable(format!(
                "the topic `{}`: {error}",
                found.name()
            )));
        }
    }
    let callbacks = member.consumer.context();
    let tiers = &callbacks.tiers;
    let mut metadata = member.consumer.fetch_metadata(None, REACH).map_err(unavailable)?;
    let making = tiers.make(reach, &metadata, &member.topics);
    callbacks.runtime.block_on(making)?;
    // Brokers know of a topic a moment after it was made, and a member that subscribes before that is not assigned it for
    // minutes, until it asks anew what topics there are.
    let by = rt::now() + REACH;
    while !tiers.names().all(|name| has(&metadata, &name)) && rt::now() < by {
        std::thread::sleep(SOON);
        metadata = member.consumer.fetch_metadata(None, REACH).map_err(unavailable)?;
    }
    // Those of this policy, and what others have left behind.
    let mut waiting: Vec<_> = tiers.names().collect();
    let left = metadata.topics().iter().map(|topic| topic.name());
    waiting.extend(left.filter(|name| tiers.owns(name)).map(str::to_owned));
    waiting.sort_unstable();
    waiting.dedup();
    let topics: Vec<_> = member.topics.iter().chain(&waiting).map(String::as_str).collect();
    member.consumer.subscribe(&topics).map_err(refused)
}

/// Whether there is such a topic, with leaders.
fn has(metadata: &Metadata, name: &str) -> bool {
    let mut found = metadata.topics().iter().filter(|topic| topic.name() == name);
    found.any(|topic| {
        !topic.partitions().is_empty() && topic.partitions().iter().all(|partition| partition.leader() >= 0)
    })
}

/// The error of a client that could not be made. The value of a property may be a password.
pub(crate) fn refused(error: KafkaError) -> OpenError {
    OpenError::Refused(match error {
        KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, _, name, _) => {
            format!("librdkafka knows no property `{name}`")
        }
        KafkaError::ClientConfig(_, _, name, _) => {
            format!("librdkafka does not take the value of the property `{name}`")
        }
        error => error.to_string(),
    })
}

/// Closes the member when source and acknowledger are gone.
///
/// It waits for a moment, so that a process that ends after it has left its group, and its partitions need not wait for
/// its session to expire.
#[derive(Debug)]
struct Closer(Arc<Shared>, Option<Arc<Work>>);

impl Drop for Closer {
    fn drop(&mut self) {
        if let Some(work) = &self.1 {
            work.close();
        }
        self.0.close(CLOSE);
    }
}

/// Says that the thread has ended also where it panicked, so that nobody waits for it.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Some("its thread died".to_owned()));
    }
}

/// The reading side of a [`KafkaConnector`].
#[derive(Debug)]
pub struct KafkaSource {
    closer: Arc<Closer>,
}

impl Source for KafkaSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        let shared = &self.closer.0;
        loop {
            if shared.phase() != Phase::Running {
                // What was settled before the drain was answered already.
                if let Some(committed) = shared.commit() {
                    tokio::time::timeout(COMMIT, committed).await.ok();
                }
                return Ok(Read::Ended);
            }
            shared.read(credit, chunk);
            if !chunk.is_empty() {
                return Ok(Read::Messages);
            }
            if let Some(ended) = shared.ended() {
                return Err(SourceError(ended.unwrap_or_else(|| "it was closed".to_owned())));
            }
            shared.arrived.notified().await;
        }
    }

    fn drain(&mut self) {
        self.closer.0.drain();
    }
}

/// The settling side of a [`KafkaConnector`].
///
/// What is settled is committed at intervals, and answered at once. Once its source drains, it is answered when it has
/// been committed.
#[derive(Debug)]
pub struct KafkaAcknowledger {
    closer: Arc<Closer>,
    /// Settled while draining, and not known to be committed.
    owed: Vec<Settle>,
}

impl Acknowledger for KafkaAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let shared = &self.closer.0;
        let running = shared.phase() == Phase::Running;
        let owed = &mut self.owed;
        shared.settle(settlements, |settle, outcome| {
            if running || outcome == Outcome::Stale {
                outcomes.push((settle.clone(), outcome));
            } else {
                owed.push(settle.clone());
            }
        });
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        if self.owed.is_empty() {
            return;
        }
        let committed = match self.closer.0.commit() {
            Some(committed) => matches!(tokio::time::timeout(COMMIT, committed).await, Ok(Ok(true))),
            None => true,
        };
        let outcome = if committed { Outcome::Sent } else { Outcome::Failed };
        outcomes.extend(self.owed.drain(..).map(|settle| (settle, outcome)));
    }
}
