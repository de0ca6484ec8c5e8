//! The engine's files under test, and as little of what they need as will do.

#[path = "../../../../millstream-core/src/engine/cancelling.rs"]
mod cancelling;
#[path = "../../../../millstream-core/src/engine/losses.rs"]
mod losses;
#[path = "../../../../millstream-core/src/engine/seat.rs"]
pub(crate) mod seat;

pub(crate) mod envelope {
    use crate::ticket::Ticket;

    #[derive(Debug)]
    pub(crate) struct Envelope {
        pub(crate) ticket: Ticket,
        pub(crate) message: Message,
        pub(crate) lane: LaneId,
        pub(crate) settled: bool,
    }

    #[derive(Debug)]
    pub(crate) struct Message {
        pub(crate) position: u64,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) struct LaneId;

    impl Envelope {
        pub(crate) fn new(ticket: Ticket) -> Self {
            Self {
                ticket,
                message: Message { position: 0 },
                lane: LaneId,
                settled: false,
            }
        }
    }
}

pub(crate) mod hub {
    use std::sync::Notify;
    use std::sync::atomic::AtomicBool;

    use parking_lot::Mutex;

    use super::envelope::Envelope;
    use super::losses::Losses;
    use super::seat::Seats;
    use crate::ticket::{Scope, Ticket};

    /// Nothing waits in it here.
    #[derive(Debug)]
    pub(crate) struct Settling;

    impl Settling {
        pub(crate) fn look_again(&self) {}
    }

    #[derive(Debug)]
    pub(crate) struct Hub {
        pub(crate) cut: AtomicBool,
        pub(in crate::engine) losses: Losses,
        pub(crate) seats: Seats,
        pub(crate) ready: Ready,
        pub(crate) places: Places,
        pub(crate) flush_now: Notify,
        pub(crate) counters: Counters,
        pub(crate) sequence: Option<Ready>,
        pub(crate) settling: Settling,
        pub(crate) twins: Option<Twins>,
    }

    impl Hub {
        pub(crate) fn new() -> Self {
            Self {
                cut: AtomicBool::new(false),
                losses: Losses::default(),
                seats: Seats::default(),
                ready: Ready::default(),
                places: Places::default(),
                flush_now: Notify::new(),
                counters: Counters { lost: Lost },
                sequence: None,
                settling: Settling,
                twins: None,
            }
        }

        pub(crate) fn release(&self, released: impl IntoIterator<Item = Envelope>) {
            for envelope in released {
                self.places.lost([&envelope.ticket].into_iter());
            }
        }

        pub(crate) fn suspects_gone<'a>(&self, _: impl Iterator<Item = &'a Ticket>) {}

        pub(crate) fn batchers(&self) -> [Batcher; 0] {
            []
        }
    }

    /// What has not started.
    #[derive(Debug, Default)]
    pub(crate) struct Ready(Mutex<Vec<Envelope>>);

    impl Ready {
        pub(crate) fn admit(&self, envelopes: Vec<Envelope>) {
            self.0.lock().extend(envelopes);
        }

        pub(crate) fn remove(&self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
            self.0.lock().extract_if(.., |envelope| leave(envelope)).collect()
        }
    }

    /// What is in flight.
    #[derive(Debug, Default)]
    pub(crate) struct Places(Mutex<Vec<Ticket>>);

    impl Places {
        pub(crate) fn occupy<'a>(&self, tickets: impl Iterator<Item = &'a mut Ticket>) {
            self.0.lock().extend(tickets.map(|ticket| *ticket));
        }

        pub(crate) fn lost<'a>(&self, tickets: impl Iterator<Item = &'a Ticket>) {
            let mut held = self.0.lock();
            for ticket in tickets {
                held.retain(|other| other != ticket);
            }
        }

        pub(crate) fn messages_of(&self, scope: Scope) -> usize {
            self.0.lock().iter().filter(|ticket| scope.holds(ticket)).count()
        }

        pub(crate) fn scopes(&self) -> Vec<Scope> {
            let held = self.0.lock();
            held.iter()
                .map(|held| Scope::Origin(held.origin, held.generation))
                .collect()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Counters {
        pub(crate) lost: Lost,
    }

    #[derive(Debug)]
    pub(crate) struct Lost;

    impl Lost {
        pub(crate) fn add(&self, _: usize) {}
    }

    #[derive(Debug)]
    pub(crate) struct Batcher;

    impl Batcher {
        pub(crate) fn cut(&self) {}

        pub(crate) fn discard(&self, _: Scope) -> Vec<Envelope> {
            Vec::new()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Twins;

    impl Twins {
        pub(crate) fn gone<'a>(&self, _: &Hub, _: impl Iterator<Item = &'a Ticket>) {}
    }
}
