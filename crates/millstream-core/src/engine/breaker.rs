//! The circuit breaker: closed while enough runs succeed, open while the pipeline waits, half open while a few
//! runs, one at a time, try whether it may close.
//!
//! It gates demand: while it is not closed the source fetches nothing but a probe, and failures count no attempt.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::rt::{Duration, Instant};
use crate::spec::BreakerSpec;

#[derive(Debug)]
pub(crate) struct Breaker {
    spec: BreakerSpec,
    /// Read on every take; the state itself only when this is false.
    closed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Closed(Window),
    Open {
        until: Instant,
    },
    HalfOpen {
        succeeded: u32,
        probing: Option<Instant>,
    },
}

/// What a breaker does, as people see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    /// Everything passes.
    Closed,
    /// Nothing passes.
    Open,
    /// One run at a time tries whether it may close.
    HalfOpen,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// It in a word that metrics can carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Breaker {
    pub(crate) fn new(spec: BreakerSpec) -> Self {
        Self {
            spec,
            closed: AtomicBool::new(true),
            state: Mutex::new(State::Closed(Window::default())),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match *self.state.lock() {
            State::Closed(_) => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether a probe may run now; if so, it counts as running until [`record`](Self::record) or, should its
    /// outcome never be known, until as long has passed as the breaker stays open.
    pub(crate) fn try_probe(&self, now: Instant) -> bool {
        match &mut *self.state.lock() {
            State::HalfOpen { probing, .. }
                if probing.is_none_or(|since| now >= since + self.spec.open_for) =>
            {
                *probing = Some(now);
                true
            }
            _ => false,
        }
    }

    /// Counts runs that ended. Rejects are no failures: they say something of the message, not of what it needs.
    /// Gives the new state if it has changed.
    pub(crate) fn record(&self, succeeded: u32, failed: u32, now: Instant) -> Option<BreakerState> {
        let mut state = self.state.lock();
        match &mut *state {
            State::Closed(window) => {
                window.count(succeeded, failed, now, self.spec.window);
                let (runs, failures) = window.sum();
                if runs < self.spec.minimum.get()
                    || f64::from(failures) < self.spec.failure_rate * f64::from(runs)
                {
                    return None;
                }
                *state = State::Open {
                    until: now + self.spec.open_for,
                };
                self.closed.store(false, Ordering::Release);
                Some(BreakerState::Open)
            }
            // What was running when it opened says nothing new.
            State::Open { .. } => None,
            State::HalfOpen { .. } if failed > 0 => {
                *state = State::Open {
                    until: now + self.spec.open_for,
                };
                Some(BreakerState::Open)
            }
            State::HalfOpen {
                succeeded: sum,
                probing,
            } => {
                *probing = None;
                *sum += succeeded;
                if *sum < self.spec.probes.get() {
                    return None;
                }
                *state = State::Closed(Window::default());
                self.closed.store(true, Ordering::Release);
                Some(BreakerState::Closed)
            }
        }
    }

    /// Half-opens it when its time has come. Says when to look again, and whether something may run now that
    /// could not before.
    pub(crate) fn tick(&self, now: Instant) -> (Option<Instant>, bool) {
        let mut state = self.state.lock();
        match &mut *state {
            State::Closed(_) => (None, false),
            State::Open { until } if now < *until => (Some(*until), false),
            State::Open { .. } => {
                *state = State::HalfOpen {
                    succeeded: 0,
                    probing: None,
                };
                (Some(now + self.spec.open_for), true)
            }
            // A probe whose outcome got lost must not keep it half open for ever.
            State::HalfOpen { .. } => (Some(now + self.spec.open_for), true),
        }
    }
}

/// Counts over the last while, in tenths of it.
#[derive(Debug, Default)]
struct Window(VecDeque<Slice>);

#[derive(Debug)]
struct Slice {
    from: Instant,
    runs: u32,
    failures: u32,
}

impl Window {
    fn count(&mut self, succeeded: u32, failed: u32, now: Instant, window: Duration) {
        while self.0.front().is_some_and(|slice| now >= slice.from + window) {
            self.0.pop_front();
        }
        if self.0.back().is_none_or(|slice| now >= slice.from + window / 10) {
            self.0.push_back(Slice {
                from: now,
                runs: 0,
                failures: 0,
            });
        }
        if let Some(slice) = self.0.back_mut() {
            slice.runs = slice.runs.saturating_add(succeeded + failed);
            slice.failures = slice.failures.saturating_add(failed);
        }
    }

    fn sum(&self) -> (u32, u32) {
        self.0.iter().fold((0, 0), |(runs, failures), slice| {
            (
                runs.saturating_add(slice.runs),
                failures.saturating_add(slice.failures),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rt;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerSpec::default())
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_the_failure_rate_but_not_below_the_minimum() {
        let breaker = breaker();
        assert_eq!(breaker.record(0, 19, rt::now()), None);
        assert!(breaker.is_closed());
        assert_eq!(breaker.record(0, 1, rt::now()), Some(BreakerState::Open));
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_what_is_older_than_its_window() {
        let breaker = breaker();
        breaker.record(0, 19, rt::now());
        tokio::time::advance(11 * SECOND).await;
        assert_eq!(breaker.record(0, 1, rt::now()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn probes_one_at_a_time_and_closes_after_enough_of_them() {
        let breaker = breaker();
        breaker.record(0, 20, rt::now());
        assert!(!breaker.try_probe(rt::now()));
        tokio::time::advance(5 * SECOND).await;
        assert!(breaker.tick(rt::now()).1);
        for remaining in [2, 1, 0] {
            assert!(breaker.try_probe(rt::now()));
            assert!(!breaker.try_probe(rt::now()), "a second probe beside the first");
            let change = breaker.record(1, 0, rt::now());
            assert_eq!(change, (remaining == 0).then_some(BreakerState::Closed));
        }
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_probe_opens_it_again() {
        let breaker = breaker();
        breaker.record(0, 20, rt::now());
        tokio::time::advance(5 * SECOND).await;
        breaker.tick(rt::now());
        assert!(breaker.try_probe(rt::now()));
        assert_eq!(breaker.record(0, 1, rt::now()), Some(BreakerState::Open));
        assert_eq!(breaker.tick(rt::now()), (Some(rt::now() + 5 * SECOND), false));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_without_an_outcome_does_not_hold_it_for_ever() {
        let breaker = breaker();
        breaker.record(0, 20, rt::now());
        tokio::time::advance(5 * SECOND).await;
        breaker.tick(rt::now());
        assert!(breaker.try_probe(rt::now()));
        tokio::time::advance(5 * SECOND).await;
        assert!(breaker.try_probe(rt::now()));
    }
}
