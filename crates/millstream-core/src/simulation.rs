//! Where a simulation sits in the engine: it permutes tasks, and sees when user code begins and ends.
//!
//! Without the feature `simulation` all of this is nothing. With it, it does nothing on a thread that has not
//! [entered](enter) a simulation.
#![cfg_attr(
    not(feature = "simulation"),
    allow(
        dead_code,
        unreachable_pub,
        rustdoc::broken_intra_doc_links,
        reason = "nobody looks"
    )
)]

use crate::ticket::Ticket;

#[cfg(not(feature = "simulation"))]
pub(crate) use off::*;
#[cfg(feature = "simulation")]
pub use on::*;

/// How a run of user code on one message ended, as the engine found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    /// Its work is done.
    Done,
    /// Its output goes to the batcher with this number.
    Batched(usize),
    /// It succeeded, and its batcher is stuck: the source keeps it for later.
    PutOff,
    /// Never again: the handler said so, the payload did not decode, or it chose a batcher that is not there.
    Rejected,
    /// In a way that is worth another attempt.
    Failed,
    /// Its batch failed as a whole, and is run again in parts.
    Split,
    /// It was cancelled, because its lease is lost or the pipeline was cut.
    Cancelled,
}

/// What the engine does with user code.
#[derive(Clone, Copy, Debug)]
pub enum Seen<'a> {
    /// The processor begins a run.
    Began(Ticket),
    /// It has ended.
    Ended(Ticket, Ended),
    /// The batch handler with this number begins a run.
    BatchBegan(usize, &'a [Ticket]),
    /// It has ended, so for each message.
    BatchEnded(usize, &'a [(Ticket, Ended)]),
    /// The user's code settled a message itself.
    SettledNow(Ticket),
}

/// There is no simulation.
#[cfg(not(feature = "simulation"))]
mod off {
    use super::Seen;

    pub(crate) const fn inside() -> bool {
        false
    }

    pub(crate) const fn see(_: Seen<'_>) {}

    pub(crate) fn at_leisure<F>(task: F) -> F {
        task
    }
}

#[cfg(feature = "simulation")]
mod on {
    use std::cell::{Cell, RefCell};
    use std::future::Future;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::task::{Context, Poll};

    use pin_project_lite::pin_project;

    use super::Seen;
    #[cfg(feature = "mutants")]
    pub use crate::mutants::{Mutant, plant};

    type Watch = Rc<dyn Fn(Seen<'_>)>;

    thread_local! {
        static INSIDE: Cell<bool> = const { Cell::new(false) };
        static SCHEDULE: RefCell<fastrand::Rng> = const { RefCell::new(fastrand::Rng::with_seed(0)) };
        /// Of 256 polls, so many are put off.
        static LATENESS: Cell<u8> = const { Cell::new(0) };
        static WATCH: RefCell<Option<Watch>> = const { RefCell::new(None) };
    }

    /// From now on this thread simulates: tasks run in an order that the seed chooses, chance is the seed's, and `watch`
    /// is told of user code. `lateness` of 256 polls of a task that may go on are put off behind all others.
    #[must_use]
    pub fn enter(seed: u64, lateness: u8, watch: impl Fn(Seen<'_>) + 'static) -> Inside {
        fastrand::seed(seed);
        SCHEDULE.set(fastrand::Rng::with_seed(!seed));
        LATENESS.set(lateness);
        WATCH.set(Some(Rc::new(watch)));
        INSIDE.set(true);
        Inside(())
    }

    /// While it lives, its thread simulates.
    #[derive(Debug)]
    pub struct Inside(());

    impl Drop for Inside {
        fn drop(&mut self) {
            INSIDE.set(false);
            WATCH.set(None);
        }
    }

    pub(crate) fn inside() -> bool {
        INSIDE.get()
    }

    pub(crate) fn see(seen: Seen<'_>) {
        let watch = WATCH.with_borrow(Option::clone);
        if let Some(watch) = watch {
            watch(seen);
        }
    }

    pin_project! {
        /// A task that, in a simulation, runs some time after it may.
        pub(crate) struct AtLeisure<F> {
            #[pin]
            task: F,
        }
    }

    pub(crate) fn at_leisure<F: Future>(task: F) -> AtLeisure<F> {
        AtLeisure { task }
    }

    impl<F: Future> Future for AtLeisure<F> {
        type Output = F::Output;

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
            if INSIDE.get() && SCHEDULE.with_borrow_mut(|schedule| schedule.u8(..)) < LATENESS.get() {
                // Behind all that is ready now.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.project().task.poll(cx)
        }
    }
}
