//! The one terminal that the process may have: status lines stay below whatever else is written.

use std::io::{self, IsTerminal};
use std::sync::OnceLock;

use indicatif::{MultiProgress, ProgressDrawTarget};

static SCREEN: OnceLock<MultiProgress> = OnceLock::new();

/// Whether a person looks at standard error.
pub(crate) fn is_terminal() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Whether a person looks at standard error and wants colours there.
pub(crate) fn has_colours() -> bool {
    is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The lines at the bottom of the terminal; there must be one.
pub(crate) fn lines() -> &'static MultiProgress {
    SCREEN.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// Writes something while the lines, if there are any, are out of the way.
pub(crate) fn beside<R>(write: impl FnOnce() -> R) -> R {
    match SCREEN.get() {
        Some(lines) => lines.suspend(write),
        None => write(),
    }
}
