//! What moves no more although it should: [`Stall`].

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::envelope::Envelope;
use super::hub::Hub;
use crate::rt::Duration;
use crate::ticket::Ticket;

/// Nothing has moved in a pipeline for a while, although there is work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stall {
    /// Where: `processor`, a batcher, `dead letter`, `retry`, or `settlement`.
    pub stage: Arc<str>,
    /// For how long nothing had moved when it was found.
    pub after: Duration,
    /// How long ago the oldest message in flight was received, then.
    pub age: Option<Duration>,
    /// The oldest message of that stage, as `origin@position`, where it is known.
    pub at: Option<String>,
    /// Its key. It is the user's data: no log line and no answer over HTTP has it.
    pub key: Option<Bytes>,
}

impl fmt::Display for Stall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "stalled: nothing has moved in `{}` for {:.0?}",
            self.stage, self.after
        )?;
        match &self.at {
            Some(at) => write!(f, ", the oldest message is {at}"),
            None => Ok(()),
        }
    }
}

/// A message that a stall may name.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) ticket: Ticket,
    pub(crate) position: u64,
    pub(crate) key: Option<Bytes>,
}

impl Named {
    pub(crate) fn of(envelope: &Envelope) -> Self {
        Self {
            ticket: envelope.ticket,
            position: envelope.message.position,
            key: envelope.message.key.clone(),
        }
    }
}

/// A stage in which something should move.
#[derive(Debug)]
pub(super) struct Busy {
    pub(super) stage: Arc<str>,
    /// How long what runs in it may take.
    pub(super) allowed: Duration,
    pub(super) firsts: Vec<Named>,
}

impl Busy {
    /// What there is to say of it.
    pub(super) fn stall(self, hub: &Hub, after: Duration) -> Stall {
        let oldest = self
            .firsts
            .into_iter()
            .filter_map(|named| Some((hub.places.received(&named.ticket)?, named)))
            .min_by_key(|(received, _)| *received)
            .map(|(_, named)| named);
        let at = |named: &Named| format!("{}@{}", hub.origin_name(named.ticket.origin), named.position);
        Stall {
            stage: self.stage,
            after,
            age: hub.places.oldest().map(|received| received.elapsed()),
            at: oldest.as_ref().map(at),
            key: oldest.and_then(|named| named.key),
        }
    }
}
