//! The `memory` connector: a queue in the process, for tests and benchmarks. It holds nothing across a restart.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::check::{Facts, Finding};
use crate::connector::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, Delivered, Read, SharedSinkConnector, Sink,
    SinkConnector, Source,
};
use crate::dedup::Ids;
use crate::errors::{OpenError, SinkError, SourceError};
use crate::handle::EngineHandle;
use crate::message::{Message, OriginId, Outgoing};
use crate::rt::{self, Instant};
use crate::settlement::{Outcome, Rejection, Settle, Settlement};
use crate::ticket::{Scope, Ticket};

/// The most that one read gives.
const MOST: usize = 100;

/// A queue in memory. Every clone is the same queue; it is a source and a sink at once.
///
/// ```
/// # use millstream_core::{memory::MemoryQueue, Message};
/// let queue = MemoryQueue::new();
/// queue.publish(Message::new("hello"));
/// assert_eq!(queue.len(), 1);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryQueue(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    capabilities: Capabilities,
    state: Mutex<State>,
    published: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Unsettled messages; the first one has the number `first`.
    slots: VecDeque<Option<Slot>>,
    first: u64,
    ready: VecDeque<u64>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    dead: Vec<(Message, Arc<Rejection>)>,
    generation: u32,
    engine: Option<EngineHandle>,
    settlements: u64,
    /// Settlements that shall fail before one succeeds.
    failing: usize,
    failing_writes: usize,
}

#[derive(Debug)]
struct Slot {
    message: Message,
    /// The generation that has it, if one does.
    leased: Option<u32>,
}

impl Default for MemoryQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryQueue {
    /// An empty queue that can all that a store can but keep keys in order across processes.
    pub fn new() -> Self {
        Self::with_capabilities(Capabilities {
            delay: true,
            keeps_rejected: true,
            counts_deliveries: true,
            orders_keys: false,
            ids: Ids::Position,
            ..Capabilities::default()
        })
    }

    /// An empty queue that says it can only this much, to see what the engine makes of it. One that cannot delay a
    /// delivery is its own retry sink.
    pub fn with_capabilities(capabilities: Capabilities) -> Self {
        Self(Arc::new(Inner {
            capabilities,
            state: Mutex::default(),
            published: Notify::new(),
        }))
    }

    /// Adds a message at the end.
    pub fn publish(&self, message: Message) {
        self.publish_all([message]);
    }

    /// Adds messages at the end, in order.
    pub fn publish_all(&self, messages: impl IntoIterator<Item = Message>) {
        let mut state = self.0.state.lock();
        for message in messages {
            let number = state.add(message);
            state.ready.push_back(number);
        }
        drop(state);
        self.0.published.notify_one();
    }

    /// Messages that are not settled, leased or not.
    pub fn len(&self) -> usize {
        self.0.state.lock().slots.iter().flatten().count()
    }

    /// Whether every message is settled.
    pub fn is_empty(&self) -> bool {
        // Settled ones are dropped from the front.
        self.0.state.lock().slots.is_empty()
    }

    /// Messages that a consumer has and has not settled.
    pub fn leased(&self) -> usize {
        self.0
            .state
            .lock()
            .slots
            .iter()
            .flatten()
            .filter(|slot| slot.leased.is_some())
            .count()
    }

    /// Unsettled messages, in order.
    pub fn messages(&self) -> Vec<Message> {
        self.0
            .state
            .lock()
            .slots
            .iter()
            .flatten()
            .map(|slot| slot.message.clone())
            .collect()
    }

    /// What was rejected, in the order of rejection.
    pub fn dead(&self) -> Vec<(Message, Arc<Rejection>)> {
        self.0.state.lock().dead.clone()
    }

    /// Settlements taken so far.
    pub fn settlements(&self) -> u64 {
        self.0.state.lock().settlements
    }

    /// Lets the next so many settlements fail.
    pub fn fail_settlements(&self, number: usize) {
        self.0.state.lock().failing = number;
    }

    /// Lets the next so many writes through its sink fail.
    pub fn fail_writes(&self, number: usize) {
        self.0.state.lock().failing_writes = number;
    }

    /// What happens when a connection breaks or a lease expires: what the consumer has goes back to the front, and
    /// its settlements are stale from now on.
    pub fn break_connection(&self) {
        let (engine, lost) = {
            let mut state = self.0.state.lock();
            let lost = state.generation;
            state.generation += 1;
            state.take_back(lost);
            (state.engine.clone(), lost)
        };
        if let Some(engine) = engine {
            engine.lost(Scope::Generation(lost));
        }
        self.0.published.notify_one();
    }
}

impl State {
    fn add(&mut self, message: Message) -> u64 {
        self.slots.push_back(Some(Slot {
            message,
            leased: None,
        }));
        self.first + self.slots.len() as u64 - 1
    }

    fn slot(&mut self, number: u64) -> Option<&mut Option<Slot>> {
        let index = number.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(index).ok()?)
    }

    /// What this generation has is ready again, before all that is.
    fn take_back(&mut self, generation: u32) {
        let first = self.first;
        let mut back: VecDeque<u64> = VecDeque::new();
        for (number, slot) in (first..).zip(&mut self.slots) {
            if let Some(slot) = slot
                && slot.leased == Some(generation)
            {
                slot.leased = None;
                back.push_back(number);
            }
        }
        back.append(&mut self.ready);
        self.ready = back;
    }

    fn settle(&mut self, settle: &Settle) -> Outcome {
        if self.failing > 0 {
            self.failing -= 1;
            return Outcome::Failed;
        }
        let number = settle.ticket.sequence;
        let generation = settle.ticket.generation;
        let Some(slot) = self.slot(number) else {
            return Outcome::Stale;
        };
        if slot.as_ref().is_none_or(|slot| slot.leased != Some(generation)) {
            return Outcome::Stale;
        }
        match &settle.settlement {
            Settlement::Ack => *slot = None,
            Settlement::Reject(rejection) => {
                let rejected = slot.take().map(|slot| (slot.message, Arc::clone(rejection)));
                self.dead.extend(rejected);
            }
            Settlement::Retry { after, failures } => {
                if let Some(slot) = slot {
                    slot.leased = None;
                    slot.message.failures = *failures;
                    slot.message.deliveries = 0;
                }
                self.delayed.push(Reverse((rt::now() + *after, number)));
            }
            Settlement::Release => {
                if let Some(slot) = slot {
                    slot.leased = None;
                    slot.message.deliveries -= 1;
                }
                // Mostly the last ones taken come back first: look from the front.
                let at = self.ready.iter().take_while(|ready| **ready < number).count();
                self.ready.insert(at, number);
            }
        }
        self.settlements += 1;
        while let Some(None) = self.slots.front() {
            self.slots.pop_front();
            self.first += 1;
        }
        Outcome::Sent
    }
}

impl Connector for MemoryQueue {
    type Source = MemorySource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        (!self.0.capabilities.delay).then(|| Arc::new(self.clone()) as SharedSinkConnector)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, MemoryAcknowledger), OpenError> {
        let origin = engine.origin("memory");
        let mut state = self.0.state.lock();
        state.generation += 1;
        state.engine = Some(engine);
        let source = MemorySource {
            queue: self.clone(),
            origin,
            draining: false,
        };
        Ok((source, MemoryAcknowledger { queue: self.clone() }))
    }

    async fn check(&self, _: &Facts<'_>) -> Vec<Finding> {
        Vec::new()
    }
}

/// The reading side of a [`MemoryQueue`].
#[derive(Debug)]
pub struct MemorySource {
    queue: MemoryQueue,
    origin: OriginId,
    draining: bool,
}

impl MemorySource {
    /// Adds what is ready to the chunk; says when more will be.
    fn take(&self, credit: Credit, chunk: &mut Chunk) -> Option<Instant> {
        let mut state = self.queue.0.state.lock();
        let now = rt::now();
        while let Some(Reverse((due, number))) = state.delayed.peek().copied() {
            if due > now {
                break;
            }
            state.delayed.pop();
            state.ready.push_back(number);
        }
        let generation = state.generation;
        let counts = self.queue.0.capabilities.counts_deliveries;
        while chunk.len() < credit.messages.min(MOST) && chunk.bytes() < credit.bytes {
            let Some(number) = state.ready.pop_front() else {
                break;
            };
            if let Some(Some(slot)) = state.slot(number) {
                slot.leased = Some(generation);
                slot.message.deliveries += 1;
                let mut message = slot.message.clone();
                message.origin = self.origin;
                message.position = number;
                if !counts {
                    message.deliveries = 0;
                }
                chunk.push(Ticket::new(generation, self.origin, number), message);
            }
        }
        if let Some(engine) = &state.engine {
            engine.depth((state.ready.len() + state.delayed.len()) as u64);
        }
        state.delayed.peek().map(|Reverse((due, _))| *due)
    }
}

impl Source for MemorySource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        loop {
            if self.draining {
                return Ok(Read::Ended);
            }
            let mut published = std::pin::pin!(self.queue.0.published.notified());
            published.as_mut().enable();
            let due = self.take(credit, chunk);
            if !chunk.is_empty() {
                return Ok(Read::Messages);
            }
            tokio::select! {
                biased;
                () = published => {}
                () = rt::sleep_until(due.unwrap_or_else(rt::now)), if due.is_some() => {}
            }
        }
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

/// The settling side of a [`MemoryQueue`].
#[derive(Debug)]
pub struct MemoryAcknowledger {
    queue: MemoryQueue,
}

impl Acknowledger for MemoryAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        {
            let mut state = self.queue.0.state.lock();
            outcomes.extend(
                settlements
                    .iter()
                    .map(|settle| (settle.clone(), state.settle(settle))),
            );
        }
        self.queue.0.published.notify_one();
    }

    async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {}
}

impl Drop for MemoryAcknowledger {
    fn drop(&mut self) {
        let mut state = self.queue.0.state.lock();
        let generation = state.generation;
        state.generation += 1;
        state.take_back(generation);
    }
}

impl SinkConnector for MemoryQueue {
    type Sink = MemorySink;

    async fn open(&self) -> Result<MemorySink, OpenError> {
        Ok(MemorySink(self.clone()))
    }

    async fn check(&self) -> Vec<Finding> {
        Vec::new()
    }
}

/// The writing side of a [`MemoryQueue`].
#[derive(Debug)]
pub struct MemorySink(MemoryQueue);

impl Sink for MemorySink {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let now = rt::now();
        let mut state = self.0.0.state.lock();
        if state.failing_writes > 0 {
            state.failing_writes -= 1;
            return Err(SinkError("told to fail".to_owned()));
        }
        for outgoing in messages {
            let mut message = Message {
                payload: outgoing.payload.clone(),
                key: outgoing.key.clone(),
                headers: outgoing.headers.clone(),
                ..Message::default()
            };
            message.take_failures();
            let number = state.add(message);
            if outgoing.delay.is_zero() {
                state.ready.push_back(number);
            } else {
                state.delayed.push(Reverse((now + outgoing.delay, number)));
            }
        }
        drop(state);
        self.0.0.published.notify_one();
        results.extend(messages.iter().map(|_| Delivered::Confirmed));
        Ok(())
    }
}
