//! Progress, on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use millstream::Host;
use millstream::sqlite::Queue;

use crate::departures::DEPARTURES;

/// A bar over all departures; it draws nothing where there is no terminal.
pub(crate) fn bar(what: &'static str, from: u32) -> ProgressBar {
    let bar = ProgressBar::new(DEPARTURES.into())
        .with_message(what)
        .with_position(from.into());
    let style = "{msg:>10} {wide_bar} {human_pos}/{human_len}, {per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}

/// Shows progress until every message is done or dead.
pub(crate) async fn until_empty(queue: &Queue, host: &Host, quiet: Duration) {
    let bar = bar("processed", 0);
    let mut left = u64::MAX;
    while left > 0 {
        // While the database is busy, the last figures stand.
        if let Ok(counts) = queue.counts() {
            left = counts.ready + counts.delayed + counts.leased;
            bar.set_position(u64::from(DEPARTURES).saturating_sub(left));
        }
        tokio::select! {
            () = host.idle(quiet) => {}
            () = tokio::time::sleep(Duration::from_millis(250)) => {}
        }
    }
    bar.finish();
}
