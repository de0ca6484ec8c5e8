//! The source of a pipeline, its sinks and its dead letters: tables whose `type` says who reads them.

use millstream_core::{DeadLetter, SharedConnector, SharedDedupStore, SharedRateStore, SharedSinkConnector};
use toml::de::DeValue;

use crate::erased::{AnySink, AnySource};
use crate::explain;
use crate::kind::{SinkContext, SourceContext, StoreContext};
use crate::node::described;
use crate::not_yet;
use crate::registry::Registry;
use crate::report::Report;
use crate::suggest;
use crate::table::Table;

/// What a `type` stands for.
#[derive(Clone, Copy)]
struct Role {
    what: &'static str,
    name: &'static str,
    plural: &'static str,
}

const SOURCE: Role = Role {
    what: "connector",
    name: "source",
    plural: "sources",
};
const SINK: Role = Role {
    what: "connector",
    name: "sink",
    plural: "sinks",
};
const STORE: Role = Role {
    what: "store",
    name: "store",
    plural: "stores",
};

/// The source, and what `publish` writes to.
pub(crate) fn source(
    report: &mut Report<'_>,
    registry: &Registry,
    table: &mut Table<'_>,
    cx: &SourceContext<'_>,
) -> Option<(SharedConnector, Option<SharedSinkConnector>)> {
    let names: Vec<_> = registry.sources.keys().map(String::as_str).collect();
    let name = type_of(report, table, &names)?;
    match registry.sources.get(&name) {
        Some(kind) => AnySource::build(&**kind, report, table, cx),
        None => {
            let elsewhere = registry.sinks.contains_key(&name);
            unknown(report, registry, table, &name, &names, SOURCE, elsewhere);
            None
        }
    }
}

/// One sink.
pub(crate) fn sink(
    report: &mut Report<'_>,
    registry: &Registry,
    table: &mut Table<'_>,
    cx: &SinkContext<'_>,
) -> Option<SharedSinkConnector> {
    let names: Vec<_> = registry.sinks.keys().map(String::as_str).collect();
    let name = type_of(report, table, &names)?;
    match registry.sinks.get(&name) {
        Some(kind) => AnySink::build(&**kind, report, table, cx),
        None => {
            let elsewhere = registry.sources.contains_key(&name);
            unknown(report, registry, table, &name, &names, SINK, elsewhere);
            None
        }
    }
}

/// What remembers ids.
pub(crate) fn store(
    report: &mut Report<'_>,
    registry: &Registry,
    table: &mut Table<'_>,
    cx: &StoreContext<'_>,
) -> Option<SharedDedupStore> {
    let names: Vec<_> = registry.stores.keys().map(String::as_str).collect();
    let name = type_of(report, table, &names)?;
    match registry.stores.get(&name) {
        Some(kind) => kind.build(report, table, cx),
        None => {
            unknown(report, registry, table, &name, &names, STORE, false);
            None
        }
    }
}

/// What keeps a rate limit for several processes.
pub(crate) fn rates(
    report: &mut Report<'_>,
    registry: &Registry,
    table: &mut Table<'_>,
    cx: &StoreContext<'_>,
) -> Option<SharedRateStore> {
    let names: Vec<_> = registry.stores.keys().map(String::as_str).collect();
    let at = table.at("type");
    let name = type_of(report, table, &names)?;
    let Some(kind) = registry.stores.get(&name) else {
        unknown(report, registry, table, &name, &names, STORE, false);
        return None;
    };
    let rates = kind.rates(report, table, cx)?;
    if rates.is_none() {
        report.error(
            at,
            format!("processes share nothing through the store `{name}`"),
            "name one that they share, or remove `store`: each process then keeps the limit for itself",
        );
    }
    rates
}

/// Where messages go that are given up.
pub(crate) fn dead_letter(
    report: &mut Report<'_>,
    registry: &Registry,
    pipeline: &mut Table<'_>,
    cx: &SinkContext<'_>,
) -> Option<DeadLetter> {
    let Some(node) = pipeline.take("dead_letter") else {
        return Some(DeadLetter::Source);
    };
    let path = pipeline.below("dead_letter");
    match node.get_ref() {
        DeValue::Table(_) => {
            let mut table = Table::of(report, path, node)?;
            sink(report, registry, &mut table, cx).map(DeadLetter::Sink)
        }
        DeValue::String(text) if text == "discard" => Some(DeadLetter::Discard),
        DeValue::String(text) if text == "halt" => Some(DeadLetter::Halt),
        other => {
            let (message, help) = match other.as_str() {
                Some(text) => (
                    format!("`dead_letter` cannot be \"{text}\""),
                    format!(
                        "{}, or name a sink in a table [{path}]",
                        explain::options(text, &["discard", "halt"])
                    ),
                ),
                None => (
                    format!(
                        "`dead_letter` must be a table, \"discard\" or \"halt\", not {}",
                        described(other)
                    ),
                    format!("name a sink in a table [{path}]"),
                ),
            };
            report.error(node.span(), message, help);
            None
        }
    }
}

/// Takes `type` out of the table.
fn type_of(report: &mut Report<'_>, table: &mut Table<'_>, names: &[&str]) -> Option<String> {
    let Some(node) = table.take("type") else {
        let help = format!("add `type`, one of {}", suggest::list(names));
        report.error(
            table.span.clone(),
            format!("missing key `type` in {}", table.label()),
            help,
        );
        return None;
    };
    match node.get_ref() {
        DeValue::String(name) => Some(name.to_string()),
        other => {
            let message = format!("`type` must be a string, not {}", described(other));
            report.error(
                node.span(),
                message,
                format!("write one of {}", suggest::list(names)),
            );
            None
        }
    }
}

fn unknown(
    report: &mut Report<'_>,
    registry: &Registry,
    table: &Table<'_>,
    name: &str,
    names: &[&str],
    role: Role,
    elsewhere: bool,
) {
    let known = format!("this build has the {} {}", role.plural, suggest::list(names));
    let (message, help) = if elsewhere {
        (format!("connector `{name}` cannot be a {}", role.name), known)
    } else if let Some(feature) = registry.left_out.get(name) {
        (
            format!("{} `{name}` is left out of this build", role.what),
            format!("build with the feature `{feature}`"),
        )
    } else if role.what == "connector" && not_yet::CONNECTORS.contains(&name) {
        (not_yet::message(&format!("connector `{name}`")), known)
    } else {
        let help = match suggest::nearest(name, names.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? ({known})"),
            None => known,
        };
        (format!("unknown {} `{name}`", role.what), help)
    };
    report.error(table.at("type"), message, help);
}
