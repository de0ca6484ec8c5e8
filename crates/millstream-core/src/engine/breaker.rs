//! A circuit breaker: closed while enough runs succeed and few are slow, open while the pipeline waits, half open
//! while a few runs, one at a time, try whether it may close.
//!
//! It knows its own state alone; what that means for the pipeline is in `breakers`.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::window::Window;
use crate::rt::{Duration, Instant};
use crate::spec::BreakerSpec;

#[derive(Debug)]
pub(crate) struct Breaker {
    /// Read often; the state itself only when this is false.
    closed: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    spec: BreakerSpec,
    state: State,
    /// Counts the states that it has had: what was permitted in an earlier one says nothing of this one.
    era: u64,
    /// Since when, while it is closed, so many of the latest runs failed that it may be about to open.
    failing_since: Option<Instant>,
}

#[derive(Debug)]
enum State {
    /// Runs, failures, slow ones.
    Closed(Window<3>),
    Open {
        until: Instant,
    },
    HalfOpen {
        succeeded: u32,
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

/// Why a breaker opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenedBy {
    /// Too many runs failed.
    Failures,
    /// Too many runs were slow.
    Slow,
    /// While it was half open, one failed or was slow.
    Probe,
}

impl OpenedBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Failures, Self::Slow, Self::Probe];

    /// The word that metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Slow => "slow",
            Self::Probe => "probe",
        }
    }
}

/// Runs that ended; the slow ones are among the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    pub(crate) slow: usize,
}

/// How a breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    Opened(OpenedBy),
    Closed,
}

impl Breaker {
    pub(crate) fn new(spec: BreakerSpec) -> Self {
        Self {
            closed: AtomicBool::new(true),
            inner: Mutex::new(Inner {
                spec,
                state: State::Closed(Window::default()),
                era: 0,
                failing_since: None,
            }),
        }
    }

    /// From now on these settings hold. It stays as it is, and what it has counted stands; how long it is still open
    /// was said when it opened.
    pub(crate) fn set(&self, spec: BreakerSpec) {
        self.inner.lock().spec = spec;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.inner.lock().state {
            State::Closed(_) => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    pub(crate) fn spec(&self) -> BreakerSpec {
        self.inner.lock().spec
    }

    /// Which of the states that it has had it is in.
    pub(crate) fn era(&self) -> u64 {
        self.inner.lock().era
    }

    /// Whether something may pass now, and if so in which era.
    pub(crate) fn permit(&self) -> Option<u64> {
        let inner = self.inner.lock();
        (!matches!(inner.state, State::Open { .. })).then_some(inner.era)
    }

    /// Counts what began in this era, unless it is in another by now: what ran when it opened says nothing of what came
    /// after. Rejects are no failures: they say something of the message, not of what it needs. Says how it has changed, if
    /// it has.
    pub(crate) fn record(&self, era: u64, runs: Runs, now: Instant) -> Option<Turn> {
        let mut inner = self.inner.lock();
        if inner.era != era {
            return None;
        }
        let inner = &mut *inner;
        let spec = inner.spec;
        let [succeeded, failed, slow] =
            [runs.succeeded, runs.failed, runs.slow].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        match &mut inner.state {
            State::Closed(window) => {
                let ended = succeeded.saturating_add(failed);
                window.count([ended, failed, slow], now, spec.window);
                let [latest, failures, _] = window.latest(now, spec.window);
                let failing = failures > 0 && f64::from(failures) >= spec.failure_rate * f64::from(latest);
                let [runs, failures, slow] = window.sum(now, spec.window);
                let enough = runs >= spec.minimum.get();
                inner.failing_since = (failing && enough).then(|| inner.failing_since.unwrap_or(now));
                if !enough {
                    return None;
                }
                let too_many = |number: u32, rate: f64| f64::from(number) >= rate * f64::from(runs);
                let by = if too_many(failures, spec.failure_rate) {
                    OpenedBy::Failures
                } else if spec.slow_after.is_some() && too_many(slow, spec.slow_rate) {
                    OpenedBy::Slow
                } else {
                    return None;
                };
                Some(self.open(inner, now, by))
            }
            // What was running when it opened says nothing new.
            State::Open { .. } => None,
            State::HalfOpen { .. } if failed > 0 || slow > 0 => Some(self.open(inner, now, OpenedBy::Probe)),
            State::HalfOpen { succeeded: sum } => {
                *sum = sum.saturating_add(succeeded);
                if *sum < spec.probes.get() {
                    return None;
                }
                inner.state = State::Closed(Window::default());
                inner.era += 1;
                self.closed.store(true, Ordering::Release);
                Some(Turn::Closed)
            }
        }
    }

    /// Whether it may be about to open: so many of the latest runs failed, and not for a whole window yet. An outage
    /// that begins in the midst of many runs that succeeded takes a while to show in the share of all of them.
    pub(crate) fn may_open(&self, now: Instant) -> bool {
        let inner = self.inner.lock();
        let since = inner.failing_since.filter(|_| self.is_closed());
        since.is_some_and(|since| now < since + inner.spec.window)
    }

    fn open(&self, inner: &mut Inner, now: Instant, by: OpenedBy) -> Turn {
        inner.failing_since = None;
        inner.state = State::Open {
            until: now + inner.spec.open_for,
        };
        inner.era += 1;
        self.closed.store(false, Ordering::Release);
        Turn::Opened(by)
    }

    /// Half-opens it when its time has come. Says when to look again, and whether it was half-opened.
    pub(crate) fn tick(&self, now: Instant) -> (Option<Instant>, bool) {
        let mut inner = self.inner.lock();
        match inner.state {
            State::Closed(_) => (None, false),
            State::Open { until } if now < until => (Some(until), false),
            State::Open { .. } => {
                inner.state = State::HalfOpen { succeeded: 0 };
                inner.era += 1;
                (Some(now + inner.spec.open_for), true)
            }
            // A probe whose outcome got lost must not keep it half open for ever.
            State::HalfOpen { .. } => (Some(now + inner.spec.open_for), false),
        }
    }

    /// Whether a run that took so long counts as slow.
    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        self.inner.lock().spec.slow_after.is_some_and(|slow| took >= slow)
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

    fn runs(succeeded: usize, failed: usize) -> Runs {
        Runs {
            succeeded,
            failed,
            slow: 0,
        }
    }

    /// Counts runs that have begun just now.
    fn record(breaker: &Breaker, runs: Runs) -> Option<Turn> {
        breaker.record(breaker.era(), runs, rt::now())
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_the_failure_rate_but_not_below_the_minimum() {
        let breaker = breaker();
        assert_eq!(record(&breaker, runs(0, 19)), None);
        assert!(breaker.is_closed());
        let turn = record(&breaker, runs(0, 1));
        assert_eq!(turn, Some(Turn::Opened(OpenedBy::Failures)));
        assert!(!breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn opens_at_the_rate_of_slow_runs_where_it_knows_what_is_slow() {
        let slow = Runs {
            succeeded: 20,
            failed: 0,
            slow: 10,
        };
        assert_eq!(record(&breaker(), slow), None);
        let breaker = Breaker::new(BreakerSpec {
            slow_after: Some(2 * SECOND),
            ..BreakerSpec::default()
        });
        assert!(breaker.is_slow(2 * SECOND) && !breaker.is_slow(SECOND));
        let few = Runs { slow: 9, ..slow };
        assert_eq!(record(&breaker, few), None);
        let turn = record(&breaker, Runs { slow: 11, ..slow });
        assert_eq!(turn, Some(Turn::Opened(OpenedBy::Slow)));
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_what_is_older_than_its_window() {
        let breaker = breaker();
        record(&breaker, runs(0, 19));
        tokio::time::advance(11 * SECOND).await;
        assert_eq!(record(&breaker, runs(0, 1)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn lets_nothing_pass_while_open_and_closes_after_enough_that_succeed() {
        let breaker = breaker();
        record(&breaker, runs(0, 20));
        assert_eq!(breaker.permit(), None);
        tokio::time::advance(5 * SECOND).await;
        assert!(breaker.tick(rt::now()).1);
        for remaining in [2, 1, 0] {
            let era = breaker.permit().unwrap();
            let turn = breaker.record(era, runs(1, 0), rt::now());
            assert_eq!(turn, (remaining == 0).then_some(Turn::Closed));
        }
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_fails_or_is_slow_opens_it_again() {
        for bad in [
            runs(0, 1),
            Runs {
                slow: 1,
                ..runs(1, 0)
            },
        ] {
            let breaker = breaker();
            record(&breaker, runs(0, 20));
            tokio::time::advance(5 * SECOND).await;
            breaker.tick(rt::now());
            let turn = record(&breaker, bad);
            assert_eq!(turn, Some(Turn::Opened(OpenedBy::Probe)));
            assert_eq!(breaker.tick(rt::now()), (Some(rt::now() + 5 * SECOND), false));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_permitted_before_it_opened_is_no_probe() {
        let breaker = breaker();
        let era = breaker.permit().unwrap();
        record(&breaker, runs(0, 20));
        tokio::time::advance(5 * SECOND).await;
        breaker.tick(rt::now());
        assert_eq!(breaker.record(era, runs(0, 1), rt::now()), None);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
    }

    #[tokio::test(start_paused = true)]
    async fn failures_after_many_successes_say_that_it_may_open_but_not_for_longer_than_a_window() {
        let breaker = breaker();
        record(&breaker, runs(1_000, 0));
        assert!(!breaker.may_open(rt::now()));
        tokio::time::advance(2 * SECOND).await;
        record(&breaker, runs(0, 2));
        assert!(breaker.may_open(rt::now()));
        record(&breaker, runs(3, 0));
        assert!(!breaker.may_open(rt::now()));
        tokio::time::advance(2 * SECOND).await;
        record(&breaker, runs(0, 1));
        assert!(breaker.may_open(rt::now()));
        tokio::time::advance(10 * SECOND).await;
        assert!(!breaker.may_open(rt::now()));
    }

    /// What fails for ever in a quiet pipeline would never have its last attempt.
    #[tokio::test(start_paused = true)]
    async fn failures_of_fewer_runs_than_open_it_do_not_say_that_it_may() {
        let breaker = breaker();
        for _ in 0..30 {
            record(&breaker, runs(0, 1));
            assert!(!breaker.may_open(rt::now()));
            tokio::time::advance(SECOND).await;
        }
        assert!(breaker.is_closed());
    }

    #[tokio::test(start_paused = true)]
    async fn new_settings_hold_at_once_and_what_was_counted_stands() {
        let breaker = breaker();
        record(&breaker, runs(0, 10));
        breaker.set(BreakerSpec {
            minimum: std::num::NonZeroU32::new(11).unwrap(),
            ..BreakerSpec::default()
        });
        let turn = record(&breaker, runs(0, 1));
        assert_eq!(turn, Some(Turn::Opened(OpenedBy::Failures)));
    }
}
