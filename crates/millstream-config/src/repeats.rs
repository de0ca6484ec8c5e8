//! `deduplicate` and `sequence`: messages that come twice, and messages that do not come.

use std::num::NonZeroUsize;
use std::sync::Arc;

use millstream_core::{
    Capabilities, DeduplicateSpec, IdBy, Ids, Limits, MemoryStore, Ordering, SequenceSpec, SharedDedupStore,
};

use crate::decode::decode;
use crate::fields::Fields;
use crate::kind::StoreContext;
use crate::parts;
use crate::registry::Registry;
use crate::report::Report;
use crate::table::Table;
use crate::tables::{DeduplicateTable, OnGapName, SequenceTable};

/// How the pipeline knows what it has done already; the outer option is for errors.
pub(crate) fn deduplicate(
    report: &mut Report<'_>,
    registry: &Registry,
    pipeline: &mut Table<'_>,
    name: &str,
    source: Option<Capabilities>,
) -> Option<Option<DeduplicateSpec>> {
    if !pipeline.has("deduplicate") {
        return Some(None);
    }
    let mut table = pipeline.take_table(report, "deduplicate")?;
    let store = table.has("store").then(|| table.take_table(report, "store"));
    let written: DeduplicateTable =
        decode(report, &mut table, &Fields::of::<DeduplicateTable>(), &["store"])?;
    let by = written.by.by();
    let entries = written.max_entries.size();
    let bounded = table.has("max_entries");
    let store = match store {
        None => Some(Arc::new(MemoryStore::new(entries)) as SharedDedupStore),
        Some(store) => {
            let mut cx = StoreContext::new(name);
            cx.max_entries = bounded.then_some(entries);
            parts::store(report, registry, &mut store?, &cx)
        }
    };
    if let Some(source) = source {
        if matches!(by, IdBy::Source) && source.ids == Ids::None {
            report.error(
                table.at("by"),
                "this source gives messages no id to be told apart by",
                "write where their id is: `by = \"header:NAME\"` or `by = \"json:/pointer\"`",
            );
            return None;
        }
        if source.transacts {
            report.error(
                table.span.clone(),
                "this source settles in transactions, and what one of them undoes would count as done",
                format!("remove [{}], or `transactional_id` from the source", table.path),
            );
            return None;
        }
    }
    Some(Some(DeduplicateSpec {
        by,
        window: written.window.get(),
        store: store?,
        on_store_failure: written.on_store_failure.into(),
    }))
}

/// What becomes of messages that come behind a gap; the outer option is for errors.
pub(crate) fn sequence(
    report: &mut Report<'_>,
    pipeline: &mut Table<'_>,
    ordering: Option<&Ordering>,
    limits: Option<&Limits>,
    source: Option<Capabilities>,
) -> Option<Option<SequenceSpec>> {
    if !pipeline.has("sequence") {
        return Some(None);
    }
    let mut table = pipeline.take_table(report, "sequence")?;
    let written: SequenceTable = decode(report, &mut table, &Fields::of::<SequenceTable>(), &[])?;
    if ordering.is_some_and(|ordering| !matches!(ordering, Ordering::Key | Ordering::By(_))) {
        report.error(
            table.span.clone(),
            "a sequence is one of the messages of a key, and this pipeline does not order by key",
            format!(
                "add `ordering = \"key\"` to [{}], or remove this table",
                pipeline.path
            ),
        );
        return None;
    }
    if source.is_some_and(|source| source.leases_singly) {
        report.error(
            table.span.clone(),
            "this source leases each message by itself, so nothing says what is missing before it: no gap would be found",
            "remove this table; what needs its numbers without gaps is for Kafka, SQLite, or RabbitMQ with a single active \
             consumer",
        );
        return None;
    }
    if written.on_gap == OnGapName::Report
        && let Some(key) = ["held", "wait"].into_iter().find(|key| table.has(key))
    {
        report.error(
            table.at(key),
            format!("`{key}` has no effect with `on_gap = \"report\"`, which holds nothing"),
            format!("remove `{key}`, or write `on_gap = \"hold\"`"),
        );
        return None;
    }
    let in_flight = limits.map_or(usize::MAX, |limits| limits.in_flight.get());
    let half = NonZeroUsize::new(in_flight / 2).unwrap_or(NonZeroUsize::MIN);
    let held = written
        .held
        .map_or_else(|| SequenceSpec::HELD.min(half), |held| held.size());
    if held.get() >= in_flight {
        let at = if table.has("held") {
            table.at("held")
        } else {
            table.span.clone()
        };
        report.error(
            at,
            format!("what is held counts in `limits.in_flight`, which is {in_flight}: nothing else could be fetched"),
            "write a smaller `held`, or a higher `limits.in_flight`",
        );
        return None;
    }
    Some(Some(SequenceSpec {
        by: written.by.reader(),
        on_gap: written.on_gap.into(),
        held,
        wait: written.wait.get(),
    }))
}
