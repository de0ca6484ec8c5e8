//! Millstream's contracts and engine.
//!
//! Users of Millstream start at the `millstream` crate; this one is for authors of connectors and for what stands
//! between: it knows no broker, no file format and no HTTP.
//!
//! The promises P1 to P8 that the docs cite are those of `ARCHITECTURE.md`.

mod aside;
mod batch;
mod check;
mod connector;
mod decode;
mod dedup;
mod dependency;
mod engine;
mod errors;
mod failure;
mod flow;
mod future;
mod handle;
mod host;
mod letters;
mod measures;
pub mod memory;
mod message;
mod mutants;
mod ordering;
mod partition;
mod processor;
mod rates;
pub mod rt;
mod settlement;
#[cfg(feature = "simulation")]
pub mod simulation;
#[cfg(not(feature = "simulation"))]
mod simulation;
mod sink_handler;
mod spec;
mod ticket;

pub use aside::Aside;
pub use batch::{Batch, BatchHandler, ClosedBy};
pub use check::{Facts, Finding, Severity};
pub use connector::{
    Acknowledger, Capabilities, Chunk, Connector, Credit, Delivered, DynAcknowledger, DynConnector, DynSink,
    DynSinkConnector, DynSource, Opened, Read, SharedConnector, SharedSinkConnector, Sink, SinkConnector,
    Source,
};
pub use decode::Decode;
pub use dedup::{
    DedupError, DedupStore, DeduplicateSpec, IdBy, Ids, MemoryStore, OnStoreFailure, SharedDedupStore,
};
pub use dependency::Dependency;
pub use engine::{BreakerState, Change, Counts, DrainReport, OpenedBy, Sentinel, Stall};
pub use errors::{OpenError, SinkError, SourceError};
pub use failure::Failure;
pub use flow::{Flow, SharedFlow, Step};
pub use future::BoxFuture;
pub use handle::{Detached, Drained, EngineHandle};
pub use host::{Condition, Host, Pipeline, StartError, Status};
pub use letters::{Letter, LetterBox, LetterError, Letters, SharedLetterBox, Visit};
pub use measures::{BatcherMeasures, BreakerMeasures, Distribution, Failed, Measures, StageMeasures};
pub use message::{Headers, Message, OriginId, Outgoing, Was};
pub use ordering::{OrderBy, Ordering};
pub use partition::{Partition, Rebalance};
pub use processor::{Context, Origin, Processor};
pub use rates::{Ask, Bucket, Pace, RateError, RateStore, SharedRateSpec, SharedRateStore, Turns};
pub use settlement::{Outcome, Reason, Rejection, Settle, Settlement};
pub use spec::{
    BatcherSpec, BreakerSpec, DeadLetter, Limits, OnGap, OnGiveUp, PipelineSpec, ProcessorSpec, RateLimit,
    RetrySpec, RetryStrategy, SequenceSpec, SupervisorSpec,
};
pub use ticket::{Scope, Ticket};
