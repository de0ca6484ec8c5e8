//! What waits for a transaction, between those who want it and the thread that makes it: [`Work`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use millstream_core::{Delivered, Outgoing, Ticket};
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

/// What waits for the next transaction.
#[derive(Debug, Default)]
pub(crate) struct Work {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Round,
    /// The thread makes a last round and ends.
    closed: bool,
    /// It has ended: nothing is committed any more.
    ended: bool,
    failed: Option<String>,
}

/// What one transaction is made for.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) writes: Vec<Write>,
    /// Whoever waits for a commit of all that was settled when it asked.
    pub(crate) asked: Vec<oneshot::Sender<bool>>,
    /// It is time to commit what is settled.
    pub(crate) due: bool,
}

impl Round {
    pub(crate) fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.asked.is_empty() && !self.due
    }

    fn append(&mut self, more: &mut Self) {
        self.writes.append(&mut more.writes);
        self.asked.append(&mut more.asked);
        self.due |= std::mem::take(&mut more.due);
    }
}

/// A message, and where it goes.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) topic: Arc<str>,
    /// Where it is not for its key to say.
    pub(crate) partition: Option<i32>,
    pub(crate) message: Outgoing,
}

/// What one call of a sink has given.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) letters: Vec<Letter>,
    /// What came of each of them, where that is known.
    pub(crate) results: Vec<Option<Delivered>>,
    pub(crate) claim: Arc<Claim>,
    answer: oneshot::Sender<Vec<Delivered>>,
}

impl Write {
    /// The deliveries that what is to be written comes of.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = Ticket> + '_ {
        self.unwritten().filter_map(|(_, letter)| letter.message.ticket)
    }

    /// What is to be written, with its place among the letters.
    pub(crate) fn unwritten(&self) -> impl Iterator<Item = (usize, &Letter)> {
        let written = self.letters.iter().enumerate().zip(&self.results);
        written
            .filter(|(_, result)| result.is_none())
            .map(|(letter, _)| letter)
    }

    /// Everything else was confirmed.
    pub(crate) fn end(self) {
        let results = self.results.into_iter();
        let results = results.map(|result| result.unwrap_or(Delivered::Confirmed));
        // Who no longer waits finds the deliveries settled.
        self.answer.send(results.collect()).ok();
    }

    /// The source is gone, and so is each delivery: the message comes again with the next. What comes of none is not
    /// written.
    pub(crate) fn give_up(mut self) {
        for (letter, result) in self.letters.iter().zip(&mut self.results) {
            if letter.message.ticket.is_none() {
                result.get_or_insert_with(|| Delivered::Failed("its source was closed".to_owned()));
            }
        }
        self.end();
    }
}

/// Whether a sink's call still waits, and whether its transaction has begun to commit.
#[derive(Debug, Default)]
pub(crate) struct Claim(AtomicU8);

impl Claim {
    const WAITING: u8 = 0;
    const CLAIMED: u8 = 1;
    const DROPPED: u8 = 2;

    /// What the call gave is about to be committed, and dropping the call does not change that any more. False if it has
    /// been dropped.
    pub(crate) fn claim(&self) -> bool {
        self.0
            .compare_exchange(Self::WAITING, Self::CLAIMED, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    /// It was not committed.
    pub(crate) fn unclaim(&self) {
        self.0
            .compare_exchange(Self::CLAIMED, Self::WAITING, Ordering::SeqCst, Ordering::SeqCst)
            .ok();
    }

    pub(crate) fn is_dropped(&self) -> bool {
        self.0.load(Ordering::SeqCst) == Self::DROPPED
    }
}

/// A sink's call. Dropped, it waits no longer.
#[derive(Debug)]
pub(crate) struct Call {
    claim: Arc<Claim>,
    answered: oneshot::Receiver<Vec<Delivered>>,
}

impl Call {
    /// Waits for what came of its messages. None if the thread died.
    pub(crate) async fn answer(mut self) -> Option<Vec<Delivered>> {
        (&mut self.answered).await.ok()
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // As dear as a store, and loom knows its place among the others.
        self.claim.0.swap(Claim::DROPPED, Ordering::SeqCst);
    }
}

impl Work {
    /// Gives it back where nothing is committed any more.
    fn add(&self, mut more: Round) -> Round {
        let mut state = self.state.lock();
        if !state.ended {
            state.waiting.append(&mut more);
        }
        drop(state);
        self.changed.notify_all();
        more
    }

    /// Has these written.
    pub(crate) fn write(&self, letters: Vec<Letter>) -> Call {
        let (answer, answered) = oneshot::channel();
        let claim = Arc::new(Claim::default());
        let write = Write {
            results: vec![None; letters.len()],
            letters,
            claim: Arc::clone(&claim),
            answer,
        };
        let left = self.add(Round {
            writes: vec![write],
            ..Round::default()
        });
        left.writes.into_iter().for_each(Write::give_up);
        Call { claim, answered }
    }

    /// Has all that is settled committed, and says so to these.
    pub(crate) fn ask(&self, asked: Vec<oneshot::Sender<bool>>, due: bool) {
        self.add(Round {
            asked,
            due,
            ..Round::default()
        });
    }

    /// The thread makes a last round, and ends.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }

    /// Transactions are not possible any more, and why.
    pub(crate) fn fail(&self, why: String) {
        let mut state = self.state.lock();
        state.failed.get_or_insert(why);
        state.closed = true;
        drop(state);
        self.changed.notify_all();
    }

    /// Why transactions are not possible any more.
    pub(crate) fn failed(&self) -> Option<String> {
        self.state.lock().failed.clone()
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.state.lock().closed
    }

    // === the thread's

    /// Adds what waits to the round, waiting for some if that has nothing. False once there will be nothing more.
    pub(crate) fn collect(&self, round: &mut Round) -> bool {
        let mut state = self.state.lock();
        while round.is_empty() && state.waiting.is_empty() && !state.closed {
            self.changed.wait(&mut state);
        }
        round.append(&mut state.waiting);
        !state.closed
    }

    /// Nothing is committed any more: what waits is given up. Only then may a delivery seem to be done that is not, as it
    /// would be committed otherwise.
    pub(crate) fn end(&self, mut left: Round) {
        let mut state = self.state.lock();
        (state.closed, state.ended) = (true, true);
        left.append(&mut state.waiting);
        drop(state);
        left.writes.into_iter().for_each(Write::give_up);
        left.asked.into_iter().for_each(|asked| {
            asked.send(false).ok();
        });
    }

    /// Waits, but not after it was closed.
    pub(crate) fn pause(&self, most: Duration) {
        let until = millstream_core::rt::Instant::now() + most;
        let mut state = self.state.lock();
        while !state.closed {
            let left = until.saturating_duration_since(millstream_core::rt::Instant::now());
            if left.is_zero() {
                break;
            }
            self.changed.wait_for(&mut state, left);
        }
    }
}
