//! Adaptive concurrency of a pipeline: what takes measure is collected, and once a window is full the number of workers
//! follows the [`Gradient`].
//!
//! Where concurrency is fixed a take reads one flag here and nothing else.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::gradient::{Gradient, Window, median};
use crate::rt::{Duration, Instant};

/// How long a window lasts at least.
const WINDOW: Duration = Duration::from_millis(50);
/// How many runs are in it at least; as many as may run at a time, where that is more.
const RUNS: usize = 4;
/// How many times of a window are kept.
const TIMES: usize = 1024;
/// How many ready messages are fetched for each worker at least.
const FETCHED: usize = 16;
/// For how many takes messages are fetched.
const TAKES: usize = 2;

#[derive(Debug)]
pub(crate) struct Adaptive {
    /// Read on every take; the state itself only where it is set.
    on: AtomicBool,
    /// Workers in the middle of a take.
    busy: AtomicUsize,
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    gradient: Gradient,
    window: Window,
    times: Vec<f64>,
    began: Option<Instant>,
}

/// What a take measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken<'a> {
    pub(crate) runs: usize,
    /// Those that failed in a way worth another attempt.
    pub(crate) failures: usize,
    /// How long each run was pending that was.
    pub(crate) pending: &'a [Duration],
    /// How long each of the others took.
    pub(crate) share: Duration,
}

impl Adaptive {
    pub(crate) fn new(min: Option<usize>, max: usize) -> Self {
        let adaptive = Self {
            on: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            state: Mutex::new(None),
        };
        if let Some(min) = min {
            adaptive.adapt(min, max, |_| {});
        }
        adaptive
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Concurrency is between these from now on; `resize` is told where it begins.
    pub(crate) fn adapt(&self, min: usize, max: usize, resize: impl FnOnce(usize)) {
        let mut state = self.state.lock();
        let state = state.get_or_insert_with(|| State {
            gradient: Gradient::new(min, max),
            window: Window::default(),
            times: Vec::new(),
            began: None,
        });
        state.gradient.set(min, max);
        self.on.store(true, Ordering::Relaxed);
        resize(state.gradient.limit());
    }

    /// Concurrency is fixed from now on; `fix` fixes it.
    pub(crate) fn fix(&self, fix: impl FnOnce()) {
        let mut state = self.state.lock();
        *state = None;
        self.on.store(false, Ordering::Relaxed);
        fix();
    }

    /// A take begins, where anybody wants to know: it counts until the guard is dropped.
    pub(crate) fn begin(&self) -> Option<Busy<'_>> {
        self.is_on().then(|| {
            self.busy.fetch_add(1, Ordering::Relaxed);
            Busy(self)
        })
    }

    /// Takes note of a take that has ended now. Once a window is full, `resize` is told the limit.
    pub(crate) fn took(&self, now: Instant, taken: &Taken<'_>, resize: impl FnOnce(usize)) {
        let busy = self.busy.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let Some(State {
            gradient,
            window,
            times,
            began,
        }) = &mut *state
        else {
            return;
        };
        window.runs += taken.runs;
        window.failures += taken.failures;
        window.busy = window.busy.max(busy);
        // What fails may do so at once or at its timeout: that says nothing of how long runs take.
        if taken.failures == 0 && taken.runs > 0 {
            let pending = taken.pending.iter().copied();
            let ready = taken.pending.is_empty().then_some(taken.share);
            let room = TIMES.saturating_sub(times.len());
            times.extend(pending.chain(ready).take(room).map(|time| time.as_secs_f64()));
        }
        let since = *began.get_or_insert(now);
        if now.duration_since(since) < WINDOW || window.runs < gradient.limit().max(RUNS) {
            return;
        }
        window.took = median(times);
        gradient.update(window);
        *window = Window::default();
        times.clear();
        *began = Some(now);
        resize(gradient.limit());
    }

    /// How many ready messages are enough for so many workers that take so many at a time, where that is bounded.
    pub(crate) fn enough(&self, workers: usize, take: usize) -> Option<usize> {
        self.is_on().then(|| workers * (take * TAKES).max(FETCHED))
    }
}

/// Counts a worker in the middle of a take.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Adaptive);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}
