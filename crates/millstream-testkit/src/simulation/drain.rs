//! P6, P8: what a drain reports and what the pipeline has counted, beside what the broker has seen.

use std::time::Duration;

use millstream_core::rt::{self, Instant};
use millstream_core::{DrainReport, Pipeline};

use super::plan::ms;
use super::world::{Event, World};

/// What a drain may take beyond its deadline: tasks are waited for a moment.
const GRACE: Duration = ms(250);

/// P6, P8: drains, and compares what the pipeline reports and has counted with what the broker has seen.
pub(super) async fn drain(world: &World, pipeline: &Pipeline, within: Duration) {
    let began: Instant = rt::now();
    {
        let mut state = world.lock();
        state.left_behind = None;
        state.draining = true;
    }
    let report = if within.is_zero() {
        pipeline.stop().await
    } else {
        pipeline.drain(within).await
    };
    let took = began.elapsed();
    let counts = pipeline.status().counts;
    let mut state = world.lock();
    state.note(Event::Drained(report.to_string()));
    let most = if within.is_zero() {
        Duration::from_secs(2)
    } else {
        within
    } + GRACE;
    if took > most {
        state.violate("P6", format!("a drain within {within:?} took {took:?}"));
    }
    let DrainReport {
        in_flight,
        done,
        given_up,
        released,
        lost,
        left,
        ..
    } = report;
    if in_flight != done + given_up + released + lost + left {
        state.violate("P6", format!("the report does not add up: {report}"));
    }
    // A link that was down when the drain began has left before.
    let (behind, unheard) = state.left_behind.unwrap_or((0, state.model.unheard()));
    let (behind, unheard) = (behind as u64, unheard as u64);
    let now = state.now();
    // With its source, a pipeline loses what the source gave.
    let trouble = &state.broker.trouble;
    let source_failed = trouble.read_failed;
    let troubled = [trouble.slow_acks, trouble.failing_acks]
        .into_iter()
        .any(|until| until + within + ms(2_000) > now && !until.is_zero())
        // What is done waits for the store of ids.
        || state.plan.features.deduplicates.is_some_and(|policy| policy.fails) && !state.calm;
    // What had not started went with a source that failed.
    let gone = if source_failed { lost } else { 0 };
    if behind > left + gone {
        state.violate(
            "P6",
            format!("{behind} messages are out at the broker after a drain that left {left}"),
        );
    }
    if left > behind + unheard {
        state.violate(
            "P6",
            format!("a drain left {left} messages, and {behind} are out at the broker"),
        );
    } else if behind > 0 && !troubled && !source_failed {
        state.violate(
            "P6",
            format!("a drain left {left} messages though the broker took every settlement"),
        );
    }
    let tally = state.model.tally;
    let pairs = [
        ("received", counts.received, tally.received),
        ("acked", counts.acked, tally.acked),
        ("rejected", counts.rejected, tally.rejected),
        ("released", counts.released, tally.released),
        ("returned", counts.returned, tally.returned),
        ("stale", counts.stale, tally.stale),
        ("settle_retries", counts.settle_retries, tally.failed_settlements),
        ("processed", counts.processed, tally.processed),
        ("failed", counts.failed, tally.failed),
        ("settled_early", counts.settled_early, tally.settled_early),
        ("dead_lettered", counts.dead_lettered, tally.dead_lettered),
        ("put_off", counts.put_off, tally.put_off),
    ];
    for (name, counted, seen) in pairs {
        if counted != seen {
            state.violate("P8", format!("`{name}` is {counted}, and {seen} were seen"));
        }
    }
    // The engine's own checks of its promises.
    for (sentinel, times) in pipeline.measures().sentinels {
        if times > 0 {
            state.violate(sentinel.promise(), format!("{sentinel}, {times} times"));
        }
    }
    drop(state);
    world.look();
}
