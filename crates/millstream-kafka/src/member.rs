//! The member of the group: the thread that polls, [`run`], and what librdkafka calls on it, [`Callbacks`].
//!
//! The thread polls always, so that the group sees it alive whatever the engine does; only what it fetches follows
//! demand. While the engine takes messages, that is done by not polling for moments; after [`PATIENCE`] the
//! partitions are paused, which costs what was fetched of them, and polling goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use millstream_core::{EngineHandle, Headers, Message, OriginId, Scope, rt};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _, Timestamp};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::commits::{UnderWay, commit};
use crate::committer::Committer;
use crate::shared::{Phase, Place, Run, Shared};
use crate::transactions::work::Work;

/// For how long the thread does not poll while there is no room.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest that it sleeps without having been woken.
const IDLE: Duration = Duration::from_millis(20);

/// How long it waits for the group's committed offsets, and for an answer while it looks for brokers.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);

/// The most messages that are read before they are handed over.
const BATCH: usize = 500;

/// What librdkafka calls, all of it on the thread, within polls.
pub(crate) struct Callbacks {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: EngineHandle,
    pub(crate) runtime: Handle,
    /// How long what runs may go on when its partition is taken.
    pub(crate) revoke_within: Duration,
    pub(crate) under_way: UnderWay,
    /// Where commits are transactions.
    work: Option<Arc<Work>>,
    /// Partitions were assigned since the thread last looked.
    assigned: AtomicBool,
    degraded: AtomicBool,
    /// The partition that a message came from last: most come from the same as the one before.
    last: Mutex<Option<(Place, OriginId)>>,
}

impl Callbacks {
    pub(crate) fn new(
        shared: Arc<Shared>,
        engine: EngineHandle,
        runtime: Handle,
        revoke_within: Duration,
        work: Option<Arc<Work>>,
    ) -> Self {
        Self {
            shared,
            engine,
            runtime,
            revoke_within,
            under_way: UnderWay::default(),
            work,
            assigned: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            last: Mutex::new(None),
        }
    }

    fn origin(&self, place: &Place) -> OriginId {
        self.engine.origin(&place.name())
    }

    fn origin_of(&self, topic: &str, partition: i32) -> OriginId {
        let mut last = self.last.lock();
        if let Some((place, origin)) = &*last
            && place.partition == partition
            && *place.topic == *topic
        {
            return *origin;
        }
        let place = Place {
            topic: topic.into(),
            partition,
        };
        let origin = self.origin(&place);
        *last = Some((place, origin));
        origin
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        // Read once for what is kept beside the offsets; librdkafka begins where it finds the group itself.
        let committed = self.committed(consumer, partitions);
        for place in places(partitions) {
            let found = committed.find_partition(&place.topic, place.partition);
            let (offset, text) = match &found {
                Some(found) => (offset_of(found.offset()), found.metadata()),
                None => (None, ""),
            };
            info!(partition = place.name(), offset, "assigned");
            self.shared.assign(self.origin(&place), place, offset, text);
        }
        self.assigned.store(true, Ordering::Relaxed);
    }

    /// What the group has committed of these. Nothing is known if it cannot be read, and what it has settled beyond its
    /// offsets may come again: where outputs were committed with it, that must not be.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
    ) -> TopicPartitionList {
        let until = rt::now() + self.revoke_within;
        loop {
            let read = consumer.committed_offsets(partitions.clone(), ANSWER);
            let read = read.and_then(|read| {
                read.elements().iter().try_for_each(|one| one.error())?;
                Ok(read)
            });
            match (read, &self.work) {
                (Ok(read), _) => return read,
                (Err(error), None) => {
                    warn!(%error, "cannot read what the group has settled beyond its offsets: it may come again");
                    return TopicPartitionList::new();
                }
                (Err(error), Some(work)) => {
                    warn!(%error, "cannot read what the group has committed");
                    if rt::now() >= until || self.shared.phase() == Phase::Closing {
                        work.fail(format!("cannot read what the group has committed: {error}"));
                        return TopicPartitionList::new();
                    }
                }
            }
        }
    }

    /// Waits for the transaction that has all that is settled now.
    fn finish(&self, work: &Work) {
        let (answer, answered) = oneshot::channel();
        work.ask(vec![answer], false);
        let answered = self
            .runtime
            .block_on(async { tokio::time::timeout(ANSWER, answered).await });
        if !matches!(answered, Ok(Ok(true))) {
            warn!("what was settled last of revoked partitions comes again");
        }
    }

    /// Flushes what touches these partitions, commits, and makes late settlements stale: in that order, and before it
    /// returns, since a revocation that is put off undoes the assignment that comes next.
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let places = places(partitions);
        let origins: Vec<_> = places.iter().map(|place| self.origin(place)).collect();
        let scopes = self.shared.stop(&origins);
        if consumer.assignment_lost() {
            warn!(
                partitions = origins.len(),
                "the group went on without this member"
            );
            self.shared.unassign(&origins);
            scopes.into_iter().for_each(|scope| self.engine.lost(scope));
            return;
        }
        if self.shared.phase() < Phase::Closing {
            self.flush(&scopes);
        }
        match &self.work {
            Some(work) if work.is_open() => self.finish(work),
            // The last was made before the consumer closes.
            Some(_) => {}
            None => {
                self.under_way.settle(ANSWER);
                let commits = self.shared.uncommitted(Some(&origins));
                if let Err(error) = commit(consumer, &commits) {
                    warn!(%error, "what was settled last of revoked partitions comes again");
                }
            }
        }
        self.shared.unassign(&origins);
    }

    fn flush(&self, scopes: &[Scope]) {
        let all = async {
            let by = rt::now() + self.revoke_within;
            let drained = join_all(scopes.iter().map(|scope| self.engine.revoke(*scope, by))).await;
            let cancelled: usize = drained.iter().map(|drained| drained.cancelled).sum();
            let dropped: usize = drained.iter().map(|drained| drained.dropped).sum();
            info!(partitions = scopes.len(), dropped, cancelled, "revoked");
        };
        self.runtime.block_on(async {
            tokio::select! {
                biased;
                () = all => {}
                // Nobody would hear of it any more.
                () = self.shared.closing.notified() => self.shared.closing.notify_one(),
            }
        });
    }

    fn degrade(&self, cause: &str) {
        self.degraded.store(true, Ordering::Relaxed);
        self.engine.degraded(cause);
    }
}

impl ClientContext for Callbacks {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};
        match level {
            Emerg | Alert | Critical | Error => error!(facility, "{message}"),
            Warning => warn!(facility, "{message}"),
            Notice | Info => info!(facility, "{message}"),
            Debug => debug!(facility, "{message}"),
        }
    }

    fn stats(&self, statistics: Statistics) {
        let waiting: i64 = statistics
            .topics
            .values()
            .flat_map(|topic| topic.partitions.values())
            .filter(|partition| partition.app_offset >= 0 && partition.fetch_state == "active")
            .map(|partition| (partition.ls_offset.max(0) - partition.app_offset).max(0))
            .sum();
        let waiting = u64::try_from(waiting).unwrap_or_default();
        self.engine.depth(waiting + self.shared.ahead() as u64);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka says");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.degrade("no broker can be reached");
        } else if matches!(
            error.rdkafka_error_code(),
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SaslAuthenticationFailed)
        ) {
            self.degrade(reason);
        }
    }
}

impl ConsumerContext for Callbacks {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) if partitions.count() > 0 => self.assign(consumer, partitions),
            Rebalance::Revoke(partitions) if partitions.count() > 0 => self.revoke(consumer, partitions),
            Rebalance::Assign(_) | Rebalance::Revoke(_) => {}
            Rebalance::Error(error) => warn!(%error, "the group could not be balanced"),
        }
    }
}

fn places(partitions: &TopicPartitionList) -> Vec<Place> {
    let place = |topic: &str, partition| Place {
        topic: topic.into(),
        partition,
    };
    partitions
        .elements()
        .iter()
        .map(|element| place(element.topic(), element.partition()))
        .collect()
}

fn offset_of(offset: Offset) -> Option<u64> {
    match offset {
        Offset::Offset(offset) => u64::try_from(offset).ok(),
        _ => None,
    }
}

fn list(places: &[Place]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(places.len());
    for place in places {
        list.add_partition(&place.topic, place.partition);
    }
    list
}

/// The message, in memory of its own: librdkafka's is freed with what it was fetched with.
fn detach(message: &BorrowedMessage<'_>) -> Message {
    let headers: Headers = message
        .headers()
        .into_iter()
        .flat_map(|headers| headers.iter())
        .map(|header| {
            let value = String::from_utf8_lossy(header.value.unwrap_or_default());
            (header.key, value)
        })
        .collect();
    let timestamp = match message.timestamp() {
        Timestamp::CreateTime(millis) | Timestamp::LogAppendTime(millis) => u64::try_from(millis).ok(),
        Timestamp::NotAvailable => None,
    };
    let mut message = Message {
        payload: message.payload().map(Bytes::copy_from_slice).unwrap_or_default(),
        key: message.key().map(Bytes::copy_from_slice),
        headers,
        position: u64::try_from(message.offset()).unwrap_or_default(),
        timestamp: timestamp
            .and_then(|millis| std::time::SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis))),
        ..Message::default()
    };
    message.take_failures();
    message
}

/// What the thread keeps between two rounds.
pub(crate) struct Member {
    pub(crate) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(crate) commits: Committer,
    pub(crate) topics: Vec<String>,
    pub(crate) commit_interval: Duration,
    /// Everything is paused, and since when there has been no room otherwise.
    pub(crate) flow: Flow,
    pub(crate) committed_at: rt::Instant,
    pub(crate) looked_at: rt::Instant,
}

/// Whether messages are fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Open,
    /// There has been no room since then.
    Full(rt::Instant),
    Paused,
}

/// Polls until it is told to close, or cannot go on.
pub(crate) fn run(mut member: Member) {
    let shared = Arc::clone(&member.consumer.context().shared);
    let ended = loop {
        if shared.phase() == Phase::Closing {
            break None;
        }
        if let Some(why) = member.callbacks().work.as_ref().and_then(|work| work.failed()) {
            error!(why, "this member cannot go on");
            break Some(why);
        }
        member.commit();
        member.look();
        match member.fetch() {
            Ok(0) => shared.signal.wait(IDLE),
            Ok(_) => {}
            Err(error) => {
                error!(%error, "this member cannot go on");
                break Some(error.to_string());
            }
        }
    };
    // What is settled is committed when its partitions are revoked, as the close does.
    member.close();
    shared.end(ended);
}

impl Member {
    fn callbacks(&self) -> &Callbacks {
        self.consumer.context()
    }

    /// Reads what there is and room for; how many messages.
    fn fetch(&mut self) -> Result<usize, KafkaError> {
        let shared = Arc::clone(&self.callbacks().shared);
        let freed = shared.freed();
        if !freed.is_empty() && self.flow != Flow::Paused {
            self.consumer.resume(&list(&freed))?;
        }
        let room = shared.room();
        self.flow = match (self.flow, room) {
            (Flow::Open, 0) => Flow::Full(rt::now()),
            (Flow::Full(since), 0) if since.elapsed() >= PATIENCE => {
                self.consumer.pause(&list(&shared.fetchable()))?;
                Flow::Paused
            }
            (flow, 0) => flow,
            (Flow::Paused, _) => {
                self.consumer.resume(&list(&shared.fetchable()))?;
                Flow::Open
            }
            (Flow::Open | Flow::Full(_), _) => Flow::Open,
        };
        let most = match self.flow {
            Flow::Full(_) => return Ok(0),
            // What comes all the same was on its way; mostly it is the group's business.
            Flow::Paused => BATCH,
            Flow::Open => room.min(BATCH),
        };
        let runs = self.poll(most)?;
        if self.callbacks().assigned.swap(false, Ordering::Relaxed) {
            // It may have been paused when it was last assigned, or must be now.
            let all = list(&shared.fetchable());
            match self.flow {
                Flow::Paused => self.consumer.pause(&all)?,
                Flow::Open | Flow::Full(_) => self.consumer.resume(&all)?,
            }
        }
        let read = runs.iter().map(|run| run.messages.len()).sum();
        if read > 0 || shared.is_holding_back() {
            let taken = shared.take(runs);
            for place in &taken.stuck {
                warn!(
                    partition = place.name(),
                    "paused: too much has come since its first unsettled offset"
                );
            }
            if !taken.stuck.is_empty() {
                self.consumer.pause(&list(&taken.stuck))?;
            }
            for scope in taken.lost {
                self.callbacks().engine.lost(scope);
            }
        }
        Ok(read)
    }

    /// Polls without waiting, until there is nothing or so many messages have come.
    fn poll(&self, most: usize) -> Result<Vec<Run>, KafkaError> {
        let mut runs: Vec<Run> = Vec::new();
        for _ in 0..most {
            let message = match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(KafkaError::MessageConsumptionFatal(code))) => {
                    return Err(KafkaError::MessageConsumptionFatal(code));
                }
                Some(Err(error)) => {
                    self.complain(&error);
                    continue;
                }
            };
            let origin = self.callbacks().origin_of(message.topic(), message.partition());
            let message = detach(&message);
            match runs.last_mut() {
                Some(run) if run.origin == origin => run.messages.push(message),
                _ => runs.push(Run {
                    origin,
                    messages: vec![message],
                }),
            }
        }
        Ok(runs)
    }

    fn complain(&self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            // Said by `Callbacks::error` too, or no complaint.
            Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::PartitionEOF) => {}
            Some(RDKafkaErrorCode::BrokerTransportFailure) => debug!(%error, "a broker went away"),
            _ => warn!(%error, "the consumer complains"),
        }
    }

    /// Commits what is settled, when it is time or somebody waits for it.
    fn commit(&mut self) {
        let callbacks = Arc::clone(self.consumer.context());
        let due = self.committed_at.elapsed() >= self.commit_interval;
        let asked = callbacks.shared.asked_for_commit();
        if self.commits.serve(&callbacks, asked, due) {
            self.committed_at = rt::now();
        }
    }

    /// Leaves the group. The last who has the consumer closes it, so its other thread goes first.
    pub(crate) fn close(mut self) {
        self.commits.end();
        drop(self.consumer);
    }

    /// While no broker could be reached: looks whether one can.
    fn look(&mut self) {
        if !self.callbacks().degraded.load(Ordering::Relaxed) || self.looked_at.elapsed() < LOOK {
            return;
        }
        self.looked_at = rt::now();
        if self.consumer.fetch_metadata(plain(&self.topics), LOOK).is_ok() {
            self.callbacks().degraded.store(false, Ordering::Relaxed);
            self.callbacks().engine.recovered();
        }
    }
}

/// A topic that can be asked for: not a pattern.
pub(crate) fn plain(topics: &[String]) -> Option<&str> {
    topics
        .iter()
        .map(String::as_str)
        .find(|topic| !topic.starts_with('^'))
}
