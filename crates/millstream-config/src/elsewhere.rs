//! A key that is right, in the wrong table of its pipeline.

use crate::fields::Fields;
use crate::tables::{
    BreakerTable, LimitsTable, PIPELINE_TABLES, PipelineTable, ProcessorTable, RateLimitTable, RetryTable,
    SupervisorTable,
};

/// The tables of the pipeline of `path` in which this key would be known.
pub(crate) fn homes(path: &str, key: &str) -> Vec<String> {
    let within = PIPELINE_TABLES
        .iter()
        .find_map(|table| path.strip_suffix(table)?.strip_suffix('.'));
    let pipeline = within.unwrap_or(path);
    if !pipeline.starts_with("pipelines.") || pipeline.matches('.').count() != 1 {
        return Vec::new();
    }
    let tables = [
        ("", Fields::of::<PipelineTable>()),
        (".limits", Fields::of::<LimitsTable>()),
        (".processor", Fields::of::<ProcessorTable>()),
        (".retry", Fields::of::<RetryTable>()),
        (".rate_limit", Fields::of::<RateLimitTable>()),
        (".breaker", Fields::of::<BreakerTable>()),
        (".supervisor", Fields::of::<SupervisorTable>()),
    ];
    let known = tables
        .iter()
        .filter(|(_, fields)| fields.names().any(|name| name == key));
    known.map(|(table, _)| format!("[{pipeline}{table}]")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_sent_home_within_its_pipeline() {
        assert_eq!(homes("pipelines.a", "timeout"), ["[pipelines.a.processor]"]);
        assert_eq!(homes("pipelines.a.retry", "ordering"), ["[pipelines.a]"]);
        assert!(homes("pipelines.a", "nonsense").is_empty());
        assert!(homes("pipelines.a.batchers.db", "attempts").is_empty());
        assert!(homes("host", "attempts").is_empty());
    }
}
