//! What a source and its acknowledger share with their thread: [`Inbox`].
//!
//! It has one place for each thing that can be asked, so nothing can pile up in it: one demand, one list of
//! settlements, and the messages of one fetch.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt::Instant;
use millstream_core::{Chunk, Credit, Message, Outcome, Settle, Ticket, rt};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};

/// How long the last to leave waits for the session's end, which takes a millisecond unless others write.
const FAREWELL: Duration = Duration::from_millis(250);

/// A fetched message that nobody has read yet.
pub(crate) type Fetched = (Ticket, Message);

/// Settlements, and where their outcomes go, in the same order.
pub(crate) struct Settling {
    pub(crate) settlements: Vec<Settle>,
    pub(crate) reply: oneshot::Sender<Vec<Outcome>>,
}

/// What the thread finds when it looks.
pub(crate) struct Turn {
    pub(crate) settling: Option<Settling>,
    /// What may be fetched now.
    pub(crate) want: Option<Credit>,
    /// Fetched messages that nobody will read any more.
    pub(crate) unread: Vec<Ticket>,
    /// Both sides are gone.
    pub(crate) closed: bool,
}

/// What a reader finds.
pub(crate) enum Found {
    Messages,
    Nothing,
    Ended,
    Failed,
}

#[derive(Default)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    work: Condvar,
    readable: Notify,
    over: Condvar,
}

#[derive(Default)]
struct State {
    want: Option<Credit>,
    /// Whether there is reason to look for messages before the next poll.
    prompted: bool,
    settling: Option<Settling>,
    fetched: VecDeque<Fetched>,
    draining: bool,
    source_gone: bool,
    acknowledger_gone: bool,
    thread_gone: bool,
    /// From when the thread begins until it has ended the session.
    served: bool,
}

impl Inbox {
    /// Moves what was fetched into the chunk as far as the credit goes; asks for more if there is nothing.
    pub(crate) fn read(&self, credit: Credit, chunk: &mut Chunk) -> Found {
        let mut state = self.state.lock();
        if state.draining {
            return Found::Ended;
        }
        let (mut bytes, before) = (0, chunk.len());
        for _ in 0..credit.messages.max(1) {
            if bytes > 0 && bytes >= credit.bytes {
                break;
            }
            let Some((ticket, message)) = state.fetched.pop_front() else {
                break;
            };
            bytes += message.size();
            chunk.push(ticket, message);
        }
        if chunk.len() > before {
            return Found::Messages;
        }
        if state.thread_gone {
            return Found::Failed;
        }
        state.want = Some(credit);
        state.prompted = true;
        self.work.notify_one();
        Found::Nothing
    }

    /// Waits until there may be something to read.
    pub(crate) async fn readable(&self) {
        self.readable.notified().await;
    }

    /// Takes the demand back.
    pub(crate) fn withdraw(&self) {
        self.state.lock().want = None;
    }

    /// Nothing will be read any more.
    pub(crate) fn drain(&self) {
        let mut state = self.state.lock();
        state.draining = true;
        state.want = None;
        self.work.notify_one();
    }

    pub(crate) fn leave_source(&self) {
        let mut state = self.state.lock();
        state.draining = true;
        state.source_gone = true;
        state.want = None;
        self.leave(state);
    }

    pub(crate) fn leave_acknowledger(&self) {
        let mut state = self.state.lock();
        state.acknowledger_gone = true;
        self.leave(state);
    }

    /// The last to leave sees the session end, so that a process which ends next leaves nothing behind.
    fn leave(&self, mut state: MutexGuard<'_, State>) {
        self.work.notify_one();
        if state.source_gone && state.acknowledger_gone && state.served {
            self.over
                .wait_while_for(&mut state, |state| state.served, FAREWELL);
        }
    }

    /// Hands settlements over; `None` once the thread is gone.
    pub(crate) fn settle(&self, settlements: Vec<Settle>) -> Option<oneshot::Receiver<Vec<Outcome>>> {
        let mut state = self.state.lock();
        if state.thread_gone {
            return None;
        }
        let (reply, outcomes) = oneshot::channel();
        state.settling = Some(Settling { settlements, reply });
        self.work.notify_one();
        Some(outcomes)
    }

    /// There may be something to fetch.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        if state.want.is_some() {
            state.prompted = true;
            self.work.notify_one();
        }
    }

    /// Whether anyone wants messages now.
    pub(crate) fn wanted(&self) -> bool {
        self.state.lock().want.is_some()
    }

    /// The thread's wait: until there is something to do, but not beyond `until`.
    pub(crate) fn next(&self, until: Instant) -> Turn {
        let mut state = self.state.lock();
        loop {
            let closed = state.source_gone && state.acknowledger_gone;
            let unread = state.draining && !state.fetched.is_empty();
            let fetch = state.want.is_some() && state.prompted;
            let now = rt::now();
            if closed || unread || fetch || state.settling.is_some() || now >= until {
                let unread = if unread {
                    state.fetched.drain(..).map(|(ticket, _)| ticket).collect()
                } else {
                    Vec::new()
                };
                state.prompted = false;
                return Turn {
                    settling: state.settling.take(),
                    want: state.want,
                    unread,
                    closed,
                };
            }
            self.work.wait_for(&mut state, until.duration_since(now));
        }
    }

    /// Puts what a fetch came to where the reader finds it.
    pub(crate) fn deliver(&self, fetched: Vec<Fetched>) {
        let mut state = self.state.lock();
        state.fetched.extend(fetched);
        state.want = None;
        self.readable.notify_one();
    }

    /// Takes back what was fetched and not read.
    pub(crate) fn take_back(&self) -> Vec<Ticket> {
        self.state
            .lock()
            .fetched
            .drain(..)
            .map(|(ticket, _)| ticket)
            .collect()
    }

    /// Forgets fetched messages whose lease is lost.
    pub(crate) fn forget(&self) {
        self.state.lock().fetched.clear();
    }

    /// The thread serves from now on.
    fn begin(&self) {
        self.state.lock().served = true;
    }

    /// The thread has ended: whoever waits for it need not.
    fn end(&self) {
        let mut state = self.state.lock();
        state.thread_gone = true;
        state.served = false;
        state.settling = None;
        self.readable.notify_one();
        self.over.notify_all();
    }
}

/// Ends the inbox with the thread, however that ends.
pub(crate) struct Attendance(Arc<Inbox>);

impl Attendance {
    pub(crate) fn new(inbox: Arc<Inbox>) -> Self {
        inbox.begin();
        Self(inbox)
    }
}

impl Drop for Attendance {
    fn drop(&mut self) {
        self.0.end();
    }
}
