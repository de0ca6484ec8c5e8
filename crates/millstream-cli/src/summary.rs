//! What a log tells while a host runs: a line for each pipeline from time to time.

use std::collections::BTreeMap;

use millstream_core::rt::{self, Duration};
use millstream_core::{Host, Status};
use tracing::info;

use crate::pace::{Pace, done};

/// How often a pipeline is summed up.
const EVERY: Duration = Duration::from_secs(10);

/// Logs for ever. A pipeline in which nothing has happened since its last line has none.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn log(host: &Host) {
    let mut known = BTreeMap::new();
    let mut now: Vec<_> = host.pipelines().collect();
    loop {
        // Those that are gone are forgotten, and a new one is first seen here.
        let mut before = std::mem::take(&mut known);
        for pipeline in &now {
            let status = pipeline.status();
            let seen = before.remove(pipeline.name());
            let is_new = seen.is_none();
            let (mut pace, last) = seen.unwrap_or_else(|| (Pace::over(EVERY), status.clone()));
            let rate = pace.at(rt::now(), done(&status.counts));
            if !is_new && news(&last, &status) {
                info!(
                    pipeline = pipeline.name(),
                    per_second = rate.round() as u64,
                    in_flight = status.in_flight,
                    done = done(&status.counts),
                    given_up = status.counts.given_up,
                    condition = %status.condition,
                    "summary"
                );
            }
            known.insert(pipeline.name().to_owned(), (pace, status));
        }
        rt::sleep(EVERY).await;
        now = host.pipelines().collect();
    }
}

fn news(last: &Status, now: &Status) -> bool {
    (last.counts, last.in_flight, &last.condition) != (now.counts, now.in_flight, &now.condition)
}
