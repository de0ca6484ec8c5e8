//! What a handler needs from elsewhere, by its name in the pipeline's settings: [`Dependency`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::engine::{Breakers, Named, Runs};
use crate::failure::Failure;
use crate::rt::{self, Instant};

/// Something that handlers call and that may be away, such as a database: the breaker of that name in the pipeline's
/// settings counts its calls.
///
/// [`Context::dependency`](crate::Context::dependency) and [`Batch::dependency`](crate::Batch::dependency) give it. It
/// borrows nothing, and may be cloned and moved into tasks that the handler waits for.
///
/// ```
/// # use millstream_core::{Context, Failure, Processor};
/// # struct Catalog;
/// # impl Catalog { async fn price_of(&self, _: &str) -> Result<u64, std::io::Error> { Ok(1) } }
/// struct Price { catalog: Catalog }
///
/// impl Processor for Price {
///     type Input = String;
///     type Output = u64;
///
///     async fn process(&self, sku: String, cx: &mut Context<'_>) -> Result<u64, Failure> {
///         let catalog = cx.dependency("catalog");
///         let price = catalog.call(async { self.catalog.price_of(&sku).await }).await?;
///         Ok(price)
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Dependency {
    counted: Option<(Arc<Breakers>, Arc<Named>)>,
    cancellation: CancellationToken,
}

impl Dependency {
    pub(crate) fn new(
        breakers: Option<&Arc<Breakers>>,
        name: &str,
        cancellation: &CancellationToken,
    ) -> Self {
        let counted = breakers.and_then(|breakers| Some((Arc::clone(breakers), breakers.dependency(name)?)));
        Self {
            counted,
            cancellation: cancellation.clone(),
        }
    }

    /// Runs the call, and counts whether it succeeded, failed or was slow.
    ///
    /// While the breaker is open nothing is called, and the failure that comes back at once is
    /// [not permitted](Failure::is_not_permitted): returned from the handler, it counts no attempt, and the message
    /// runs again when the breaker lets it. A [reject](Failure::reject) from within says something of the message and
    /// nothing of the dependency, and is not counted. Where the pipeline has no breaker of this name the call passes
    /// uncounted.
    ///
    /// # Errors
    /// What the call came to, or that it is not permitted.
    ///
    /// # Cancel safety
    /// As the call's own. A call that is dropped before its end, by a timeout for instance, counts as failed, unless
    /// the whole run was cancelled because its lease was lost or the pipeline ends.
    pub async fn call<T, E: Into<Failure>>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, Failure> {
        let Some((breakers, named)) = &self.counted else {
            return call.await.map_err(Into::into);
        };
        let Some(era) = named.breaker.permit() else {
            return Err(Failure::not_permitted(
                named.dependency.as_deref().unwrap_or_default(),
            ));
        };
        let under_way = UnderWay {
            breakers,
            named,
            era,
            started: rt::now(),
            cancellation: &self.cancellation,
            ended: false,
        };
        let result = call.await.map_err(Into::into);
        under_way.end(result.as_ref().err());
        result
    }

    /// Whether a call would be permitted now: for a handler that can do without.
    pub fn is_available(&self) -> bool {
        self.counted
            .as_ref()
            .is_none_or(|(_, named)| named.breaker.permit().is_some())
    }
}

impl fmt::Debug for Dependency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .counted
            .as_ref()
            .and_then(|(_, named)| named.dependency.as_deref());
        f.debug_struct("Dependency")
            .field("counted_as", &name)
            .finish_non_exhaustive()
    }
}

/// A call that has not ended. Dropped before, it has failed, unless its whole run was cancelled.
struct UnderWay<'a> {
    breakers: &'a Breakers,
    named: &'a Named,
    era: u64,
    started: Instant,
    cancellation: &'a CancellationToken,
    ended: bool,
}

impl UnderWay<'_> {
    fn end(mut self, failure: Option<&Failure>) {
        self.ended = true;
        if failure.is_some_and(|failure| failure.is_reject() || failure.is_not_permitted()) {
            return;
        }
        self.count(failure.is_some());
    }

    fn count(&self, failed: bool) {
        let runs = Runs {
            succeeded: usize::from(!failed),
            failed: usize::from(failed),
            slow: usize::from(self.named.breaker.is_slow(self.started.elapsed())),
        };
        self.breakers.record_call(self.named, self.era, runs);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        if !self.ended && !self.cancellation.is_cancelled() {
            self.count(true);
        }
    }
}
