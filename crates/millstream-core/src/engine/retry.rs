//! When to try again: the wait before each attempt.

use std::time::Duration;

use crate::rt;
use crate::spec::RetrySpec;

/// The wait after this many failures, at least one: `backoff`, times `factor` for each further failure, up to
/// `max_backoff`, and with jitter a random part of it between half and all.
pub(crate) fn wait(spec: &RetrySpec, failures: u32) -> Duration {
    let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
    let seconds = spec.backoff.as_secs_f64() * spec.factor.powi(exponent);
    let longest = spec.max_backoff.as_secs_f64();
    let part = if spec.jitter {
        0.5 + rt::chance() / 2.0
    } else {
        1.0
    };
    Duration::from_secs_f64(seconds.min(longest) * part)
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
    fn jitter_stays_between_half_and_all() {
        for _ in 0..1_000 {
            let wait = wait(&RetrySpec::default(), 1).as_micros();
            assert!((50_000..=100_000).contains(&wait), "{wait}");
        }
    }
}
