//! The drain (P6): one deadline for all of it, and a report that adds up.

use std::fmt;

use super::counters::Counts;
use super::hub::Hub;
use super::sentinels::Sentinel;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Duration, Instant};
use crate::ticket::Ticket;

/// The last part of a drain, kept for release and flush.
const RESERVE: Duration = Duration::from_secs(2);

/// When a drain has to be where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    /// From then on nothing runs: the rest goes back.
    pub(crate) cut: Instant,
    /// By then it is over.
    pub(crate) deadline: Instant,
}

impl Order {
    /// A drain that is over within this time, two seconds of which, or half of it if that is less, are kept for
    /// release and flush.
    pub(crate) fn within(time: Duration) -> Self {
        Self {
            cut: rt::after(time - RESERVE.min(time / 2)),
            deadline: rt::after(time),
        }
    }

    /// How long is left of it.
    pub(crate) fn rest(&self) -> Duration {
        self.deadline.saturating_duration_since(rt::now())
    }

    /// No further run: release and flush at once.
    pub(crate) fn now() -> Self {
        let now = rt::now();
        Self {
            cut: now,
            deadline: now + RESERVE,
        }
    }
}

/// What became of what was in flight when a drain began, and of what its source still gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Messages in flight when it began, with those that the source gave afterwards.
    pub in_flight: u64,
    /// Work done and acknowledged.
    pub done: u64,
    /// Given up: dead-lettered, rejected or discarded.
    pub given_up: u64,
    /// Given back to the source, at once or for later.
    pub released: u64,
    /// Gone before they could be settled: their lease or assignment was lost.
    pub lost: u64,
    /// Not settled in time: the source hands them out again once it finds that the pipeline is gone.
    pub left: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            in_flight,
            done,
            given_up,
            released,
            lost,
            left,
            took,
        } = self;
        write!(
            f,
            "{in_flight} in flight: {done} done, {given_up} given up, {released} released, {lost} lost, {left} left, \
             in {:.1} s",
            took.as_secs_f64()
        )
    }
}

/// Where a pipeline stood when its drain began.
#[derive(Debug)]
pub(crate) struct Beginning {
    at: Instant,
    in_flight: usize,
    counts: Counts,
    /// Acknowledged by then as given up, and as put off.
    elsewhere: [u64; 2],
}

impl Beginning {
    pub(crate) fn of(hub: &Hub) -> Self {
        Self {
            at: rt::now(),
            in_flight: hub.places.messages(),
            counts: hub.counts(),
            elsewhere: Self::elsewhere(hub),
        }
    }

    fn elsewhere(hub: &Hub) -> [u64; 2] {
        [hub.elsewhere.given_up.get(), hub.elsewhere.put_off.get()]
    }

    pub(crate) fn report(&self, hub: &Hub) -> DrainReport {
        let since = hub.counts().since(&self.counts);
        let [given_up, put_off] = Self::elsewhere(hub);
        let given_up = given_up - self.elsewhere[0];
        let put_off = put_off - self.elsewhere[1];
        DrainReport {
            in_flight: self.in_flight as u64 + since.received,
            done: since.acked.saturating_sub(given_up + put_off),
            given_up: since.rejected + given_up,
            released: if mutant(Mutant::ReportShort) {
                0
            } else {
                since.released
            } + since.returned
                + put_off,
            lost: since.stale + since.lost,
            left: hub.places.messages() as u64,
            took: self.at.elapsed(),
        }
    }
}

/// A drain is over: what has run since this look, with nobody to cancel it, was forgotten.
pub(super) fn find_uncut(hub: &Hub, then: &[Ticket]) {
    let mut uncut = hub.seats.uncancelled();
    uncut.retain(|ticket| then.contains(ticket));
    if !uncut.is_empty() {
        hub.sentinels
            .fire(Sentinel::UncutRun, uncut.len(), &format_args!("{uncut:?}"));
    }
}
