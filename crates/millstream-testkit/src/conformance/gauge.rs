//! A connector seen from outside: how much it has handed out and not settled ([`Gauge`]).

use std::collections::HashMap;
use std::sync::Arc;

use millstream_core::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, DynAcknowledger, DynSource, EngineHandle,
    OpenError, Outcome, Read, Settle, SharedConnector, Source, SourceError, Ticket,
};
use parking_lot::Mutex;

/// What a watched connector has handed out and nobody has settled, now and at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauge(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Sizes of deliveries by their names.
    out: HashMap<(u32, u64), usize>,
    bytes: usize,
    most_messages: usize,
    most_bytes: usize,
}

impl Gauge {
    /// The same connector, watched.
    pub(crate) fn watch(&self, connector: SharedConnector) -> SharedConnector {
        Arc::new(Watched {
            connector,
            gauge: self.clone(),
        })
    }

    /// Messages out now.
    pub(crate) fn messages(&self) -> usize {
        self.0.lock().out.len()
    }

    /// The most messages that were ever out at a time, and the most bytes.
    pub(crate) fn most(&self) -> (usize, usize) {
        let state = self.0.lock();
        (state.most_messages, state.most_bytes)
    }

    fn went_out(&self, ticket: &Ticket, size: usize) {
        let mut state = self.0.lock();
        state.out.insert((ticket.generation, ticket.sequence), size);
        state.bytes += size;
        state.most_messages = state.most_messages.max(state.out.len());
        state.most_bytes = state.most_bytes.max(state.bytes);
    }

    fn came_back(&self, ticket: &Ticket) {
        let mut state = self.0.lock();
        let size = state.out.remove(&(ticket.generation, ticket.sequence));
        state.bytes -= size.unwrap_or(0);
    }
}

struct Watched {
    connector: SharedConnector,
    gauge: Gauge,
}

impl Connector for Watched {
    type Source = WatchedSource;
    type Acknowledger = WatchedAcknowledger;

    fn capabilities(&self) -> Capabilities {
        self.connector.capabilities()
    }

    async fn open(&self, engine: EngineHandle) -> Result<(WatchedSource, WatchedAcknowledger), OpenError> {
        let (source, acknowledger) = self.connector.open(engine).await?;
        let source = WatchedSource {
            source,
            read: Chunk::new(),
            gauge: self.gauge.clone(),
        };
        let acknowledger = WatchedAcknowledger {
            acknowledger,
            gauge: self.gauge.clone(),
        };
        Ok((source, acknowledger))
    }
}

struct WatchedSource {
    source: Box<dyn DynSource>,
    /// Kept across calls: a read that was dropped may have left something in it.
    read: Chunk,
    gauge: Gauge,
}

impl Source for WatchedSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        let read = if self.read.is_empty() {
            self.source.read(credit, &mut self.read).await?
        } else {
            Read::Messages
        };
        for (ticket, message) in self.read.drain() {
            self.gauge.went_out(&ticket, message.size());
            chunk.push(ticket, message);
        }
        Ok(read)
    }

    fn pause(&mut self) {
        self.source.pause();
    }

    fn drain(&mut self) {
        self.source.drain();
    }
}

struct WatchedAcknowledger {
    acknowledger: Box<dyn DynAcknowledger>,
    gauge: Gauge,
}

impl WatchedAcknowledger {
    fn note(&self, outcomes: &[(Settle, Outcome)]) {
        for (settle, outcome) in outcomes {
            if *outcome != Outcome::Failed {
                self.gauge.came_back(&settle.ticket);
            }
        }
    }
}

impl Acknowledger for WatchedAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        let before = outcomes.len();
        self.acknowledger.settle(settlements, outcomes).await;
        self.note(outcomes.get(before..).unwrap_or_default());
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        let before = outcomes.len();
        self.acknowledger.flush(outcomes).await;
        self.note(outcomes.get(before..).unwrap_or_default());
    }
}
