//! Acknowledgements that do not say that work is done: of messages that were given up and are recorded elsewhere, or
//! dropped, and of those that a retry sink has (P6).
//!
//! What the source answers for them tells where a message ended; they are few, and nothing is kept of others.

use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::counters::Counter;
use crate::settlement::{Outcome, Settle};
use crate::ticket::Ticket;

/// Why a message is acknowledged whose work is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    GivenUp,
    PutOff,
}

#[derive(Debug, Default)]
pub(crate) struct Elsewhere {
    tickets: Mutex<FxHashMap<Ticket, Why>>,
    /// Acknowledged as given up.
    pub(crate) given_up: Counter,
    /// Acknowledged as put off.
    pub(crate) put_off: Counter,
}

impl Elsewhere {
    /// This one is about to be acknowledged.
    pub(crate) fn add(&self, ticket: Ticket, why: Why) {
        self.tickets.lock().insert(ticket, why);
    }

    /// The source has answered for these.
    pub(crate) fn answered(&self, outcomes: &[(Settle, Outcome)]) {
        let mut tickets = self.tickets.lock();
        if tickets.is_empty() {
            return;
        }
        for (settle, outcome) in outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Failed) {
            match (tickets.remove(&settle.ticket), outcome) {
                (Some(Why::GivenUp), Outcome::Sent) => self.given_up.add(1),
                (Some(Why::PutOff), Outcome::Sent) => self.put_off.add(1),
                _ => {}
            }
        }
    }
}
