//! What may be handed out and was not: [`Buffer`].

use std::collections::VecDeque;

use millstream_core::{OriginId, Ticket};

/// The tickets, in order, with the sizes of their messages. The messages are where they stay until they are settled.
#[derive(Debug, Default)]
pub(super) struct Buffer {
    tickets: VecDeque<(Ticket, usize)>,
    bytes: usize,
}

impl Buffer {
    pub(super) fn len(&self) -> usize {
        self.tickets.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tickets.is_empty()
    }

    /// Bytes of their messages.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push_back(&mut self, ticket: Ticket, size: usize) {
        self.bytes += size;
        self.tickets.push_back((ticket, size));
    }

    pub(super) fn push_front(&mut self, ticket: Ticket, size: usize) {
        self.bytes += size;
        self.tickets.push_front((ticket, size));
    }

    pub(super) fn pop_front(&mut self) -> Option<Ticket> {
        let (ticket, size) = self.tickets.pop_front()?;
        self.bytes -= size;
        Some(ticket)
    }

    /// Takes out what comes from there.
    pub(super) fn withdraw(&mut self, origin: OriginId) {
        self.take_out(|ticket| ticket.origin == origin, |_, _| ());
    }

    /// Takes out those, in order.
    pub(super) fn take_out(&mut self, those: impl Fn(&Ticket) -> bool, mut taken: impl FnMut(Ticket, usize)) {
        self.tickets.retain(|(ticket, size)| {
            let keep = !those(ticket);
            if !keep {
                self.bytes -= size;
                taken(*ticket, *size);
            }
            keep
        });
    }

    pub(super) fn clear(&mut self) {
        self.tickets.clear();
        self.bytes = 0;
    }
}
