//! The one seam for time, tasks and chance.
//!
//! Everything in the engine that reads a clock, waits, starts a task or draws a number does it here, so that
//! tokio's paused clock governs it in tests and a simulation can take its place.

use std::future::Future;

use tokio::task::JoinHandle;

pub use tokio::time::{Duration, Instant, Sleep};

/// Now, by the clock that a paused runtime stops.
pub fn now() -> Instant {
    Instant::now()
}

/// Waits until then.
pub fn sleep_until(then: Instant) -> Sleep {
    tokio::time::sleep_until(then)
}

/// Waits that long.
pub fn sleep(duration: Duration) -> Sleep {
    tokio::time::sleep(duration)
}

/// Starts a task; whoever keeps the handle owns the task.
#[expect(clippy::disallowed_methods, reason = "this is the seam")]
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    tokio::spawn(task)
}

/// A number from zero up to, and without, one.
pub fn chance() -> f64 {
    fastrand::f64()
}
