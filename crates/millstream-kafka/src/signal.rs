//! What wakes the poll thread: [`Signal`].
//!
//! librdkafka raises it with locks of its own held. So it has a lock to itself, under which nothing is called.

use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// Wakes the poll thread.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn raise(&self) {
        *self.raised.lock() = true;
        self.changed.notify_one();
    }

    /// Waits until it is raised, but not for longer than this.
    pub(crate) fn wait(&self, most: Duration) {
        let mut raised = self.raised.lock();
        if !*raised {
            self.changed.wait_for(&mut raised, most);
        }
        *raised = false;
    }
}
