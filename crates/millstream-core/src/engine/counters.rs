//! What has happened in a pipeline, counted (P8).
//!
//! Tasks add to them once per chunk, take or batch.

use std::sync::atomic::{AtomicU64, Ordering};

use super::hub::Hub;
use crate::measures::Failed;
use crate::partition::Rebalance;
use crate::settlement::Reason;

macro_rules! counters {
    (
        $($(#[$doc:meta])* $name:ident,)*
        { $($(#[$sum_doc:meta])* $sum:ident,)* }
    ) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
            /// Messages given up, by reason.
            pub(crate) reasons: Tally<{ Reason::ALL.len() }>,
            /// Times that partitions came or went, by how.
            pub(crate) rebalances: Tally<{ Rebalance::ALL.len() }>,
        }

        /// What has happened in a pipeline since it was started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
            $($(#[$sum_doc])* pub $sum: u64,)*
        }

        impl Counters {
            /// What was counted here; the sums over stages and reasons are none yet.
            fn snapshot(&self) -> Counts {
                Counts {
                    $($name: self.$name.get(),)*
                    $($sum: 0,)*
                }
            }
        }

        impl Counts {
            /// What has happened since an earlier look.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self {
                    $($name: self.$name.saturating_sub(earlier.$name),)*
                    $($sum: self.$sum.saturating_sub(earlier.$sum),)*
                }
            }

            /// Each count with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [
                    $((stringify!($name), self.$name),)*
                    $((stringify!($sum), self.$sum),)*
                ]
                .into_iter()
            }
        }
    };
}

counters! {
    /// Messages that came from the source.
    received,
    /// Attempts that were put off to a later time, within the process or through the source.
    retried,
    /// Waits before the next attempt that a handler wanted longer than a day, and that were cut to it.
    waits_cut,
    /// Attempts that were put off for longer because the retry budget was spent.
    over_budget,
    /// Failures that counted no attempt because a breaker was not closed, or was about to open.
    uncounted,
    /// Messages acknowledged: their work is done, or they are dead-lettered, discarded or put off.
    acked,
    /// Messages that the source was told to reject.
    rejected,
    /// Messages that the dead-letter sink has confirmed; the source hears of it next.
    dead_lettered,
    /// Messages given up and dropped because the pipeline says so.
    discarded,
    /// Messages given back to the source untouched.
    released,
    /// Messages given back to the source for a later time.
    returned,
    /// Messages that the source's retry sink has confirmed for a later time; the source hears of it next.
    put_off,
    /// Unstarted messages dropped because their lease or assignment was lost.
    lost,
    /// Messages settled by the user's code before their work was done.
    settled_early,
    /// Settlements that came too late: the store hands the message out again.
    stale,
    /// Settlements that failed and were tried again.
    settle_retries,
    /// Dead letters and put-off messages that their sink did not take and that were tried again.
    outbox_retries,
    /// Messages acknowledged unrun because one with their id was done within the window.
    duplicates,
    /// Messages that have no id to be told from others by.
    unidentified,
    /// Messages that ran or were acknowledged although the store of ids could not be asked or told.
    unchecked,
    /// Times that the store of ids could not be asked or told.
    store_failures,
    /// Ids that the store has forgotten before their window was over, to have room.
    forgotten_ids,
    /// Gaps in the numbers of a key that were met, or waited for in vain.
    sequence_gaps,
    /// Messages whose number their key had passed already; they run.
    sequence_repeats,
    /// Messages that were held because one was missing before them.
    sequence_held,
    /// Messages without a number, or without a key, that pass unchecked.
    unnumbered,
    /// Batches, and parts of them, that failed as a whole and were run again in parts.
    batches_split,
    /// Suspects that ran alone.
    suspects,
    /// Times that a limit made intake wait.
    throttled,
    /// Times that the store of the shared rate limit could not be asked.
    rate_store_failures,
    /// Messages that had their turn by the limit of this process alone, because that store was away.
    unshared,
    /// Times that the source worked again after it had not.
    reconnects,
    /// Times that the store did not take note of what is settled, and was to be told again.
    commit_failures,
    /// Tasks restarted by the supervisor.
    restarts,
    /// Times that nothing moved for a while although there was work.
    stalls,
    {
        /// Messages whose processor run succeeded.
        processed,
        /// Messages whose processor run failed in a way that is worth another attempt.
        failed,
        /// Messages whose run, of a processor or a batch, panicked or was lost with its worker.
        panicked,
        /// Messages whose run, of a processor or a batch, took longer than its timeout.
        timed_out,
        /// Batches that were handled, whatever came of them.
        batches,
        /// Messages in batches that failed, or that failed in a batch, in a way that is worth another attempt.
        batch_failed,
        /// Messages given up, before it is known where they end.
        given_up,
        /// Times that a breaker opened, the pipeline's own or a dependency's.
        breaker_opened,
    }
}

impl Hub {
    /// What has happened since the pipeline was started.
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts {
            processed: self.processor.succeeded.get(),
            failed: self.processor.failures(&Failed::RETRYABLE),
            given_up: self.counters.reasons.get().into_iter().sum(),
            breaker_opened: self.breakers.opened(),
            ..self.counters.snapshot()
        };
        for batcher in self.batchers() {
            let stage = &batcher.batches().stage;
            counts.batches += stage.took.count();
            counts.batch_failed += stage.failures(&Failed::RETRYABLE);
        }
        let batchers = self.batchers().iter().map(|batcher| &batcher.batches().stage);
        for stage in batchers.chain([&self.processor]) {
            counts.panicked += stage.failures(&[Failed::Panic, Failed::Died]);
            counts.timed_out += stage.failures(&[Failed::Timeout]);
        }
        counts
    }
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, number: usize) {
        if number > 0 {
            self.0.fetch_add(number as u64, Ordering::Relaxed);
        }
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter for each of a few words.
#[derive(Debug)]
pub(crate) struct Tally<const WORDS: usize>([Counter; WORDS]);

impl<const WORDS: usize> Default for Tally<WORDS> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const WORDS: usize> Tally<WORDS> {
    /// `word` is its place among all of them.
    pub(crate) fn add(&self, word: usize, number: usize) {
        if let Some(counter) = self.0.get(word) {
            counter.add(number);
        }
    }

    pub(crate) fn get(&self) -> [u64; WORDS] {
        self.0.each_ref().map(Counter::get)
    }
}
