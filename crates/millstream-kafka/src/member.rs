//! The member of the group: the thread that polls, [`run`].
//!
//! The thread polls always, so that the group sees it alive whatever the engine does: a poll that hands out nothing counts
//! too (`rd_kafka_q_pop_serve_maybe_consume`). What it takes of what was [`fetched`](crate::fetched) follows demand; after
//! [`PATIENCE`] without room nothing is fetched either, which costs what was.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt;
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tracing::{debug, error, warn};

use crate::callbacks::Callbacks;
use crate::committer::Committer;
use crate::copies::Copies;
use crate::fetched::{BATCH, Fetched, go_on};
use crate::retry::welcome;
use crate::shared::{Phase, Place};

/// For how long it goes on fetching while there is no room.
const PATIENCE: Duration = Duration::from_millis(100);

/// The longest that it sleeps without having been woken.
const IDLE: Duration = Duration::from_millis(20);

/// How often it looks for brokers while none can be reached, and for how long it waits for their answer.
const LOOK: Duration = Duration::from_secs(1);

/// For how long a member that cannot go on waits for what it has read to be settled.
const LAST: Duration = Duration::from_secs(5);

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
        if let Some(why) = member.callbacks().failed() {
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
            self.callbacks().turned_away()
        });
        told.take(100)
            .flatten()
            .next()
            .unwrap_or_else(|| error.to_string())
    }

    /// Serves what has come for the member, a rebalance for instance: after one such thing the client does not say whether there
    /// is more, and the next round asks again.
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
    /// partitions come or go.
    fn follow(&mut self, room: bool) -> Result<(), KafkaError> {
        let before = self.flow;
        self.flow = match before {
            _ if room => Flow::Open,
            Flow::Open => Flow::Full(rt::now()),
            Flow::Full(since) if since.elapsed() >= PATIENCE => Flow::Paused,
            flow => flow,
        };
        let shared = &self.callbacks().shared;
        match (before, self.flow) {
            (Flow::Open | Flow::Full(_), Flow::Paused) => {
                self.consumer.pause(&list(&shared.positions()))?;
                self.fetched.lock().drop_outdated();
            }
            (Flow::Paused, Flow::Open) => {
                self.consumer.resume(&list(&shared.positions()))?;
                go_on(&self.consumer, &shared.positions())?;
            }
            _ if self.callbacks().has_rebalanced() => {
                go_on(&self.consumer, &shared.positions())?;
            }
            _ => {}
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
                Err((error, _)) if is_final(&error) => failed = Some(told(&error)),
                Err((error, offset)) => {
                    shared.failed_at(from.origin, offset);
                    complain(&error);
                }
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
        if !self.callbacks().is_degraded() || self.looked_at.elapsed() < LOOK {
            return;
        }
        self.looked_at = rt::now();
        if self.consumer.fetch_metadata(plain(&self.topics), LOOK).is_ok() {
            self.callbacks().recover();
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

fn list(positions: &[(Place, Option<Offset>)]) -> TopicPartitionList {
    let mut list = TopicPartitionList::with_capacity(positions.len());
    for (place, _) in positions {
        list.add_partition(&place.topic, place.partition);
    }
    list
}

/// A topic that can be asked for: not a pattern.
pub(crate) fn plain(topics: &[String]) -> Option<&str> {
    topics
        .iter()
        .map(String::as_str)
        .find(|topic| !topic.starts_with('^'))
}
