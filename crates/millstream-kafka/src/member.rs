//! The member of the group: the thread that polls, [`run`], and what librdkafka calls on it, [`Callbacks`].
//!
//! The thread polls always, so that the group sees it alive whatever the engine does: a poll that hands out nothing counts
//! too (`rd_kafka_q_pop_serve_maybe_consume`). What it takes of what was [`fetched`](crate::fetched) follows demand; after
//! [`PATIENCE`] without room nothing is fetched either, which costs what was.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use futures_util::future::join_all;
use millstream_core::{EngineHandle, OriginId, Rebalance as Event, Scope, rt};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::{Offset, TopicPartitionList};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tracing::{debug, error, info, warn};

use crate::commits::{UnderWay, commit};
use crate::committer::Committer;
use crate::copies::{Assigned, Copies};
use crate::fetched::{BATCH, Fetched, go_on};
use crate::retry::welcome;
use crate::shared::{Phase, Place, Shared};
use crate::statistics;
use crate::tiers::Tiers;
use crate::transactions::work::Work;

/// For how long it goes on fetching while there is no room.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest that it sleeps without having been woken.
const IDLE: Duration = Duration::from_millis(20);

/// The longest that it waits for the group's committed offsets, for all ends of logs, and for a last transaction; and for
/// an answer while it looks for brokers or for one such end.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);

/// For how long a member that cannot go on waits for what it has read to be settled.
const LAST: Duration = Duration::from_secs(5);

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
    /// Where what is fetched comes, once there is a consumer.
    pub(crate) fetched: OnceLock<Weak<Mutex<Fetched<Self>>>>,
    /// There was a rebalance since the thread last looked.
    rebalanced: AtomicBool,
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
            fetched: OnceLock::new(),
            rebalanced: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            turned_away: Mutex::default(),
        }
    }

    fn origin(&self, place: &Place) -> OriginId {
        self.engine.origin(&place.name())
    }

    fn origins(&self, partitions: &TopicPartitionList) -> Vec<OriginId> {
        places(partitions)
            .iter()
            .map(|place| self.origin(place))
            .collect()
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
            let origin = self.origin(&place);
            let delays = self.tiers.owns(&place.topic);
            self.shared.assign(origin, place.clone(), committed, end, delays);
            self.lead(origin, &place);
        }
        self.rebalanced(Event::Assigned);
    }

    /// Has what will be fetched of a partition come to where it is taken from.
    fn lead(&self, origin: OriginId, place: &Place) {
        let fetched = self.fetched.get().and_then(Weak::upgrade);
        if let (Some(fetched), Some(assignment)) = (fetched, self.shared.assigned(origin)) {
            let from = Assigned {
                origin,
                assignment,
                wait: self.tiers.wait(&place.topic),
            };
            let shared = Arc::clone(&self.shared);
            fetched.lock().begin(place, from, move || shared.signal.raise());
        }
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
        let origins = self.origins(partitions);
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

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.rebalanced.store(true, Ordering::Relaxed);
        if let Rebalance::Revoke(partitions) = rebalance
            && let Some(fetched) = self.fetched.get().and_then(Weak::upgrade)
        {
            let mut fetched = fetched.lock();
            self.origins(partitions)
                .into_iter()
                .for_each(|gone| fetched.end(gone));
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

fn complain(error: &KafkaError) {
    match error.rdkafka_error_code() {
        // Said by `Callbacks::error` too, or no complaint.
        Some(RDKafkaErrorCode::AllBrokersDown | RDKafkaErrorCode::PartitionEOF) => {}
        Some(RDKafkaErrorCode::BrokerTransportFailure) => debug!(%error, "a broker went away"),
        _ => warn!(%error, "the consumer complains"),
    }
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

/// What the thread keeps between two rounds.
pub(crate) struct Member {
    /// Gone before its consumer, which closes when the last who has it goes.
    pub(crate) fetched: Arc<Mutex<Fetched<Callbacks>>>,
    pub(crate) consumer: Arc<BaseConsumer<Callbacks>>,
    pub(crate) commits: Committer,
    pub(crate) topics: Vec<String>,
    pub(crate) commit_interval: Duration,
    pub(crate) flow: Flow,
    /// What was read and not handed over.
    pub(crate) copies: Copies,
    /// Why nothing more is read, and until when what was is waited for.
    pub(crate) failed: Option<(String, rt::Instant)>,
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
        if let Some((why, by)) = &member.failed
            && (shared.is_settled() || *by <= rt::now())
        {
            break Some(why.clone());
        }
        member.commit();
        member.look();
        member.serve();
        if member.read() == 0 {
            shared.signal.wait(IDLE);
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

    /// Serves what has come for the member, a rebalance for instance, until there is nothing.
    fn serve(&mut self) {
        let failed = loop {
            match self.consumer.poll(Duration::ZERO) {
                None => return,
                Some(Err(error)) if !is_final(&error) => complain(&error),
                Some(Err(error)) => break told(&error),
                // To pass it over would look like a gap.
                Some(Ok(_)) => break "a partition has no queue of its own".to_owned(),
            }
        };
        // Nothing can be committed any more, or that is known of nothing.
        self.fail(failed, Duration::ZERO);
    }

    /// Reads nothing more, and ends once what was read is settled, or after so long.
    fn fail(&mut self, why: String, most: Duration) {
        if self.failed.is_none() {
            error!(why, "this member cannot go on");
            self.failed = Some((why, rt::now() + most));
        }
    }

    /// Has librdkafka fetch while there is room, and from where its reader is: it pauses what it fetches by itself when
    /// partitions come or go, and what it then takes for the position may be wrong.
    fn follow(&mut self, room: bool) -> Result<(), KafkaError> {
        let before = self.flow;
        self.flow = match before {
            _ if room => Flow::Open,
            Flow::Open => Flow::Full(rt::now()),
            Flow::Full(since) if since.elapsed() >= PATIENCE => Flow::Paused,
            flow => flow,
        };
        let paused = self.flow == Flow::Paused;
        let callbacks = self.consumer.context();
        if callbacks.rebalanced.swap(false, Ordering::Relaxed) || paused != (before == Flow::Paused) {
            let positions = callbacks.shared.positions();
            // It may have been paused when it was last assigned.
            go_on(&self.consumer, &positions, paused)?;
        }
        Ok(())
    }

    /// Takes what there is and room for, and hands it over; how many messages.
    fn read(&mut self) -> usize {
        let shared = Arc::clone(&self.callbacks().shared);
        let turned = shared.turn();
        if let Some(halted) = shared.halted() {
            self.callbacks().engine.halted(&halted);
        }
        for (place, offset, unsettled) in shared.gaps() {
            self.callbacks().engine.commit_gap(&place, offset, unsettled);
        }
        let (mut messages, mut bytes) = turned.room;
        if let Err(error) = self.follow(messages > 0 && bytes > 0) {
            self.fail(told(&error), Duration::ZERO);
        }
        let fetched = Arc::clone(&self.fetched);
        let mut fetched = fetched.lock();
        let mut read = 0;
        for _ in 0..fetched.len() {
            if messages == 0 || bytes == 0 || self.failed.is_some() {
                break;
            }
            let Some(from) = fetched.turn().filter(|from| turned.open.contains(&from.origin)) else {
                continue;
            };
            let mut failed = None;
            let copies = &mut self.copies;
            fetched.take(messages, |given| match given {
                // Nothing is read past that.
                _ if failed.is_some() => {}
                Ok(message) => {
                    copies.add(from, &message);
                    messages -= 1;
                    bytes = bytes.saturating_sub(message.size());
                }
                Err(error) if is_final(&error) => failed = Some(told(&error)),
                Err(error) => complain(&error),
            });
            if let Some(why) = failed {
                // Without what came before, whoever opens the source next would read just that again, and come no further.
                self.fail(why, LAST);
            }
            if self.copies.len() >= BATCH {
                read += self.hand_over();
            }
        }
        drop(fetched);
        if self.copies.len() > 0 || shared.may_take_in() {
            read += self.hand_over();
        }
        read
    }

    /// Hands over what was read; how many messages.
    fn hand_over(&mut self) -> usize {
        let read = self.copies.len();
        let callbacks = self.consumer.context();
        let taken = callbacks
            .shared
            .take(self.copies.drain().map(|(from, mut message)| {
                let back = from
                    .wait
                    .map(|wait| welcome(&callbacks.engine, &mut message, wait));
                (from, message, back.unwrap_or_default())
            }));
        for place in &taken.stuck {
            warn!(
                partition = place.name(),
                "nothing more is read of it: too much has come since its first unsettled offset"
            );
        }
        for scope in taken.lost {
            callbacks.engine.lost(scope);
        }
        read
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
        drop(self.fetched);
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
