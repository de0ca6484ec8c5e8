//! Where a worker says what it runs, so that it can be cancelled: [`Seat`], and all of them: [`Seats`].

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio_util::sync::CancellationToken;

use super::envelope::{Envelope, LaneId};
use crate::ticket::Ticket;

/// The seats that there are: as many as there have been workers at a time.
#[derive(Debug, Default)]
pub(crate) struct Seats(RwLock<Vec<Arc<Seat>>>);

impl Seats {
    /// The seat with this number; new ones where there are fewer.
    pub(crate) fn get(&self, number: usize) -> Arc<Seat> {
        if let Some(seat) = self.0.read().get(number) {
            return Arc::clone(seat);
        }
        let mut seats = self.0.write();
        while seats.len() < number {
            seats.push(Arc::default());
        }
        match seats.get(number) {
            Some(seat) => Arc::clone(seat),
            None => {
                let seat = Arc::<Seat>::default();
                seats.push(Arc::clone(&seat));
                seat
            }
        }
    }

    /// What runs now and takes a while.
    pub(crate) fn running(&self) -> Vec<Occupant> {
        self.0.read().iter().filter_map(|seat| seat.running()).collect()
    }

    /// What runs now, takes a while, and was not cancelled.
    pub(crate) fn uncancelled(&self) -> Vec<Ticket> {
        let seats = self.0.read();
        seats.iter().filter_map(|seat| seat.uncancelled()).collect()
    }

    /// Cancels what runs now of these. Says how many.
    pub(crate) fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> usize {
        self.0.read().iter().filter(|seat| seat.cancel(&which)).count()
    }
}

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

    /// Says what runs here, once it has turned out to take a while, until the guard is dropped.
    pub(crate) fn occupy(&self, envelope: &Envelope) -> Occupied<'_> {
        self.0.lock().running = Some(Occupant {
            ticket: envelope.ticket,
            position: envelope.message.position,
            lane: envelope.lane,
        });
        Occupied(self)
    }

    /// What runs here and takes a while.
    pub(crate) fn running(&self) -> Option<Occupant> {
        self.0.lock().running
    }

    fn uncancelled(&self) -> Option<Ticket> {
        let state = self.0.lock();
        let running = state.running.filter(|_| !state.cancellation.is_cancelled());
        running.map(|running| running.ticket)
    }

    /// Cancels what runs here, if it is one of these.
    fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> bool {
        let state = self.0.lock();
        let hit = state.running.is_some_and(|running| which(&running.ticket));
        if hit {
            state.cancellation.cancel();
        }
        hit
    }
}

/// Somebody runs on a seat for as long as this lives.
#[derive(Debug)]
pub(crate) struct Occupied<'a>(&'a Seat);

impl Drop for Occupied<'_> {
    fn drop(&mut self) {
        self.0.0.lock().running = None;
    }
}
