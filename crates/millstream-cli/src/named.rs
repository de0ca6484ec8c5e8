//! What commands name by its name, and how they count.

use anyhow::bail;
use millstream_config::{Config, PipelineConfig};

use crate::pace::grouped;

/// The pipeline of this name.
pub(crate) fn pipeline<'c>(config: &'c Config, name: &str) -> anyhow::Result<&'c PipelineConfig> {
    let mut pipelines = config.pipelines.iter();
    if let Some(pipeline) = pipelines.find(|pipeline| *pipeline.spec.name == *name) {
        return Ok(pipeline);
    }
    let names: Vec<_> = config
        .pipelines
        .iter()
        .map(|pipeline| &*pipeline.spec.name)
        .collect();
    bail!(
        "there is no pipeline `{name}`; the file has `{}`",
        names.join("`, `")
    )
}

pub(crate) fn messages(number: u64) -> String {
    counted(number, "message")
}

/// So many of these.
pub(crate) fn counted(number: u64, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{} {what}s", grouped(number)),
    }
}
