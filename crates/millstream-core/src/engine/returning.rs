//! Messages that go back to the source out of their lanes (P3).
//!
//! Until the source knows that a message of a key is coming back to it, it may hand out later ones of that key, for
//! which the lane may have room by then. While intake gives back what has no room, nothing is read. While a worker's
//! messages go back, to be redelivered in order, reading goes on, and later ones of their keys follow them back.

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use crate::settlement::{Outcome, Settle};
use crate::ticket::Ticket;

#[derive(Debug, Default)]
pub(crate) struct Returning {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// While there are any, nothing is read.
    tickets: FxHashSet<Ticket>,
    /// Each with the hash of its key, which takes later ones along.
    followed: FxHashMap<Ticket, u64>,
    /// How many of each key's are on their way.
    keys: FxHashMap<u64, usize>,
}

impl Returning {
    /// This one is on its way, and nothing is read meanwhile.
    pub(crate) fn add(&self, ticket: Ticket) {
        self.state.lock().tickets.insert(ticket);
    }

    /// This one of a key is on its way, and later ones of the key follow it.
    pub(crate) fn add_followed(&self, ticket: Ticket, order: u64) {
        let mut state = self.state.lock();
        if state.followed.insert(ticket, order).is_none() {
            *state.keys.entry(order).or_default() += 1;
        }
    }

    /// Whether there is any key of which later ones must follow.
    pub(crate) fn has_followed(&self) -> bool {
        !self.state.lock().keys.is_empty()
    }

    /// Whether later ones of this key must follow.
    pub(crate) fn is_followed(&self, order: u64) -> bool {
        self.state.lock().keys.contains_key(&order)
    }

    /// The source has answered for these; a later connection's answers for what an earlier one delivered, too.
    pub(crate) fn answered(&self, outcomes: &[(Settle, Outcome)]) {
        let mut state = self.state.lock();
        let State {
            tickets,
            followed,
            keys,
        } = &mut *state;
        if tickets.is_empty() && followed.is_empty() {
            return;
        }
        for (settle, outcome) in outcomes {
            if *outcome == Outcome::Failed {
                continue;
            }
            tickets.remove(&settle.ticket);
            if let Some(order) = followed.remove(&settle.ticket)
                && let Some(number) = keys.get_mut(&order)
            {
                *number -= 1;
                if *number == 0 {
                    keys.remove(&order);
                }
            }
        }
        if tickets.is_empty() {
            self.arrived.notify_waiters();
        }
    }

    /// Waits until reading may go on.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn none(&self) {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if self.state.lock().tickets.is_empty() {
                return;
            }
            arrived.await;
        }
    }
}
