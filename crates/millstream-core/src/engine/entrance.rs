//! Where outputs of a processor go in: [`Entrance`].

use std::sync::Arc;

use super::envelope::Envelope;
use super::hub::Hub;

/// Processed messages on their way into a batcher: envelope, output and mark go together by index.
pub(crate) struct Entries<T> {
    pub(crate) envelopes: Vec<Envelope>,
    pub(crate) outputs: Vec<T>,
    pub(crate) marks: Vec<Mark>,
}

/// Which batch a message goes to, and whether it closes it, or is a batch of its own.
#[derive(Default)]
pub(crate) struct Mark {
    pub(crate) key: Option<Arc<str>>,
    pub(crate) flush: bool,
    pub(crate) alone: bool,
}

impl<T> Entries<T> {
    pub(crate) fn new() -> Self {
        Self {
            envelopes: Vec::new(),
            outputs: Vec::new(),
            marks: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.envelopes.is_empty()
    }
}

/// Where outputs of a processor go in.
pub(crate) trait Entrance<T>: Send + Sync {
    /// Takes them in, in order.
    fn enter(&self, hub: &Hub, entries: &mut Entries<T>);

    /// Whether the batcher is stuck and holds its share: then the source keeps what is for it, where it can.
    fn is_stuck(&self) -> bool;
}
