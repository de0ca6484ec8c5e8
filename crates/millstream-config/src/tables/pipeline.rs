use millstream_core::Limits;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::order_by::OrderByName;
use crate::values::{ByteSize, Count, Ratio};

/// The keys of a pipeline that are no tables.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PipelineTable {
    /// What is kept in order.
    pub(crate) ordering: OrderingName,
    /// What messages are ordered by with `ordering = "key"`: "key", "header:NAME" or "json:/pointer".
    pub(crate) order_by: OrderByName,
}

/// The keys of a pipeline that are tables.
pub(crate) const PIPELINE_TABLES: [&str; 12] = [
    "limits",
    "source",
    "processor",
    "batchers",
    "retry",
    "dead_letter",
    "rate_limit",
    "breaker",
    "dependencies",
    "supervisor",
    "deduplicate",
    "sequence",
];

impl Default for PipelineTable {
    fn default() -> Self {
        Self {
            ordering: OrderingName::None,
            order_by: OrderByName::Key,
        }
    }
}

/// What is kept in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OrderingName {
    /// Nothing.
    None,
    /// The messages of one key.
    Key,
    /// The messages of one partition.
    Partition,
}

/// Bounds on what is in flight.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsTable {
    /// Messages fetched and not yet settled.
    pub(crate) in_flight: Count,
    /// Bytes of the same.
    pub(crate) bytes: ByteSize,
    /// Messages that may wait behind one of their key.
    pub(crate) per_key: Count,
    /// The share of `in_flight` that one batcher may hold.
    pub(crate) per_batcher: Ratio,
}

impl Default for LimitsTable {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            in_flight: limits.in_flight.into(),
            bytes: ByteSize::new(limits.bytes),
            per_key: limits.per_key.into(),
            per_batcher: Ratio::literal(limits.per_batcher),
        }
    }
}
