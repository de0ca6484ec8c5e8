//! The names by which a delivery, and a group of deliveries, is spoken of across the connector boundary.

use crate::message::OriginId;

/// Names one delivery to its acknowledger.
///
/// It carries the generation of the connection, lease or assignment it came from: an acknowledger compares
/// that with its own and answers [`Outcome::Stale`](crate::Outcome::Stale) for an older one, so that a late
/// settlement can never touch somebody else's delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    /// The connection, lease or assignment that delivered it.
    pub generation: u32,
    /// The place it came from.
    pub origin: OriginId,
    /// The delivery within that generation: a delivery tag, an offset, a row id.
    pub sequence: u64,
    /// What the delivery occupies in `limits.bytes`; the engine's own, stamped by
    /// [`Chunk::push`](crate::Chunk::push).
    pub(crate) weight: u32,
    /// Which read it came with, for its age; the engine's own, stamped once the delivery has a place.
    pub(crate) receipt: u32,
}

impl Ticket {
    /// A ticket for one delivery of a generation.
    pub const fn new(generation: u32, origin: OriginId, sequence: u64) -> Self {
        Self {
            generation,
            origin,
            sequence,
            weight: 0,
            receipt: 0,
        }
    }
}

/// A group of deliveries that a connector gains or loses together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything that came from one connection or lease.
    Generation(u32),
    /// Everything that came from one place, such as a partition, in one assignment.
    Origin(OriginId, u32),
}

impl Scope {
    /// Whether the delivery with this ticket belongs to the group.
    pub fn holds(&self, ticket: &Ticket) -> bool {
        match *self {
            Self::Generation(generation) => ticket.generation == generation,
            Self::Origin(origin, generation) => ticket.origin == origin && ticket.generation == generation,
        }
    }
}
