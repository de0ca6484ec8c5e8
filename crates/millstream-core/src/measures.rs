//! What a pipeline has measured beyond its counts: [`Measures`].

use std::sync::Arc;

use crate::batch::ClosedBy;
use crate::connector::Credit;
use crate::engine::{BreakerState, OpenedBy, Sentinel};
use crate::partition::{Partition, Rebalance};
use crate::rt::Duration;
use crate::settlement::Reason;

/// What a pipeline has measured since it was started, stage by stage.
#[derive(Clone, Debug, PartialEq)]
pub struct Measures {
    /// The processor.
    pub processor: StageMeasures,
    /// The batchers, in the order of the flow.
    pub batchers: Vec<BatcherMeasures>,
    /// Messages given up, by reason.
    pub given_up: Vec<(Reason, u64)>,
    /// Times that partitions of the source came or went, by how.
    pub rebalances: Vec<(Rebalance, u64)>,
    /// How often each sentinel has fired: never, unless a promise was broken.
    pub sentinels: Vec<(Sentinel, u64)>,
    /// The partitions that the source reads now; none where it knows no partitions.
    pub partitions: Option<Vec<Partition>>,
    /// Seconds from a message's receipt until its source had its settlement.
    pub settled_after: Distribution,
    /// How long ago the oldest message in flight was received.
    pub oldest: Option<Duration>,
    /// The breakers: the pipeline's own first, where it has one.
    pub breakers: Vec<BreakerMeasures>,
    /// Seconds that the store of the shared rate limit took to answer; none where there is none.
    pub rate_store: Option<Distribution>,
    /// What the source may fetch now: none while a limit is reached, or while pause, drain, breaker or a full
    /// batcher hold intake back.
    pub demand: Credit,
}

/// What a stage has done.
#[derive(Clone, Debug, PartialEq)]
pub struct StageMeasures {
    /// `processor`, or the batcher's name.
    pub name: Arc<str>,
    /// Messages whose run succeeded.
    pub succeeded: u64,
    /// Messages whose run did not, by why.
    pub failed: Vec<(Failed, u64)>,
    /// Seconds that the handler ran: for a message at a time, or for a batch.
    pub took: Distribution,
}

/// What a batcher has done.
#[derive(Clone, Debug, PartialEq)]
pub struct BatcherMeasures {
    /// As any stage.
    pub stage: StageMeasures,
    /// Messages that it holds now.
    pub held: usize,
    /// Messages in each batch that was handed to its handler, whose retries count no more.
    pub sizes: Distribution,
    /// The same batches by what closed them.
    pub closed: Vec<(ClosedBy, u64)>,
}

/// What a breaker has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerMeasures {
    /// The dependency that it stands for; nothing for the pipeline's own.
    pub dependency: Option<Arc<str>>,
    /// Its state now.
    pub state: BreakerState,
    /// Times that it opened, by why; it opens again with each probe that fails.
    pub opened: Vec<(OpenedBy, u64)>,
    /// Times that it closed after that.
    pub closed: u64,
}

/// How values were distributed.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// How many there were.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
    /// Upper bounds, ascending, each with how many values are beyond the bound before it and not beyond this one.
    pub buckets: Vec<(f64, u64)>,
}

/// Why a message's run in a stage did not succeed, as one of a few words that metrics can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Failed {
    /// The handler returned a failure that is worth another attempt.
    Failure,
    /// The handler said never again.
    Rejected,
    /// The handler panicked.
    Panic,
    /// The handler took longer than its timeout.
    Timeout,
    /// The worker died while the handler ran.
    Died,
    /// The payload did not decode into the processor's input.
    Decode,
    /// A dependency's breaker was open, so that it was not called.
    NotPermitted,
}

impl Failed {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Failure,
        Self::Rejected,
        Self::Panic,
        Self::Timeout,
        Self::Died,
        Self::Decode,
        Self::NotPermitted,
    ];

    /// The word that metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Rejected => "rejected",
            Self::Panic => "panic",
            Self::Timeout => "timeout",
            Self::Died => "died",
            Self::Decode => "decode",
            Self::NotPermitted => "not_permitted",
        }
    }

    /// Those that another attempt may follow.
    pub(crate) const RETRYABLE: [Self; 4] = [Self::Failure, Self::Panic, Self::Timeout, Self::Died];
}
