//! `type = "memory"`: queues in the process, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use millstream_config::{Invalid, SinkContext, SinkKind, SourceContext, SourceKind};
use millstream_core::memory::MemoryQueue;
use millstream_core::{SharedConnector, SharedSinkConnector};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;

/// Queues in memory, by name; clones share them.
///
/// ```
/// # use millstream_cli::MemoryKind;
/// # use millstream_core::Message;
/// let memory = MemoryKind::default();
/// memory.queue("orders").publish(Message::new("one"));
/// assert_eq!(memory.queue("orders").len(), 1);
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemoryKind(Arc<Mutex<BTreeMap<String, MemoryQueue>>>);

/// A queue in the process, for tests and benchmarks. It holds nothing across a restart, and has no bound.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MemorySettings {
    /// The queue's name: a source and a sink of one name are one queue. A source's is its pipeline's by default; a
    /// sink must name one.
    pub queue: Option<String>,
}

impl MemoryKind {
    /// The queue of this name, which is made if it is not there.
    pub fn queue(&self, name: &str) -> MemoryQueue {
        self.0.lock().entry(name.to_owned()).or_default().clone()
    }
}

impl SourceKind for MemoryKind {
    type Settings = MemorySettings;

    fn source(&self, settings: &MemorySettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        let name = settings.queue.as_deref().unwrap_or(cx.pipeline);
        Ok(Arc::new(self.queue(name)))
    }
}

impl SinkKind for MemoryKind {
    type Settings = MemorySettings;

    fn sink(&self, settings: &MemorySettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        let Some(name) = &settings.queue else {
            return Err(Invalid::new(
                "a sink in memory needs a `queue`",
                "name the one that another pipeline reads",
            ));
        };
        Ok(Arc::new(self.queue(name)))
    }
}
