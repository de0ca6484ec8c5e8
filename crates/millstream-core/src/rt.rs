//! The one seam for time, tasks and chance.
//!
//! Everything in the engine that reads a clock, waits, starts a task or draws a number does it here, so that
//! tokio's paused clock governs it in tests and a simulation can take its place.

use std::any::Any;
use std::future::Future;

use tokio::task::{self, AbortHandle, JoinHandle, JoinSet};

use crate::simulation::at_leisure;

pub use tokio::time::{Duration, Instant, Sleep};

/// Now, by the clock that a paused runtime stops.
pub fn now() -> Instant {
    Instant::now()
}

/// So long from now; a time too long to count is a century.
pub fn after(duration: Duration) -> Instant {
    let now = now();
    now.checked_add(duration)
        .unwrap_or_else(|| now + Duration::from_secs(100 * 365 * 86_400))
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
    tokio::spawn(at_leisure(task))
}

/// A number from zero up to, and without, one.
pub fn chance() -> f64 {
    fastrand::f64()
}

/// How long is waited for a task that was aborted.
const PATIENCE: Duration = Duration::from_millis(100);

/// The tasks of one owner, each under a name; dropped with it, they are aborted.
#[derive(Debug)]
pub struct Tasks<N, T> {
    set: JoinSet<T>,
    /// In the order in which they were started.
    names: Vec<(task::Id, N, AbortHandle)>,
}

/// How a task died.
#[derive(Debug)]
pub enum Died {
    /// It panicked, with this.
    Panicked(Box<dyn Any + Send>),
    /// It was aborted.
    Killed,
}

impl<N, T> Default for Tasks<N, T> {
    fn default() -> Self {
        Self {
            set: JoinSet::new(),
            names: Vec::new(),
        }
    }
}

impl<N: Copy, T: Send + 'static> Tasks<N, T> {
    /// Starts a task.
    pub fn spawn(&mut self, name: N, task: impl Future<Output = T> + Send + 'static) {
        let abort = self.set.spawn(at_leisure(task));
        self.names.push((abort.id(), name, abort));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.set.is_empty()
    }

    /// Waits for one to end; for ever while there are none.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn next(&mut self) -> (N, Result<T, Died>) {
        loop {
            let (id, result) = match self.set.join_next_with_id().await {
                Some(Ok((id, output))) => (id, Ok(output)),
                Some(Err(error)) => (
                    error.id(),
                    Err(match error.try_into_panic() {
                        Ok(panic) => Died::Panicked(panic),
                        Err(_) => Died::Killed,
                    }),
                ),
                None => std::future::pending().await,
            };
            if let Some(index) = self.names.iter().position(|(known, ..)| *known == id) {
                let (_, name, _) = self.names.remove(index);
                return (name, result);
            }
        }
    }

    /// Aborts those that `which` picks, and waits a little until they are gone.
    pub async fn kill(&mut self, which: impl Fn(N) -> bool) {
        let mut gone = Vec::new();
        self.names.retain(|(_, name, abort)| {
            let hit = which(*name);
            if hit {
                abort.abort();
                gone.push(abort.clone());
            }
            !hit
        });
        for _ in 0..100 {
            if gone.iter().all(AbortHandle::is_finished) {
                return;
            }
            task::yield_now().await;
        }
    }

    /// Aborts all of them and waits until they are gone, but not for one that blocks its thread; for those that `which`
    /// picks until then, since they may have to, to take leave of others.
    pub async fn stop(&mut self, which: impl Fn(N) -> bool, by: Instant) {
        self.set.abort_all();
        let patience = after(PATIENCE);
        let mut until = by.max(patience);
        loop {
            let waits = self
                .names
                .iter()
                .any(|(_, name, abort)| which(*name) && !abort.is_finished());
            if !waits {
                until = patience;
            }
            tokio::select! {
                biased;
                gone = self.set.join_next() => if gone.is_none() {
                    return;
                },
                () = sleep_until(until) => {
                    self.set.detach_all();
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Blocks its thread when it is dropped, until it is told not to, and says that it has gone.
    struct Leave(Receiver<()>, Sender<()>);

    impl Drop for Leave {
        fn drop(&mut self) {
            self.0.recv_timeout(Duration::from_secs(10)).ok();
            self.1.send(()).ok();
        }
    }

    /// P6: who takes leave of a broker is given the time that is left; who blocks its thread for no reason is not.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn a_task_that_takes_leave_is_waited_for_and_others_are_not() {
        let mut tasks = Tasks::default();
        let mut begin = |name: &'static str| {
            let (tell, told) = channel();
            let (say, said) = channel();
            let leave = Leave(told, say);
            tasks.spawn(name, async move {
                let _leave = leave;
                std::future::pending::<()>().await;
            });
            (tell, said)
        };
        let (link, left) = begin("link");
        let (worker, gone) = begin("worker");
        // Longer than any other is waited for.
        let leaving = spawn(async move {
            sleep(PATIENCE * 2).await;
            link.send(()).ok();
        });
        tasks
            .stop(|name| name == "link", after(Duration::from_secs(8)))
            .await;
        assert!(left.try_recv().is_ok(), "the link has left");
        assert!(gone.try_recv().is_err(), "nobody waits for the worker");
        worker.send(()).ok();
        leaving.await.unwrap();
    }
}
