//! What can go wrong with a database, and whether trying again helps: [`Error`].

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use millstream_core::{OpenError, SinkError};
use rusqlite::ErrorCode;

use crate::schema::VERSION;

/// Why the queue could not do what it was asked; the text names the database.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    problem: Problem,
}

impl Error {
    pub(crate) fn new(path: &Path, problem: impl Into<Problem>) -> Self {
        Self {
            path: path.to_owned(),
            problem: problem.into(),
        }
    }

    /// Whether the file is not one that this release may write to: trying again cannot help.
    pub fn is_refused(&self) -> bool {
        match &self.problem {
            Problem::Refused(_) => true,
            Problem::Io(error) => {
                matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
                )
            }
            Problem::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::NotADatabase
                        | ErrorCode::DatabaseCorrupt
                        | ErrorCode::CannotOpen
                        | ErrorCode::ReadOnly
                        | ErrorCode::PermissionDenied
                )
            ),
        }
    }

    /// Whether other processes kept the database locked for longer than the queue waits for them.
    pub fn is_busy(&self) -> bool {
        match &self.problem {
            Problem::Sqlite(error) => matches!(
                error.sqlite_error_code(),
                Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
            ),
            _ => false,
        }
    }

    /// Whether a message is larger than SQLite stores.
    pub fn is_too_big(&self) -> bool {
        matches!(&self.problem, Problem::Sqlite(error) if error.sqlite_error_code() == Some(ErrorCode::TooBig))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Refused(refusal) => write!(f, "{path}: {refusal}"),
            Problem::Io(error) => write!(f, "{path}: {error}"),
            Problem::Sqlite(error) => match error.sqlite_error_code() {
                Some(ErrorCode::NotADatabase) => write!(
                    f,
                    "{path}: is not an SQLite database ({error}); name another path, or move the file away"
                ),
                Some(ErrorCode::DatabaseCorrupt) => {
                    write!(f, "{path}: {}", Refusal::Damaged(error.to_string()))
                }
                Some(ErrorCode::CannotOpen) => {
                    write!(
                        f,
                        "{path}: cannot be opened ({error}); its directory must exist and be writable"
                    )
                }
                Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
                    write!(
                        f,
                        "{path}: cannot be written ({error}); give this user write access to it"
                    )
                }
                _ => write!(f, "{path}: {error}"),
            },
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.problem {
            Problem::Refused(_) => None,
            Problem::Io(error) => Some(error),
            Problem::Sqlite(error) => Some(error),
        }
    }
}

impl From<Error> for OpenError {
    fn from(error: Error) -> Self {
        if error.is_refused() {
            Self::Refused(error.to_string())
        } else {
            Self::Unavailable(error.to_string())
        }
    }
}

impl From<Error> for SinkError {
    fn from(error: Error) -> Self {
        Self(error.to_string())
    }
}

/// An [`Error`] before it knows its database.
#[derive(Debug)]
pub(crate) enum Problem {
    Refused(Refusal),
    Io(io::Error),
    Sqlite(rusqlite::Error),
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rusqlite::Error> for Problem {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Why a file is left alone.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("names no file; give the path of a database")]
    NoFile,
    #[error("is a directory; give the path of a file in it")]
    Directory,
    #[error("is in a directory that does not exist; create it first")]
    NoDirectory,
    #[error("is damaged ({0}); restore it from a backup, or salvage it with `sqlite3 FILE .recover`")]
    Damaged(String),
    #[error("cannot have a group without a name; give it one, or leave it out")]
    NoGroup,
    #[error("stores text as {0}; use a database in UTF-8")]
    Encoding(String),
    #[error("has a table {0} but no millstream_format, so it is not Millstream's; name another database")]
    Unmarked(&'static str),
    #[error("{}; use the release that wrote it, or another database", described(*.0))]
    Version(Option<i64>),
    #[error("has Millstream's tables without {0}; restore it from a backup, or name another database")]
    Missing(&'static str),
    #[error("has a table {0} with other columns than Millstream's; name another database")]
    Columns(&'static str),
    #[error("cannot use a write-ahead log (its journal mode stays {0}); use a local file system")]
    Journal(String),
}

fn described(version: Option<i64>) -> String {
    match version {
        Some(version) if version > VERSION => {
            format!("was written by a newer release (format {version}, this one knows {VERSION})")
        }
        Some(version) => format!("has format {version}, which this release does not know"),
        None => "has an empty table millstream_format".to_owned(),
    }
}
