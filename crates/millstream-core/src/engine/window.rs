//! Counts over the last while: [`Window`].

use std::collections::VecDeque;

use crate::rt::{Duration, Instant};

/// So many counts over the last while, which is remembered in tenths of it.
#[derive(Debug)]
pub(super) struct Window<const COUNTS: usize>(VecDeque<Slice<COUNTS>>);

#[derive(Debug)]
struct Slice<const COUNTS: usize> {
    from: Instant,
    counts: [u32; COUNTS],
}

impl<const COUNTS: usize> Default for Window<COUNTS> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<const COUNTS: usize> Window<COUNTS> {
    /// Adds to each count; `length` is how long a while is.
    pub(super) fn count(&mut self, more: [u32; COUNTS], now: Instant, length: Duration) {
        self.forget(now, length);
        if self.0.back().is_none_or(|slice| now >= slice.from + length / 10) {
            self.0.push_back(Slice {
                from: now,
                counts: [0; COUNTS],
            });
        }
        if let Some(slice) = self.0.back_mut() {
            for (count, more) in slice.counts.iter_mut().zip(more) {
                *count = count.saturating_add(more);
            }
        }
    }

    /// What was counted over the last while.
    pub(super) fn sum(&mut self, now: Instant, length: Duration) -> [u32; COUNTS] {
        self.forget(now, length);
        sum(self.0.iter())
    }

    /// What was counted in the latest fifth of it.
    pub(super) fn latest(&self, now: Instant, length: Duration) -> [u32; COUNTS] {
        let latest = self
            .0
            .iter()
            .rev()
            .take_while(|slice| now < slice.from + length / 5);
        sum(latest)
    }

    fn forget(&mut self, now: Instant, length: Duration) {
        while self.0.front().is_some_and(|slice| now >= slice.from + length) {
            self.0.pop_front();
        }
    }
}

fn sum<'a, const COUNTS: usize>(slices: impl Iterator<Item = &'a Slice<COUNTS>>) -> [u32; COUNTS] {
    let mut sums = [0_u32; COUNTS];
    for slice in slices {
        for (sum, count) in sums.iter_mut().zip(slice.counts) {
            *sum = sum.saturating_add(count);
        }
    }
    sums
}
