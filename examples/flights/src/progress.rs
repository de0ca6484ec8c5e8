//! Progress, on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use millstream::Host;

use crate::figures::{Figures, Progress};

/// A bar over so many departures; it draws nothing where there is no terminal.
pub(crate) fn bar(what: &'static str, from: u32, all: u32) -> ProgressBar {
    let bar = ProgressBar::new(all.into())
        .with_message(what)
        .with_position(from.into());
    let style = "{msg:>10} {wide_bar} {human_pos}/{human_len}, {per_sec}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.reset_eta();
    bar
}

/// Shows progress until so many departures are done or cancelled, and nothing of it is in flight any more.
pub(crate) async fn until_done(figures: &Figures, host: &Host, all: u32) -> anyhow::Result<()> {
    let bar = bar("processed", 0, all);
    loop {
        let Progress { done, cancelled, .. } = figures.progress()?;
        bar.set_position((done + cancelled).into());
        if done + cancelled == all {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bar.finish();
    host.idle(Duration::ZERO).await;
    Ok(())
}
