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

/// Whether standard output bears lines on the terminal beside it: it is that terminal, or a file. At the other end of a pipe
/// there may be a pager, which has the terminal for itself.
pub(crate) fn may_show_beside_output() -> bool {
    io::stdout().is_terminal() || is_file()
}

#[cfg(unix)]
fn is_file() -> bool {
    use std::os::fd::AsFd;
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let metadata = stdout.and_then(|stdout| std::fs::File::from(stdout).metadata());
    metadata.is_ok_and(|metadata| metadata.is_file())
}

/// Elsewhere it is not asked.
#[cfg(not(unix))]
fn is_file() -> bool {
    false
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
