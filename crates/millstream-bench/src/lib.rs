//! What the benchmarks share: medians, and a table.

use std::time::Duration;

/// The figure in the middle; of an even number, the lower one of the two.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures
        .get((figures.len().max(1) - 1) / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

/// Millions of messages a second.
pub fn millions(messages: usize, took: Duration) -> f64 {
    messages as f64 / took.as_secs_f64() / 1e6
}
