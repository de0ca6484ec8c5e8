use std::borrow::Cow;
use std::collections::BTreeMap;

use millstream_core::{BreakerSpec, RetrySpec, SupervisorSpec};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use super::{OnStoreFailureName, duration};
use crate::invalid::Invalid;
use crate::values::{Count, PositiveDuration, Ratio};

/// When and how often to try again.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RetryTable {
    /// Handler runs in all, the first included.
    pub(crate) attempts: Count,
    /// Delivered more often than this without an outcome, a message is dead-lettered unrun.
    pub(crate) max_deliveries: Count,
    /// The wait after the first failure.
    pub(crate) backoff: PositiveDuration,
    /// What each further wait is multiplied by; at least 1.
    pub(crate) factor: Factor,
    /// The longest wait. The default is higher where `backoff` is.
    pub(crate) max_backoff: PositiveDuration,
    /// Whether to wait a random part of it, between half and all.
    pub(crate) jitter: bool,
    /// Older than this, no further attempt; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) max_age: Option<PositiveDuration>,
    /// The share of recent runs that retries may be; what is beyond it waits longer. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) budget: Option<Ratio>,
    /// Whether messages wait for their next attempt in memory or at the broker.
    pub(crate) strategy: StrategyName,
}

/// Where messages wait for their next attempt.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum StrategyName {
    /// In memory, where they keep their place in flight and their turn.
    InPlace,
    /// At the broker, which hands them out again in time.
    Redeliver,
}

impl Default for RetryTable {
    fn default() -> Self {
        let spec = RetrySpec::default();
        Self {
            attempts: spec.attempts.into(),
            max_deliveries: spec.max_deliveries.into(),
            backoff: duration(spec.backoff),
            factor: Factor(spec.factor),
            max_backoff: duration(spec.max_backoff),
            jitter: spec.jitter,
            max_age: None,
            budget: None,
            strategy: StrategyName::InPlace,
        }
    }
}

/// A finite number from 1 on.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Factor(pub(crate) f64);

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let factor = f64::deserialize(deserializer)?;
        if factor >= 1.0 && factor.is_finite() {
            return Ok(Self(factor));
        }
        Err(D::Error::custom(Invalid::new(
            format!("{factor} is not a number from 1 on"),
            "write 1 for equal waits, or 2 to double them",
        )))
    }
}

impl JsonSchema for Factor {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Factor".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "number", "minimum": 1 })
    }
}

/// How fast to fetch: a limit on intake, not only on emission.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimitTable {
    /// So many messages …
    pub(crate) messages: Count,
    /// … in this time.
    #[serde(default = "second")]
    pub(crate) per: PositiveDuration,
    /// How many may come at once after a quiet time. Default: as many as `messages`.
    pub(crate) burst: Option<Count>,
    /// "header:NAME": a limit for each value of this header. Absent: one limit for the pipeline.
    pub(crate) key: Option<String>,
    /// Values of that header whose limit is so many times as high.
    #[serde(default)]
    pub(crate) weights: BTreeMap<String, Count>,
    /// What happens while the store cannot be asked; "run" keeps the limit for this process alone.
    #[serde(default)]
    pub(crate) on_store_failure: OnStoreFailureName,
}

fn second() -> PositiveDuration {
    PositiveDuration::from_millis(1_000)
}

/// When to stop fetching because too little succeeds, or too much is slow. Open, the source pauses and no attempt is
/// counted.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BreakerTable {
    /// The share of failed runs that opens it.
    pub(crate) failure_rate: Ratio,
    /// How long a run, or a call of the dependency, takes at least to be slow; absent: none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slow_after: Option<PositiveDuration>,
    /// The share of slow runs that opens it.
    pub(crate) slow_rate: Ratio,
    /// The time over which the shares are taken.
    pub(crate) window: PositiveDuration,
    /// Runs in the window below which it never opens.
    pub(crate) minimum: Count,
    /// How long it stays open before it probes.
    pub(crate) open_for: PositiveDuration,
    /// Runs that must succeed, one at a time, to close it.
    pub(crate) probes: Count,
}

impl Default for BreakerTable {
    fn default() -> Self {
        let spec = BreakerSpec::default();
        Self {
            failure_rate: Ratio::literal(spec.failure_rate),
            slow_after: None,
            slow_rate: Ratio::literal(spec.slow_rate),
            window: duration(spec.window),
            minimum: spec.minimum.into(),
            open_for: duration(spec.open_for),
            probes: spec.probes.into(),
        }
    }
}

/// How often to restart what dies outside user code, and when to say that nothing moves.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SupervisorTable {
    /// Restarts …
    pub(crate) max_restarts: u32,
    /// … within this time; one more and the pipeline gives up.
    pub(crate) within: PositiveDuration,
    /// What then happens to the process.
    pub(crate) on_give_up: OnGiveUpName,
    /// The wait before a task's first restart within that time.
    pub(crate) backoff: PositiveDuration,
    /// What the wait before each further one is multiplied by; at least 1.
    pub(crate) factor: Factor,
    /// The longest wait. The default is higher where `backoff` is.
    pub(crate) max_backoff: PositiveDuration,
    /// Whether to wait a random part of it, between half and all.
    pub(crate) jitter: bool,
    /// How long nothing may move although there is work, before the pipeline says that it has stalled. A stage with a
    /// longer `timeout` is given that time.
    pub(crate) stall_after: PositiveDuration,
}

impl Default for SupervisorTable {
    fn default() -> Self {
        let spec = SupervisorSpec::default();
        Self {
            max_restarts: spec.max_restarts,
            within: duration(spec.within),
            on_give_up: OnGiveUpName::Stop,
            backoff: duration(spec.backoff),
            factor: Factor(spec.factor),
            max_backoff: duration(spec.max_backoff),
            jitter: spec.jitter,
            stall_after: duration(spec.stall_after),
        }
    }
}

/// What happens to the process when a pipeline gives up.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnGiveUpName {
    /// The other pipelines go on.
    Stop,
    /// The host drains the others and ends with status 1.
    Exit,
}
