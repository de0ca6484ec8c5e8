//! How fast a pipeline goes: [`Pace`], and numbers as people read them.

use std::collections::VecDeque;

use millstream_core::Counts;
use millstream_core::rt::{Duration, Instant};

/// Messages per second over the last while.
#[derive(Debug)]
pub(crate) struct Pace {
    over: Duration,
    samples: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Over the last so long.
    pub(crate) fn over(time: Duration) -> Self {
        Self {
            over: time,
            samples: VecDeque::new(),
        }
    }

    /// The pace, now that so many are done in all. A smaller number than before is a new start.
    pub(crate) fn at(&mut self, now: Instant, done: u64) -> f64 {
        if self.samples.back().is_some_and(|(_, before)| *before > done) {
            self.samples.clear();
        }
        self.samples.push_back((now, done));
        // The first one that is old enough is what the last is compared with.
        while self
            .samples
            .get(1)
            .is_some_and(|(at, _)| now.duration_since(*at) >= self.over)
        {
            self.samples.pop_front();
        }
        match self.samples.front() {
            Some((since, before)) if *since < now => {
                (done - before) as f64 / now.duration_since(*since).as_secs_f64()
            }
            _ => 0.0,
        }
    }
}

/// Messages whose way has ended: acknowledged, or given up.
pub(crate) fn done(counts: &Counts) -> u64 {
    (counts.acked + counts.rejected).saturating_sub(given_up_by_ack(counts))
}

/// Dead letters that went elsewhere, and what was discarded, are acknowledged to their source.
fn given_up_by_ack(counts: &Counts) -> u64 {
    (counts.dead_lettered + counts.discarded).min(counts.acked)
}

/// The number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use millstream_core::rt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pace_is_of_the_last_while_alone() {
        let mut pace = Pace::over(Duration::from_secs(2));
        assert_eq!(pace.at(rt::now(), 500), 0.0);
        for second in 1..=5u64 {
            rt::sleep(Duration::from_secs(1)).await;
            assert_eq!(pace.at(rt::now(), 500 + second * 10), 10.0);
        }
        rt::sleep(Duration::from_secs(2)).await;
        assert_eq!(pace.at(rt::now(), 550), 0.0);
        assert_eq!(pace.at(rt::now(), 3), 0.0);
    }

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
