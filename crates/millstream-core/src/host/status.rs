//! How a pipeline is: [`Status`] and [`Condition`].

use std::fmt;

use crate::engine::{BreakerState, Counts, Stall};

/// How a pipeline is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In one word.
    pub condition: Condition,
    /// What has happened since it was started.
    pub counts: Counts,
    /// Messages fetched and not yet settled.
    pub in_flight: usize,
    /// Bytes of the same.
    pub bytes: usize,
    /// Messages that may run now.
    pub ready: usize,
    /// Messages that wait behind others of their key.
    pub waiting: usize,
    /// Messages between two attempts.
    pub parked: usize,
    /// Messages that wait for another one: for what comes of one with their id, or for one that is missing before them.
    pub held: usize,
    /// Messages taken by workers.
    pub running: usize,
    /// Messages that may be processed at a time now; none once it has ended.
    pub concurrency: usize,
    /// Keys that have a message at work.
    pub lanes: usize,
    /// Messages that each batcher holds, by its name.
    pub batchers: Vec<(String, usize)>,
    /// The pipeline's own breaker, where it has one; those of dependencies are among the [`Measures`](crate::Measures).
    pub breaker: Option<BreakerState>,
    /// Messages that wait at the source, handed out to nobody, where it says so.
    pub depth: Option<u64>,
    /// Places of the source, such as partitions, that stand still at a message that was given up:
    /// [`DeadLetter::Halt`](crate::DeadLetter::Halt).
    pub halted: usize,
    /// What moves no more although it should: [`SupervisorSpec::stall_after`](crate::SupervisorSpec::stall_after).
    pub stalled: Option<Stall>,
}

/// A pipeline's condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has not opened its source yet.
    Starting,
    /// It runs.
    Running,
    /// It runs, but a part of it cannot do its work; this says which and why.
    Degraded(String),
    /// It fetches nothing because somebody said so.
    Paused,
    /// It is ending.
    Draining,
    /// It was drained or stopped.
    Ended,
    /// It ended by itself; this says why.
    GaveUp(String),
}

impl Condition {
    /// The words for all of them.
    pub const WORDS: [&'static str; 7] = [
        "starting", "running", "degraded", "paused", "draining", "ended", "gave_up",
    ];

    /// It in a word that metrics can carry.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded(_) => "degraded",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::GaveUp(_) => "gave_up",
        }
    }
}

/// It for people, with its cause where there is one.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Degraded(why) => write!(f, "degraded: {why}"),
            Self::GaveUp(why) => write!(f, "gave up: {why}"),
            other => f.write_str(other.as_str()),
        }
    }
}
