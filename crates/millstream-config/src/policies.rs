//! The policies of a pipeline: retry, rate limit, breakers, supervisor.

use std::collections::BTreeMap;

use std::time::Duration;

use millstream_core::{
    BreakerSpec, OnGiveUp, Ordering, RateLimit, RetrySpec, RetryStrategy, SharedConnector, SharedRateSpec,
    SupervisorSpec,
};

use crate::decode::{decode, part};
use crate::fields::Fields;
use crate::kind::StoreContext;
use crate::parts;
use crate::registry::Registry;
use crate::report::Report;
use crate::table::Table;
use crate::tables::{BreakerTable, OnGiveUpName, RateLimitTable, RetryTable, StrategyName, SupervisorTable};
use crate::values::PositiveDuration;

/// When and how often to try again, and the table that says so.
pub(crate) fn retry<'i>(report: &mut Report<'_>, pipeline: &mut Table<'i>) -> Option<(RetrySpec, Table<'i>)> {
    let (written, table) = part::<RetryTable>(report, pipeline, "retry")?;
    let max_backoff = max_backoff(report, &table, written.backoff, written.max_backoff)?;
    let spec = RetrySpec {
        attempts: written.attempts.get(),
        max_deliveries: written.max_deliveries.get(),
        backoff: written.backoff.get(),
        factor: written.factor.0,
        max_backoff,
        jitter: written.jitter,
        max_age: written.max_age.map(|age| age.get()),
        budget: written.budget.map(|share| share.get()),
        strategy: match written.strategy {
            StrategyName::InPlace => RetryStrategy::InPlace,
            StrategyName::Redeliver => RetryStrategy::Redeliver,
        },
    };
    Some((spec, table))
}

/// The longest wait, which is not below the first.
fn max_backoff(
    report: &mut Report<'_>,
    table: &Table<'_>,
    backoff: PositiveDuration,
    longest: PositiveDuration,
) -> Option<Duration> {
    if longest >= backoff {
        return Some(longest.get());
    }
    if table.has("max_backoff") {
        report.error(
            table.at("max_backoff"),
            format!("`max_backoff` is less than `backoff`, which is {backoff}"),
            format!("write at least \"{backoff}\", or lower `backoff`"),
        );
        return None;
    }
    Some(backoff.get())
}

/// Whether the source can hold messages back where it has to, and does not lose their order over it.
pub(crate) fn check_strategy(
    report: &mut Report<'_>,
    (retry, table): (RetrySpec, Table<'_>),
    ordering: &Ordering,
    source: &SharedConnector,
) -> Option<RetrySpec> {
    if retry.strategy == RetryStrategy::InPlace {
        return Some(retry);
    }
    let capabilities = source.capabilities();
    let problem = if !capabilities.delay && source.retry_sink().is_none() {
        "this source cannot hold a message back for its next attempt"
    } else if ordering.is_ordered() && !capabilities.orders_keys {
        "a message that is redelivered comes behind those that followed it, which breaks `ordering`"
    } else {
        return Some(retry);
    };
    report.error(
        table.at("strategy"),
        problem,
        "remove `strategy`: messages then wait in memory, within the limits",
    );
    None
}

/// How fast to fetch, and what keeps that for several processes; the outer option is for errors.
pub(crate) fn rate_limit(
    report: &mut Report<'_>,
    registry: &Registry,
    pipeline: &mut Table<'_>,
    name: &str,
) -> Option<(Option<RateLimit>, Option<SharedRateSpec>)> {
    if !pipeline.has("rate_limit") {
        return Some((None, None));
    }
    let mut table = pipeline.take_table(report, "rate_limit")?;
    let store = table.has("store").then(|| table.take_table(report, "store"));
    let written: RateLimitTable = decode(report, &mut table, &Fields::of::<RateLimitTable>(), &["store"])?;
    let store = match store {
        Some(store) => Some(parts::rates(
            report,
            registry,
            &mut store?,
            &StoreContext::new(name),
        )?),
        None if table.has("on_store_failure") => {
            report.error(
                table.at("on_store_failure"),
                "`on_store_failure` has no effect without `store`",
                "add `store`, as in `store = { type = \"sqlite\", path = \"limits.db\" }`, or remove `on_store_failure`",
            );
            return None;
        }
        None => None,
    };
    let (messages, per) = (written.messages.get(), written.per.get());
    if per.as_nanos() < u128::from(messages.get()) {
        report.error(
            table.at("messages"),
            format!("{messages} in {} is more than one a nanosecond", written.per),
            "write fewer `messages`, a longer `per`, or no rate limit",
        );
        return None;
    }
    let burst = written.burst.map_or(messages, |burst| burst.get());
    if written.key.is_none() && table.has("weights") {
        report.error(
            table.at("weights"),
            "`weights` has no effect without `key`",
            "add `key`, as in `key = \"header:tenant\"`, or remove `weights`",
        );
        return None;
    }
    let key = written.key.as_deref().map(|key| key.strip_prefix("header:"));
    if key.is_some_and(|header| header.is_none_or(str::is_empty)) {
        report.error(
            table.at("key"),
            "`key` does not say which header",
            "write \"header:NAME\", as in `key = \"header:tenant\"`",
        );
        return None;
    }
    let weights = written.weights.iter();
    let limit = RateLimit {
        messages,
        per,
        burst,
        key: key.flatten().map(str::to_owned),
        weights: weights
            .map(|(value, weight)| (value.clone(), weight.get()))
            .collect(),
    };
    let shared = store.map(|store| SharedRateSpec {
        store,
        on_store_failure: written.on_store_failure.into(),
    });
    Some((Some(limit), shared))
}

/// When to stop fetching; the outer option is for errors.
pub(crate) fn breaker(report: &mut Report<'_>, pipeline: &mut Table<'_>) -> Option<Option<BreakerSpec>> {
    if !pipeline.has("breaker") {
        return Some(None);
    }
    let table = pipeline.take_table(report, "breaker")?;
    Some(Some(breaker_table(report, table)?))
}

/// The breakers of what handlers call, by name.
pub(crate) fn dependencies(
    report: &mut Report<'_>,
    pipeline: &mut Table<'_>,
) -> Option<BTreeMap<String, BreakerSpec>> {
    let mut specs = BTreeMap::new();
    if !pipeline.has("dependencies") {
        return Some(specs);
    }
    let mut tables = pipeline.take_table(report, "dependencies")?;
    let mut names: Vec<_> = tables
        .entries
        .keys()
        .map(|key| key.get_ref().to_string())
        .collect();
    names.sort_unstable();
    let mut complete = true;
    for name in names {
        let table = tables.take_table(report, &name);
        match table.and_then(|table| breaker_table(report, table)) {
            Some(spec) => drop(specs.insert(name, spec)),
            None => complete = false,
        }
    }
    complete.then_some(specs)
}

fn breaker_table(report: &mut Report<'_>, mut table: Table<'_>) -> Option<BreakerSpec> {
    let written: BreakerTable = decode(report, &mut table, &Fields::of::<BreakerTable>(), &[])?;
    if written.slow_after.is_none() && table.has("slow_rate") {
        report.error(
            table.at("slow_rate"),
            "`slow_rate` has no effect without `slow_after`",
            "add `slow_after`, as in `slow_after = \"2s\"`, or remove `slow_rate`",
        );
        return None;
    }
    Some(BreakerSpec {
        failure_rate: written.failure_rate.get(),
        slow_after: written.slow_after.map(|slow| slow.get()),
        slow_rate: written.slow_rate.get(),
        window: written.window.get(),
        minimum: written.minimum.get(),
        open_for: written.open_for.get(),
        probes: written.probes.get(),
    })
}

/// How often to restart what dies.
pub(crate) fn supervisor(report: &mut Report<'_>, pipeline: &mut Table<'_>) -> Option<SupervisorSpec> {
    let (written, table) = part::<SupervisorTable>(report, pipeline, "supervisor")?;
    Some(SupervisorSpec {
        max_restarts: written.max_restarts,
        within: written.within.get(),
        on_give_up: match written.on_give_up {
            OnGiveUpName::Stop => OnGiveUp::Stop,
            OnGiveUpName::Exit => OnGiveUp::Exit,
        },
        backoff: written.backoff.get(),
        factor: written.factor.0,
        max_backoff: max_backoff(report, &table, written.backoff, written.max_backoff)?,
        jitter: written.jitter,
        stall_after: written.stall_after.get(),
    })
}
