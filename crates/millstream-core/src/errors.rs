//! Why what speaks to a broker did not open, or ended.

use thiserror::Error;

/// Why a connector did not open.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Trying again cannot help; the text says what to do.
    #[error("{0}")]
    Refused(String),
    /// The broker cannot be reached now.
    #[error("{0}")]
    Unavailable(String),
}

/// Why a source ended.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Why a sink failed.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct SinkError(pub String);
