//! Restarts: how many there were of late, how long each waits, and those that wait now.

use std::collections::VecDeque;

use super::pipeline::Child;
use super::retry;
use crate::rt::{self, Duration, Instant};
use crate::spec::{RetrySpec, SupervisorSpec};

/// The restarts of one pipeline's tasks.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    /// When each of late was asked for, and of what.
    lately: VecDeque<(Instant, Child)>,
    /// What is to be started again, and when.
    waiting: Vec<(Instant, Child)>,
}

impl Restarts {
    /// How long to wait before this one is started again: longer each time that the same one dies within the time that
    /// the spec gives. None where there are too many restarts of all of them.
    pub(super) fn next(&mut self, spec: &SupervisorSpec, child: Child) -> Option<Duration> {
        let now = rt::now();
        self.lately.push_back((now, child));
        while self
            .lately
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > spec.within)
        {
            self.lately.pop_front();
        }
        if self.lately.len() > spec.max_restarts as usize {
            return None;
        }
        let deaths = self.lately.iter().filter(|(_, of)| *of == child).count();
        let schedule = RetrySpec {
            backoff: spec.backoff,
            factor: spec.factor,
            max_backoff: spec.max_backoff,
            jitter: spec.jitter,
            ..RetrySpec::default()
        };
        Some(retry::wait(&schedule, u32::try_from(deaths).unwrap_or(u32::MAX)))
    }

    /// This one is to be started again then.
    pub(super) fn wait(&mut self, child: Child, until: Instant) {
        self.waiting.push((until, child));
    }

    /// Waits for the next one whose time has come, and forgets it; for ever while there is none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn due(&mut self) -> Child {
        let next = self.waiting.iter().map(|(until, _)| *until).min();
        let Some(until) = next else {
            return std::future::pending().await;
        };
        rt::sleep_until(until).await;
        let index = self.waiting.iter().position(|(of, _)| *of == until);
        match index {
            Some(index) => self.waiting.swap_remove(index).1,
            None => std::future::pending().await,
        }
    }

    /// All that wait, to be started now.
    pub(super) fn take(&mut self) -> Vec<Child> {
        let waiting = std::mem::take(&mut self.waiting);
        waiting.into_iter().map(|(_, child)| child).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> SupervisorSpec {
        SupervisorSpec {
            max_restarts: 6,
            max_backoff: Duration::from_secs(1),
            jitter: false,
            ..SupervisorSpec::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_dies_again_waits_longer_up_to_the_longest_and_others_do_not() {
        let mut restarts = Restarts::default();
        let mut next = |child| restarts.next(&spec(), child).map(|wait| wait.as_millis());
        let link: Vec<_> = (0..5).map(|_| next(Child::Link)).collect();
        assert_eq!(link, [100, 200, 400, 800, 1_000].map(Some));
        assert_eq!(next(Child::Timers), Some(100));
        assert_eq!(next(Child::Timers), None, "too many of all of them");
    }

    #[tokio::test(start_paused = true)]
    async fn what_died_long_ago_counts_no_more() {
        let mut restarts = Restarts::default();
        assert!((0..6).all(|_| restarts.next(&spec(), Child::Link).is_some()));
        tokio::time::advance(spec().within + Duration::from_secs(1)).await;
        let wait = restarts.next(&spec(), Child::Link);
        assert_eq!(wait, Some(Duration::from_millis(100)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_soonest_is_due_first() {
        let mut restarts = Restarts::default();
        let second = Duration::from_secs(1);
        restarts.wait(Child::Link, rt::after(2 * second));
        restarts.wait(Child::Timers, rt::after(second));
        assert_eq!(restarts.due().await, Child::Timers);
        assert_eq!(restarts.due().await, Child::Link);
        assert!(restarts.take().is_empty());
    }
}
