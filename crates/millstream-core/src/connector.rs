//! The contract between the engine and a broker: [`Connector`], [`Source`], [`Acknowledger`], [`Sink`].
//!
//! Everything crosses it a chunk at a time. Implement these with plain `async fn`; the engine boxes a future
//! per chunk behind [`DynConnector`] and [`DynSinkConnector`], never per message.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::check::{Facts, Finding};
use crate::dedup::Ids;
use crate::engine::Envelope;
use crate::errors::{OpenError, SinkError, SourceError};
use crate::future::BoxFuture;
use crate::handle::EngineHandle;
use crate::letters::SharedLetterBox;
use crate::message::{Message, Outgoing};
use crate::rt::Duration;
use crate::settlement::{Outcome, Settle};
use crate::ticket::Ticket;

/// What a connector can do, so that policies know what they may ask of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `Settlement::Retry` waits in the store for as long as it says.
    pub delay: bool,
    /// A rejected message is kept where it can be found again. A connector that knows only once it is connected
    /// says yes here, and refuses to open where
    /// [`rejects_to_source`](EngineHandle::rejects_to_source) and nothing keeps it.
    pub keeps_rejected: bool,
    /// `Message::deliveries` is the store's own count.
    pub counts_deliveries: bool,
    /// Where the store counts no deliveries: `Message::deliveries` counts the processes that ended uncleanly with the
    /// message, this one included, and a message that came often is handed out alone.
    pub counts_ends: bool,
    /// `Settlement::Reject` stops the place that the message came from, at that message, where
    /// [`rejects_to_source`](EngineHandle::rejects_to_source): `DeadLetter::Halt`. The connector hands out nothing more
    /// of it, and says so by [`EngineHandle::halted`].
    pub halts: bool,
    /// The longest that a message can be held back; absent where any time is good. Longer waits are cut to it.
    pub longest_delay: Option<Duration>,
    /// `Settlement::Retry` of a message holds back what follows it in its place too, for as long as it says, and other
    /// places go on.
    pub holds_places: bool,
    /// The store holds the order of a key across processes, also while one of its messages is delayed.
    pub orders_keys: bool,
    /// Which id its messages have, the same whenever one is handed out: what `deduplicate` goes by unless it says
    /// otherwise.
    pub ids: Ids,
    /// A settlement that was sent may be undone, along with what sinks have written of the message: nothing else may take
    /// note of it as done.
    pub transacts: bool,
    /// Each delivery is lost by itself, and is of a generation of its own: nothing says what should have come before it, so
    /// `sequence` finds no gap.
    pub leases_singly: bool,
}

/// A broker's reading side: opens a source and its acknowledger, again after each failure.
pub trait Connector: Send + Sync + 'static {
    /// What reads.
    type Source: Source;
    /// What settles.
    type Acknowledger: Acknowledger;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Where the store cannot hold a delivery back for a while: the sink that brings a message back to where this
    /// reads, once [`Outgoing::delay`] has passed. The engine writes there, and acknowledges the delivery once it
    /// is confirmed. A message comes with its failures in the header [`Message::FAILURES`], which the source reads.
    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        None
    }

    /// Where it keeps what is rejected, if that can be read again.
    fn letters(&self) -> Option<SharedLetterBox> {
        None
    }

    /// The sink that brings a dead letter back to whom this reads for, where what is published goes to others too.
    fn replay_sink(&self) -> Option<SharedSinkConnector> {
        None
    }

    /// Opens both sides, with a generation of their own.
    ///
    /// # Errors
    /// [`OpenError::Refused`] when trying again cannot help (the pipeline fails to start),
    /// [`OpenError::Unavailable`] when it can (the pipeline is degraded and tries again with backoff).
    fn open(
        &self,
        engine: EngineHandle,
    ) -> impl Future<Output = Result<(Self::Source, Self::Acknowledger), OpenError>> + Send;

    /// Reaches the broker and compares what the pipeline will ask of it with what is there, for `check --connect`. What
    /// cannot be reached or is not there is an error, what would make the pipeline run otherwise than its settings say
    /// a warning.
    ///
    /// It takes no message and changes nothing: what an open would make is only said to be missing where an open
    /// would not make it.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped when it takes too long.
    fn check(&self, facts: &Facts<'_>) -> impl Future<Output = Vec<Finding>> + Send {
        let _ = facts;
        async { vec![unchecked("source")] }
    }
}

/// What is said of a connector that has no check of its own.
fn unchecked(role: &str) -> Finding {
    Finding::note(
        format!("a {role} of this type cannot be checked before it runs"),
        "`run` says whether it opens",
    )
}

/// The reading side of a connector.
pub trait Source: Send + 'static {
    /// Adds messages to `chunk`, never more than `credit` allows, waiting for the first one.
    ///
    /// # Cancel safety
    /// Must be cancel safe: the engine drops the future to pause, to drain and when demand changes. What has
    /// been fetched by then is returned by a later call.
    ///
    /// # Errors
    /// Connection loss is not an error: reconnect within, with backoff, and say
    /// [`EngineHandle::degraded`]. An error here ends this source; the supervisor opens another.
    fn read(
        &mut self,
        credit: Credit,
        chunk: &mut Chunk,
    ) -> impl Future<Output = Result<Read, SourceError>> + Send;

    /// Stop fetching until the next `read`: what acks free must not be refilled meanwhile.
    fn pause(&mut self) {}

    /// Stop fetching for good. `read` then returns what had been fetched already, and at last
    /// [`Read::Ended`].
    fn drain(&mut self);
}

/// What a read came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The chunk holds at least one message.
    Messages,
    /// There will be no more.
    Ended,
}

/// How much a source may fetch now. It may be a lot: a source fetches as much at a time as is good for its broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// Messages; at least one.
    pub messages: usize,
    /// Bytes, as [`Message::size`] counts them. A fetch may end with the message that exceeds it.
    pub bytes: usize,
}

/// The messages of one read.
#[derive(Debug, Default)]
pub struct Chunk {
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) bytes: usize,
}

impl Chunk {
    /// An empty chunk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one delivery.
    pub fn push(&mut self, mut ticket: Ticket, message: Message) {
        let size = message.size();
        ticket.weight = u32::try_from(size).unwrap_or(u32::MAX);
        self.bytes += size;
        self.envelopes.push(Envelope::new(ticket, message));
    }

    /// What is in it comes alone: nothing more does until it is settled, so no batch shall wait for that.
    pub fn come_alone(&mut self) {
        for envelope in &mut self.envelopes {
            envelope.alone = true;
        }
    }

    /// How many deliveries it holds.
    pub fn len(&self) -> usize {
        self.envelopes.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }

    /// Bytes of all its messages, as [`Message::size`] counts them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the deliveries out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = (Ticket, Message)> + '_ {
        self.bytes = 0;
        self.envelopes
            .drain(..)
            .map(|envelope| (envelope.ticket, envelope.message))
    }
}

/// The settling side of a connector.
///
/// The engine calls it from one task, away from every handler.
pub trait Acknowledger: Send + 'static {
    /// Settles these, and says for each what came of it. It may keep some back to coalesce them, and answer
    /// for them in a later call. It should not wait for a broker that takes long to answer: what it was told meanwhile
    /// goes unheard until it returns, and a drain counts what was heard by its deadline.
    ///
    /// # Cancel safety
    /// Need not be cancel safe: the engine drops the future only when it drops the acknowledger.
    fn settle(
        &mut self,
        settlements: &[Settle],
        outcomes: &mut Vec<(Settle, Outcome)>,
    ) -> impl Future<Output = ()> + Send;

    /// Sends what was kept back, and answers for it: for some of it at least, and for the rest in later calls, which the
    /// engine makes for as long as anything is owed.
    ///
    /// # Cancel safety
    /// As for [`settle`](Self::settle).
    fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) -> impl Future<Output = ()> + Send;
}

/// A broker's writing side: opens sinks.
pub trait SinkConnector: Send + Sync + 'static {
    /// What writes.
    type Sink: Sink;

    /// What was written, where that can be read again as dead letters.
    fn letters(&self) -> Option<SharedLetterBox> {
        None
    }

    /// Opens one.
    ///
    /// # Errors
    /// As for [`Connector::open`].
    fn open(&self) -> impl Future<Output = Result<Self::Sink, OpenError>> + Send;

    /// Reaches the broker and says whether messages can be written, as [`Connector::check`] does for reading; it writes
    /// none, and makes nothing.
    ///
    /// # Cancel safety
    /// Must be cancel safe: it is dropped when it takes too long.
    fn check(&self) -> impl Future<Output = Vec<Finding>> + Send {
        async { vec![unchecked("sink")] }
    }
}

/// The writing side of a connector.
pub trait Sink: Send + 'static {
    /// Writes these and pushes one result for each, in order, once the broker has confirmed or refused it.
    ///
    /// # Cancel safety
    /// Not cancel safe: a dropped call may have written any part of the messages. The engine treats them as
    /// failed and closes the sink.
    ///
    /// # Errors
    /// An error fails all of them; the engine closes the sink and opens another before it tries again.
    fn send(
        &mut self,
        messages: &[Outgoing],
        results: &mut Vec<Delivered>,
    ) -> impl Future<Output = Result<(), SinkError>> + Send;
}

/// What became of one message at a sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// The broker has it.
    Confirmed,
    /// The broker will never take it, and says why.
    Refused(String),
    /// Not now; trying again may help.
    Failed(String),
}

/// Object-safe [`Connector`].
pub trait DynConnector: Any + Send + Sync {
    /// See [`Connector::capabilities`].
    fn capabilities(&self) -> Capabilities;
    /// See [`Connector::retry_sink`].
    fn retry_sink(&self) -> Option<SharedSinkConnector>;
    /// See [`Connector::letters`].
    fn letters(&self) -> Option<SharedLetterBox>;
    /// See [`Connector::replay_sink`].
    fn replay_sink(&self) -> Option<SharedSinkConnector>;
    /// See [`Connector::open`].
    fn open(&self, engine: EngineHandle) -> BoxFuture<'_, Result<Opened, OpenError>>;
    /// See [`Connector::check`].
    fn check<'a>(&'a self, facts: &'a Facts<'a>) -> BoxFuture<'a, Vec<Finding>>;
}

impl dyn DynConnector {
    /// The connector behind it, if it is one of this type: for a sink that belongs to it.
    pub fn downcast_ref<C: Connector>(&self) -> Option<&C> {
        let connector: &dyn Any = self;
        connector.downcast_ref()
    }
}

/// Both sides of an opened connector.
pub type Opened = (Box<dyn DynSource>, Box<dyn DynAcknowledger>);

/// Object-safe [`Source`].
pub trait DynSource: Send + 'static {
    /// See [`Source::read`].
    fn read<'a>(
        &'a mut self,
        credit: Credit,
        chunk: &'a mut Chunk,
    ) -> BoxFuture<'a, Result<Read, SourceError>>;
    /// See [`Source::pause`].
    fn pause(&mut self);
    /// See [`Source::drain`].
    fn drain(&mut self);
}

/// Object-safe [`Acknowledger`].
pub trait DynAcknowledger: Send + 'static {
    /// See [`Acknowledger::settle`].
    fn settle<'a>(
        &'a mut self,
        settlements: &'a [Settle],
        outcomes: &'a mut Vec<(Settle, Outcome)>,
    ) -> BoxFuture<'a, ()>;
    /// See [`Acknowledger::flush`].
    fn flush<'a>(&'a mut self, outcomes: &'a mut Vec<(Settle, Outcome)>) -> BoxFuture<'a, ()>;
}

/// Object-safe [`SinkConnector`].
pub trait DynSinkConnector: Send + Sync + 'static {
    /// See [`SinkConnector::letters`].
    fn letters(&self) -> Option<SharedLetterBox>;
    /// See [`SinkConnector::open`].
    fn open(&self) -> BoxFuture<'_, Result<Box<dyn DynSink>, OpenError>>;
    /// See [`SinkConnector::check`].
    fn check(&self) -> BoxFuture<'_, Vec<Finding>>;
}

/// Object-safe [`Sink`].
pub trait DynSink: Send + 'static {
    /// See [`Sink::send`].
    fn send<'a>(
        &'a mut self,
        messages: &'a [Outgoing],
        results: &'a mut Vec<Delivered>,
    ) -> BoxFuture<'a, Result<(), SinkError>>;
}

impl<C: Connector> DynConnector for C {
    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(self)
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        Connector::retry_sink(self)
    }

    fn letters(&self) -> Option<SharedLetterBox> {
        Connector::letters(self)
    }

    fn replay_sink(&self) -> Option<SharedSinkConnector> {
        Connector::replay_sink(self)
    }

    fn open(&self, engine: EngineHandle) -> BoxFuture<'_, Result<Opened, OpenError>> {
        Box::pin(async move {
            let (source, acknowledger) = Connector::open(self, engine).await?;
            Ok((
                Box::new(source) as Box<dyn DynSource>,
                Box::new(acknowledger) as Box<dyn DynAcknowledger>,
            ))
        })
    }

    fn check<'a>(&'a self, facts: &'a Facts<'a>) -> BoxFuture<'a, Vec<Finding>> {
        Box::pin(Connector::check(self, facts))
    }
}

impl<S: Source> DynSource for S {
    fn read<'a>(
        &'a mut self,
        credit: Credit,
        chunk: &'a mut Chunk,
    ) -> BoxFuture<'a, Result<Read, SourceError>> {
        Box::pin(Source::read(self, credit, chunk))
    }

    fn pause(&mut self) {
        Source::pause(self);
    }

    fn drain(&mut self) {
        Source::drain(self);
    }
}

impl<A: Acknowledger> DynAcknowledger for A {
    fn settle<'a>(
        &'a mut self,
        settlements: &'a [Settle],
        outcomes: &'a mut Vec<(Settle, Outcome)>,
    ) -> BoxFuture<'a, ()> {
        Box::pin(Acknowledger::settle(self, settlements, outcomes))
    }

    fn flush<'a>(&'a mut self, outcomes: &'a mut Vec<(Settle, Outcome)>) -> BoxFuture<'a, ()> {
        Box::pin(Acknowledger::flush(self, outcomes))
    }
}

impl<C: SinkConnector> DynSinkConnector for C {
    fn letters(&self) -> Option<SharedLetterBox> {
        SinkConnector::letters(self)
    }

    fn open(&self) -> BoxFuture<'_, Result<Box<dyn DynSink>, OpenError>> {
        Box::pin(async move { Ok(Box::new(SinkConnector::open(self).await?) as Box<dyn DynSink>) })
    }

    fn check(&self) -> BoxFuture<'_, Vec<Finding>> {
        Box::pin(SinkConnector::check(self))
    }
}

impl<S: Sink> DynSink for S {
    fn send<'a>(
        &'a mut self,
        messages: &'a [Outgoing],
        results: &'a mut Vec<Delivered>,
    ) -> BoxFuture<'a, Result<(), SinkError>> {
        Box::pin(Sink::send(self, messages, results))
    }
}

macro_rules! opaque_debug {
    ($($name:ident),*) => {$(
        impl fmt::Debug for dyn $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}

opaque_debug!(
    DynConnector,
    DynSource,
    DynAcknowledger,
    DynSinkConnector,
    DynSink
);

/// A connector as pipelines hold it.
pub type SharedConnector = Arc<dyn DynConnector>;
/// A sink's connector as pipelines hold it.
pub type SharedSinkConnector = Arc<dyn DynSinkConnector>;
