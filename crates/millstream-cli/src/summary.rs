//! What a log tells while a host runs: a line for each pipeline from time to time.

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
    let mut pipelines: Vec<_> = host
        .pipelines()
        .map(|pipeline| {
            let (mut pace, status) = (Pace::over(EVERY), pipeline.status());
            pace.at(rt::now(), done(&status.counts));
            (pipeline, pace, status)
        })
        .collect();
    loop {
        rt::sleep(EVERY).await;
        for (pipeline, pace, last) in &mut pipelines {
            let status = pipeline.status();
            let rate = pace.at(rt::now(), done(&status.counts));
            if news(last, &status) {
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
            *last = status;
        }
    }
}

fn news(last: &Status, now: &Status) -> bool {
    (last.counts, last.in_flight, &last.condition) != (now.counts, now.in_flight, &now.condition)
}
