//! What one stage has done: the processor, or a batcher (P8).
//!
//! As with all counters, tasks add to them once per take or batch.

use std::sync::Arc;

use super::counters::{Counter, Tally};
use super::histogram::Histogram;
use crate::batch::ClosedBy;
use crate::measures::{BatcherMeasures, Failed, StageMeasures};

/// The name of the stage that is not a batcher.
pub(crate) const PROCESSOR: &str = "processor";

/// How often each kind of failure was met.
pub(crate) type Failures = [usize; Failed::ALL.len()];

/// What a stage has done to messages.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) name: Arc<str>,
    pub(crate) succeeded: Counter,
    failed: Tally<{ Failed::ALL.len() }>,
    /// Of each run of the handler.
    pub(crate) took: Histogram,
}

impl Stage {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            succeeded: Counter::default(),
            failed: Tally::default(),
            took: Histogram::of_times(),
        }
    }

    pub(crate) fn failed(&self, kind: Failed, messages: usize) {
        self.failed.add(kind as usize, messages);
    }

    /// Adds them all, and begins anew.
    pub(crate) fn failed_all(&self, failures: &mut Failures) {
        for (kind, messages) in Failed::ALL.into_iter().zip(failures) {
            self.failed(kind, std::mem::take(messages));
        }
    }

    pub(crate) fn measures(&self) -> StageMeasures {
        StageMeasures {
            name: Arc::clone(&self.name),
            succeeded: self.succeeded.get(),
            failed: Failed::ALL.into_iter().zip(self.failed.get()).collect(),
            took: self.took.snapshot(),
        }
    }

    /// Messages that failed in one of these ways.
    pub(crate) fn failures(&self, kinds: &[Failed]) -> u64 {
        Failed::ALL
            .into_iter()
            .zip(self.failed.get())
            .filter(|(kind, _)| kinds.contains(kind))
            .map(|(_, messages)| messages)
            .sum()
    }
}

/// What a batcher's handler was given.
#[derive(Debug)]
pub(crate) struct Batches {
    pub(crate) stage: Stage,
    sizes: Histogram,
    closed: Tally<{ ClosedBy::ALL.len() }>,
}

impl Batches {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            stage: Stage::new(name),
            sizes: Histogram::of_sizes(),
            closed: Tally::default(),
        }
    }

    /// A batch of so many messages is run for the first time.
    pub(crate) fn handed_over(&self, messages: usize, by: ClosedBy) {
        self.sizes.record(messages as u64, 1);
        self.closed.add(by as usize, 1);
    }

    pub(crate) fn measures(&self, held: usize) -> BatcherMeasures {
        BatcherMeasures {
            stage: self.stage.measures(),
            held,
            sizes: self.sizes.snapshot(),
            closed: ClosedBy::ALL.into_iter().zip(self.closed.get()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settlement::Reason;

    #[test]
    fn what_is_counted_by_a_word_is_counted_under_that_word() {
        assert!(
            Failed::ALL
                .into_iter()
                .map(|kind| kind as usize)
                .eq(0..Failed::ALL.len())
        );
        assert!(
            ClosedBy::ALL
                .into_iter()
                .map(|by| by as usize)
                .eq(0..ClosedBy::ALL.len())
        );
        assert!(
            Reason::ALL
                .into_iter()
                .map(|reason| reason as usize)
                .eq(0..Reason::ALL.len())
        );
    }
}
