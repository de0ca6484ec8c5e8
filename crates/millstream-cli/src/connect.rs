//! What `check` says of a file that is right in itself; with `--connect`, compared with the brokers that it names.

use std::sync::Arc;
use std::time::Duration;

use millstream_config::{Config, Diagnostics, PipelineConfig};
use millstream_core::{BoxFuture, DeadLetter, Facts, Finding};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// How long one source or sink may take to look at.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was found, with the keys that lead from the pipeline to the table it was found at.
pub(crate) type Found = (Vec<String>, Vec<Finding>);

/// Reaches every source, sink and dead letter; what there is to say of them, each with the number of its pipeline.
pub(crate) async fn connect(config: &Config) -> Vec<(usize, Found)> {
    let mut looking = JoinSet::new();
    for (number, pipeline) in config.pipelines.iter().enumerate() {
        for (table, check) in checks(pipeline, config.host.shutdown_timeout) {
            looking.spawn(async move {
                let found = timeout(PATIENCE, check).await;
                (number, (table, found.unwrap_or_else(|_| vec![late()])))
            });
        }
    }
    looking.join_all().await
}

/// What there is to say of the pipelines, without that any broker is reached.
pub(crate) fn look(config: &Config) -> Vec<(usize, Found)> {
    let pipelines = config.pipelines.iter().enumerate();
    pipelines
        .map(|(number, pipeline)| (number, (Vec::new(), pipeline.spec.findings())))
        .collect()
}

/// What was found, at its places in the file; none if nothing was.
pub(crate) fn diagnose(config: &Config, all: &[(usize, Found)]) -> Option<Diagnostics> {
    let findings = all.iter().filter_map(|(number, (table, found))| {
        let name = &*config.pipelines.get(*number)?.spec.name;
        let table: Vec<_> = table.iter().map(String::as_str).collect();
        Some(found.iter().map(move |finding| {
            let path = finding.path(&["pipelines", name], &table);
            (path, finding.clone())
        }))
    });
    config.diagnose(findings.flatten())
}

/// What there is to be looked at in one pipeline, by the keys that lead to its table.
fn checks(
    pipeline: &PipelineConfig,
    shutdown_timeout: Duration,
) -> Vec<(Vec<String>, BoxFuture<'static, Vec<Finding>>)> {
    let spec = pipeline.spec.clone();
    let source: BoxFuture<'static, _> = Box::pin(async move {
        let facts = Facts::new(&spec, shutdown_timeout);
        spec.source.check(&facts).await
    });
    let mut checks = vec![(vec!["source".to_owned()], source)];
    let sinks = pipeline.spec.batchers.iter().filter_map(|(name, batcher)| {
        let table = vec!["batchers".to_owned(), name.clone(), "sink".to_owned()];
        Some((table, Arc::clone(batcher.sink.as_ref()?)))
    });
    let dead_letter = match &pipeline.spec.dead_letter {
        DeadLetter::Sink(sink) => Some((vec!["dead_letter".to_owned()], Arc::clone(sink))),
        _ => None,
    };
    for (table, sink) in sinks.chain(dead_letter) {
        checks.push((table, Box::pin(async move { sink.check().await })));
    }
    checks
}

fn late() -> Finding {
    Finding::error(
        format!("no answer within {} s", PATIENCE.as_secs()),
        "see that it runs and can be reached from here, or name another",
    )
}
