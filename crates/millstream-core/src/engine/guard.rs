//! Running user code: its panics are caught, and how far it got is known.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use pin_project_lite::pin_project;
use tracing::warn;

use crate::message::Message;
use crate::ordering::OrderBy;

pin_project! {
    /// A future whose panic becomes its result. After a panic it must not be polled again.
    pub(crate) struct Caught<F> {
        #[pin]
        future: F,
    }
}

/// Catches the panics of a future of the user's.
pub(crate) fn caught<F: Future>(future: F) -> Caught<F> {
    Caught { future }
}

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, String>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let future = self.project().future;
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(panic) => Poll::Ready(Err(text_of(&*panic))),
        }
    }
}

/// What a function of the user's gives for a message; nothing where it panics, which must not take the chunk with it.
pub(crate) fn by(by: &OrderBy, message: &Message) -> Option<Bytes> {
    catch_unwind(AssertUnwindSafe(|| by(message))).unwrap_or_default()
}

/// Drops what is the user's where a panic must not take along what is the engine's.
pub(crate) fn put_away<T>(theirs: T) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(theirs))) {
        warn!(cause = %text_of(&*panic), "dropping an output of a processor panicked");
    }
}

/// What a panic said.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".to_owned())
}
