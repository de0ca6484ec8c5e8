//! How far publishing has come, on a terminal: [`Progress`].

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use millstream_core::rt::{self, Duration};

use crate::pace::{Pace, grouped};
use crate::screen;

/// Over how long the rate is taken.
const OVER: Duration = Duration::from_secs(3);

/// A bar where the input has a length, a count where it has none, and nothing where nobody looks or where the
/// person at the terminal is the input. It is gone once this is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    bar: ProgressBar,
    pace: Pace,
}

impl Progress {
    pub(super) fn start() -> Self {
        let bar = if !screen::is_terminal() || io::stdin().is_terminal() {
            ProgressBar::hidden()
        } else {
            let (bar, template) = match length() {
                Some(length) => (
                    ProgressBar::new(length),
                    "{wide_bar} {percent:>3}% {bytes} of {total_bytes}, {msg}",
                ),
                None => (ProgressBar::no_length(), "{spinner} {msg}"),
            };
            let style = ProgressStyle::with_template(template);
            let bar = screen::lines().add(bar);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        };
        Self {
            bar,
            pace: Pace::over(OVER),
        }
    }

    /// So many bytes of input are done, and so many messages are confirmed in all.
    pub(super) fn advance(&mut self, bytes: u64, confirmed: u64) {
        let rate = self.pace.at(rt::now(), confirmed);
        self.bar.inc(bytes);
        self.bar.set_message(format!(
            "{} published, {}/s",
            grouped(confirmed),
            grouped(rate.round() as u64)
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// How long standard input is, if it is a file.
#[cfg(unix)]
fn length() -> Option<u64> {
    use std::os::fd::AsFd;
    let stdin = io::stdin().as_fd().try_clone_to_owned().ok()?;
    let metadata = std::fs::File::from(stdin).metadata().ok()?;
    metadata.is_file().then_some(metadata.len())
}

/// Elsewhere it is not asked.
#[cfg(not(unix))]
fn length() -> Option<u64> {
    None
}
