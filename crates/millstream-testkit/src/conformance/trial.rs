//! What one run of one case is given: [`Trial`].

use std::future::Future;
use std::sync::Arc;

use millstream_core::rt;
use millstream_core::rt::Duration;

use super::features::Features;
use super::scale::Scale;
use super::subject::{DynPlace, DynSubject};

/// Long enough for anything that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// Long enough to believe that nothing happens, as in Watermill.
pub(crate) const A_WHILE: Duration = Duration::from_millis(100);

/// One run of one case.
pub(crate) struct Trial {
    subject: Arc<dyn DynSubject>,
    case: &'static str,
    pub(crate) scale: Scale,
}

impl Trial {
    pub(crate) fn new(subject: Arc<dyn DynSubject>, case: &'static str, scale: Scale) -> Self {
        Self { subject, case, scale }
    }

    pub(crate) fn features(&self) -> Features {
        self.subject.declares()
    }

    /// A fresh place.
    pub(crate) async fn place(&self) -> Box<dyn DynPlace> {
        let name = format!("{}-{:08x}", self.case.replace('_', "-"), fastrand::u32(..));
        self.subject.place(&name).await
    }

    /// The worst that the subject can do to a place: a restart of its broker, or else a cut.
    pub(crate) async fn fault(&self, place: &dyn DynPlace) {
        if self.features().restarts {
            self.subject.restart().await;
        } else {
            place.cut().await;
        }
    }

    pub(crate) const fn pick(&self, small: usize, full: usize) -> usize {
        self.scale.pick(small, full)
    }
}

/// The outcome of what shall happen soon.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("waited a minute for {what}, in vain"),
    }
}

/// Waits until it is so.
pub(crate) async fn until(what: &str, so: impl Fn() -> bool) {
    soon(what, async {
        while !so() {
            rt::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}
