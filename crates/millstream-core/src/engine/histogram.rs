//! Values counted by size: [`Histogram`], of times and of sizes.
//!
//! Values come in runs of equal ones: a take records the mean of what was ready at once, a settlement the age of all
//! that came with one read.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::measures::Distribution;
use crate::rt::Duration;

/// Upper bounds of times, in nanoseconds.
const TIMES: [u64; 18] = [
    100_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
    300_000_000_000,
];

/// Upper bounds of numbers of messages.
const SIZES: [u64; 13] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000];

#[derive(Debug)]
pub(crate) struct Histogram {
    bounds: &'static [u64],
    /// How many of them are one in the unit of what is given out.
    per_unit: f64,
    /// One for each bound, and one for what is beyond them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Of times; given out in seconds.
    pub(crate) fn of_times() -> Self {
        Self::new(&TIMES, 1e9)
    }

    /// Of numbers of messages.
    pub(crate) fn of_sizes() -> Self {
        Self::new(&SIZES, 1.0)
    }

    fn new(bounds: &'static [u64], per_unit: f64) -> Self {
        Self {
            bounds,
            per_unit,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// So many values that took this long each.
    pub(crate) fn record_time(&self, time: Duration, times: usize) {
        self.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), times);
    }

    /// So many values of this size each.
    pub(crate) fn record(&self, value: u64, times: usize) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(times as u64, Ordering::Relaxed);
        }
        self.sum
            .fetch_add(value.saturating_mul(times as u64), Ordering::Relaxed);
    }

    /// How many values there were.
    pub(crate) fn count(&self) -> u64 {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }

    pub(crate) fn snapshot(&self) -> Distribution {
        let sum = self.sum.load(Ordering::Relaxed) as f64 / self.per_unit;
        let counts: Vec<_> = self
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .collect();
        Distribution {
            count: counts.iter().sum(),
            sum,
            buckets: self
                .bounds
                .iter()
                .map(|bound| *bound as f64 / self.per_unit)
                .zip(counts)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_bucket_that_holds_it() {
        let sizes = Histogram::of_sizes();
        sizes.record(1, 1);
        sizes.record(2, 3);
        sizes.record(3, 1);
        sizes.record(10_001, 2);
        let snapshot = sizes.snapshot();
        assert_eq!(snapshot.buckets.len(), SIZES.len());
        assert_eq!(snapshot.buckets[..4], [(1.0, 1), (2.0, 3), (5.0, 1), (10.0, 0)]);
        assert_eq!(snapshot.count, 7);
        assert!((snapshot.sum - 20_012.0).abs() < 1e-6);
    }

    #[test]
    fn times_are_given_out_in_seconds() {
        let times = Histogram::of_times();
        times.record_time(Duration::from_millis(2), 2);
        let snapshot = times.snapshot();
        assert!(snapshot.buckets.contains(&(0.0025, 2)));
        assert!((snapshot.sum - 0.004).abs() < 1e-12);
    }
}
