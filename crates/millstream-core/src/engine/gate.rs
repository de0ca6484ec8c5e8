//! The gate at the source: everything that may stop intake acts on it, and only on it.

use tokio::sync::watch;

/// Why intake waits, and whether it shall end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GateState {
    /// A person or the host said so.
    pub(crate) paused: bool,
    /// A breaker is not closed.
    pub(crate) broken: bool,
    /// Of those breakers, none is open: a probe may run.
    pub(crate) probing: bool,
    /// Batchers that hold their share and cannot give anything back.
    pub(crate) full_batchers: usize,
    /// The source shall end.
    pub(crate) draining: bool,
    /// The source has ended.
    pub(crate) ended: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Gate(watch::Sender<GateState>);

impl Gate {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(GateState::default()))
    }

    pub(crate) fn state(&self) -> GateState {
        *self.0.borrow()
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut GateState)) {
        self.0.send_if_modified(|state| {
            let before = *state;
            change(state);
            *state != before
        });
    }

    pub(crate) fn watch(&self) -> watch::Receiver<GateState> {
        self.0.subscribe()
    }
}
