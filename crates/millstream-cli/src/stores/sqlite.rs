//! `type = "sqlite"`: ids in a database, which the processes of a machine share.

use std::sync::Arc;

use millstream_config::{Invalid, StoreContext, StoreKind};
use millstream_core::{DeduplicateSpec, SharedDedupStore};
use millstream_sqlite::SqliteStore;
use schemars::JsonSchema;
use serde::Deserialize;

/// A store in an SQLite database.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteStoreKind;

/// Ids in an SQLite database, which processes on one machine share, and which outlives them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteStoreSettings {
    /// The database's file; made if it is not there. It may be a queue's, and must be on a local file system.
    pub path: String,
}

impl StoreKind for SqliteStoreKind {
    type Settings = SqliteStoreSettings;

    fn store(
        &self,
        settings: &SqliteStoreSettings,
        cx: &StoreContext<'_>,
    ) -> Result<SharedDedupStore, Invalid> {
        if settings.path.is_empty() {
            return Err(Invalid::new("`path` is empty", "write a name between the quotes").at("path"));
        }
        let most = cx.max_entries.unwrap_or(DeduplicateSpec::MAX_ENTRIES);
        Ok(Arc::new(
            SqliteStore::new(&settings.path, cx.pipeline).max_entries(most),
        ))
    }
}
