//! The member of the group: the thread that polls, [`run`], and what librdkafka calls on it, [`Callbacks`].
//!
//! The thread polls always, so that the group sees it alive whatever the engine does; only what it fetches follows
//! demand. While the engine takes messages, that is done by not polling for moments; after [`PATIENCE`] the
//! partitions are paused, which costs what was fetched of them, and polling goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use millstream_core::{EngineHandle, OriginId, Rebalance as Event, Scope, rt};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::commits::{UnderWay, commit};
use crate::committer::Committer;
use crate::copies::{Assigned, Copies};
use crate::retry::welcome;
use crate::shared::{Phase, Place, Shared};
use crate::statistics;
use crate::tiers::Tiers;
use crate::transactions::work::Work;

/// For how long the thread does not poll while there is no room.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest that it sleeps without having been woken.
const IDLE: Duration = Duration::from_millis(20);

/// The longest that it waits for the group's committed offsets, for all ends of logs, and for a last transaction; and for
/// an answer while it looks for brokers or for one such end.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);

/// The most messages that are read before they are handed over.
const BATCH: usize = 500;

/// What librdkafka calls, all of it on the thread, within polls.
pub(crate) struct Callbacks {
    pub(crate) shared: Arc<Shared>,
    pub(crate) engine: EngineHandle,
    pub(crate) runtime: Handle,
    /// How long a callback may take in all, and what runs may go on within when its partition is taken.
    patience: Duration,
    pub(crate) under_way: Arc<UnderWay>,
    pub(crate) tiers: Tiers,
    /// Where commits are transactions.
    work: Option<Arc<Work>>,
    /// Partitions were assigned since the thread last looked.
    assigned: AtomicBool,
    degraded: AtomicBool,
    /// Why a broker was last of no use: it did not take the login, or could not be trusted.
    turned_away: Mutex<Option<String>>,
}

impl Callbacks {
    /// `interval` is how long the group lets a member be without a poll, which callbacks run within.
    pub(crate) fn new(
        shared: Arc<Shared>,
        engine: EngineHandle,
        runtime: Handle,
        interval: Duration,
        tiers: Tiers,
        work: Option<Arc<Work>>,
    ) -> Self {
        Self {
            shared,
            engine,
            runtime,
            patience: interval * 3 / 4,
            under_way: Arc::default(),
            tiers,
            work,
            assigned: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            turned_away: Mutex::default(),
        }
    }

    fn origin(&self, place: &Place) -> OriginId {
        self.engine.origin(&place.name())
    }

    fn assign(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let by = rt::now() + self.patience;
        // Read once for what is kept beside the offsets; librdkafka begins where it finds the group itself.
        let committed = self.committed(consumer, partitions, by);
        // For all of them together: without it, it is only assumed that the log goes on.
        let look_by = by.min(rt::now() + ANSWER);
        for place in places(partitions) {
            let found = committed.find_partition(&place.topic, place.partition);
            let committed = found
                .as_ref()
                .and_then(|found| Some((offset_of(found.offset())?, found.metadata())));
            info!(
                partition = place.name(),
                offset = committed.map(|(offset, _)| offset),
                "assigned"
            );
            // Where its last member ended well there is no need to know.
            let end = committed.filter(|(_, text)| !text.is_empty()).and_then(|_| {
                let most = look_by.saturating_duration_since(rt::now()).min(LOOK);
                if most.is_zero() {
                    return None;
                }
                let (_, end) = consumer
                    .fetch_watermarks(&place.topic, place.partition, most)
                    .ok()?;
                u64::try_from(end).ok()
            });
            let delays = self.tiers.owns(&place.topic);
            self.shared
                .assign(self.origin(&place), place, committed, end, delays);
        }
        self.assigned.store(true, Ordering::Relaxed);
        self.rebalanced(Event::Assigned);
    }

    /// Says that partitions came or went.
    fn rebalanced(&self, how: Event) {
        self.engine.rebalanced(how);
        self.engine.partitions(self.shared.partitions());
    }

    /// What the group has committed of these. Nothing is known if it cannot be read, and what it has settled beyond its
    /// offsets may come again: where outputs were committed with it, that must not be.
    fn committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &TopicPartitionList,
        by: rt::Instant,
    ) -> TopicPartitionList {
        loop {
            let most = by.saturating_duration_since(rt::now()).min(ANSWER);
            let read = consumer.committed_offsets(partitions.clone(), most);
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
                    if rt::now() >= by || self.shared.phase() == Phase::Closing {
                        work.fail(format!("cannot read what the group has committed: {error}"));
                        return TopicPartitionList::new();
                    }
                }
            }
        }
    }

    /// Waits for the transaction that has all that is settled now.
    fn finish(&self, work: &Work, by: rt::Instant) {
        let (answer, answered) = oneshot::channel();
        work.ask(vec![answer], false);
        let answered = self
            .runtime
            .block_on(async { tokio::time::timeout_at(by, answered).await });
        if !matches!(answered, Ok(Ok(true))) {
            warn!("what was settled last of revoked partitions comes again");
            self.engine.commit_failed();
        }
    }

    /// Flushes what touches these partitions, commits, and makes late settlements stale: in that order, and before it
    /// returns, since a revocation that is put off undoes the assignment that comes next.
    fn revoke(&self, consumer: &BaseConsumer<Self>, partitions: &TopicPartitionList) {
        let begun = rt::now();
        let by = begun + self.patience;
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
            self.rebalanced(Event::Lost);
            return;
        }
        if self.shared.phase() < Phase::Closing {
            // The rest is for the commits.
            self.flush(&scopes, begun + self.patience * 2 / 3);
        }
        match &self.work {
            Some(work) if work.is_open() => {
                self.shared.give_up(&origins);
                self.finish(work, by.min(rt::now() + ANSWER));
            }
            Some(work) if work.failed().is_some() => self.shared.leave(&origins),
            // The last was made before the consumer closes.
            Some(_) => {}
            None => {
                let settled = self.under_way.settle(by);
                if !settled {
                    self.engine.commit_failed();
                }
                self.shared.give_up(&origins);
                let committed = settled && {
                    let commits = self.shared.uncommitted();
                    let committed = self.under_way.commit(&self.shared, commits, by);
                    // When the consumer closes, its thread for commits is gone, and so is the need to poll.
                    committed.unwrap_or_else(|commits| commit(consumer, commits))
                };
                if !committed {
                    warn!("what was settled last of revoked partitions may come again");
                }
            }
        }
        self.shared.unassign(&origins);
        self.rebalanced(Event::Revoked);
    }

    fn flush(&self, scopes: &[Scope], by: rt::Instant) {
        let all = async {
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

    fn stats(&self, found: Statistics) {
        statistics::tell(&self.engine, &self.shared, &found);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        debug!(%error, reason, "librdkafka says");
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.degrade("no broker can be reached");
        } else if matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SaslAuthenticationFailed
                    | RDKafkaErrorCode::SSL
            )
        ) {
            *self.turned_away.lock() = Some(reason.to_owned());
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

/// Whether nothing may be read after it. librdkafka goes on behind messages that it finds damaged, and what it leaves out
/// would look like what compaction has removed.
fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{BadCompression, BadMessage, NotImplemented};
    let code = error.rdkafka_error_code();
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(code, Some(BadCompression | BadMessage | NotImplemented))
}

/// What to say of an error that ends the member.
fn told(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::NotImplemented) => {
            "messages are compressed by what is not built in: zstd takes the feature `kafka-zstd`".to_owned()
        }
        Some(RDKafkaErrorCode::BadCompression | RDKafkaErrorCode::BadMessage) => {
            format!("a broker has messages that are damaged, and nothing is read past them ({error})")
        }
        _ => error.to_string(),
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

/// What the thread keeps between two rounds.
pub(crate) struct Member {
    pub(crate) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(crate) commits: Committer,
    pub(crate) topics: Vec<String>,
    pub(crate) commit_interval: Duration,
    /// Everything is paused, and since when there has been no room otherwise.
    pub(crate) flow: Flow,
    /// What was read and not handed over.
    pub(crate) copies: Copies,
    /// Where a message came from last: most come from the same partition as the one before.
    pub(crate) last: Option<Last>,
    pub(crate) committed_at: rt::Instant,
    pub(crate) looked_at: rt::Instant,
}

/// A partition, and what it was assigned as when there had been so many rebalances.
#[derive(Debug)]
pub(crate) struct Last {
    /// Where librdkafka keeps its topic, which it does for as long as the partition is assigned. To read its name from
    /// there for each message costs more than to look it up.
    topic: usize,
    partition: i32,
    rebalances: u64,
    from: Assigned,
}

impl Last {
    fn is(&self, topic: usize, partition: i32, rebalances: u64) -> bool {
        (self.topic, self.partition, self.rebalances) == (topic, partition, rebalances)
    }
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
                let why = told(&error);
                error!(why, "this member cannot go on");
                break Some(why);
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

    /// A request to the brokers that had no answer: why, as well as that is known.
    pub(crate) fn unanswered(&self, error: &KafkaError) -> String {
        // What librdkafka has to say waits for polls, each of which hands out one thing, and not whether there was any.
        let told = std::iter::repeat_with(|| {
            drop(self.consumer.poll(Duration::ZERO));
            self.callbacks().turned_away.lock().take()
        });
        told.take(100)
            .flatten()
            .next()
            .unwrap_or_else(|| error.to_string())
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
        let turned = shared.turn();
        if !turned.closed.is_empty() {
            self.consumer.pause(&list(&turned.closed))?;
        }
        if !turned.opened.is_empty() && self.flow != Flow::Paused {
            self.consumer.resume(&list(&turned.opened))?;
        }
        if let Some(halted) = shared.halted() {
            self.callbacks().engine.halted(&halted);
        }
        for (place, offset, unsettled) in shared.gaps() {
            self.callbacks().engine.commit_gap(&place, offset, unsettled);
        }
        let most = match self.flow {
            Flow::Full(_) => return Ok(0),
            // What comes all the same was on its way; mostly it is the group's business.
            Flow::Paused => BATCH,
            Flow::Open => room.min(BATCH),
        };
        self.poll(most)?;
        if self.callbacks().assigned.swap(false, Ordering::Relaxed) {
            // It may have been paused when it was last assigned, or must be now.
            let all = list(&shared.fetchable());
            match self.flow {
                Flow::Paused => self.consumer.pause(&all)?,
                Flow::Open | Flow::Full(_) => self.consumer.resume(&all)?,
            }
        }
        let callbacks = Arc::clone(self.consumer.context());
        let read = self.copies.len();
        if read > 0 || shared.may_take_in() {
            let taken = shared.take(self.copies.drain().map(|(from, mut message)| {
                let back = from
                    .wait
                    .map(|wait| welcome(&callbacks.engine, &mut message, wait));
                (from, message, back.unwrap_or_default())
            }));
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
    fn poll(&mut self, most: usize) -> Result<(), KafkaError> {
        for _ in 0..most {
            let message = match self.consumer.poll(Duration::ZERO) {
                None => break,
                Some(Ok(message)) => message,
                Some(Err(error)) if is_final(&error) => return Err(error),
                Some(Err(error)) => {
                    self.complain(&error);
                    continue;
                }
            };
            let callbacks: &Callbacks = self.consumer.context();
            let (topic, partition) = (message.topic_ptr().addr(), message.partition());
            let rebalances = callbacks.shared.rebalances();
            let from = match &self.last {
                Some(last) if last.is(topic, partition, rebalances) => last.from,
                _ => {
                    let place = Place {
                        topic: message.topic().into(),
                        partition,
                    };
                    let origin = callbacks.origin(&place);
                    let Some(assignment) = callbacks.shared.assigned(origin) else {
                        continue;
                    };
                    let from = Assigned {
                        origin,
                        assignment,
                        wait: callbacks.tiers.wait(&place.topic),
                    };
                    self.last = Some(Last {
                        topic,
                        partition,
                        rebalances,
                        from,
                    });
                    from
                }
            };
            self.copies.add(from, &message);
        }
        Ok(())
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
        let due = self.committed_at.elapsed() >= self.commit_interval || callbacks.shared.wants_note();
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
#[cfg(test)]
mod tests;
