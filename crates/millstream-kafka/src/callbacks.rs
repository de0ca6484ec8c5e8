//! What librdkafka calls on the member's thread: [`Callbacks`].
//!
//! A rebalance runs within the poll that brought it, to its end.

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
use crate::copies::Assigned;
use crate::fetched::Fetched;
use crate::shared::{Phase, Place, Shared};
use crate::statistics;
use crate::tiers::Tiers;
use crate::transactions::work::Work;

/// The longest that it waits for the group's committed offsets, for all ends of logs, and for a last transaction; and for one
/// such end.
const ANSWER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(1);

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
        // It may have been paused when it was last assigned. Once fetching begins, that could come between.
        if let Err(error) = consumer.resume(partitions) {
            warn!(%error, "what is assigned may stay paused");
        }
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

    /// Whether no broker was of any use when one was last heard of.
    pub(crate) fn is_degraded(&self) -> bool {
        self.degraded.load(Ordering::Relaxed)
    }

    /// A broker has answered.
    pub(crate) fn recover(&self) {
        self.degraded.store(false, Ordering::Relaxed);
        self.engine.recovered();
    }

    /// Why a broker was last of no use, since somebody asked.
    pub(crate) fn turned_away(&self) -> Option<String> {
        self.turned_away.lock().take()
    }

    /// Whether there was a rebalance since somebody asked.
    pub(crate) fn has_rebalanced(&self) -> bool {
        self.rebalanced.swap(false, Ordering::Relaxed)
    }

    /// Why nothing can be committed any more, if so.
    pub(crate) fn failed(&self) -> Option<String> {
        self.work.as_ref().and_then(|work| work.failed())
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

#[cfg(test)]
mod tests;
