//! The processor's table: which flow runs, and how.

use millstream_core::{ProcessorSpec, SharedFlow};
use toml::de::{DeTable, DeValue};

use crate::decode::decode;
use crate::fields::Fields;
use crate::kind::HandlerContext;
use crate::not_yet;
use crate::registry::Registry;
use crate::report::Report;
use crate::suggest;
use crate::table::Table;
use crate::tables::ProcessorTable;

/// The flow and how it is run.
pub(crate) fn processor(
    report: &mut Report<'_>,
    registry: &Registry,
    pipeline: &mut Table<'_>,
    cx: &HandlerContext<'_>,
) -> (Option<SharedFlow>, Option<ProcessorSpec>) {
    let path = pipeline.below("processor");
    let mut table = match pipeline.take("processor") {
        Some(node) => match Table::of(report, path, node) {
            Some(table) => table,
            None => return (None, None),
        },
        None => Table::new(path, pipeline.span.clone(), DeTable::new()),
    };
    let fields = Fields::of::<ProcessorTable>();
    let common: Vec<_> = fields.names().collect();
    let name = match table.entries.get("handler").map(|node| node.get_ref()) {
        None => Some(cx.pipeline.to_owned()),
        Some(DeValue::String(name)) => Some(name.to_string()),
        Some(_) => None,
    };
    let Some(name) = name else {
        let spec = spec(report, &mut table, &fields);
        return (None, spec);
    };
    let Some(handler) = registry.handlers.get(&name) else {
        unknown(report, registry, &table, &name);
        keep(&mut table, &common);
        return (None, spec(report, &mut table, &fields));
    };
    let own = keep(&mut table, &common);
    let spec = spec(report, &mut table, &fields);
    table.entries = own;
    (handler.build(report, &mut table, &common, cx), spec)
}

/// Leaves these entries in the table and gives the others.
fn keep<'i>(table: &mut Table<'i>, names: &[&str]) -> DeTable<'i> {
    let mut others = DeTable::new();
    for (key, value) in std::mem::take(&mut table.entries) {
        let side = if names.iter().any(|name| name == key.get_ref()) {
            &mut table.entries
        } else {
            &mut others
        };
        side.insert(key, value);
    }
    others
}

fn spec(report: &mut Report<'_>, table: &mut Table<'_>, fields: &Fields) -> Option<ProcessorSpec> {
    let written: ProcessorTable = decode(report, table, fields, &[])?;
    Some(ProcessorSpec {
        concurrency: written.concurrency.most(),
        adapts_from: written.concurrency.adapts_from(),
        max_demand: written.max_demand.size(),
        timeout: written.timeout.get(),
    })
}

fn unknown(report: &mut Report<'_>, registry: &Registry, table: &Table<'_>, name: &str) {
    let names: Vec<_> = registry.handlers.keys().map(String::as_str).collect();
    let known = match names.as_slice() {
        [] => "this build has none".to_owned(),
        names => format!("this build has the handlers {}", suggest::list(names)),
    };
    let (message, help) = if !table.has("handler") {
        (
            format!("no `handler`, and no flow has the pipeline's name, `{name}`"),
            format!("name one in [{}] ({known})", table.path),
        )
    } else if let Some(feature) = registry.left_out.get(name) {
        (
            format!("handler `{name}` is left out of this build"),
            format!("build with the feature `{feature}`"),
        )
    } else if not_yet::HANDLERS.contains(&name) {
        (not_yet::message(&format!("handler `{name}`")), known)
    } else {
        let help = match suggest::nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? ({known})"),
            None => known,
        };
        (format!("unknown handler `{name}`"), help)
    };
    report.error(table.at("handler"), message, help);
}
