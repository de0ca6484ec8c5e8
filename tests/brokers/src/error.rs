//! What comes in the way of a broker: [`StartError`] and [`ControlError`].

use std::io;
use std::path::Path;
use std::time::Duration;

/// A broker did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// It is not installed.
    #[error("{what} is missing; install it with: {install}")]
    Missing {
        /// What was looked for, and where.
        what: String,
        /// The command that installs it.
        install: String,
    },
    /// It ended before it was ready, or did not get ready in time.
    #[error("{what} {how}\n{hint}\n{log}")]
    Failed {
        /// Which broker.
        what: String,
        /// What it did instead.
        how: String,
        /// What to try.
        hint: String,
        /// The end of what it wrote.
        log: String,
    },
    /// A file or a process could not be made.
    #[error("cannot {what}: {cause}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system says.
        cause: io::Error,
    },
}

impl StartError {
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Io {
            what: what.into(),
            cause,
        }
    }
}

/// A broker that was started did not do as it was told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The program that tells it could not be run.
    #[error("cannot run {program}: {cause}")]
    Run {
        /// The program.
        program: String,
        /// What the system says.
        cause: io::Error,
    },
    /// It refused.
    #[error("{command}: {answer}")]
    Refused {
        /// What it was told.
        command: String,
        /// What it said.
        answer: String,
    },
    /// It took it, and what was to come of it did not.
    #[error("{what}: not so after {} s", within.as_secs())]
    Late {
        /// What was awaited.
        what: String,
        /// For how long.
        within: Duration,
    },
}

/// The last lines of a file, each indented, under its name.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let from = all.len().saturating_sub(lines);
    let mut tail = format!("the end of {}:\n", path.display());
    for line in all.iter().skip(from) {
        tail.push_str("    ");
        tail.push_str(line);
        tail.push('\n');
    }
    tail
}
