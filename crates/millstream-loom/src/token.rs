//! A token that loom can look into: [`CancellationToken`].

use crate::sync::Arc;
use crate::sync::atomic::{AtomicBool, Ordering};

/// Says that something shall end; nobody waits for it in a model.
#[derive(Clone, Debug, Default)]
pub struct CancellationToken(Arc<AtomicBool>);

impl CancellationToken {
    /// One that is not cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// Cancels it and its clones.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it is cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
