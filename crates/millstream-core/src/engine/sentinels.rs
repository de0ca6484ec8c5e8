//! Sentinels: checks, always on, that the promises are kept. Their counts stay at zero; one that does not is a defect
//! of the engine or of a connector, and says so in the log, in the metrics and in the pipeline's condition.
//!
//! Each is a comparison of numbers that are at hand anyway.

use std::fmt;
use std::sync::Arc;

use tracing::error;

use super::counters::Tally;
use super::rare::Rare;

/// A check that one promise is kept. Its count stays at zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sentinel {
    /// P1: more messages were acknowledged than were done, recorded elsewhere, or settled by the user's code.
    UnearnedAck,
    /// P2: settlements were answered for of which there was no delivery in flight.
    DoubleSettlement,
    /// P2, P4: places were held, and nothing in the engine held a message for them.
    LeakedPlace,
    /// P3: a message of a key was started while another of it ran, or before one that came earlier.
    KeyInversion,
    /// P4: a source handed over more messages than were asked of it.
    Overfetch,
    /// P6: a drain's time was up, and a handler ran that nobody had cancelled.
    UncutRun,
    /// P7: a commit would have passed a message that was not settled. It was not made.
    CommitGap,
    /// P8: the counts do not say what has become of every message.
    Unaccounted,
}

impl Sentinel {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::UnearnedAck,
        Self::DoubleSettlement,
        Self::LeakedPlace,
        Self::KeyInversion,
        Self::Overfetch,
        Self::UncutRun,
        Self::CommitGap,
        Self::Unaccounted,
    ];

    /// The word that metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UnearnedAck => "unearned_ack",
            Self::DoubleSettlement => "double_settlement",
            Self::LeakedPlace => "leaked_place",
            Self::KeyInversion => "key_inversion",
            Self::Overfetch => "overfetch",
            Self::UncutRun => "uncut_run",
            Self::CommitGap => "commit_gap",
            Self::Unaccounted => "unaccounted",
        }
    }

    /// The first of the promises that it guards, as `ARCHITECTURE.md` numbers them.
    pub const fn promise(self) -> &'static str {
        match self {
            Self::UnearnedAck => "P1",
            Self::DoubleSettlement | Self::LeakedPlace => "P2",
            Self::KeyInversion => "P3",
            Self::Overfetch => "P4",
            Self::UncutRun => "P6",
            Self::CommitGap => "P7",
            Self::Unaccounted => "P8",
        }
    }
}

impl fmt::Display for Sentinel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnearnedAck => "a message was acknowledged before its work was done",
            Self::DoubleSettlement => "a delivery was settled twice",
            Self::LeakedPlace => "a place was never given back",
            Self::KeyInversion => "a key's messages ran out of order",
            Self::Overfetch => "the source gave more than was asked of it",
            Self::UncutRun => "a drain did not cancel what ran",
            Self::CommitGap => "a commit would have passed an unsettled message",
            Self::Unaccounted => "the counts do not add up to the messages received",
        })
    }
}

/// How often each sentinel has fired in a pipeline.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pipeline: Arc<str>,
    fired: Tally<{ Sentinel::ALL.len() }>,
    lines: [Rare; Sentinel::ALL.len()],
}

impl Sentinels {
    pub(crate) fn new(pipeline: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            pipeline,
            fired: Tally::default(),
            lines: std::array::from_fn(|_| Rare::default()),
        })
    }

    /// This one has fired so often; `known` is what is known of it. To be called under no lock.
    #[cold]
    pub(crate) fn fire(&self, sentinel: Sentinel, times: usize, known: &dyn fmt::Display) {
        self.fired.add(sentinel as usize, times);
        if let Some(unwritten) = self.lines.get(sentinel as usize).and_then(Rare::tell) {
            error!(
                pipeline = %self.pipeline, sentinel = sentinel.as_str(), times, %known, unwritten,
                "a promise was broken: {sentinel}; this is a defect, please report it"
            );
        }
    }

    /// Each with how often it has fired.
    pub(crate) fn counts(&self) -> Vec<(Sentinel, u64)> {
        Sentinel::ALL.into_iter().zip(self.fired.get()).collect()
    }

    /// What the pipeline's condition says of them; nothing while none has fired.
    pub(crate) fn cause(&self) -> Option<String> {
        let fired = self.counts().into_iter().filter(|(_, times)| *times > 0);
        let fired: Vec<_> = fired.map(|(sentinel, _)| sentinel.to_string()).collect();
        (!fired.is_empty()).then(|| format!("promises: {}", fired.join("; ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_counted_under_its_word_and_named_in_the_condition() {
        let sentinels = Sentinels::new("test".into());
        assert_eq!(sentinels.cause(), None);
        for (index, sentinel) in Sentinel::ALL.into_iter().enumerate() {
            assert_eq!(sentinel as usize, index);
            sentinels.fire(sentinel, index + 1, &"known");
        }
        let counts: Vec<_> = sentinels.counts().into_iter().map(|(_, times)| times).collect();
        assert_eq!(counts, [1, 2, 3, 4, 5, 6, 7, 8]);
        let cause = sentinels.cause().unwrap();
        assert!(
            Sentinel::ALL
                .iter()
                .all(|sentinel| cause.contains(&sentinel.to_string())),
            "{cause}"
        );
    }
}
