//! What runs on the messages of a pipeline, with its types checked: [`Flow`].

use std::fmt;
use std::sync::Arc;

/// A flow as pipelines hold it: its types are checked and forgotten.
#[derive(Clone)]
pub struct SharedFlow(pub(crate) Arc<dyn AnyFlow>);

impl SharedFlow {
    /// The batchers and sinks that it ends in, in the order in which they were added; empty where the processor
    /// is the end.
    pub fn steps(&self) -> &[Step] {
        self.0.steps()
    }
}

impl fmt::Debug for SharedFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedFlow").field(&self.steps()).finish()
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The batcher's name in the TOML.
    pub name: String,
    /// Whether it ends in a sink that the batcher's spec must name, or in a batch handler of the user's.
    pub sink: bool,
}

pub(crate) trait AnyFlow: Send + Sync {
    fn steps(&self) -> &[Step];
}
