//! One pipeline: its tables read, and checked against each other.

use std::collections::BTreeMap;

use millstream_core::{
    Capabilities, DeadLetter, Limits, Ordering, PipelineSpec, SharedConnector, SharedSinkConnector,
};
use toml::de::DeTable;

use crate::batchers::Batchers;
use crate::decode::{decode, part};
use crate::fields::Fields;
use crate::fixed::Fixed;
use crate::kind::{HandlerContext, SinkContext, SourceContext};
use crate::node::Node;
use crate::order_by::OrderByName;
use crate::parts;
use crate::policies;
use crate::processor::processor;
use crate::registry::Registry;
use crate::repeats;
use crate::report::Report;
use crate::table::Table;
use crate::tables::{LimitsTable, OrderingName, PIPELINE_TABLES, PipelineTable};
use crate::values::HumanDuration;

/// One pipeline of a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PipelineConfig {
    /// What the engine runs.
    pub spec: PipelineSpec,
    /// Writes to where the pipeline's source reads; `None` where its connector has no such thing.
    pub publish_to: Option<SharedSinkConnector>,
    /// What of its table holds until it is started again, to compare with another reading of the file.
    pub fixed: Fixed,
}

/// Reads the pipeline of this name.
pub(crate) fn pipeline(
    report: &mut Report<'_>,
    registry: &Registry,
    name: &str,
    mut table: Table<'_>,
) -> Option<PipelineConfig> {
    let fixed = Fixed::of(&table.entries);
    let mut parts = set_apart(&mut table);
    let ordering = ordering(report, &mut table);
    let limits = limits(report, &mut parts);
    let (order, ordered) = ordering.clone().unwrap_or((Ordering::None, false));

    let retry = policies::retry(report, &mut parts);

    let mut cx = SourceContext::new(name);
    (cx.ordering, cx.ordered) = (&order, ordered);
    cx.retry = retry.as_ref().map(|(retry, _)| *retry).unwrap_or_default();
    let place = source_place(&parts);
    let source = source(report, registry, &mut parts, &cx);

    let batchers = Batchers::take(report, &mut parts);
    let names = batchers.names();
    let (flow, run) = processor(report, registry, &mut parts, &HandlerContext::new(name, &names));
    let mut sinks = SinkContext::new(name);
    sinks.source = source.as_ref().map(|(source, _)| source);
    let batchers = batchers.specs(report, registry, &sinks, flow.as_ref(), limits.as_ref());

    check_loop(report, &parts, place.as_ref());
    let dead_letter = parts::dead_letter(report, registry, &mut parts, &sinks);
    if let (Some((source, _)), Some(dead_letter)) = (&source, &dead_letter) {
        check_dead_letter(report, &parts, dead_letter, source.capabilities());
    }

    let retry = match (&source, retry) {
        (Some((source, _)), Some(retry)) => policies::check_strategy(report, retry, &order, source),
        _ => None,
    };
    let rate_limit = policies::rate_limit(report, registry, &mut parts, name);
    let breaker = policies::breaker(report, &mut parts);
    let dependencies = policies::dependencies(report, &mut parts);
    let supervisor = policies::supervisor(report, &mut parts);
    let can = source.as_ref().map(|(source, _)| source.capabilities());
    let deduplicate = repeats::deduplicate(report, registry, &mut parts, name, can);
    let order = ordering.is_some().then_some(&order);
    let sequence = repeats::sequence(report, &mut parts, order, limits.as_ref(), can);

    let (ordering, _) = ordering?;
    let (source, publish_to) = source?;
    let (rate_limit, shared_rate) = rate_limit?;
    let spec = PipelineSpec {
        ordering,
        limits: limits?,
        processor: run?,
        batchers: batchers?,
        retry: retry?,
        dead_letter: dead_letter?,
        rate_limit,
        shared_rate,
        breaker: breaker?,
        dependencies: dependencies?,
        supervisor: supervisor?,
        deduplicate: deduplicate?,
        sequence: sequence?,
        ..PipelineSpec::new(name, source, flow?)
    };
    Some(PipelineConfig {
        spec,
        publish_to,
        fixed,
    })
}

/// Moves the entries that are tables into a table of their own.
fn set_apart<'i>(table: &mut Table<'i>) -> Table<'i> {
    let mut parts = DeTable::new();
    for key in PIPELINE_TABLES {
        if let Some((key, value)) = table.entries.remove_entry(key) {
            parts.insert(key, value);
        }
    }
    Table::new(table.path.clone(), table.span.clone(), parts)
}

/// What is kept in order, and whether that is the message's own key.
fn ordering(report: &mut Report<'_>, table: &mut Table<'_>) -> Option<(Ordering, bool)> {
    let mut fields = Fields::of::<PipelineTable>();
    fields.require(
        "source",
        "A table with the `type` of connector that messages come from.",
    );
    let written: PipelineTable = decode(report, table, &fields, &PIPELINE_TABLES)?;
    if written.ordering != OrderingName::Key && written.order_by != OrderByName::Key {
        report.error(
            table.at("order_by"),
            "`order_by` has no effect without `ordering = \"key\"`",
            "add `ordering = \"key\"`, or remove `order_by`",
        );
        return None;
    }
    let ordered = written.ordering == OrderingName::Key && written.order_by == OrderByName::Key;
    let ordering = match written.ordering {
        OrderingName::None => Ordering::None,
        OrderingName::Key => written.order_by.ordering(),
        OrderingName::Partition => Ordering::Partition,
    };
    Some((ordering, ordered))
}

fn limits(report: &mut Report<'_>, pipeline: &mut Table<'_>) -> Option<Limits> {
    let (written, _) = part::<LimitsTable>(report, pipeline, "limits")?;
    Some(Limits {
        in_flight: written.in_flight.size(),
        bytes: written.bytes.get(),
        per_key: written.per_key.size(),
        per_batcher: written.per_batcher.get(),
    })
}

fn source(
    report: &mut Report<'_>,
    registry: &Registry,
    pipeline: &mut Table<'_>,
    cx: &SourceContext<'_>,
) -> Option<(SharedConnector, Option<SharedSinkConnector>)> {
    let mut table = pipeline.take_table(report, "source")?;
    parts::source(report, registry, &mut table, cx)
}

/// The source's table as it is written, to compare with the dead letters'.
fn source_place<'i>(pipeline: &Table<'i>) -> Option<DeTable<'i>> {
    pipeline
        .entries
        .get("source")
        .and_then(|node| node.get_ref().as_table())
        .cloned()
}

/// Dead letters that go where the source reads would come back for ever.
///
/// They do when both tables name the same place: every name in either is in the other. Settings that name
/// nothing, such as durations and numbers, may differ.
fn check_loop(report: &mut Report<'_>, pipeline: &Table<'_>, source: Option<&DeTable<'_>>) {
    let node = pipeline.entries.get("dead_letter");
    let (Some(source), Some(dead_letter)) = (source, node.and_then(|node| node.get_ref().as_table())) else {
        return;
    };
    let place = names(dead_letter);
    if place.len() > 1 && place == names(source) {
        report.error(
            pipeline.at("dead_letter"),
            "the dead letters would go back to the source that they came from",
            "name another queue than the source's",
        );
    }
}

/// The keys with strings that are no durations.
fn names<'t>(table: &'t DeTable<'_>) -> BTreeMap<&'t str, &'t str> {
    let string = |node: &'t Node<'_>| {
        node.get_ref()
            .as_str()
            .filter(|text| text.parse::<HumanDuration>().is_err())
    };
    table
        .iter()
        .filter_map(|(key, node)| Some((key.get_ref().as_ref(), string(node)?)))
        .collect()
}

/// Without a place for dead letters the source must have one.
fn check_dead_letter(
    report: &mut Report<'_>,
    pipeline: &Table<'_>,
    dead_letter: &DeadLetter,
    source: Capabilities,
) {
    if matches!(dead_letter, DeadLetter::Halt) && !source.halts {
        report.error(
            pipeline.at("dead_letter"),
            "this source cannot stop at a message that is given up: `dead_letter = \"halt\"` is for partitions of Kafka",
            format!(
                "name a sink in a table [{0}.dead_letter], or write `dead_letter = \"discard\"` in [{0}]",
                pipeline.path
            ),
        );
    }
    if matches!(dead_letter, DeadLetter::Source) && !source.keeps_rejected {
        report.error(
            pipeline.at("source"),
            "this source does not keep the messages that are given up, and there is no `dead_letter`",
            format!(
                "name a sink in a table [{0}.dead_letter], or write `dead_letter = \"discard\"` in [{0}]",
                pipeline.path
            ),
        );
    }
}
