//! A queue in memory that breaks a promise: [`Broken`].

use std::sync::Arc;

use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, Delivered, EngineHandle, Headers, Message,
    OpenError, Outcome, Outgoing, Read, Settle, Settlement, SharedConnector, SharedSinkConnector, Sink,
    SinkConnector, SinkError, Source, SourceError, Ticket,
};
use millstream_testkit::conformance::{Features, Place, Rejected, Subject};
use parking_lot::Mutex;

/// How a promise is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    LosesMessages,
    ForgetsAcks,
    ReleaseAcks,
    ClosesAck,
    ConfirmsAndDrops,
    IgnoresGenerations,
    SilentCuts,
    DropsReads,
    Backwards,
    ExceedsCredit,
    BarePayloads,
    NoDelay,
    RejectAcks,
    CountsOne,
    SaysLess,
    DeclaresTooMuch,
}

pub(crate) struct Broken {
    fault: Option<Fault>,
    capabilities: Capabilities,
}

impl Broken {
    /// A queue with this fault; with none, it keeps its promises.
    pub(crate) fn at(fault: Option<Fault>) -> Self {
        Self {
            fault,
            capabilities: Connector::capabilities(&MemoryQueue::new()),
        }
    }

    /// The same, on a queue that cannot hold a delivery back, and has a retry sink for that.
    pub(crate) fn with_a_retry_sink(mut self) -> Self {
        self.capabilities.delay = false;
        self
    }
}

impl Subject for Broken {
    type Place = Queue;

    fn name(&self) -> &str {
        "broken"
    }

    fn declares(&self) -> Features {
        let too_much = self.fault == Some(Fault::DeclaresTooMuch);
        Features {
            capabilities: self.capabilities,
            retry_sink: !self.capabilities.delay,
            keys: true,
            headers: true,
            ordered: true,
            groups: too_much,
            backlog: true,
            settles_singly: true,
            takes_back: true,
            restarts: too_much,
            cuts: true,
            ..Features::default()
        }
    }

    async fn place(&self, _: &str) -> Queue {
        Queue {
            queue: MemoryQueue::with_capabilities(self.capabilities),
            fault: self.fault,
            last: Arc::default(),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Queue {
    queue: MemoryQueue,
    fault: Option<Fault>,
    /// The ticket under which each message was handed out last.
    last: Arc<Mutex<Vec<Ticket>>>,
}

impl Queue {
    fn is(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }
}

impl Place for Queue {
    fn connector(&self) -> SharedConnector {
        Arc::new(self.clone())
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(self.clone())
    }

    async fn cut(&self) {
        self.queue.break_connection();
    }

    async fn rejected(&self) -> Vec<Rejected> {
        let dead = self.queue.dead().into_iter();
        dead.map(|(message, why)| Rejected {
            payload: message.payload,
            key: message.key,
            error: why.error.clone(),
        })
        .collect()
    }
}

impl Connector for Queue {
    type Source = BrokenSource;
    type Acknowledger = BrokenAcknowledger;

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Connector::capabilities(&self.queue);
        capabilities.delay &= !self.is(Fault::SaysLess);
        capabilities
    }

    fn retry_sink(&self) -> Option<SharedSinkConnector> {
        if self.is(Fault::NoDelay) {
            return Some(Arc::new(self.clone()));
        }
        Connector::retry_sink(&self.queue)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(BrokenSource, BrokenAcknowledger), OpenError> {
        let deaf = EngineHandle::detached().0;
        let engine = if self.is(Fault::SilentCuts) { deaf } else { engine };
        let (source, acknowledger) = Connector::open(&self.queue, engine).await?;
        let source = BrokenSource {
            place: self.clone(),
            source,
        };
        let acknowledger = BrokenAcknowledger {
            place: self.clone(),
            acknowledger,
        };
        Ok((source, acknowledger))
    }
}

pub(crate) struct BrokenSource {
    place: Queue,
    source: MemorySource,
}

impl Source for BrokenSource {
    async fn read(&mut self, mut credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        if self.place.is(Fault::ExceedsCredit) {
            credit.messages = credit.messages.saturating_mul(2);
            credit.bytes = credit.bytes.saturating_mul(3);
        }
        let mut fetched = Chunk::new();
        let read = self.source.read(credit, &mut fetched).await?;
        if self.place.is(Fault::DropsReads) {
            // What was fetched is held by nobody while this waits.
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        let mut deliveries: Vec<_> = fetched.drain().collect();
        if self.place.is(Fault::Backwards) {
            deliveries.reverse();
        }
        for (ticket, mut message) in deliveries {
            if self.place.is(Fault::CountsOne) {
                message.deliveries = 1;
            }
            self.place.last.lock().push(ticket);
            chunk.push(ticket, message);
        }
        Ok(read)
    }

    fn drain(&mut self) {
        self.source.drain();
    }
}

pub(crate) struct BrokenAcknowledger {
    place: Queue,
    acknowledger: MemoryAcknowledger,
}

impl Acknowledger for BrokenAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        for settle in settlements {
            let place = &self.place;
            let mut other = settle.clone();
            match &settle.settlement {
                Settlement::Ack if place.is(Fault::ForgetsAcks) => other.settlement = Settlement::Release,
                Settlement::Release if place.is(Fault::ReleaseAcks) => other.settlement = Settlement::Ack,
                Settlement::Reject(_) if place.is(Fault::RejectAcks) => other.settlement = Settlement::Ack,
                Settlement::Retry { failures, .. } if place.is(Fault::NoDelay) => {
                    other.settlement = Settlement::Retry {
                        after: std::time::Duration::ZERO,
                        failures: *failures,
                    };
                }
                _ => {}
            }
            if place.is(Fault::IgnoresGenerations) {
                let last = place.last.lock();
                let twin = last
                    .iter()
                    .rev()
                    .find(|twin| twin.sequence == other.ticket.sequence);
                other.ticket = twin.copied().unwrap_or(other.ticket);
            }
            let mut answers = Vec::new();
            self.acknowledger.settle(&[other], &mut answers).await;
            outcomes.extend(answers.into_iter().map(|(_, outcome)| (settle.clone(), outcome)));
        }
    }

    async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {}
}

impl Drop for BrokenAcknowledger {
    fn drop(&mut self) {
        // Whatever was handed out counts as done.
        if self.place.is(Fault::ClosesAck) {
            let settlements: Vec<_> = self
                .place
                .last
                .lock()
                .iter()
                .map(|ticket| Settle {
                    ticket: *ticket,
                    settlement: Settlement::Ack,
                })
                .collect();
            let mut outcomes = Vec::new();
            let mut settling = std::pin::pin!(self.acknowledger.settle(&settlements, &mut outcomes));
            let waker = std::task::Waker::noop();
            let _ = settling.as_mut().poll(&mut std::task::Context::from_waker(waker));
        }
    }
}

impl SinkConnector for Queue {
    type Sink = BrokenSink;

    async fn open(&self) -> Result<BrokenSink, OpenError> {
        Ok(BrokenSink(self.clone()))
    }
}

pub(crate) struct BrokenSink(Queue);

impl Sink for BrokenSink {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let Self(place) = self;
        for (number, outgoing) in messages.iter().enumerate() {
            results.push(Delivered::Confirmed);
            let last = number + 1 == messages.len();
            if place.is(Fault::ConfirmsAndDrops) || (last && place.is(Fault::LosesMessages)) {
                continue;
            }
            let bare = place.is(Fault::BarePayloads);
            place.queue.publish(Message {
                payload: outgoing.payload.clone(),
                key: outgoing.key.clone().filter(|_| !bare),
                headers: if bare {
                    Headers::new()
                } else {
                    outgoing.headers.clone()
                },
                ..Message::default()
            });
        }
        Ok(())
    }
}
