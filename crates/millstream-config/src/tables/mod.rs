//! The tables of the reference as they are written: one struct each, its fields the keys, its doc comments the
//! descriptions in the JSON Schema, its defaults those of the core's specs.

mod host;
mod pipeline;
mod policies;
mod repeats;
mod stages;

pub(crate) use host::{HostTable, LogFormatName};
pub(crate) use pipeline::{LimitsTable, OrderingName, PIPELINE_TABLES, PipelineTable};
pub(crate) use policies::{
    BreakerTable, OnGiveUpName, RateLimitTable, RetryTable, StrategyName, SupervisorTable,
};
pub(crate) use repeats::{DeduplicateTable, OnGapName, OnStoreFailureName, SequenceTable};
pub(crate) use stages::{BatcherTable, ProcessorTable};

/// A duration of the core's defaults, all of which are whole milliseconds and above zero.
fn duration(duration: std::time::Duration) -> crate::values::PositiveDuration {
    crate::values::PositiveDuration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
