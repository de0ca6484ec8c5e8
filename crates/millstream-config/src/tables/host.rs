use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::values::{ListenAddress, PositiveDuration};

/// The process that holds the pipelines.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HostTable {
    /// Where metrics and health are served; absent: nowhere.
    pub(crate) listen: Option<ListenAddress>,
    /// How long a shutdown may take; the last two seconds are kept for release and flush.
    pub(crate) shutdown_timeout: PositiveDuration,
    /// What is logged: a level, or directives as RUST_LOG takes them. RUST_LOG wins.
    pub(crate) log: String,
    /// How it is logged.
    pub(crate) log_format: LogFormatName,
}

impl Default for HostTable {
    fn default() -> Self {
        Self {
            listen: None,
            shutdown_timeout: PositiveDuration::from_millis(25_000),
            log: "info".to_owned(),
            log_format: LogFormatName::Text,
        }
    }
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormatName {
    /// For people.
    Text,
    /// An object a line.
    Json,
}
