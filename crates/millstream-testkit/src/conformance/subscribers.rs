//! Consumers that work at the same time: [`Subscribers`].

use std::panic::resume_unwind;

use millstream_core::SharedConnector;
use millstream_core::rt;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::reader::{Delivery, Reader, messages};
use super::trial::A_WHILE;

/// Consumers, each in a task of its own, until they are dismissed.
pub(crate) struct Subscribers {
    tasks: Vec<JoinHandle<()>>,
    dismissed: watch::Sender<bool>,
}

impl Subscribers {
    /// One for each connector. `take` says of each delivery whether to acknowledge it; if not, it is released.
    pub(crate) fn start(
        connectors: impl IntoIterator<Item = SharedConnector>,
        take: impl Fn(&Delivery) -> bool + Clone + Send + 'static,
    ) -> Self {
        let dismissed = watch::Sender::new(false);
        let tasks = connectors
            .into_iter()
            .map(|connector| {
                let (take, mut end) = (take.clone(), dismissed.subscribe());
                rt::spawn(async move {
                    let mut reader = Reader::open(&connector).await;
                    // Also when whoever started them has panicked.
                    while !*end.borrow_and_update() && end.has_changed().is_ok() {
                        let read = tokio::select! {
                            biased;
                            _ = end.changed() => return,
                            read = reader.read_within(A_WHILE, messages(100)) => read,
                        };
                        let (taken, released): (Vec<_>, Vec<_>) = read.into_iter().partition(&take);
                        reader.ack(&taken).await;
                        reader.release(&released).await;
                    }
                })
            })
            .collect();
        Self { tasks, dismissed }
    }

    /// Ends them, and waits until they have closed.
    pub(crate) async fn dismiss(self) {
        self.dismissed.send_replace(true);
        join(self.tasks).await;
    }
}

/// Waits for these tasks, and panics as they did.
pub(crate) async fn join(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await
            && let Ok(panic) = error.try_into_panic()
        {
            resume_unwind(panic);
        }
    }
}
