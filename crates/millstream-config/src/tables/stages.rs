use millstream_core::{BatcherSpec, ProcessorSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::values::{ByteSize, Concurrency, Count, PositiveDuration};

/// How the handler is run.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ProcessorTable {
    /// What runs on each message: a stock handler, or a flow of this binary by its name. Default: the flow with
    /// the pipeline's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) handler: Option<String>,
    /// How many messages are processed at a time: a number, or `{ min = 1, max = 256 }`, which adapts to latency and
    /// errors.
    pub(crate) concurrency: Concurrency,
    /// The most that one worker takes at a time.
    pub(crate) max_demand: Count,
    /// How long one message may take; longer is a retryable failure.
    pub(crate) timeout: PositiveDuration,
}

impl Default for ProcessorTable {
    fn default() -> Self {
        let spec = ProcessorSpec::default();
        Self {
            handler: None,
            concurrency: Concurrency::Fixed(spec.concurrency.into()),
            max_demand: spec.max_demand.into(),
            timeout: duration(spec.timeout),
        }
    }
}

/// How one batcher collects.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BatcherTable {
    /// Messages at which a batch is closed. The default is lower where the batcher's share of the limits is.
    pub(crate) size: Count,
    /// Bytes before which a batch is closed; one larger message is a batch alone.
    pub(crate) bytes: ByteSize,
    /// Age of its oldest message at which a batch is closed; not a debounce.
    pub(crate) max_age: PositiveDuration,
    /// How long the handler may take over one batch; longer is a retryable failure.
    pub(crate) timeout: PositiveDuration,
    /// How many batches are handled at a time.
    pub(crate) concurrency: Count,
    /// On failure split the batch to find the message at fault: halves are run again until it stands alone, and the
    /// others count no attempt. Not where the handler takes its items out.
    pub(crate) bisect: bool,
}

impl Default for BatcherTable {
    fn default() -> Self {
        let spec = BatcherSpec::default();
        Self {
            size: spec.size.into(),
            bytes: ByteSize::new(spec.bytes),
            max_age: duration(spec.max_age),
            timeout: duration(spec.timeout),
            concurrency: spec.concurrency.into(),
            bisect: spec.bisect,
        }
    }
}
