//! The user's per-batch code ([`BatchHandler`]) and what it is given ([`Batch`]).

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::dependency::Dependency;
use crate::engine::Breakers;
use crate::failure::Failure;
use crate::future::BoxFuture;

/// The user's code for a batch at a time.
///
/// On a retryable failure the same items come again, without the processor running again, unless the handler
/// took them out ([`Batch::take_items`]): then their messages go through the processor again.
///
/// # Panics
/// A panic fails the batch as a retryable failure.
pub trait BatchHandler: Send + Sync + 'static {
    /// The output of the processors that feed it.
    type Input: Send + 'static;

    /// Handles one batch. `Ok` acknowledges every message in it but those that [`Batch::fail`] names.
    ///
    /// # Errors
    /// An error fails the whole batch.
    fn handle(&self, batch: &mut Batch<Self::Input>) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// The items of one batch, in the order in which they entered it.
pub struct Batch<T> {
    pub(crate) items: Vec<T>,
    pub(crate) len: usize,
    pub(crate) key: Option<Arc<str>>,
    pub(crate) attempt: u32,
    pub(crate) closed_by: ClosedBy,
    pub(crate) failures: Vec<(usize, Failure)>,
    pub(crate) cancellation: CancellationToken,
    pub(crate) breakers: Option<Arc<Breakers>>,
}

impl<T> Batch<T> {
    /// A batch made by hand, for tests of a handler.
    pub fn new(items: Vec<T>) -> Self {
        Self {
            len: items.len(),
            items,
            key: None,
            attempt: 1,
            closed_by: ClosedBy::Size,
            failures: Vec::new(),
            cancellation: CancellationToken::new(),
            breakers: None,
        }
    }

    /// The items.
    pub fn items(&self) -> &[T] {
        &self.items
    }

    /// The items, to be changed in place; a retry sees the change.
    pub fn items_mut(&mut self) -> &mut [T] {
        &mut self.items
    }

    /// Takes the items out. If the batch then fails, its messages go through the processor again.
    pub fn take_items(&mut self) -> Vec<T> {
        std::mem::take(&mut self.items)
    }

    /// How many messages the batch has, also after the items were taken out.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has none; the engine never hands out such a batch.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The batch key, where the processor gave one.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Which handler run of this batch this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// What closed it.
    pub fn closed_by(&self) -> ClosedBy {
        self.closed_by
    }

    /// Fails one item; the others succeed. An index that the batch does not have, and a second failure of the
    /// same item, change nothing.
    pub fn fail(&mut self, index: usize, failure: impl Into<Failure>) {
        if index < self.len && !self.failures.iter().any(|(failed, _)| *failed == index) {
            self.failures.push((index, failure.into()));
        }
    }

    /// The failures named so far.
    pub fn failures(&self) -> &[(usize, Failure)] {
        &self.failures
    }

    /// As [`Context::dependency`](crate::Context::dependency). A batch made by hand has none: calls pass uncounted.
    pub fn dependency(&self, name: &str) -> Dependency {
        Dependency::new(self.breakers.as_ref(), name, &self.cancellation)
    }

    /// Fires when this run is cancelled, by timeout or the deadline of a drain.
    pub fn cancellation(&self) -> &CancellationToken {
        &self.cancellation
    }
}

impl<T> fmt::Debug for Batch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("len", &self.len)
            .field("key", &self.key)
            .field("attempt", &self.attempt)
            .field("closed_by", &self.closed_by)
            .finish_non_exhaustive()
    }
}

/// What closed a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClosedBy {
    /// It had as many messages as it may.
    Size,
    /// The next message would have exceeded its bytes.
    Bytes,
    /// Its oldest message had waited long enough.
    Age,
    /// The processor asked for it, or the pipeline drained.
    Flush,
}

impl ClosedBy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Size, Self::Bytes, Self::Age, Self::Flush];

    /// The word that metrics carry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Size => "size",
            Self::Bytes => "bytes",
            Self::Age => "age",
            Self::Flush => "flush",
        }
    }
}

/// Object-safe [`BatchHandler`].
pub(crate) trait DynBatchHandler<T>: Send + Sync {
    /// Opens what the handler needs before the first batch.
    fn start(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle<'a>(&'a self, batch: &'a mut Batch<T>) -> BoxFuture<'a, Result<(), Failure>>;
}

impl<H: BatchHandler> DynBatchHandler<H::Input> for H {
    fn handle<'a>(&'a self, batch: &'a mut Batch<H::Input>) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(BatchHandler::handle(self, batch))
    }
}
