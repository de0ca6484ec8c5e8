//! Commits, on a thread of their own: [`Commits`].
//!
//! librdkafka tells of a commit that was sent without waiting only those who give it a C callback. So each is waited for,
//! which takes as long as the group's coordinator does, and keeps the thread that polls out of that.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use millstream_core::rt;
use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tracing::warn;

use crate::callbacks::Callbacks;
use crate::metadata;
use crate::shared::{Commit, Shared};

/// Commits these, waits for the answer, and says what came of it: whether the group has all of them.
pub(crate) fn commit(consumer: &BaseConsumer<Callbacks>, commits: Vec<Commit>) -> bool {
    let callbacks = consumer.context();
    let (committed, failed) = sort(commits, |commits| send(consumer, commits));
    callbacks.shared.committed(&committed);
    if failed.is_empty() {
        return true;
    }
    callbacks.shared.commit_failed(&failed);
    callbacks.engine.commit_failed();
    false
}

fn send(consumer: &BaseConsumer<Callbacks>, commits: &[Commit]) -> Result<(), KafkaError> {
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut partition = list.add_partition(&commit.place.topic, commit.place.partition);
        partition.set_offset(Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX)))?;
        partition.set_metadata(&commit.metadata);
    }
    consumer.commit(&list, CommitMode::Sync)
}

/// Has these sent together, and each by itself if some of them are not taken; those that were, and those that were not.
fn sort(
    commits: Vec<Commit>,
    send: impl Fn(&[Commit]) -> Result<(), KafkaError>,
) -> (Vec<Commit>, Vec<Commit>) {
    if commits.is_empty() {
        return (commits, Vec::new());
    }
    match send(&commits) {
        Ok(()) => return (commits, Vec::new()),
        Err(error) if is_of_one(&error) => {}
        Err(error) => {
            warn!(%error, "a commit failed; what was settled is committed with the next");
            return (Vec::new(), commits);
        }
    }
    let (mut committed, mut failed) = (Vec::new(), Vec::new());
    let mut commits = commits.into_iter();
    for mut commit in commits.by_ref() {
        let mut sent = send(std::slice::from_ref(&commit));
        if code(&sent) == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) {
            warn!(
                partition = commit.place.name(),
                "the broker does not take all that is settled beyond the offset, and it may come again: its \
                 offset.metadata.max.bytes is below 4096"
            );
            commit.metadata = metadata::shorten(commit.offset, &commit.metadata);
            sent = send(std::slice::from_ref(&commit));
        }
        let Err(error) = sent else {
            committed.push(commit);
            continue;
        };
        warn!(
            partition = commit.place.name(),
            %error, "a commit failed; what was settled is committed with the next"
        );
        failed.push(commit);
        if !is_of_one(&error) {
            break;
        }
    }
    failed.extend(commits);
    (committed, failed)
}

fn code(sent: &Result<(), KafkaError>) -> Option<RDKafkaErrorCode> {
    sent.as_ref().err()?.rdkafka_error_code()
}

/// Whether an error is that of a partition, so that others may be committed all the same. Any other takes as long to
/// come again for each.
fn is_of_one(error: &KafkaError) -> bool {
    use RDKafkaErrorCode::{
        InvalidCommitOffsetSize, OffsetMetadataTooLarge, TopicAuthorizationFailed, UnknownTopicOrPartition,
    };
    matches!(
        error.rdkafka_error_code(),
        Some(
            InvalidCommitOffsetSize
                | OffsetMetadataTooLarge
                | TopicAuthorizationFailed
                | UnknownTopicOrPartition
        )
    )
}

/// Whether a commit is under way, how the last one went, and the way to the thread that makes them.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    state: Mutex<State>,
    ended: Condvar,
    /// None before the thread has begun, and once it is to end.
    orders: Mutex<Option<SyncSender<Vec<Commit>>>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Done,
    Sent,
    Failed,
}

impl UnderWay {
    /// Waits until none is, but not for longer than until then. Whether none is.
    pub(crate) fn settle(&self, by: rt::Instant) -> bool {
        let mut state = self.state.lock();
        while *state == State::Sent {
            let left = by.saturating_duration_since(rt::now());
            if self.ended.wait_for(&mut state, left).timed_out() {
                break;
            }
        }
        *state != State::Sent
    }

    /// Has these committed, while no other commit is under way, and waits for that, but not for longer than until then.
    /// Whether they were. They are given back where there is no thread for it.
    pub(crate) fn commit(
        &self,
        shared: &Shared,
        commits: Vec<Commit>,
        by: rt::Instant,
    ) -> Result<bool, Vec<Commit>> {
        if commits.is_empty() {
            return Ok(true);
        }
        if self.orders.lock().is_none() {
            return Err(commits);
        }
        self.order(shared, commits);
        Ok(self.settle(by) && *self.state.lock() == State::Done)
    }

    fn order(&self, shared: &Shared, commits: Vec<Commit>) {
        *self.state.lock() = State::Sent;
        let sent = match &*self.orders.lock() {
            Some(orders) => orders.try_send(commits),
            None => Err(TrySendError::Disconnected(commits)),
        };
        if let Err(TrySendError::Full(commits) | TrySendError::Disconnected(commits)) = sent {
            shared.commit_failed(&commits);
            self.end(State::Failed);
        }
    }

    fn end(&self, state: State) {
        *self.state.lock() = state;
        self.ended.notify_all();
    }
}

/// The thread that commits, as the thread that polls has it.
#[derive(Debug)]
pub(crate) struct Commits {
    under_way: Arc<UnderWay>,
    thread: Option<JoinHandle<()>>,
    /// Whoever waits for the next commit, and for the one under way.
    next: Vec<oneshot::Sender<bool>>,
    sent: Vec<oneshot::Sender<bool>>,
}

impl Commits {
    pub(crate) fn start(consumer: Arc<BaseConsumer<Callbacks>>) -> std::io::Result<Self> {
        let (orders, received) = sync_channel(1);
        let under_way = Arc::clone(&consumer.context().under_way);
        let thread = std::thread::Builder::new()
            .name("kafka commits".to_owned())
            .spawn(move || run(&consumer, &received))?;
        *under_way.orders.lock() = Some(orders);
        Ok(Self {
            under_way,
            thread: Some(thread),
            next: Vec::new(),
            sent: Vec::new(),
        })
    }

    /// Sends what is settled, if it is time or somebody has asked for it, and tells who waited how it went. One commit
    /// is under way at a time, so that an older one never comes after a newer.
    pub(crate) fn serve(
        &mut self,
        callbacks: &Callbacks,
        asked: Vec<oneshot::Sender<bool>>,
        due: bool,
    ) -> bool {
        self.next.extend(asked);
        let state = *self.under_way.state.lock();
        if state == State::Sent {
            return false;
        }
        answer(&mut self.sent, state == State::Done);
        if !due && self.next.is_empty() {
            return false;
        }
        let commits = callbacks.shared.uncommitted();
        if commits.is_empty() {
            answer(&mut self.next, true);
            return true;
        }
        self.sent.append(&mut self.next);
        self.under_way.order(&callbacks.shared, commits);
        true
    }

    /// Ends the thread, once the commit under way has been answered.
    pub(crate) fn end(&mut self) {
        *self.under_way.orders.lock() = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that commits died");
        }
    }
}

impl Drop for Commits {
    fn drop(&mut self) {
        self.end();
    }
}

fn answer(who: &mut Vec<oneshot::Sender<bool>>, how: bool) {
    for answer in who.drain(..) {
        // Who no longer waits does not mind.
        answer.send(how).ok();
    }
}

fn run(consumer: &BaseConsumer<Callbacks>, orders: &Receiver<Vec<Commit>>) {
    let callbacks = consumer.context();
    for commits in orders {
        let state = match commit(consumer, commits) {
            true => State::Done,
            false => State::Failed,
        };
        callbacks.under_way.end(state);
        callbacks.shared.signal.raise();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::time::Duration;

    use millstream_core::EngineHandle;

    use super::*;
    use crate::ends::Note;
    use crate::shared::{Place, Rules};

    fn shared() -> Shared {
        Shared::new(Rules {
            begins: Offset::Beginning,
            window: 100,
            halts: false,
            tells_all: false,
        })
    }

    /// A commit for each of these partitions, with more to say than its offset.
    fn commits(partitions: &[i32]) -> Vec<Commit> {
        let shared = shared();
        let (engine, _) = EngineHandle::detached();
        for partition in partitions {
            let place = Place {
                topic: "orders".into(),
                partition: *partition,
            };
            let done = [7..9, 12..13];
            let text = metadata::encode(5, &Note::default(), &done);
            shared.assign(engine.origin(&place.name()), place, Some((5, &text)), None, false);
        }
        let mut commits = shared.uncommitted();
        commits.sort_by_key(|commit| commit.place.partition);
        commits
    }

    fn partitions(commits: &[Commit]) -> Vec<i32> {
        commits.iter().map(|commit| commit.place.partition).collect()
    }

    fn refused(code: RDKafkaErrorCode) -> Result<(), KafkaError> {
        Err(KafkaError::ConsumerCommit(code))
    }

    /// A topic that may no longer be committed for must not have those beside it repeated.
    #[test]
    fn a_partition_that_cannot_be_committed_fails_alone() {
        let (committed, failed) = sort(commits(&[0, 1, 2]), |commits| {
            if partitions(commits).contains(&1) {
                return refused(RDKafkaErrorCode::TopicAuthorizationFailed);
            }
            Ok(())
        });
        assert_eq!(
            (partitions(&committed), partitions(&failed)),
            (vec![0, 2], vec![1])
        );
    }

    #[test]
    fn what_fails_the_group_is_not_tried_for_each_partition() {
        let sent = RefCell::new(Vec::new());
        let (committed, failed) = sort(commits(&[0, 1, 2]), |commits| {
            sent.borrow_mut().push(partitions(commits));
            match commits.len() {
                3 => refused(RDKafkaErrorCode::UnknownTopicOrPartition),
                _ => refused(RDKafkaErrorCode::IllegalGeneration),
            }
        });
        assert_eq!((committed.len(), partitions(&failed)), (0, vec![0, 1, 2]));
        assert_eq!(sent.into_inner(), [vec![0, 1, 2], vec![0]]);
    }

    /// P7, and Parallel Consumer's 857: a commit that comes in the midst of a rebalance is refused, which must end neither the
    /// thread nor the commits.
    #[test]
    fn what_a_rebalance_refuses_is_committed_with_the_next() {
        let shared = shared();
        let place = Place {
            topic: "orders".into(),
            partition: 0,
        };
        let text = metadata::encode(5, &Note::default(), std::slice::from_ref(&(7..9)));
        let (engine, _) = EngineHandle::detached();
        shared.assign(engine.origin(&place.name()), place, Some((5, &text)), None, false);
        let (committed, failed) = sort(shared.uncommitted(), |_| {
            refused(RDKafkaErrorCode::RebalanceInProgress)
        });
        assert_eq!((committed.len(), partitions(&failed)), (0, vec![0]));
        assert!(shared.uncommitted().is_empty(), "it counts as sent");
        shared.commit_failed(&failed);
        assert_eq!(partitions(&shared.uncommitted()), [0]);
    }

    /// P7 P2: the offset and the note matter more than what may come again.
    #[test]
    fn what_is_too_long_for_the_broker_is_committed_with_the_note_alone() {
        let long = commits(&[0, 1])[0].metadata.len();
        let (committed, failed) = sort(commits(&[0, 1]), |commits| {
            if commits.iter().any(|commit| commit.metadata.len() >= long) {
                return refused(RDKafkaErrorCode::OffsetMetadataTooLarge);
            }
            Ok(())
        });
        assert_eq!((committed.len(), failed.len()), (2, 0));
        let (note, done) = metadata::decode(5, &committed[0].metadata);
        assert_eq!((note.ends, done), (1, Vec::new()));
    }

    /// The group takes a member for dead that waits for its coordinator within a poll.
    #[test]
    fn a_commit_that_is_not_answered_is_waited_for_until_its_time_alone() {
        let under_way = UnderWay::default();
        let by = rt::now() + Duration::from_millis(10);
        let left = under_way.commit(&shared(), commits(&[0]), by).unwrap_err();
        let (orders, received) = sync_channel(1);
        *under_way.orders.lock() = Some(orders);
        assert!(!under_way.commit(&shared(), left, by).unwrap());
        assert!(!under_way.settle(by), "it is still under way");
        assert_eq!(partitions(&received.recv().unwrap()), [0]);
        under_way.end(State::Done);
        assert!(under_way.settle(by));
    }
}
