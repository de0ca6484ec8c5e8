//! The metrics of pipelines: their way in, their stages, their way out, and how they are.

use millstream_core::{BatcherMeasures, BreakerState, Condition, Measures, Pipeline, StageMeasures, Status};

use super::page::{Page, Series};
use super::tables::{COUNTERS, GAUGES};

/// A pipeline as it was at one look.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    name: &'a str,
    pub(super) status: Status,
    pub(super) measures: Measures,
}

impl<'a> Seen<'a> {
    pub(super) fn of(pipeline: &'a Pipeline) -> Self {
        Self {
            name: pipeline.name(),
            status: pipeline.status(),
            measures: pipeline.measures(),
        }
    }

    fn stages(&self) -> impl Iterator<Item = &StageMeasures> {
        let batchers = self.measures.batchers.iter().map(|batcher| &batcher.stage);
        std::iter::once(&self.measures.processor).chain(batchers)
    }
}

pub(super) fn write(page: &mut Page, seen: &[Seen<'_>]) {
    for (name, help, value) in COUNTERS {
        page.counter(name, help, each(seen, |seen| value(&seen.status.counts)));
    }
    for (name, help, value) in GAUGES {
        page.gauge(name, help, each(seen, value));
    }
    source(page, seen);
    partitions(page, seen);
    stages(page, seen);
    batchers(page, seen);
    endings(page, seen);
    states(page, seen);
    breakers(page, seen);
}

/// One series for each pipeline.
fn each<'a, T>(
    seen: &'a [Seen<'_>],
    value: impl Fn(&'a Seen<'_>) -> T,
) -> impl Iterator<Item = Series<'a, T>> {
    seen.iter()
        .map(move |seen| Series::new([("pipeline", seen.name)], value(seen)))
}

/// One series for each batcher.
fn each_batcher<'a, T>(
    seen: &'a [Seen<'_>],
    value: fn(&'a BatcherMeasures) -> T,
) -> impl Iterator<Item = Series<'a, T>> {
    seen.iter().flat_map(move |seen| {
        let batchers = seen.measures.batchers.iter();
        batchers.map(move |batcher| Series::new(at(seen, &batcher.stage), value(batcher)))
    })
}

fn at<'a>(seen: &'a Seen<'_>, stage: &'a StageMeasures) -> [(&'static str, &'a str); 2] {
    [("pipeline", seen.name), ("stage", &stage.name)]
}

fn source(page: &mut Page, seen: &[Seen<'_>]) {
    let depths = seen.iter().filter_map(|seen| {
        let depth = seen.status.depth?;
        Some(Series::new([("pipeline", seen.name)], depth as f64))
    });
    page.gauge(
        "millstream_source_depth_messages",
        "Messages that wait at the source, handed out to nobody, where it says so.",
        depths,
    );
    let stores = seen.iter().filter_map(|seen| {
        let took = seen.measures.rate_store.as_ref()?;
        Some(Series::new([("pipeline", seen.name)], took))
    });
    page.histogram(
        "millstream_rate_store_duration_seconds",
        "How long the store of the shared rate limit took to answer.",
        stores,
    );
}

fn partitions(page: &mut Page, seen: &[Seen<'_>]) {
    let all = || {
        seen.iter().filter_map(|seen| {
            let partitions = seen.measures.partitions.as_deref()?;
            Some((seen, partitions))
        })
    };
    page.gauge(
        "millstream_partitions",
        "Partitions that the source has, by whether it fetches from them.",
        all().flat_map(|(seen, partitions)| {
            let held = partitions.iter().filter(|partition| partition.held).count();
            [("fetched", partitions.len() - held), ("held", held)].map(|(state, partitions)| {
                let labels = [("pipeline", seen.name), ("state", state)];
                Series::new(labels, partitions as f64)
            })
        }),
    );
    let numbered: Vec<_> = all()
        .flat_map(|(seen, partitions)| partitions.iter().map(move |partition| (seen, partition)))
        .filter_map(|(seen, partition)| Some((seen, partition, partition.number.to_string(), partition.lag?)))
        .collect();
    page.gauge(
        "millstream_partition_lag_messages",
        "Messages of a partition from its first unsettled one on, in flight or not.",
        numbered.iter().map(|(seen, partition, number, lag)| {
            let labels = [
                ("pipeline", seen.name),
                ("topic", &*partition.topic),
                ("partition", number.as_str()),
            ];
            Series::new(labels, *lag as f64)
        }),
    );
    page.counter(
        "millstream_rebalances_total",
        "Times that partitions of the source came or went, by how.",
        all().flat_map(|(seen, _)| {
            seen.measures.rebalances.iter().map(|(how, times)| {
                let labels = [("pipeline", seen.name), ("kind", how.as_str())];
                Series::new(labels, *times)
            })
        }),
    );
}

fn stages(page: &mut Page, seen: &[Seen<'_>]) {
    let stages = || {
        seen.iter()
            .flat_map(|seen| seen.stages().map(move |stage| (seen, stage)))
    };
    page.counter(
        "millstream_processed_total",
        "Messages whose run in a stage succeeded; each run counts.",
        stages().map(|(seen, stage)| Series::new(at(seen, stage), stage.succeeded)),
    );
    page.counter(
        "millstream_failures_total",
        "Messages whose run in a stage did not succeed, by reason; each run counts.",
        stages().flat_map(|(seen, stage)| {
            stage.failed.iter().map(move |(reason, messages)| {
                let [pipeline, name] = at(seen, stage);
                Series::new([pipeline, name, ("reason", reason.as_str())], *messages)
            })
        }),
    );
    page.histogram(
        "millstream_handler_duration_seconds",
        "How long the processor ran on a message.",
        each(seen, |seen| &seen.measures.processor.took),
    );
}

fn batchers(page: &mut Page, seen: &[Seen<'_>]) {
    page.histogram(
        "millstream_batch_duration_seconds",
        "How long a batch handler or sink ran on a batch.",
        each_batcher(seen, |batcher| &batcher.stage.took),
    );
    page.histogram(
        "millstream_batch_size_messages",
        "Messages in each batch that was handed to its handler; retries of a batch do not count.",
        each_batcher(seen, |batcher| &batcher.sizes),
    );
    page.counter(
        "millstream_batches_closed_total",
        "The same batches by what closed them.",
        seen.iter().flat_map(|seen| {
            seen.measures.batchers.iter().flat_map(move |batcher| {
                batcher.closed.iter().map(move |(by, batches)| {
                    let [pipeline, name] = at(seen, &batcher.stage);
                    Series::new([pipeline, name, ("cause", by.as_str())], *batches)
                })
            })
        }),
    );
    page.gauge(
        "millstream_batcher_messages",
        "Messages that a batcher holds.",
        each_batcher(seen, |batcher| batcher.held as f64),
    );
}

fn endings(page: &mut Page, seen: &[Seen<'_>]) {
    page.counter(
        "millstream_given_up_total",
        "Messages given up, by reason, before it is known where they end.",
        seen.iter().flat_map(|seen| {
            seen.measures.given_up.iter().map(|(reason, messages)| {
                let labels = [("pipeline", seen.name), ("reason", reason.as_str())];
                Series::new(labels, *messages)
            })
        }),
    );
    page.counter(
        "millstream_settled_total",
        "Settlements that the source has answered for, by outcome.",
        seen.iter().flat_map(|seen| {
            let counts = &seen.status.counts;
            [
                ("acked", counts.acked),
                ("rejected", counts.rejected),
                ("released", counts.released),
                ("returned", counts.returned),
                ("stale", counts.stale),
            ]
            .map(|(outcome, settlements)| {
                Series::new([("pipeline", seen.name), ("outcome", outcome)], settlements)
            })
        }),
    );
    page.histogram(
        "millstream_time_to_settlement_seconds",
        "Time from a message's receipt until the source had answered for its settlement.",
        each(seen, |seen| &seen.measures.settled_after),
    );
}

fn states(page: &mut Page, seen: &[Seen<'_>]) {
    page.counter(
        "millstream_sentinels_total",
        "Times that a promise was found broken, by the sentinel that found it: a defect.",
        seen.iter().flat_map(|seen| {
            seen.measures.sentinels.iter().map(|(sentinel, times)| {
                let labels = [("pipeline", seen.name), ("sentinel", sentinel.as_str())];
                Series::new(labels, *times)
            })
        }),
    );
    page.gauge(
        "millstream_condition",
        "The pipeline's condition: 1 for the one that it is in.",
        seen.iter().flat_map(|seen| {
            let now = seen.status.condition.as_str();
            one_of(seen, "condition", Condition::WORDS, now)
        }),
    );
}

/// Of the breakers: a pipeline's own has an empty `dependency`.
fn breakers(page: &mut Page, seen: &[Seen<'_>]) {
    let all = || {
        seen.iter().flat_map(|seen| {
            seen.measures.breakers.iter().map(move |breaker| {
                let dependency = breaker.dependency.as_deref().unwrap_or_default();
                ([("pipeline", seen.name), ("dependency", dependency)], breaker)
            })
        })
    };
    page.gauge(
        "millstream_breaker_state",
        "A breaker's state: 1 for the one that it is in. Absent where there is no breaker.",
        all().flat_map(|([pipeline, dependency], breaker)| {
            BreakerState::ALL.map(|state| {
                let value = if state == breaker.state { 1.0 } else { 0.0 };
                Series::new([pipeline, dependency, ("state", state.as_str())], value)
            })
        }),
    );
    page.counter(
        "millstream_breaker_opened_total",
        "Times that a breaker opened, by why.",
        all().flat_map(|([pipeline, dependency], breaker)| {
            breaker
                .opened
                .iter()
                .map(move |(by, times)| Series::new([pipeline, dependency, ("cause", by.as_str())], *times))
        }),
    );
    page.counter(
        "millstream_breaker_closed_total",
        "Times that a breaker closed again.",
        all().map(|(labels, breaker)| Series::new(labels, breaker.closed)),
    );
}

/// A series for each word, of which one is 1 and the others 0.
fn one_of<'a, const WORDS: usize>(
    seen: &'a Seen<'_>,
    label: &'static str,
    words: [&'static str; WORDS],
    now: &'static str,
) -> [Series<'a, f64>; WORDS] {
    words.map(|word| {
        let value = if word == now { 1.0 } else { 0.0 };
        Series::new([("pipeline", seen.name), (label, word)], value)
    })
}

#[cfg(test)]
mod tests {
    use millstream_core::{Counts, Credit, Distribution};

    use super::*;

    /// Counts that are sums over stages and reasons, which are exported one by one.
    const SUMS: [&str; 8] = [
        "processed",
        "failed",
        "panicked",
        "timed_out",
        "batches",
        "batch_failed",
        "given_up",
        "breaker_opened",
    ];

    fn nothing() -> Distribution {
        Distribution {
            count: 0,
            sum: 0.0,
            buckets: Vec::new(),
        }
    }

    #[test]
    fn every_count_is_exported() {
        // All of them: one that is added does not compile here.
        let counts = Counts {
            received: 1001,
            retried: 1002,
            waits_cut: 1003,
            uncounted: 1004,
            acked: 1005,
            rejected: 1006,
            dead_lettered: 1007,
            discarded: 1008,
            released: 1009,
            returned: 1010,
            put_off: 1011,
            lost: 1012,
            settled_early: 1013,
            stale: 1014,
            settle_retries: 1015,
            outbox_retries: 1016,
            suspects: 1017,
            over_budget: 1018,
            throttled: 1019,
            rate_store_failures: 1025,
            unshared: 1026,
            reconnects: 1020,
            restarts: 1021,
            commit_failures: 1022,
            duplicates: 1101,
            unidentified: 1102,
            unchecked: 1103,
            store_failures: 1104,
            forgotten_ids: 1105,
            sequence_gaps: 1106,
            sequence_repeats: 1107,
            sequence_held: 1108,
            unnumbered: 1109,
            stalls: 1023,
            batches_split: 1024,
            processed: 0,
            failed: 0,
            panicked: 0,
            timed_out: 0,
            batches: 0,
            batch_failed: 0,
            given_up: 0,
            breaker_opened: 0,
        };
        let status = Status {
            condition: Condition::Running,
            counts,
            in_flight: 0,
            bytes: 0,
            ready: 0,
            waiting: 0,
            parked: 0,
            held: 0,
            running: 0,
            concurrency: 0,
            lanes: 0,
            batchers: Vec::new(),
            breaker: None,
            depth: None,
            halted: 0,
            stalled: None,
        };
        let measures = Measures {
            processor: StageMeasures {
                name: "processor".into(),
                succeeded: 0,
                failed: Vec::new(),
                took: nothing(),
            },
            batchers: Vec::new(),
            given_up: Vec::new(),
            rebalances: Vec::new(),
            sentinels: Vec::new(),
            partitions: None,
            settled_after: nothing(),
            oldest: None,
            breakers: Vec::new(),
            rate_store: None,
            demand: Credit {
                messages: 0,
                bytes: 0,
            },
        };
        let mut page = Page::default();
        let seen = Seen {
            name: "a",
            status,
            measures,
        };
        write(&mut page, &[seen]);
        let text = page.text();
        let mut exported = 0;
        for (name, value) in counts.iter().filter(|(name, _)| !SUMS.contains(name)) {
            assert_eq!(text.matches(&format!(" {value}\n")).count(), 1, "{name}");
            exported += 1;
        }
        assert!(exported > SUMS.len(), "only {exported} are exported");
    }
}
