//! How far a command has come, on a terminal: [`Progress`].

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressStyle};
use millstream_core::rt::{self, Duration};

use crate::pace::{Pace, grouped};
use crate::screen;

/// Over how long the rate is taken.
const OVER: Duration = Duration::from_secs(3);

/// A bar where there is a length, a count where there is none, and nothing where nobody looks. It is gone once this is
/// dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    pace: Pace,
    /// What is done to each.
    done: &'static str,
}

impl Progress {
    /// Of what is read from standard input; nothing is shown where the person at the terminal is the input.
    pub(crate) fn of_input(done: &'static str) -> Self {
        if io::stdin().is_terminal() {
            return Self::with(ProgressBar::hidden(), done);
        }
        match length() {
            Some(length) => Self::shown(
                ProgressBar::new(length),
                "{wide_bar} {percent:>3}% {bytes} of {total_bytes}, {msg}",
                done,
            ),
            None => Self::counting(done),
        }
    }

    /// Of what nobody knows the end of.
    pub(crate) fn counting(done: &'static str) -> Self {
        Self::shown(ProgressBar::no_length(), "{spinner} {msg}", done)
    }

    fn shown(bar: ProgressBar, template: &str, done: &'static str) -> Self {
        if !screen::is_terminal() {
            return Self::with(ProgressBar::hidden(), done);
        }
        let style = ProgressStyle::with_template(template);
        let bar = screen::lines().add(bar);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self::with(
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())),
            done,
        )
    }

    fn with(bar: ProgressBar, done: &'static str) -> Self {
        Self {
            bar,
            pace: Pace::over(OVER),
            done,
        }
    }

    /// So many bytes of input are done, and so many messages are done in all.
    pub(crate) fn advance(&mut self, bytes: u64, all: u64) {
        let rate = self.pace.at(rt::now(), all);
        self.bar.inc(bytes);
        self.bar.set_message(format!(
            "{} {}, {}/s",
            grouped(all),
            self.done,
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
