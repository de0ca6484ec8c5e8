//! Suspects in the engine. While there is one, what runs runs alone, in a handler or in a batch: should it end the process,
//! nothing else was at fault.
//!
//! Mostly there is nothing beside a suspect, since it is admitted to an engine that is empty but for it. What breakers hold
//! back is in no hurry to leave though, and may wait for this very one to succeed. So from its admission until its place
//! is given back runs go one at a time, each with what a probe goes with.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::hub::Hub;
use super::places::Places;
use super::probes::Probe;
use crate::rt;
use crate::ticket::Ticket;

/// The suspects that there are.
#[derive(Debug, Default)]
pub(crate) struct Suspects {
    /// Whether there are any: read on every take.
    any: AtomicBool,
    tickets: Mutex<Vec<Ticket>>,
}

impl Suspects {
    /// Whether there are any.
    #[inline]
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// From now on nothing starts beside another, until this one is gone.
    fn add(&self, ticket: Ticket) {
        let mut tickets = self.tickets.lock();
        if !tickets.contains(&ticket) {
            tickets.push(ticket);
        }
        self.any.store(true, Ordering::Release);
    }

    /// These are gone. Says whether they were the last suspects.
    fn remove<'a>(&self, gone: impl Iterator<Item = &'a Ticket>) -> bool {
        let mut tickets = self.tickets.lock();
        for ticket in gone {
            tickets.retain(|suspect| suspect != ticket);
        }
        self.any.store(!tickets.is_empty(), Ordering::Release);
        tickets.is_empty()
    }
}

impl Hub {
    /// Whether no more than one may run at a time: it is a probe, or there is a suspect.
    pub(super) fn one_at_a_time(&self) -> bool {
        !self.breakers.is_closed() || self.suspects.any()
    }

    /// What one may run with where no more than one may; nothing while another does. `doubtful` as for a probe.
    pub(super) fn try_one(&self, doubtful: impl FnOnce(u32) -> bool) -> Option<Box<Probe>> {
        match self.breakers.is_closed() {
            true => self.breakers.try_alone(),
            false => self.breakers.try_probe(rt::now(), self.suspects.any(), doubtful),
        }
    }

    /// Whether this suspect, which intake has in hand, would run alone. Once nothing else is here but what breakers hold
    /// back, and what may yet run of that, nothing more begins beside another.
    pub(super) fn would_run_alone(&self, places: &Places, suspect: Ticket) -> bool {
        if places.messages() > 1 + self.held_by_breakers() {
            self.suspects_gone([&suspect].into_iter());
            return false;
        }
        self.suspects.add(suspect);
        // A message enters its batch before it leaves its worker.
        self.ready.load().running == 0 && !self.batchers().iter().any(|batcher| batcher.runs())
    }

    /// The places of these were given back.
    pub(super) fn suspects_gone<'a>(&self, gone: impl Iterator<Item = &'a Ticket>) {
        if self.suspects.any() && self.suspects.remove(gone) {
            self.wake_all();
        }
    }

    /// A run has ended: a suspect may have waited for that, also one that intake has in hand and that is not counted yet.
    pub(super) fn ran_beside_suspects(&self) {
        if self.one_at_a_time() {
            self.places.freed.notify_waiters();
        }
    }
}
