//! Where a worker says what it runs, so that it can be cancelled: [`Seat`].

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::envelope::{Envelope, LaneId};
use crate::ticket::Ticket;

/// Where a worker says what it runs, so that it can be cancelled.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<SeatState>);

#[derive(Debug, Default)]
struct SeatState {
    running: Option<Occupant>,
    cancellation: CancellationToken,
}

/// What runs on a seat.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occupant {
    pub(crate) ticket: Ticket,
    pub(crate) position: u64,
    pub(crate) lane: LaneId,
}

impl Seat {
    /// The token that cancels what runs here next.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        let mut state = self.0.lock();
        if state.cancellation.is_cancelled() {
            state.cancellation = CancellationToken::new();
        }
        state.cancellation.clone()
    }

    /// Says what runs here, once it has turned out to take a while.
    pub(crate) fn occupy(&self, envelope: &Envelope) {
        self.0.lock().running = Some(Occupant {
            ticket: envelope.ticket,
            position: envelope.message.position,
            lane: envelope.lane,
        });
    }

    /// What runs here and takes a while.
    pub(crate) fn running(&self) -> Option<Occupant> {
        self.0.lock().running
    }

    pub(crate) fn leave(&self) {
        self.0.lock().running = None;
    }

    pub(crate) fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> bool {
        let state = self.0.lock();
        let hit = state.running.is_some_and(|running| which(&running.ticket));
        if hit {
            state.cancellation.cancel();
        }
        hit
    }
}
