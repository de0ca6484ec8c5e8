//! What a pipeline is made of: checked values, as `millstream-config` makes them from TOML and as Rust code may
//! make them without it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use crate::connector::{SharedConnector, SharedSinkConnector};
use crate::dedup::DeduplicateSpec;
use crate::flow::SharedFlow;
use crate::ordering::{OrderBy, Ordering};
use crate::rates::SharedRateSpec;

/// One pipeline: a source, a flow, and the policies between them.
#[derive(Clone, Debug)]
pub struct PipelineSpec {
    /// Its name within the host.
    pub name: Arc<str>,
    /// What is kept in order.
    pub ordering: Ordering,
    /// Bounds on what is in flight.
    pub limits: Limits,
    /// Where messages come from.
    pub source: SharedConnector,
    /// The user's code.
    pub flow: SharedFlow,
    /// How the processor is run.
    pub processor: ProcessorSpec,
    /// How each batcher of the flow collects, by name; a batcher without an entry has the defaults.
    pub batchers: BTreeMap<String, BatcherSpec>,
    /// When and how often to try again.
    pub retry: RetrySpec,
    /// Where messages go that are given up.
    pub dead_letter: DeadLetter,
    /// How fast to fetch.
    pub rate_limit: Option<RateLimit>,
    /// What keeps that limit for all processes that run a pipeline of this name. Absent: each keeps it for itself.
    pub shared_rate: Option<SharedRateSpec>,
    /// When to stop fetching because nothing succeeds.
    pub breaker: Option<BreakerSpec>,
    /// The breakers of what handlers call by name: [`Context::dependency`](crate::Context::dependency).
    pub dependencies: BTreeMap<String, BreakerSpec>,
    /// How often to restart what dies.
    pub supervisor: SupervisorSpec,
    /// How it knows what it has done already.
    pub deduplicate: Option<DeduplicateSpec>,
    /// What it makes of messages that are missing from a key's numbers.
    pub sequence: Option<SequenceSpec>,
}

impl PipelineSpec {
    /// A pipeline with every policy at its default.
    pub fn new(name: &str, source: SharedConnector, flow: impl Into<SharedFlow>) -> Self {
        Self {
            name: name.into(),
            ordering: Ordering::None,
            limits: Limits::default(),
            source,
            flow: flow.into(),
            processor: ProcessorSpec::default(),
            batchers: BTreeMap::new(),
            retry: RetrySpec::default(),
            dead_letter: DeadLetter::Source,
            rate_limit: None,
            shared_rate: None,
            breaker: None,
            dependencies: BTreeMap::new(),
            supervisor: SupervisorSpec::default(),
            deduplicate: None,
            sequence: None,
        }
    }
}

/// Bounds on what is in flight (P4, P5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Messages fetched and not yet settled.
    pub in_flight: NonZeroUsize,
    /// Bytes of the same.
    pub bytes: NonZeroUsize,
    /// Messages that may wait in one key's lane.
    pub per_key: NonZeroUsize,
    /// The share of `in_flight` that one batcher may hold, above 0 and up to 1.
    pub per_batcher: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            in_flight: const { NonZeroUsize::new(10_000).unwrap() },
            bytes: const { NonZeroUsize::new(64 << 20).unwrap() },
            per_key: const { NonZeroUsize::new(1_000).unwrap() },
            per_batcher: 0.5,
        }
    }
}

/// How the processor is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessorSpec {
    /// How many messages are processed at a time; at most, where it adapts.
    pub concurrency: NonZeroUsize,
    /// Where there is one, how many are processed at a time follows latency and errors, from this on.
    pub adapts_from: Option<NonZeroUsize>,
    /// The most that one worker takes at a time.
    pub max_demand: NonZeroUsize,
    /// How long one run may take; longer is a retryable failure.
    pub timeout: Duration,
}

impl ProcessorSpec {
    /// How many messages are processed at a time, at least.
    pub fn least(&self) -> NonZeroUsize {
        self.adapts_from
            .map_or(self.concurrency, |least| least.min(self.concurrency))
    }
}

impl Default for ProcessorSpec {
    fn default() -> Self {
        Self {
            concurrency: const { NonZeroUsize::new(16).unwrap() },
            adapts_from: None,
            max_demand: const { NonZeroUsize::new(100).unwrap() },
            timeout: Duration::from_secs(30),
        }
    }
}

/// How one batcher collects, and where it ends.
#[derive(Clone, Debug)]
pub struct BatcherSpec {
    /// Messages at which a batch is closed.
    pub size: NonZeroUsize,
    /// Bytes before which a batch is closed; one larger message is a batch alone.
    pub bytes: NonZeroUsize,
    /// Age of its oldest message at which a batch is closed.
    pub max_age: Duration,
    /// How long the handler may take over one batch; longer is a retryable failure.
    pub timeout: Duration,
    /// How many batches are handled at a time.
    pub concurrency: NonZeroUsize,
    /// Whether a batch that fails as a whole is run again in halves until the message at fault stands alone. A handler
    /// that takes its items out forgoes it.
    pub bisect: bool,
    /// The sink, for a step of the flow that ends in one.
    pub sink: Option<SharedSinkConnector>,
}

impl Default for BatcherSpec {
    fn default() -> Self {
        Self {
            size: const { NonZeroUsize::new(100).unwrap() },
            bytes: const { NonZeroUsize::new(1 << 20).unwrap() },
            max_age: Duration::from_secs(1),
            timeout: Duration::from_secs(60),
            concurrency: NonZeroUsize::MIN,
            bisect: false,
            sink: None,
        }
    }
}

/// When and how often to try again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetrySpec {
    /// Handler runs in all, the first included.
    pub attempts: NonZeroU32,
    /// Delivered more often than this without an outcome, a message is dead-lettered unrun.
    pub max_deliveries: NonZeroU32,
    /// The wait after the first failure.
    pub backoff: Duration,
    /// What each further wait is multiplied by; at least 1.
    pub factor: f64,
    /// The longest wait.
    pub max_backoff: Duration,
    /// Whether to wait a random part of it, between half and all.
    pub jitter: bool,
    /// The age beyond which no further attempt begins, counted from when a message was published, where its source says
    /// that, or else from when it was first received.
    pub max_age: Option<Duration>,
    /// The share of recent runs that retries may be, above 0 and up to 1: what is beyond it waits longer.
    pub budget: Option<f64>,
    /// Where a message waits for its next attempt.
    pub strategy: RetryStrategy,
}

/// Where a message waits for its next attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RetryStrategy {
    /// In the process: it keeps its place in flight, and its turn where it is ordered.
    #[default]
    InPlace,
    /// At the source, which hands it out again in time, to any process and behind what follows it.
    Redeliver,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self {
            attempts: const { NonZeroU32::new(5).unwrap() },
            max_deliveries: const { NonZeroU32::new(16).unwrap() },
            backoff: Duration::from_millis(100),
            factor: 2.0,
            max_backoff: Duration::from_secs(30),
            jitter: true,
            max_age: None,
            budget: None,
            strategy: RetryStrategy::InPlace,
        }
    }
}

/// Where messages go that are given up.
#[derive(Clone, Debug)]
pub enum DeadLetter {
    /// Rejected at the source, which keeps them.
    Source,
    /// Written to a sink and, once confirmed, acknowledged at the source.
    Sink(SharedSinkConnector),
    /// Acknowledged, counted and logged.
    Discard,
    /// Left where it is, and what follows it in its place too, until the place is read anew: by a source that
    /// [`halts`](crate::Capabilities::halts).
    Halt,
}

/// How fast to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// So many messages …
    pub messages: NonZeroU32,
    /// … in this time.
    pub per: Duration,
    /// How many may come at once after a quiet time.
    pub burst: NonZeroU32,
    /// The header of which each value has a limit of its own; messages without it share one. Absent: one limit for the
    /// pipeline.
    pub key: Option<String>,
    /// Values of that header whose limit is so many times as high.
    pub weights: BTreeMap<String, NonZeroU32>,
}

/// When to stop fetching because too little succeeds, or too much is slow. What is counted is a pipeline's runs, or the
/// calls of a dependency.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BreakerSpec {
    /// The share of failed runs that opens it, above 0 and up to 1.
    pub failure_rate: f64,
    /// How long a run takes at least to be slow; absent, none is.
    pub slow_after: Option<Duration>,
    /// The share of slow runs that opens it, above 0 and up to 1.
    pub slow_rate: f64,
    /// The time over which the shares are taken.
    pub window: Duration,
    /// Runs below which it never opens.
    pub minimum: NonZeroU32,
    /// How long it stays open before it probes.
    pub open_for: Duration,
    /// Runs that must succeed, and not be slow, one at a time, to close it.
    pub probes: NonZeroU32,
}

impl Default for BreakerSpec {
    fn default() -> Self {
        Self {
            failure_rate: 0.5,
            slow_after: None,
            slow_rate: 0.5,
            window: Duration::from_secs(10),
            minimum: const { NonZeroU32::new(20).unwrap() },
            open_for: Duration::from_secs(5),
            probes: const { NonZeroU32::new(3).unwrap() },
        }
    }
}

/// How often to restart what dies, how long to wait before each restart, and when to say that nothing moves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SupervisorSpec {
    /// Restarts …
    pub max_restarts: u32,
    /// … within this time; one more and the pipeline gives up.
    pub within: Duration,
    /// What then happens to the process.
    pub on_give_up: OnGiveUp,
    /// The wait before the first restart of a task within that time.
    pub backoff: Duration,
    /// What the wait before each further one is multiplied by; at least 1.
    pub factor: f64,
    /// The longest wait.
    pub max_backoff: Duration,
    /// Whether to wait a random part of it, between half and all.
    pub jitter: bool,
    /// How long nothing may move although there is work, before the pipeline says that it has stalled. A stage whose
    /// handler may run for longer is given that time.
    pub stall_after: Duration,
}

impl Default for SupervisorSpec {
    fn default() -> Self {
        Self {
            max_restarts: 5,
            within: Duration::from_secs(60),
            on_give_up: OnGiveUp::Stop,
            backoff: Duration::from_millis(100),
            factor: 2.0,
            max_backoff: Duration::from_secs(30),
            jitter: true,
            stall_after: Duration::from_secs(60),
        }
    }
}

/// What happens to the process when a pipeline gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnGiveUp {
    /// The other pipelines go on.
    Stop,
    /// The host drains the others and ends with status 1.
    Exit,
}

/// What becomes of messages that come behind a gap in the numbers of their key; needs an ordering by key.
#[derive(Clone)]
pub struct SequenceSpec {
    /// Gives a message's number, in digits. One for which it gives none, or no number, passes unchecked.
    pub by: OrderBy,
    /// What becomes of what comes behind a gap.
    pub on_gap: OnGap,
    /// How many messages may be held, of all keys together; below [`Limits::in_flight`].
    pub held: NonZeroUsize,
    /// How long what is missing is waited for.
    pub wait: Duration,
}

impl SequenceSpec {
    /// Holds up to a thousand messages behind gaps, for half a minute.
    pub const fn new(by: OrderBy) -> Self {
        Self {
            by,
            on_gap: OnGap::Hold,
            held: Self::HELD,
            wait: Self::WAIT,
        }
    }

    /// How many messages are held where no bound is named.
    pub const HELD: NonZeroUsize = const { NonZeroUsize::new(1_000).unwrap() };
    /// How long what is missing is waited for where no time is named.
    pub const WAIT: Duration = Duration::from_secs(30);
}

impl fmt::Debug for SequenceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SequenceSpec")
            .field("on_gap", &self.on_gap)
            .field("held", &self.held)
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

/// What becomes of what comes behind a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnGap {
    /// It waits for what is missing, and goes on without it when the time is over.
    #[default]
    Hold,
    /// It goes on at once; the gap is counted and logged.
    Report,
    /// It waits for what is missing, and is given up when the time is over, with all that follows in its key until what is missing comes.
    DeadLetter,
}
