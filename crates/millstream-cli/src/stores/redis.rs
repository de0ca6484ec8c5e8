//! `type = "redis"`: ids and rate limits in Redis, which the processes of many machines share.

use std::sync::Arc;

use millstream_config::{Invalid, Secret, StoreContext, StoreKind};
use millstream_core::{SharedDedupStore, SharedRateStore};
use millstream_redis::{InvalidUrl, RedisRates, RedisStore};
use schemars::JsonSchema;
use serde::Deserialize;

/// A store in Redis.
#[derive(Clone, Copy, Debug, Default)]
pub struct RedisStoreKind;

/// In Redis, which processes of many machines share, and which outlives them as far as Redis is told to write things down.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RedisStoreSettings {
    /// Where it is, as in "redis://user:password@host:6379/0".
    pub url: Secret,
}

impl StoreKind for RedisStoreKind {
    type Settings = RedisStoreSettings;

    fn store(
        &self,
        settings: &RedisStoreSettings,
        cx: &StoreContext<'_>,
    ) -> Result<SharedDedupStore, Invalid> {
        if cx.max_entries.is_some() {
            return Err(Invalid::new(
                "`max_entries` has no effect with Redis, where each id goes when its window is over",
                "remove `max_entries`, and bound Redis itself by its `maxmemory`",
            ));
        }
        let store = RedisStore::new(settings.url.expose(), cx.pipeline).map_err(|error| refused(&error))?;
        Ok(Arc::new(store))
    }

    fn rates(
        &self,
        settings: &RedisStoreSettings,
        cx: &StoreContext<'_>,
    ) -> Result<Option<SharedRateStore>, Invalid> {
        let rates = RedisRates::new(settings.url.expose(), cx.pipeline).map_err(|error| refused(&error))?;
        Ok(Some(Arc::new(rates)))
    }
}

fn refused(error: &InvalidUrl) -> Invalid {
    Invalid::new(
        format!("`url`: {error}"),
        "write it as in \"redis://127.0.0.1:6379\"",
    )
    .at("url")
}
