//! `type = "sqlite"`: ids and rate limits in a database, which the processes of a machine share.

use std::sync::Arc;

use millstream_config::{Invalid, StoreContext, StoreKind};
use millstream_core::{DeduplicateSpec, SharedDedupStore, SharedRateStore};
use millstream_sqlite::{SqliteRates, SqliteStore};
use schemars::JsonSchema;
use serde::Deserialize;

/// A store in an SQLite database.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteStoreKind;

/// In an SQLite database, which processes on one machine share, and which outlives them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteStoreSettings {
    /// The database's file; made if it is not there. It may be a queue's, and must be on a local file system.
    pub path: String,
}

impl SqliteStoreSettings {
    fn check(&self) -> Result<(), Invalid> {
        if self.path.is_empty() {
            return Err(Invalid::new("`path` is empty", "write a name between the quotes").at("path"));
        }
        Ok(())
    }
}

impl StoreKind for SqliteStoreKind {
    type Settings = SqliteStoreSettings;

    fn store(
        &self,
        settings: &SqliteStoreSettings,
        cx: &StoreContext<'_>,
    ) -> Result<SharedDedupStore, Invalid> {
        settings.check()?;
        let most = cx.max_entries.unwrap_or(DeduplicateSpec::MAX_ENTRIES);
        Ok(Arc::new(
            SqliteStore::new(&settings.path, cx.pipeline).max_entries(most),
        ))
    }

    fn rates(
        &self,
        settings: &SqliteStoreSettings,
        cx: &StoreContext<'_>,
    ) -> Result<Option<SharedRateStore>, Invalid> {
        settings.check()?;
        Ok(Some(Arc::new(SqliteRates::new(&settings.path, cx.pipeline))))
    }
}
