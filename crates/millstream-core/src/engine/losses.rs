//! Leases and assignments that are gone: what has not started is dropped, what runs is cancelled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::envelope::Envelope;
use super::hub::Hub;
use crate::mutants::{Mutant, mutant};
use crate::ticket::{Scope, Ticket};

/// How many lost scopes are remembered for chunks that arrive late.
const REMEMBERED: usize = 64;

/// What has been lost.
#[derive(Debug, Default)]
pub(super) struct Losses {
    /// Scopes that are gone and of which something is still in flight.
    scopes: RwLock<Vec<Scope>>,
    /// Whether there are any: read for every message.
    any: AtomicBool,
    /// The last scopes that went: a chunk of theirs may have been read already and arrive late.
    lately: Mutex<VecDeque<Scope>>,
    /// Counts them: intake may have messages of theirs in hand.
    went: watch::Sender<u64>,
    /// Scopes that are being revoked, and how many messages were dropped of each meanwhile.
    revoking: Mutex<Vec<(Scope, usize)>>,
}

impl Hub {
    /// Whether its lease or assignment is gone, so that it must not start.
    pub(crate) fn is_lost(&self, ticket: &Ticket) -> bool {
        !mutant(Mutant::StaleHonoured)
            && self.losses.any.load(Ordering::Acquire)
            && self.losses.scopes.read().iter().any(|scope| scope.holds(ticket))
    }

    /// Drops what has not started and cancels what runs. Says how many were dropped.
    pub(crate) fn lose(&self, scope: Scope) -> usize {
        let dropped = self.withdraw(scope);
        self.cancel(|ticket| scope.holds(ticket));
        dropped
    }

    /// The connection is gone, and every delivery with it.
    pub(crate) fn lose_all(&self) {
        for scope in self.places.scopes() {
            self.lose(scope);
            for batcher in self.batchers() {
                self.drop_lost(&batcher.discard(scope));
            }
        }
    }

    /// Gives what has arrived its places, but for what arrives after its lease or assignment went, which it takes out.
    pub(crate) fn take_in(&self, arrived: &mut Vec<Envelope>) {
        // Places first: a scope that goes from now on is remembered for as long as it has some.
        self.places
            .occupy(arrived.iter_mut().map(|envelope| &mut envelope.ticket));
        let late: Vec<_> = {
            let lost = self.losses.lately.lock();
            if lost.is_empty() {
                return;
            }
            let is_late = |envelope: &mut Envelope| lost.iter().any(|scope| scope.holds(&envelope.ticket));
            arrived.extract_if(.., is_late).collect()
        };
        if !late.is_empty() {
            self.drop_lost(&late);
        }
    }

    /// Drops what has not started, and lets nothing of the scope start again.
    pub(crate) fn withdraw(&self, scope: Scope) -> usize {
        {
            let mut lately = self.losses.lately.lock();
            if !lately.contains(&scope) {
                lately.push_back(scope);
            }
            while lately.len() > REMEMBERED {
                lately.pop_front();
            }
        }
        {
            let mut lost = self.losses.scopes.write();
            if !lost.contains(&scope) {
                lost.push(scope);
            }
            self.losses.any.store(true, Ordering::Release);
        }
        self.losses.went.send_modify(|went| *went += 1);
        let mut dropped = self.ready.remove(|envelope| scope.holds(&envelope.ticket));
        if let Some(sequence) = &self.sequence {
            dropped.extend(sequence.remove(|envelope| scope.holds(&envelope.ticket)));
        }
        let number = dropped.len();
        self.drop_lost(&dropped);
        self.settling.look_again();
        number
    }

    /// Drops what is lost and has come back to the queue since its scope went.
    pub(super) fn drop_lost_ready(&self) {
        let dropped = self.ready.remove(|envelope| self.is_lost(&envelope.ticket));
        if !dropped.is_empty() {
            self.drop_lost(&dropped);
        }
    }

    /// Changes whenever a scope has gone.
    pub(super) fn watch_losses(&self) -> watch::Receiver<u64> {
        self.losses.went.subscribe()
    }

    /// Drops what is lost of these, which intake has in hand. Says of each whether it was.
    pub(super) fn drop_lost_of(&self, held: &mut Vec<Envelope>) -> Vec<bool> {
        let mut which = Vec::with_capacity(held.len());
        let is_lost = |envelope: &mut Envelope| {
            which.push(self.is_lost(&envelope.ticket));
            which.last() == Some(&true)
        };
        let lost: Vec<_> = held.extract_if(.., is_lost).collect();
        if !lost.is_empty() {
            self.drop_lost(&lost);
        }
        which
    }

    /// Counts what is dropped of a scope from now on, until this is dropped.
    pub(super) fn begin_revoke(&self, scope: Scope) -> Revoking<'_> {
        self.losses.revoking.lock().push((scope, 0));
        Revoking(&self.losses, scope)
    }

    /// Forgets messages whose delivery is gone: nobody would hear a settlement.
    pub(crate) fn drop_lost(&self, dropped: &[Envelope]) {
        if !mutant(Mutant::LossUncounted) {
            let lost = dropped.iter().filter(|envelope| !envelope.settled).count();
            self.counters.lost.add(lost);
        }
        for (scope, number) in &mut *self.losses.revoking.lock() {
            *number += dropped
                .iter()
                .filter(|envelope| scope.holds(&envelope.ticket))
                .count();
        }
        self.places.lost(
            dropped
                .iter()
                .filter(|envelope| !envelope.settled)
                .map(|envelope| &envelope.ticket),
        );
        self.suspects_gone(dropped.iter().map(|envelope| &envelope.ticket));
        if let Some(twins) = &self.twins {
            twins.gone(self, dropped.iter().map(|envelope| &envelope.ticket));
        }
        self.forget_lost();
    }

    /// A scope that nothing in flight belongs to need not be remembered.
    pub(super) fn forget_lost(&self) {
        if !self.losses.any.load(Ordering::Relaxed) {
            return;
        }
        let mut lost = self.losses.scopes.write();
        lost.retain(|scope| self.places.messages_of(*scope) > 0);
        self.losses.any.store(!lost.is_empty(), Ordering::Release);
    }
}

/// A scope is being revoked.
#[derive(Debug)]
pub(super) struct Revoking<'a>(&'a Losses, Scope);

impl Revoking<'_> {
    /// How many of its messages were dropped so far.
    pub(super) fn dropped(&self) -> usize {
        let revoking = self.0.revoking.lock();
        let found = revoking.iter().find(|(scope, _)| *scope == self.1);
        found.map_or(0, |(_, dropped)| *dropped)
    }
}

impl Drop for Revoking<'_> {
    fn drop(&mut self) {
        self.0.revoking.lock().retain(|(scope, _)| *scope != self.1);
    }
}
