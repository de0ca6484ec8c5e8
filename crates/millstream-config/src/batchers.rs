//! The batchers' tables, and whether they are the ones that the flow ends in.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use millstream_core::{BatcherSpec, Limits, SharedFlow, SharedSinkConnector, Step};

use crate::decode::decode;
use crate::fields::Fields;
use crate::kind::SinkContext;
use crate::parts;
use crate::registry::Registry;
use crate::report::Report;
use crate::suggest;
use crate::table::Table;
use crate::tables::BatcherTable;

/// What the TOML says about batchers.
#[derive(Debug)]
pub(crate) struct Batchers<'i> {
    /// `[pipelines.NAME.batchers]`, or the pipeline where there is none.
    path: String,
    span: std::ops::Range<usize>,
    tables: Vec<(String, Option<Table<'i>>)>,
}

impl<'i> Batchers<'i> {
    /// Takes them out of the pipeline's table.
    pub(crate) fn take(report: &mut Report<'_>, pipeline: &mut Table<'i>) -> Self {
        let path = pipeline.below("batchers");
        let mut span = pipeline.span.clone();
        let mut tables = Vec::new();
        if let Some(mut batchers) = pipeline.take_table(report, "batchers") {
            span = batchers.span.clone();
            let mut names: Vec<_> = batchers
                .entries
                .keys()
                .map(|key| key.get_ref().to_string())
                .collect();
            names.sort_unstable();
            for name in names {
                let table = batchers.take_table(report, &name);
                tables.push((name, table));
            }
        }
        Self { path, span, tables }
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.tables.iter().map(|(name, _)| name.clone()).collect()
    }

    /// The specs, one for each step of the flow. Without a flow or limits, what can be checked is.
    pub(crate) fn specs(
        self,
        report: &mut Report<'_>,
        registry: &Registry,
        cx: &SinkContext<'_>,
        flow: Option<&SharedFlow>,
        limits: Option<&Limits>,
    ) -> Option<BTreeMap<String, BatcherSpec>> {
        let steps = flow.map(SharedFlow::steps);
        let share = limits.map(share);
        let mut specs = BTreeMap::new();
        let mut complete = steps.is_some();
        let written = self.names();
        for (name, table) in self.tables {
            let Some(mut table) = table else {
                complete = false;
                continue;
            };
            if Step::RESERVED.contains(&&*name) {
                report.error(
                    table.span.clone(),
                    format!("a batcher cannot be named `{name}`: another stage is"),
                    "choose another name",
                );
                complete = false;
                continue;
            }
            let step = steps.map(|steps| find(report, steps, &name, &table));
            let sink = table.take_table(report, "sink");
            let sink = sink.map(|mut sink| parts::sink(report, registry, &mut sink, cx));
            if let Some(Some(step)) = step {
                check_sink(report, step, &table);
            }
            let spec = spec(report, &mut table, limits, share, sink.clone().flatten());
            complete &= spec.is_some() && !matches!(sink, Some(None)) && !matches!(step, Some(None));
            specs.extend(spec.map(|spec| (name, spec)));
        }
        for step in steps
            .into_iter()
            .flatten()
            .filter(|step| !written.contains(&step.name))
        {
            if step.sink {
                report.error(
                    self.span.clone(),
                    format!(
                        "the flow ends in a sink `{0}`, and there is no [{1}.{0}]",
                        step.name, self.path
                    ),
                    format!(
                        "add [{}.{}] with a `sink`, as in `sink = {{ type = \"…\" }}`",
                        self.path, step.name
                    ),
                );
                complete = false;
            }
            specs.insert(step.name.clone(), default_spec(share));
        }
        complete.then_some(specs)
    }
}

/// How many messages one batcher may hold.
fn share(limits: &Limits) -> NonZeroUsize {
    let share = limits.in_flight.get() as f64 * limits.per_batcher;
    NonZeroUsize::new(share as usize).unwrap_or(NonZeroUsize::MIN)
}

/// A batcher that the TOML says nothing about, small enough to fill.
fn default_spec(share: Option<NonZeroUsize>) -> BatcherSpec {
    let spec = BatcherSpec::default();
    BatcherSpec {
        size: share.map_or(spec.size, |share| spec.size.min(share)),
        ..spec
    }
}

fn find<'s>(report: &mut Report<'_>, steps: &'s [Step], name: &str, table: &Table<'_>) -> Option<&'s Step> {
    let found = steps.iter().find(|step| step.name == name);
    if found.is_none() {
        let names: Vec<_> = steps.iter().map(|step| step.name.as_str()).collect();
        let help = match names.as_slice() {
            [] => "remove this table: the flow ends in its processor".to_owned(),
            names => suggest::help(name, names, "the flow has"),
        };
        report.error(
            table.span.clone(),
            format!("the flow has no batcher `{name}`"),
            help,
        );
    }
    found
}

fn check_sink(report: &mut Report<'_>, step: &Step, table: &Table<'_>) {
    if step.sink && !table.has("sink") {
        report.error(
            table.span.clone(),
            format!(
                "missing key `sink` in {}: the flow ends in a sink here",
                table.label()
            ),
            "add it, as in `sink = { type = \"…\" }`",
        );
    } else if !step.sink && table.has("sink") {
        report.error(
            table.key_at("sink"),
            format!(
                "the flow handles the batches of `{}` itself, and has no use for a `sink`",
                step.name
            ),
            format!("remove it, or end the flow in `.sink({:?})`", step.name),
        );
    }
}

fn spec(
    report: &mut Report<'_>,
    table: &mut Table<'_>,
    limits: Option<&Limits>,
    share: Option<NonZeroUsize>,
    sink: Option<SharedSinkConnector>,
) -> Option<BatcherSpec> {
    let written: BatcherTable = decode(report, table, &Fields::of::<BatcherTable>(), &["sink"])?;
    let mut size = written.size.size();
    if let (Some(share), Some(limits)) = (share, limits) {
        if size > share && table.has("size") {
            report.error(
                table.at("size"),
                format!("a batch of {size} could never fill: this batcher holds at most {share} messages"),
                format!(
                    "write at most {share}, or raise `limits.in_flight` ({}) or `limits.per_batcher` ({})",
                    limits.in_flight, limits.per_batcher
                ),
            );
            return None;
        }
        size = size.min(share);
        if written.bytes.get() > limits.bytes && table.has("bytes") {
            report.error(
                table.at("bytes"),
                format!(
                    "a batch of {} could never fill: it is more than `limits.bytes`",
                    written.bytes
                ),
                "write less, or raise `limits.bytes`",
            );
            return None;
        }
    }
    Some(BatcherSpec {
        size,
        bytes: written.bytes.get(),
        max_age: written.max_age.get(),
        timeout: written.timeout.get(),
        concurrency: written.concurrency.size(),
        bisect: written.bisect,
        sink,
    })
}
