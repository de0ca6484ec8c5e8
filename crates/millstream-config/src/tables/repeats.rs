use millstream_core::{DeduplicateSpec, OnGap, OnStoreFailure, SequenceSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::duration;
use crate::by::{IdName, ValueName};
use crate::values::{Count, PositiveDuration};

/// Which messages were done already: those are acknowledged unrun.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DeduplicateTable {
    /// What makes two messages the same: "id", which is what the source has, "header:NAME" or "json:/pointer".
    pub(crate) by: IdName,
    /// For how long after its success a message is known.
    pub(crate) window: PositiveDuration,
    /// How many ids are remembered at most: the oldest is forgotten for a new one.
    pub(crate) max_entries: Count,
    /// What happens while the store cannot be asked.
    pub(crate) on_store_failure: OnStoreFailureName,
}

/// What happens while the store cannot be asked.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnStoreFailureName {
    /// Messages run.
    #[default]
    Run,
    /// Messages wait, and so do acknowledgements that have something to enter.
    Wait,
}

impl From<OnStoreFailureName> for OnStoreFailure {
    fn from(name: OnStoreFailureName) -> Self {
        match name {
            OnStoreFailureName::Run => Self::Run,
            OnStoreFailureName::Wait => Self::Wait,
        }
    }
}

impl Default for DeduplicateTable {
    fn default() -> Self {
        Self {
            by: IdName::Id,
            window: duration(DeduplicateSpec::WINDOW),
            max_entries: DeduplicateSpec::MAX_ENTRIES.into(),
            on_store_failure: OnStoreFailureName::Run,
        }
    }
}

/// What becomes of messages that come behind a gap in the numbers of their key; needs `ordering = "key"`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SequenceTable {
    /// Where a message's number is: "header:NAME" or "json:/pointer".
    pub(crate) by: ValueName,
    /// What becomes of what comes behind a gap.
    #[serde(default)]
    pub(crate) on_gap: OnGapName,
    /// How many messages are held at most, of all keys together. Default: 1000, or half of `limits.in_flight` if that is
    /// less.
    pub(crate) held: Option<Count>,
    /// How long what is missing is waited for.
    #[serde(default = "wait")]
    pub(crate) wait: PositiveDuration,
}

fn wait() -> PositiveDuration {
    duration(SequenceSpec::WAIT)
}

/// What becomes of what comes behind a gap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OnGapName {
    /// It waits for what is missing, and goes on without it when the time is over.
    #[default]
    Hold,
    /// It goes on at once; the gap is counted and logged.
    Report,
    /// It waits for what is missing, and is given up when the time is over.
    DeadLetter,
}

impl From<OnGapName> for OnGap {
    fn from(name: OnGapName) -> Self {
        match name {
            OnGapName::Hold => Self::Hold,
            OnGapName::Report => Self::Report,
            OnGapName::DeadLetter => Self::DeadLetter,
        }
    }
}
