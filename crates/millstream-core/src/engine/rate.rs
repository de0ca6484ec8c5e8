//! The rate limit: how many messages a source may fetch now, by governor's token bucket on the engine's clock.

use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock, Reference};
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

use crate::rt::{self, Instant};
use crate::spec::RateLimit;

/// Limits fetching: tokens are taken before a fetch, and what a fetch leaves over, or is not run, serves the next one.
#[derive(Debug)]
pub(crate) struct Rate {
    limiter: RateLimiter<NotKeyed, InMemoryState, EngineClock, NoOpMiddleware<Moment>>,
    clock: EngineClock,
    /// The most that one fetch waits to have tokens for, so that a slow rate is steady and not in bursts.
    slice: NonZeroU32,
    burst: NonZeroU32,
    paid: u32,
}

impl Rate {
    pub(crate) fn new(limit: &RateLimit) -> Self {
        let clock = EngineClock(rt::now());
        let each = limit.per / limit.messages.get();
        let quota = Quota::with_period(each.max(Duration::from_nanos(1)))
            .unwrap_or_else(|| Quota::per_second(limit.messages))
            .allow_burst(limit.burst);
        let per_slice = SLICE.as_nanos() / each.as_nanos().max(1);
        let slice = u32::try_from(per_slice)
            .unwrap_or(u32::MAX)
            .min(limit.burst.get());
        Self {
            limiter: RateLimiter::direct_with_clock(quota, clock),
            clock,
            slice: NonZeroU32::new(slice).unwrap_or(NonZeroU32::MIN),
            burst: limit.burst,
            paid: 0,
        }
    }

    /// Waits until at least one message may be fetched, and says how many of the `wanted` may. Before it waits it says
    /// until when.
    ///
    /// # Cancel safety
    /// Cancel safe: tokens are taken at the end.
    pub(crate) async fn reserve(&mut self, wanted: usize, waits: impl Fn(Instant)) -> usize {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX);
        while self.paid == 0 {
            let number = NonZeroU32::new(wanted.min(self.slice.get())).unwrap_or(NonZeroU32::MIN);
            match self.limiter.check_n(number) {
                Ok(Ok(())) => self.paid = number.get(),
                Ok(Err(later)) => {
                    let wait = later.wait_time_from(self.clock.now());
                    // The timer wheel counts whole milliseconds.
                    let then = rt::after(wait.max(Duration::from_millis(1)));
                    waits(then);
                    rt::sleep_until(then).await;
                }
                // The slice never exceeds the burst.
                Err(_) => self.paid = 1,
            }
        }
        self.paid.min(wanted) as usize
    }

    /// So many of the reserved ones were fetched, and are to run.
    pub(crate) fn fetched(&mut self, number: usize) {
        self.paid = self
            .paid
            .saturating_sub(u32::try_from(number).unwrap_or(u32::MAX));
    }

    /// So many of those go back unrun. Never is more left than a burst.
    pub(crate) fn returned(&mut self, number: usize) {
        let paid = self
            .paid
            .saturating_add(u32::try_from(number).unwrap_or(u32::MAX));
        self.paid = paid.min(self.burst.get()).max(self.paid);
    }
}

const SLICE: Duration = Duration::from_millis(50);

/// Governor's clock on the engine's: paused time pauses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EngineClock(Instant);

impl Clock for EngineClock {
    type Instant = Moment;

    fn now(&self) -> Moment {
        Moment(Nanos::from(rt::now().duration_since(self.0)))
    }
}

/// Time since the clock was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(Nanos);

impl Reference for Moment {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.duration_since(earlier.0)
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.saturating_sub(duration))
    }
}

impl std::ops::Add<Nanos> for Moment {
    type Output = Self;

    fn add(self, duration: Nanos) -> Self {
        Self(self.0 + duration)
    }
}
