//! `type = "sqlite"`: the embedded durable queue.

use std::sync::Arc;

use millstream_config::{Invalid, PositiveDuration, SinkContext, SinkKind, SourceContext, SourceKind};
use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_sqlite::{SqliteConnector, SqliteSink};
use schemars::JsonSchema;
use serde::Deserialize;

/// Queues in SQLite databases.
#[derive(Clone, Copy, Debug, Default)]
pub struct SqliteKind;

/// A durable queue in an SQLite database, which several processes may read at once.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteSettings {
    /// The database's file; made if it is not there. It must be on a local file system.
    pub path: String,
    /// The queue's name.
    pub queue: String,
    /// Who reads: a message goes to one reader of each group.
    #[serde(default = "group")]
    pub group: String,
    /// How long a process that hangs keeps its messages; one that has ended loses them at once.
    #[serde(default = "lease")]
    pub lease: PositiveDuration,
    /// How often to look for messages of other processes while there are none.
    #[serde(default = "poll")]
    pub poll: PositiveDuration,
}

/// A durable queue in an SQLite database. A message is confirmed once it is on the disk.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteSinkSettings {
    /// The database's file; made if it is not there. It must be on a local file system.
    pub path: String,
    /// The queue's name.
    pub queue: String,
}

fn group() -> String {
    "default".to_owned()
}

fn lease() -> PositiveDuration {
    PositiveDuration::from_millis(30_000)
}

fn poll() -> PositiveDuration {
    PositiveDuration::from_millis(20)
}

/// What must not be empty is not.
fn named(settings: &[(&str, &str)]) -> Result<(), Invalid> {
    for (key, value) in settings {
        if value.is_empty() {
            return Err(Invalid::new(format!("`{key}` is empty"), "write a name between the quotes").at(key));
        }
    }
    Ok(())
}

impl SourceKind for SqliteKind {
    type Settings = SqliteSettings;

    fn source(&self, settings: &SqliteSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        let SqliteSettings {
            path,
            queue,
            group,
            lease,
            poll,
        } = settings;
        named(&[("path", path), ("queue", queue), ("group", group)])?;
        let connector = SqliteConnector::new(path, queue)
            .group(group)
            .lease(lease.get())
            .poll(poll.get())
            .ordered(cx.ordered);
        Ok(Arc::new(connector))
    }

    fn publish(
        &self,
        settings: &SqliteSettings,
        _: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        Ok(Some(Arc::new(SqliteSink::new(&settings.path, &settings.queue))))
    }
}

impl SinkKind for SqliteKind {
    type Settings = SqliteSinkSettings;

    fn sink(
        &self,
        settings: &SqliteSinkSettings,
        _: &SinkContext<'_>,
    ) -> Result<SharedSinkConnector, Invalid> {
        let SqliteSinkSettings { path, queue } = settings;
        named(&[("path", path), ("queue", queue)])?;
        Ok(Arc::new(SqliteSink::new(path, queue)))
    }
}
