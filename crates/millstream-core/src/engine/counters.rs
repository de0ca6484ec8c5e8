//! What has happened in a pipeline, counted (P8).
//!
//! Tasks add to them once per chunk, take or batch.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        /// What has happened in a pipeline since it was started.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Counts {
                Counts { $($name: self.$name.get(),)* }
            }
        }

        impl Counts {
            /// What has happened since an earlier look.
            #[must_use]
            pub fn since(&self, earlier: &Self) -> Self {
                Self { $($name: self.$name.saturating_sub(earlier.$name),)* }
            }

            /// Each count with its name.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// Messages that came from the source.
    received,
    /// Processor runs that succeeded.
    processed,
    /// Processor runs that failed with a retryable failure.
    failed,
    /// Runs, of processors and batches, that panicked or whose worker died.
    panicked,
    /// Runs, of processors and batches, that took longer than their timeout.
    timed_out,
    /// Batches that were handled, whatever came of them.
    batches,
    /// Messages in batches that failed, or that failed in a batch, with a retryable failure.
    batch_failed,
    /// Attempts that were put off to a later time, within the process or through the source.
    retried,
    /// Waits before the next attempt that a handler wanted longer than a day, and that were cut to it.
    waits_cut,
    /// Failures that counted no attempt because the breaker was not closed.
    uncounted,
    /// Messages acknowledged: their work is done, or they are dead-lettered, discarded or put off.
    acked,
    /// Messages given up, before it is known where they end.
    given_up,
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
    /// Suspects that ran alone.
    suspects,
    /// Times that the breaker opened.
    breaker_opened,
    /// Times that a limit made intake wait.
    throttled,
    /// Times that the source worked again after it had not.
    reconnects,
    /// Tasks restarted by the supervisor.
    restarts,
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
