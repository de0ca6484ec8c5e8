//! Commits, on a thread of their own: [`Commits`].
//!
//! librdkafka tells of a commit that was sent without waiting only those who give it a C callback. So each is waited for,
//! which takes as long as the group's coordinator does, and keeps the thread that polls out of that.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use tracing::warn;

use crate::member::Callbacks;
use crate::shared::Commit;

/// Commits these, and waits for the answer.
pub(crate) fn commit(consumer: &BaseConsumer<Callbacks>, commits: &[Commit]) -> Result<(), KafkaError> {
    if commits.is_empty() {
        return Ok(());
    }
    let mut list = TopicPartitionList::with_capacity(commits.len());
    for commit in commits {
        let mut partition = list.add_partition(&commit.place.topic, commit.place.partition);
        partition.set_offset(Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX)))?;
        partition.set_metadata(&commit.metadata);
    }
    consumer.commit(&list, CommitMode::Sync)
}

/// Whether a commit is under way, and how the last one went.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Done,
    Sent,
    Failed,
}

impl UnderWay {
    /// Waits until none is, but not for longer than this.
    pub(crate) fn settle(&self, most: Duration) {
        let mut state = self.state.lock();
        if *state == State::Sent {
            self.ended.wait_for(&mut state, most);
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
    orders: Option<SyncSender<Vec<Commit>>>,
    thread: Option<JoinHandle<()>>,
    /// Whoever waits for the next commit, and for the one under way.
    next: Vec<oneshot::Sender<bool>>,
    sent: Vec<oneshot::Sender<bool>>,
}

impl Commits {
    pub(crate) fn start(consumer: Arc<BaseConsumer<Callbacks>>) -> std::io::Result<Self> {
        let (orders, received) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("kafka commits".to_owned())
            .spawn(move || run(&consumer, &received))?;
        Ok(Self {
            orders: Some(orders),
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
        let state = *callbacks.under_way.state.lock();
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
        *callbacks.under_way.state.lock() = State::Sent;
        self.sent.append(&mut self.next);
        let sent = match &self.orders {
            Some(orders) => orders.try_send(commits),
            None => Err(TrySendError::Disconnected(commits)),
        };
        if let Err(TrySendError::Full(commits) | TrySendError::Disconnected(commits)) = sent {
            callbacks.shared.commit_failed(&commits);
            callbacks.under_way.end(State::Failed);
        }
        true
    }

    /// Ends the thread, once the commit under way has been answered.
    pub(crate) fn end(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            warn!("the thread that commits died");
        }
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
        let state = match commit(consumer, &commits) {
            Ok(()) => {
                callbacks.shared.committed(&commits);
                State::Done
            }
            Err(error) => {
                warn!(%error, "a commit failed; what was settled is committed with the next");
                callbacks.shared.commit_failed(&commits);
                callbacks.engine.commit_failed();
                State::Failed
            }
        };
        callbacks.under_way.end(state);
        callbacks.shared.signal.raise();
    }
}
