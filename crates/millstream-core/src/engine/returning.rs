//! Messages that intake gives back out of their lanes (P3).
//!
//! Until the source knows that a message of a key is coming back to it, it may hand out later ones of that key, for
//! which the lane may have room by then: nothing is read meanwhile.

use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tokio::sync::Notify;

use crate::settlement::{Outcome, Settle};
use crate::ticket::Ticket;

#[derive(Debug, Default)]
pub(crate) struct Returning {
    tickets: Mutex<FxHashSet<Ticket>>,
    arrived: Notify,
}

impl Returning {
    /// This one is on its way.
    pub(crate) fn add(&self, ticket: Ticket) {
        self.tickets.lock().insert(ticket);
    }

    /// The source has answered for these; a later connection's answers for what an earlier one delivered, too.
    pub(crate) fn answered(&self, outcomes: &[(Settle, Outcome)]) {
        let mut tickets = self.tickets.lock();
        if tickets.is_empty() {
            return;
        }
        for (settle, outcome) in outcomes {
            if *outcome != Outcome::Failed {
                tickets.remove(&settle.ticket);
            }
        }
        if tickets.is_empty() {
            self.arrived.notify_waiters();
        }
    }

    /// Waits until none is on its way.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(crate) async fn none(&self) {
        loop {
            let mut arrived = std::pin::pin!(self.arrived.notified());
            arrived.as_mut().enable();
            if self.tickets.lock().is_empty() {
                return;
            }
            arrived.await;
        }
    }
}
