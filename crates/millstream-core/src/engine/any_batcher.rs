//! A batcher as the engine sees it: [`AnyBatcher`].

use std::fmt;
use std::sync::Arc;

use super::envelope::Envelope;
use super::hub::Hub;
use super::stage::Batches;
use super::stall::Named;
use crate::failure::Failure;
use crate::future::BoxFuture;
use crate::rt::{Duration, Instant};
use crate::spec::{BatcherSpec, Limits};
use crate::ticket::Scope;

/// A batcher whose item type does not matter.
pub(crate) trait AnyBatcher: Send + Sync {
    fn name(&self) -> &str {
        &self.batches().stage.name
    }
    /// What it has done.
    fn batches(&self) -> &Batches;
    /// Opens what the handler needs.
    fn start(&self) -> BoxFuture<'_, Result<(), Failure>>;
    /// How many batch workers it is to have.
    fn concurrency(&self) -> usize;
    /// One batch worker.
    fn work(self: Arc<Self>, hub: Arc<Hub>, worker: usize) -> BoxFuture<'static, ()>;
    /// From now on these settings hold, but for the sink. What is open closes by them.
    fn set(&self, hub: &Hub, spec: BatcherSpec, limits: Limits);
    /// How many messages it holds.
    fn held(&self) -> usize;
    /// Whether a batch runs.
    fn runs(&self) -> bool;
    /// Whether something in it should move now, for how long a run may take, and what is first.
    fn look(&self) -> Look;
    /// Whether a batch could run now that has not failed.
    fn has_undoubted(&self, round: u32) -> bool;
    /// Looks again whether a batch may run.
    fn wake(&self);
    /// Closes batches as soon as a worker is free: no more will come to fill them.
    fn begin_drain(&self);
    /// Gives everything back that does not run, and cancels what does.
    fn cut(&self);
    /// Lets the others go on once it has been full for a while with no batch ending, if the source can keep what
    /// is for it. Says when to look again.
    fn give_up_on(&self, hub: &Hub) -> Option<Instant>;
    /// Closes the batches that hold messages of the scope, and forgets those of them that would not run soon, unless later
    /// ones of their keys might then run before them.
    fn flush(&self, scope: Scope) -> Vec<Envelope>;
    /// Forgets messages of the scope that do not run in a batch now.
    fn discard(&self, scope: Scope) -> Vec<Envelope>;
}

/// A batcher as the watchdog sees it.
#[derive(Debug)]
pub(crate) struct Look {
    /// A batch runs, or could run.
    pub(crate) busy: bool,
    pub(crate) timeout: Duration,
    /// The first message of each batch that runs or could.
    pub(crate) firsts: Vec<Named>,
}

impl fmt::Debug for dyn AnyBatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batcher")
            .field("name", &self.name())
            .field("held", &self.held())
            .finish()
    }
}
