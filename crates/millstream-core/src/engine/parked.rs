//! Messages between two attempts: [`Parked`]. Each holds its lane and its place in the limits, and no worker.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use super::budget::{AGAIN, Budget};
use super::envelope::Envelope;
use crate::rt::Instant;

/// What waits for its next attempt, by when that is due.
#[derive(Debug, Default)]
pub(super) struct Parked {
    heap: BinaryHeap<Reverse<Waiting>>,
    /// Counts them, so that equal due times keep their order.
    parkings: u64,
    /// How many were due at the last look, with no room in the budget.
    held: usize,
}

#[derive(Debug)]
struct Waiting {
    due: Instant,
    number: u64,
    envelope: Envelope,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.due, self.number).cmp(&(other.due, other.number))
    }
}

impl Parked {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// The one that is due first, and when.
    pub(super) fn first(&self) -> Option<(Instant, &Envelope)> {
        let Reverse(first) = self.heap.peek()?;
        Some((first.due, &first.envelope))
    }

    /// Says whether the new one is due before all others.
    pub(super) fn park(&mut self, due: Instant, envelope: Envelope) -> bool {
        let sooner = self.first().is_none_or(|(first, _)| due < first);
        self.parkings += 1;
        self.heap.push(Reverse(Waiting {
            due,
            number: self.parkings,
            envelope,
        }));
        sooner
    }

    /// Takes out what is due, as much of it as the budget allows. Says when to look again, and how many are held for the
    /// first time.
    pub(super) fn take_due(
        &mut self,
        budget: &Budget,
        now: Instant,
    ) -> (Vec<Envelope>, Option<Instant>, usize) {
        let (mut allowed, mut newly_held) = (usize::MAX, 0);
        if budget.is_set() {
            let due = self.heap.iter().filter(|Reverse(waiting)| waiting.due <= now);
            let due = due.count();
            allowed = budget.take(due, now);
            // The first to go are those that were held before.
            newly_held = (due - allowed).saturating_sub(self.held.saturating_sub(allowed));
            self.held = due - allowed;
        }
        let mut due = Vec::new();
        while due.len() < allowed && self.first().is_some_and(|(first, _)| first <= now) {
            due.extend(self.heap.pop().map(|Reverse(waiting)| waiting.envelope));
        }
        let next = self
            .first()
            .map(|(due, _)| if due <= now { now + AGAIN } else { due });
        (due, next, newly_held)
    }

    /// Takes out those that `leave` picks.
    pub(super) fn remove(&mut self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.heap)
            .into_iter()
            .partition(|Reverse(waiting)| leave(&waiting.envelope));
        self.heap = stay.into();
        gone.into_iter()
            .map(|Reverse(waiting)| waiting.envelope)
            .collect()
    }

    /// Takes out all of them, by when they are due.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (Instant, Envelope)> + use<> {
        let all = std::mem::take(&mut self.heap).into_sorted_vec();
        all.into_iter()
            .rev()
            .map(|Reverse(Waiting { due, envelope, .. })| (due, envelope))
    }
}
