//! What a person sees while a host runs: a line for each pipeline at the bottom of the terminal.

use std::collections::BTreeMap;

use indicatif::{ProgressBar, ProgressStyle};
use millstream_core::rt::{self, Duration};
use millstream_core::{Host, Status};

use crate::pace::{Pace, done, grouped};
use crate::screen;

/// How often the lines are drawn.
const TICK: Duration = Duration::from_millis(200);
/// Over how long the rate is taken.
const OVER: Duration = Duration::from_secs(3);

/// Draws the lines for ever; they are gone once this is dropped.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn show(host: &Host) {
    let mut bars = BTreeMap::new();
    loop {
        let pipelines: Vec<_> = host.pipelines().collect();
        let width = pipelines.iter().map(|pipeline| pipeline.name().len()).max();
        bars.retain(|name: &String, _| pipelines.iter().any(|pipeline| pipeline.name() == name));
        for pipeline in &pipelines {
            let (Bar(bar), pace) = bars
                .entry(pipeline.name().to_owned())
                .or_insert_with(|| (Bar::new(), Pace::over(OVER)));
            let status = pipeline.status();
            let rate = pace.at(rt::now(), done(&status.counts));
            bar.set_message(line(pipeline.name(), width.unwrap_or_default(), rate, &status));
            bar.tick();
        }
        rt::sleep(TICK).await;
    }
}

/// One line, which leaves with this.
struct Bar(ProgressBar);

impl Bar {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{spinner} {wide_msg}");
        let bar = screen::lines().add(ProgressBar::no_length());
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner())))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        screen::lines().remove(&self.0);
    }
}

fn line(name: &str, width: usize, rate: f64, status: &Status) -> String {
    let counts = &status.counts;
    format!(
        "{name:width$}  {:>9}/s  {:>7} in flight  {:>11} done  {:>7} given up  {}",
        grouped(rate.round() as u64),
        grouped(status.in_flight as u64),
        grouped(done(counts)),
        grouped(counts.given_up),
        status.condition,
    )
}

#[cfg(test)]
mod tests {
    use millstream_core::{Condition, Counts};

    use super::*;

    #[test]
    fn a_line_says_rate_load_counts_and_condition() {
        let status = Status {
            condition: Condition::Degraded("connection refused".to_owned()),
            counts: Counts {
                acked: 1_234_567,
                rejected: 8,
                given_up: 8,
                ..Counts::default()
            },
            in_flight: 1_200,
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
        assert_eq!(
            line("orders", 8, 5_432.4, &status),
            "orders        5,432/s    1,200 in flight    1,234,575 done        8 given up  degraded: connection refused"
        );
    }
}
