//! A whole pipeline on a host: [`Pipe`].

use std::future::Future;
use std::num::{NonZeroU32, NonZeroUsize};

use millstream_core::rt::Duration;
use millstream_core::{
    Context, DeadLetter, DrainReport, Failure, Flow, Host, Message, Pipeline, PipelineSpec, Processor,
    SharedConnector, SharedFlow, Status,
};

/// A processor that is one function.
struct Each<F>(F);

impl<F, R> Processor for Each<F>
where
    F: Fn(Message) -> R + Send + Sync + 'static,
    R: Future<Output = Result<(), Failure>> + Send,
{
    type Input = Message;
    type Output = ();

    async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<(), Failure> {
        (self.0)(message).await
    }
}

/// One pipeline on a host of its own; dropped, it is stopped.
pub(crate) struct Pipe(Pipeline);

impl Pipe {
    /// Runs this function on every message.
    pub(crate) fn each<F, R>(source: SharedConnector, set: impl FnOnce(&mut PipelineSpec), each: F) -> Self
    where
        F: Fn(Message) -> R + Send + Sync + 'static,
        R: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        Self::start(source, set, Flow::process(Each(each)))
    }

    pub(crate) fn start(
        source: SharedConnector,
        set: impl FnOnce(&mut PipelineSpec),
        flow: impl Into<SharedFlow>,
    ) -> Self {
        let keeps_rejected = source.capabilities().keeps_rejected;
        let mut spec = PipelineSpec::new("conformance", source, flow);
        if !keeps_rejected {
            spec.dead_letter = DeadLetter::Discard;
        }
        // Faults are meant to be survived, and counts of deliveries that they raise say nothing.
        spec.retry.max_deliveries = NonZeroU32::MAX;
        set(&mut spec);
        let host = Host::start([spec]).expect("the pipeline starts");
        Self(host.pipelines().next().expect("it has one"))
    }

    pub(crate) fn status(&self) -> Status {
        self.0.status()
    }

    pub(crate) async fn drain(&self, within: Duration) -> DrainReport {
        self.0.drain(within).await
    }

    pub(crate) async fn stop(self) -> DrainReport {
        self.0.stop().await
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // A case that fails leaves no pipeline behind: asked to stop, it does so by itself.
        let mut stopping = std::pin::pin!(self.0.stop());
        let waker = std::task::Waker::noop();
        let _ = stopping.as_mut().poll(&mut std::task::Context::from_waker(waker));
    }
}

pub(crate) fn non_zero(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).expect("it is not zero")
}
