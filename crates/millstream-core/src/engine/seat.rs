//! Where a worker says what it runs, so that it can be cancelled: [`Seat`].

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::ticket::Ticket;

/// Where a worker says what it runs, so that it can be cancelled.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<SeatState>);

#[derive(Debug, Default)]
struct SeatState {
    ticket: Option<Ticket>,
    cancellation: CancellationToken,
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
    pub(crate) fn occupy(&self, ticket: Ticket) {
        self.0.lock().ticket = Some(ticket);
    }

    pub(crate) fn leave(&self) {
        self.0.lock().ticket = None;
    }

    pub(crate) fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> bool {
        let state = self.0.lock();
        let hit = state.ticket.as_ref().is_some_and(which);
        if hit {
            state.cancellation.cancel();
        }
        hit
    }
}
