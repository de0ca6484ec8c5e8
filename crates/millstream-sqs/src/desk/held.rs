//! What is held: settled, put off, lost.

use std::collections::VecDeque;
use std::sync::Arc;

use millstream_core::rt::Instant;
use millstream_core::{Scope, Ticket};
use tracing::debug;

use super::{Desk, Excuse, tickets};
use crate::leases::{Beat, Due, Lease};
use crate::service::Taken;

impl Desk {
    /// A settlement is on its way for this ticket, which is not put off any more; nothing if it is not held.
    pub(crate) fn begin(&self, ticket: &Ticket) -> Option<Lease> {
        self.state.lock().leases.begin(ticket.sequence).cloned()
    }

    /// What follows a message of this group that goes back, and was not read yet, goes back with it.
    pub(crate) fn take_back(self: &Arc<Self>, group: &Arc<str>) {
        let unread = {
            let mut state = self.state.lock();
            let (back, kept) = std::mem::take(&mut state.inbox)
                .into_iter()
                .partition(|(_, _, of)| of.as_ref() == Some(group));
            state.inbox = kept;
            let mut back: VecDeque<_> = back;
            tickets(&mut back)
        };
        self.give_back(&unread, Excuse::Unread);
    }

    /// Waits until no call puts any of these off: what is on its way would undo what comes now.
    pub(crate) async fn quiet(&self, sequences: &[u64]) {
        loop {
            let mut beaten = std::pin::pin!(self.beaten.notified());
            beaten.as_mut().enable();
            if !self.state.lock().leases.is_beating(sequences) {
                return;
            }
            beaten.await;
        }
    }

    /// The settlement has arrived, or came too late.
    pub(crate) fn end(&self, sequence: u64) {
        self.state.lock().leases.remove(sequence);
        if self.fifo {
            self.changed.notify_waiters();
        }
    }

    /// The settlement did not arrive; the delivery is held on for another try.
    pub(crate) fn relent(&self, sequence: u64) {
        self.state.lock().leases.relent(sequence);
    }

    pub(crate) fn next_beat(&self) -> Instant {
        self.state.lock().leases.next()
    }

    pub(crate) fn due(&self) -> Due {
        self.state.lock().leases.due()
    }

    /// A call is about to put these off; leaves out those that it need not.
    pub(crate) fn beat(&self, beats: &mut Vec<Beat>) {
        self.state.lock().leases.beat(beats);
    }

    /// What came of putting these off, from then on. Gives those that are lost.
    pub(crate) fn beaten(&self, from: Instant, beats: &[Beat], taken: &[Taken]) -> Vec<u64> {
        let mut lost = Vec::new();
        {
            let leases = &mut self.state.lock().leases;
            for ((sequence, _, time), taken) in beats.iter().zip(taken) {
                match taken {
                    Ok(()) => leases.extended(*sequence, from, *time),
                    Err(trouble) => {
                        debug!(trouble.text, "a delivery was not put off");
                        leases.not_extended(*sequence);
                        if trouble.kind.is_of_the_delivery() {
                            lost.push(*sequence);
                        }
                    }
                }
            }
        }
        self.beaten.notify_waiters();
        lost
    }

    /// These are somebody else's now, or will be. Of a group, all that follows is given up with them: it must not run
    /// before what comes again.
    pub(crate) fn lose(self: &Arc<Self>, sequences: Vec<u64>) {
        let (mut lost, mut followers) = (Vec::new(), Vec::new());
        {
            let mut state = self.state.lock();
            for sequence in sequences {
                if let Some(lease) = state.leases.remove(sequence) {
                    lost.push(sequence);
                    if let Some(group) = lease.group {
                        followers.extend(state.leases.of_group(&group));
                    }
                }
            }
            followers.sort_unstable();
            followers.dedup();
            state.inbox.retain(|(ticket, _, _)| {
                !lost.contains(&ticket.sequence) && !followers.contains(&ticket.sequence)
            });
        }
        // The last one first: what follows a message must not run for a moment because that is gone.
        let mut gone: Vec<_> = lost.iter().chain(&followers).collect();
        gone.sort_unstable_by_key(|sequence| std::cmp::Reverse(**sequence));
        for sequence in gone {
            let ticket = self.ticket(*sequence);
            self.engine.lost(Scope::Origin(ticket.origin, ticket.generation));
        }
        self.give_back(&followers, Excuse::Unread);
        self.changed.notify_waiters();
    }
}
