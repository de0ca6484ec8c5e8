//! What runs is cancelled when the pipeline is cut or a lease is lost, and nothing begins to wait for its handler that
//! nobody would cancel any more.
//!
//! Whoever cancels says first why, and looks at the seats then; whoever runs takes its seat first, and looks then whether
//! it may. So one of them sees the other.

use std::sync::atomic::Ordering;

use super::envelope::Envelope;
use super::hub::Hub;
use super::seat::{Occupied, Seat};
use crate::mutants::{Mutant, mutant};
use crate::ticket::Ticket;

impl Hub {
    /// Says on a worker's seat what runs for a while. Nothing where it must not go on: then nobody cancels it.
    pub(crate) fn occupy<'a>(&self, seat: &'a Seat, envelope: &Envelope) -> Option<Occupied<'a>> {
        let occupied = seat.occupy(envelope);
        (!self.is_cut() && !self.is_lost(&envelope.ticket)).then_some(occupied)
    }

    /// Cancels what workers run now of these. Says how many.
    pub(crate) fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> usize {
        self.seats.cancel(which)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// From now on nothing is run: what has not started goes back to the source, what runs is cancelled.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.release(self.ready.remove(|_| true));
        for batcher in self.batchers() {
            batcher.cut();
        }
        if !mutant(Mutant::CutForgetsRunning) {
            self.cancel(|_| true);
        }
        self.flush_now.notify_one();
    }
}
