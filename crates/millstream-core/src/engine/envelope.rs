//! A message inside the engine: [`Envelope`].

use std::time::SystemTime;

use super::probes::Probe;
use crate::message::{Message, time_of};
use crate::settlement::{Settle, Settlement};
use crate::ticket::Ticket;

/// The message with the ticket to settle it by, and what the engine knows of it.
///
/// It never leaves the engine: user code sees a decoded input and a `Context`. Whatever task holds it, a guard
/// gives it back when that task dies (P2).
#[derive(Debug)]
pub(crate) struct Envelope {
    pub(crate) ticket: Ticket,
    pub(crate) message: Message,
    /// The lane that it keeps busy until its run has ended; [`LaneId::NONE`] where it is unordered.
    pub(crate) lane: LaneId,
    /// Its number among those that came to that lane, which wraps around: there is room for no more.
    pub(crate) turn: u16,
    /// The hash of what it is ordered by; zero where it is unordered.
    pub(crate) order: u64,
    /// It tries whether a breaker may close, on its way into a batch: none shall keep it waiting.
    pub(crate) probe: Option<Box<Probe>>,
    /// The source gives nothing else until it is settled: no batch shall keep it waiting.
    pub(crate) alone: bool,
    /// The round of probes in which its run failed: it may be this message that fails, and not what handling it needs.
    pub(crate) doubted: u32,
    /// The user's code has settled it already: what comes of it changes nothing at the source.
    pub(crate) settled: bool,
    /// Another with its id was in flight when it came: it runs only if that one goes away unsettled.
    pub(crate) is_twin: bool,
}

impl Envelope {
    pub(crate) fn new(ticket: Ticket, message: Message) -> Self {
        Self {
            ticket,
            message,
            lane: LaneId::NONE,
            turn: 0,
            order: 0,
            probe: None,
            alone: false,
            doubted: 0,
            settled: false,
            is_twin: false,
        }
    }

    /// Whether it has been delivered so often that it may be what ends its process.
    pub(crate) fn is_suspect(&self) -> bool {
        self.message.deliveries > UNSUSPECTED
    }

    /// A run of it has failed, counted or not: if it is the first, when that was.
    pub(crate) fn note_failure(&mut self) {
        if self.first_failed().is_none() {
            self.message.first_failed = Some(SystemTime::now());
        }
    }

    /// When it first failed, here or before it came here, if it has. One that was replayed has a header that says so.
    pub(crate) fn first_failed(&self) -> Option<SystemTime> {
        let header = || self.message.headers.get(Message::FIRST_FAILED_AT);
        self.message.first_failed.or_else(|| time_of(header()?))
    }

    /// Whether its run has failed in this round of probes.
    pub(crate) fn is_doubtful(&self, round: u32) -> bool {
        self.doubted == round
    }

    /// What it counts for in limits on bytes.
    pub(crate) fn weight(&self) -> usize {
        self.ticket.weight as usize
    }

    /// Its delivery, unless the user's code has settled it.
    pub(crate) fn unsettled(&self) -> Option<Ticket> {
        (!self.settled).then_some(self.ticket)
    }

    /// The settlement for its delivery, unless the user's code has settled it.
    pub(crate) fn settle(&self, settlement: Settlement) -> Option<Settle> {
        (!self.settled).then_some(Settle {
            ticket: self.ticket,
            settlement,
        })
    }
}

/// Deliveries without an outcome that any message may have.
const UNSUSPECTED: u32 = 3;

/// Names a lane while it exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaneId(pub(crate) u32);

impl LaneId {
    pub(crate) const NONE: Self = Self(u32::MAX);
}
