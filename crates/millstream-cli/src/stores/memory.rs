//! `type = "memory"`: ids that are forgotten with the process.

use std::sync::Arc;

use millstream_config::{Invalid, NoSettings, StoreContext, StoreKind};
use millstream_core::{DeduplicateSpec, MemoryStore, SharedDedupStore};

/// A store in the process.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryStoreKind;

impl StoreKind for MemoryStoreKind {
    type Settings = NoSettings;

    fn store(&self, _: &NoSettings, cx: &StoreContext<'_>) -> Result<SharedDedupStore, Invalid> {
        let most = cx.max_entries.unwrap_or(DeduplicateSpec::MAX_ENTRIES);
        Ok(Arc::new(MemoryStore::new(most)))
    }
}
