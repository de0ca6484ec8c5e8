//! The engine's files under test, and as little of what they need as will do.

#[path = "../../../../millstream-core/src/engine/breakers.rs"]
pub(crate) mod breakers;
#[path = "../../../../millstream-core/src/engine/gate.rs"]
pub(crate) mod gate;
#[path = "../../../../millstream-core/src/engine/probes.rs"]
pub(crate) mod probes;

/// A breaker that turns with each run.
pub(crate) mod breaker {
    use std::sync::atomic::{AtomicBool, Ordering};

    pub(crate) use millstream_core::{BreakerState, OpenedBy};

    use crate::rt::Instant;
    use crate::spec::BreakerSpec;

    #[derive(Debug)]
    pub(crate) struct Breaker(AtomicBool);

    #[derive(Clone, Copy, Debug, Default)]
    pub(crate) struct Runs {
        pub(crate) succeeded: usize,
        pub(crate) failed: usize,
    }

    #[derive(Clone, Copy, Debug)]
    pub(crate) enum Turn {
        Opened(OpenedBy),
        Closed,
    }

    impl Breaker {
        pub(crate) fn new(_: BreakerSpec) -> Self {
            Self(AtomicBool::new(true))
        }

        pub(crate) fn set(&self, _: BreakerSpec) {}

        pub(crate) fn spec(&self) -> BreakerSpec {
            BreakerSpec::default()
        }

        pub(crate) fn is_closed(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }

        pub(crate) fn state(&self) -> BreakerState {
            match self.is_closed() {
                true => BreakerState::Closed,
                false => BreakerState::HalfOpen,
            }
        }

        pub(crate) fn may_open(&self, _: Instant) -> bool {
            false
        }

        pub(crate) fn era(&self) -> u64 {
            0
        }

        pub(crate) fn record(&self, _: u64, runs: Runs, _: Instant) -> Option<Turn> {
            self.0.store(runs.failed == 0, Ordering::Release);
            Some(match runs.failed {
                0 => Turn::Closed,
                _ => Turn::Opened(OpenedBy::Failures),
            })
        }

        pub(crate) fn tick(&self, now: Instant) -> (Option<Instant>, bool) {
            (Some(now), false)
        }
    }
}

pub(crate) mod counters {
    #[derive(Debug, Default)]
    pub(crate) struct Counter {}

    impl Counter {
        pub(crate) fn add(&self, _: usize) {}

        pub(crate) fn get(&self) -> u64 {
            0
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Tally<const KINDS: usize> {}

    impl<const KINDS: usize> Tally<KINDS> {
        pub(crate) fn add(&self, _: usize, _: usize) {}

        pub(crate) fn get(&self) -> [u64; KINDS] {
            [0; KINDS]
        }
    }
}
