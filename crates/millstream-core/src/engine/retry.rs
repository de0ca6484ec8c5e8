//! When to try again: the wait before each attempt.

use std::time::Duration;

use crate::rt;
use crate::spec::RetrySpec;

/// The wait after this many failures, at least one: `backoff`, times `factor` for each further failure, up to
/// `max_backoff`, and with jitter a random part of it between half and all.
pub(crate) fn wait(spec: &RetrySpec, failures: u32) -> Duration {
    let part = if spec.jitter {
        0.5 + rt::chance() / 2.0
    } else {
        1.0
    };
    most(spec, failures).mul_f64(part)
}

/// All waits until so many failures are over, at their longest.
pub(crate) fn longest_wait(spec: &RetrySpec, failures: u32) -> Duration {
    let longest = spec.max_backoff.as_secs_f64();
    let first = spec.backoff.as_secs_f64().min(longest);
    let (factor, failures) = (spec.factor, f64::from(failures));
    if first == 0.0 {
        return Duration::ZERO;
    }
    // Those that grow, and those that do not any more.
    let growing = match factor > 1.0 {
        true => ((longest / first).ln() / factor.ln()).ceil().min(failures),
        false => 0.0,
    };
    let steady = if factor > 1.0 { longest } else { first };
    let mut seconds = steady * (failures - growing);
    if growing > 0.0 {
        seconds += first * (factor.powf(growing) - 1.0) / (factor - 1.0);
    }
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn most(spec: &RetrySpec, failures: u32) -> Duration {
    let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = spec.backoff.as_secs_f64() * spec.factor.powi(exponent);
    Duration::from_secs_f64(seconds.min(spec.max_backoff.as_secs_f64()))
}

/// What the engine itself waits between attempts at something that must succeed in the end, such as opening a
/// connector: from 100 ms up to 30 s, with jitter.
pub(crate) fn patience(failures: u32) -> Duration {
    wait(&RetrySpec::default(), failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_by_the_factor_up_to_the_longest() {
        let spec = RetrySpec {
            jitter: false,
            ..RetrySpec::default()
        };
        let waits: Vec<_> = [1, 2, 3, 9, 10, u32::MAX]
            .map(|failures| wait(&spec, failures).as_millis())
            .into();
        assert_eq!(waits, [100, 200, 400, 25_600, 30_000, 30_000]);
    }

    #[test]
    fn all_waits_together_are_a_sum_also_of_very_many() {
        let spec = RetrySpec::default();
        let millis = |failures| longest_wait(&spec, failures).as_secs_f64() * 1_000.0;
        let sum = |failures| {
            (1..=failures)
                .map(|failure| most(&spec, failure).as_secs_f64() * 1_000.0)
                .sum::<f64>()
        };
        for failures in [0, 1, 3, 8, 9, 10, 1_000] {
            let (found, expected) = (millis(failures), sum(failures));
            assert!(
                (found - expected).abs() < 1.0,
                "{failures}: {found} and {expected}"
            );
        }
        assert!(longest_wait(&spec, u32::MAX) > Duration::from_secs(30) * (u32::MAX - 10));
        let steady = RetrySpec { factor: 1.0, ..spec };
        assert_eq!(longest_wait(&steady, 50), Duration::from_secs(5));
        let none = RetrySpec {
            backoff: Duration::ZERO,
            ..spec
        };
        assert_eq!(longest_wait(&none, u32::MAX), Duration::ZERO);
    }

    #[test]
    fn jitter_stays_between_half_and_all() {
        for _ in 0..1_000 {
            let wait = wait(&RetrySpec::default(), 1).as_micros();
            assert!((50_000..=100_000).contains(&wait), "{wait}");
        }
    }
}
