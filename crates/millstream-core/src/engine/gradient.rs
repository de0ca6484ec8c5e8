//! Adaptive concurrency: how many messages to process at a time, from how long they take and how many fail.
//!
//! A downstream that is not full answers in its own time; one that is makes what comes wait. So the share of the time
//! that is its own, the gradient, says how much of the limit is of use, and the rest is a queue. The limit goes towards
//! what is of use and a little more, the square root of itself, which is how it finds room that was not there before.
//! Netflix' `concurrency-limits` does so with a long-term mean as the downstream's own time. That drifts: a queue that
//! lasts becomes part of it, and the limit ends at its maximum. Here it is measured: once in a while the limit is halved
//! for two windows, in which a queue is gone and the time is the downstream's own.

/// What was measured of runs that ended within one while.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Window {
    pub(crate) runs: usize,
    /// Of those, the ones that failed in a way worth another attempt.
    pub(crate) failures: usize,
    /// Seconds that the middle one of those took that did not fail; zero where all did.
    pub(crate) took: f64,
    /// The most that ran at a time.
    pub(crate) busy: usize,
}

/// The middle one of what runs took, zero of none. A queue makes every run wait, so it shows there; a few runs that take
/// long of themselves show in a mean, and not there.
pub(crate) fn median(times: &mut [f64]) -> f64 {
    let middle = times.len() / 2;
    if times.is_empty() {
        return 0.0;
    }
    *times.select_nth_unstable_by(middle, f64::total_cmp).1
}

/// The share of failed runs from which the limit is lowered: fewer fail of themselves.
const TOO_MANY_FAIL: f64 = 0.1;
/// Windows between two measurements of the downstream's own time.
const HORIZON: u32 = 100;
/// Windows in which a lower limit has to shorten runs: if it has not by then, they are longer of themselves.
const PATIENCE: u32 = 20;
/// How much longer the downstream's own time may be found to be at once.
const DRIFT: f64 = 1.25;
/// How much longer runs may take before that counts as a queue.
const TOLERANCE: f64 = 1.1;
/// How far one window raises the limit of what it might. It is lowered at once.
const STEP: f64 = 0.5;
/// What is left of the limit at least after one window that says that there is a queue.
const STEEPEST: f64 = 0.7;
/// What is left of it where too many fail. How many failed says little: a refusal takes no time, and so there are many.
const LESS: f64 = 0.85;

/// The limit of one pipeline. It takes no look at a clock.
#[derive(Clone, Debug)]
pub(crate) struct Gradient {
    min: f64,
    max: f64,
    limit: f64,
    /// Seconds that the downstream takes where nothing waits.
    own: f64,
    phase: Phase,
    /// Windows since that was measured.
    age: u32,
    /// Windows in a row that lowered the limit.
    lowered: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Follow,
    /// The limit is halved, and what waited still ends.
    Empty,
    /// The limit is halved, and nothing waits.
    Measure,
}

impl Gradient {
    /// A limit that begins at its minimum.
    pub(crate) fn new(min: usize, max: usize) -> Self {
        let mut gradient = Self {
            min: 1.0,
            max: 1.0,
            limit: 1.0,
            own: f64::INFINITY,
            phase: Phase::Follow,
            age: 0,
            lowered: 0,
        };
        gradient.set(min, max);
        gradient
    }

    /// Other bounds from now on.
    pub(crate) fn set(&mut self, min: usize, max: usize) {
        self.min = min.max(1) as f64;
        self.max = (max as f64).max(self.min);
        self.limit = self.limit.clamp(self.min, self.max);
    }

    /// How many may be processed at a time now.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "it is within its bounds, which were whole numbers"
    )]
    pub(crate) fn limit(&self) -> usize {
        let limit = match self.phase {
            Phase::Follow => self.limit,
            Phase::Empty | Phase::Measure => (self.limit / 2.0).max(self.min),
        };
        limit.round() as usize
    }

    /// Takes note of what was measured.
    pub(crate) fn update(&mut self, window: &Window) {
        let failed = window.failures as f64 / window.runs.max(1) as f64;
        if failed > TOO_MANY_FAIL {
            self.phase = Phase::Follow;
            return self.go_to(self.limit * LESS);
        }
        // Too short for the clock, or nothing was measured.
        if window.took <= 0.0 {
            return;
        }
        if self.measure(window) || window.busy * 2 < self.limit() {
            return;
        }
        let gradient = (TOLERANCE * self.own / window.took).clamp(STEEPEST, 1.0);
        let next = self.limit * gradient + self.limit.sqrt();
        if next < self.limit {
            self.lowered += 1;
            if self.lowered >= PATIENCE {
                self.measured(window.took);
            }
            return self.go_to(next);
        }
        self.lowered = 0;
        self.go_to(self.limit + STEP * (next - self.limit));
    }

    /// Whether the window served to measure the downstream's own time.
    fn measure(&mut self, window: &Window) -> bool {
        self.age += 1;
        match self.phase {
            Phase::Follow => {
                self.own = self.own.min(window.took);
                if self.age >= HORIZON {
                    self.phase = Phase::Empty;
                }
                false
            }
            Phase::Empty => {
                self.phase = Phase::Measure;
                true
            }
            Phase::Measure => {
                // Much longer is no drift: the downstream has lost servers meanwhile, and a queue is there all the same.
                self.measured(window.took.min(self.own * DRIFT));
                true
            }
        }
    }

    fn measured(&mut self, own: f64) {
        self.own = own;
        self.phase = Phase::Follow;
        self.age = 0;
        self.lowered = 0;
    }

    fn go_to(&mut self, limit: f64) {
        self.limit = limit.clamp(self.min, self.max);
    }
}
