//! The user's per-message code ([`Processor`]) and what it is told about its message ([`Context`]).

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::decode::Decode;
use crate::dependency::Dependency;
use crate::engine::Hub;
use crate::failure::Failure;
use crate::message::{Headers, Message};
use crate::settlement::Settlement;
use crate::simulation::{Seen, see};
use crate::ticket::Ticket;

/// The user's code for one message at a time.
///
/// # Delivery
/// At least once (P1): a message that was processed just before the process died is processed again. What
/// `process` does must bear that.
///
/// # Panics
/// A panic in `process` is caught and fails its message alone, as a retryable failure. Programs built with
/// `panic = "abort"` are refused at start.
///
/// # Cancellation
/// On timeout, when the message's lease is lost and at the deadline of a drain, the returned future is dropped
/// at its current `.await`, and [`Context::cancellation`] fires for tasks that `process` has started. A future
/// that blocks its thread cannot be cancelled.
pub trait Processor: Send + Sync + 'static {
    /// What the message decodes into.
    type Input: Decode;
    /// What goes on to a batcher or a sink; `()` where there is none.
    type Output: Send + 'static;

    /// Handles one message. `Ok` without a batcher, or after [`Context::done`], acknowledges it.
    ///
    /// # Errors
    /// Any error is retried as the pipeline's policy says; [`Failure::reject`] is not.
    fn process(
        &self,
        input: Self::Input,
        cx: &mut Context<'_>,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// What a processor is told about its message, and where it says what comes next.
pub struct Context<'a> {
    pub(crate) message: &'a Message,
    pub(crate) ticket: Ticket,
    pub(crate) hub: &'a Hub,
    pub(crate) cancellation: &'a CancellationToken,
    pub(crate) settled: &'a AtomicBool,
    pub(crate) route: &'a mut Route,
}

/// Where a processed message goes next.
#[derive(Debug, Default)]
pub(crate) struct Route {
    pub(crate) to: Destination,
    pub(crate) batch_key: Option<Arc<str>>,
    pub(crate) flush: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) enum Destination {
    /// The only batcher, where there is one.
    #[default]
    Default,
    Batcher(usize),
    Unknown(Box<str>),
    Done,
}

impl Context<'_> {
    /// The message's key.
    pub fn key(&self) -> Option<&Bytes> {
        self.message.key.as_ref()
    }

    /// The message's headers.
    pub fn headers(&self) -> &Headers {
        &self.message.headers
    }

    /// The payload as it came, beside the decoded input.
    pub fn payload(&self) -> &Bytes {
        &self.message.payload
    }

    /// Which handler run of this message this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.message.failures + 1
    }

    /// How often the broker has handed it out, this time included; 0 where the broker does not count.
    pub fn deliveries(&self) -> u32 {
        self.message.deliveries
    }

    /// When it was published, where the broker knows.
    pub fn timestamp(&self) -> Option<SystemTime> {
        self.message.timestamp
    }

    /// The place and position that the message came from.
    pub fn origin(&self) -> Origin {
        Origin {
            place: self.hub.origin_name(self.message.origin),
            position: self.message.position,
        }
    }

    /// The pipeline's name.
    pub fn pipeline(&self) -> &str {
        self.hub.name()
    }

    /// Sends the output to the batcher or sink of this name. A name that the flow does not have rejects the
    /// message.
    pub fn batch_to(&mut self, name: &str) -> &mut Self {
        self.route.to = match self.hub.batcher(name) {
            Some(index) => Destination::Batcher(index),
            None => Destination::Unknown(name.into()),
        };
        self
    }

    /// Batches the output only with others of the same key.
    pub fn batch_key(&mut self, key: &str) -> &mut Self {
        self.route.batch_key = Some(key.into());
        self
    }

    /// Closes the batch as soon as the output is in it.
    pub fn flush_batch(&mut self) -> &mut Self {
        self.route.flush = true;
        self
    }

    /// Skips every batcher: `Ok` acknowledges the message and drops the output.
    pub fn done(&mut self) -> &mut Self {
        self.route.to = Destination::Done;
        self
    }

    /// Settles the delivery now, before the work is done, giving up at-least-once for this message: what fails
    /// later is counted and logged, and not retried. Only the first call counts.
    ///
    /// A retry keeps its wait at every source: one that cannot hold a message back has its retry sink do it, and where
    /// there is none, or messages are ordered, the message keeps its place among those in flight for as long.
    pub fn settle_now(&mut self, settlement: Settlement) {
        if !self.settled.swap(true, Ordering::Relaxed) {
            see(Seen::SettledNow(self.ticket));
            self.hub.settle_now(self.ticket, self.message, settlement);
        }
    }

    /// Something that the handler needs from elsewhere, by its name in the pipeline's settings: calls through it are
    /// counted by the breaker of that name.
    pub fn dependency(&self, name: &str) -> Dependency {
        Dependency::new(Some(&self.hub.breakers), name, self.cancellation)
    }

    /// Fires when this run is cancelled: on timeout, lost lease and at the deadline of a drain.
    ///
    /// The future of `process` is dropped then anyway; this is for tasks that it has started.
    pub fn cancellation(&self) -> &CancellationToken {
        self.cancellation
    }
}

impl fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("pipeline", &self.pipeline())
            .field("attempt", &self.attempt())
            .finish_non_exhaustive()
    }
}

/// A place and a position in it, written `place@position`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// A queue, or a partition of a topic.
    pub place: Arc<str>,
    /// A row id, an offset, a delivery tag.
    pub position: u64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.place, self.position)
    }
}
