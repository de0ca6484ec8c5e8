//! Messages that go back to the source out of their lanes (P3).
//!
//! Until the source knows that a message of a key is coming back to it, it may hand out later ones of that key, for
//! which the lane may have room by then. While intake gives back what has no room, nothing is read. While a worker's
//! messages go back, to be redelivered in order, reading goes on, and later ones of their keys follow them back. What was
//! read before something of its key went back follows it too, however long it has to wait for its turn.

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
    /// Intake has messages in hand that were read before what is answered for now had arrived.
    in_hand: bool,
    /// Keys of what was answered for since.
    late: Vec<u64>,
}

impl State {
    /// One less of this key's is on its way.
    fn arrived(&mut self, order: u64) {
        if let Some(number) = self.keys.get_mut(&order) {
            *number -= 1;
            if *number == 0 {
                self.keys.remove(&order);
            }
        }
    }
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
        if state.tickets.is_empty() && state.followed.is_empty() {
            return;
        }
        for (settle, outcome) in outcomes {
            if *outcome == Outcome::Failed {
                continue;
            }
            state.tickets.remove(&settle.ticket);
            match state.followed.remove(&settle.ticket) {
                Some(order) if state.in_hand => state.late.push(order),
                Some(order) => state.arrived(order),
                None => {}
            }
        }
        if state.tickets.is_empty() {
            self.arrived.notify_waiters();
        }
    }

    /// From now on intake has messages in hand: they follow what goes back, even if that arrives before their turn.
    pub(crate) fn hold(&self) {
        self.state.lock().in_hand = true;
    }

    /// Intake has nothing more in hand.
    pub(crate) fn let_go(&self) {
        let mut state = self.state.lock();
        state.in_hand = false;
        for order in std::mem::take(&mut state.late) {
            state.arrived(order);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::OriginId;
    use crate::settlement::Settlement;

    /// P3: what was read before a message of its key went back must not run before that comes again.
    #[test]
    fn what_is_in_hand_follows_its_key_back_after_that_has_arrived() {
        let ticket = Ticket::new(1, OriginId::default(), 1);
        let settlement = Settlement::Release;
        let outcomes = [(Settle { ticket, settlement }, Outcome::Sent)];
        let returning = Returning::default();
        returning.hold();
        returning.add_followed(ticket, 7);
        returning.answered(&outcomes);
        assert!(returning.is_followed(7));
        returning.let_go();
        assert!(!returning.has_followed());
        // With nothing in hand, what is read from now on comes after it.
        returning.add_followed(ticket, 7);
        returning.answered(&outcomes);
        assert!(!returning.has_followed());
    }
}
