//! How user code says that something failed: [`Failure`].

use std::error::Error;
use std::fmt;
use std::time::Duration;

/// Why a message, or a batch, was not handled, and whether to try again.
///
/// Any error converts, also `anyhow::Error`, and is retried as the pipeline's policy says:
///
/// ```
/// # use millstream_core::Failure;
/// fn parse(text: &str) -> Result<u32, Failure> {
///     if text.is_empty() {
///         return Err(Failure::reject("empty order")); // never again: straight to the dead letter
///     }
///     Ok(text.parse::<u32>()?) // retried
/// }
/// assert!(parse("").unwrap_err().is_reject());
/// assert!(!parse("x").unwrap_err().is_reject());
/// ```
pub struct Failure {
    error: Box<dyn Error + Send + Sync>,
    advice: Advice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Advice {
    Retry,
    RetryAfter(Duration),
    NotPermitted,
    Reject,
}

impl Failure {
    /// Never again: straight to the dead letter.
    pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            advice: Advice::Reject,
        }
    }

    /// Try again as the policy says; what every `?` does.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            advice: Advice::Retry,
        }
    }

    /// Try again, but not before this long has passed, however short the policy's own backoff is.
    pub fn retry_after(after: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            error: error.into(),
            advice: Advice::RetryAfter(after),
        }
    }

    /// The breaker of this dependency is open: nothing was called.
    pub(crate) fn not_permitted(dependency: &str) -> Self {
        Self {
            error: format!("not called: the breaker of dependency `{dependency}` is open").into(),
            advice: Advice::NotPermitted,
        }
    }

    /// Whether it comes from [`Dependency::call`](crate::Dependency::call) with an open breaker: nothing was called.
    /// Returned from a handler it counts no attempt.
    pub fn is_not_permitted(&self) -> bool {
        self.advice == Advice::NotPermitted
    }

    /// Whether it says never again.
    pub fn is_reject(&self) -> bool {
        self.advice == Advice::Reject
    }

    /// The same for one more message.
    pub(crate) fn again(&self) -> Self {
        Self {
            error: self.to_string().into(),
            advice: self.advice,
        }
    }

    /// How long to wait at least, if it says so.
    pub fn after(&self) -> Option<Duration> {
        match self.advice {
            Advice::RetryAfter(after) => Some(after),
            Advice::Retry | Advice::NotPermitted | Advice::Reject => None,
        }
    }
}

/// The error and its causes, outermost first, joined by `: `.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.error)?;
        let mut source = self.error.source();
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure")
            .field("advice", &self.advice)
            .field("error", &self.error)
            .finish()
    }
}

// `Failure` is no `Error` itself: that is what lets every error convert with `?`.
impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::retry(error)
    }
}
