//! What runs on the messages of a pipeline, with its types checked: [`Flow`].

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use crate::batch::{BatchHandler, DynBatchHandler};
use crate::connector::SharedSinkConnector;
use crate::engine::{AnyBatcher, Batcher, Entrance, Entries, Hub, Machine, Worker};
use crate::failure::Failure;
use crate::future::BoxFuture;
use crate::message::Outgoing;
use crate::processor::Processor;
use crate::sink_handler::SinkHandler;
use crate::spec::BatcherSpec;

/// A processor and what its output goes to: batch handlers, sinks, or nothing.
///
/// Several pipelines can share one flow; each has its own workers and batchers. A batch handler whose input is not
/// the processor's output does not compile:
///
/// ```compile_fail
/// # use millstream_core::{Batch, BatchHandler, Context, Failure, Flow, Processor};
/// struct Shout;
/// impl Processor for Shout {
///     type Input = String;
///     type Output = String;
///     async fn process(&self, text: String, _: &mut Context<'_>) -> Result<String, Failure> {
///         Ok(text.to_uppercase())
///     }
/// }
/// struct Sum;
/// impl BatchHandler for Sum {
///     type Input = u64;
///     async fn handle(&self, _: &mut Batch<u64>) -> Result<(), Failure> {
///         Ok(())
///     }
/// }
/// let flow = Flow::process(Shout).batch("sum", Sum); // expected `String`, found `u64`
/// ```
pub struct Flow<P: Processor> {
    processor: Arc<P>,
    ends: Vec<End<P::Output>>,
    steps: Vec<Step>,
    hooks: Hooks,
}

/// Makes one end of a flow for one pipeline.
type End<T> = Box<dyn Fn(&Arc<Hub>, BatcherSpec) -> Result<Made<T>, String> + Send + Sync>;
type Made<T> = (Box<dyn Entrance<T>>, Arc<dyn AnyBatcher>);
type Hook = Box<dyn Fn() -> BoxFuture<'static, Result<(), Failure>> + Send + Sync>;

#[derive(Default)]
struct Hooks {
    on_start: Vec<Hook>,
    on_stop: Vec<Hook>,
}

impl<P: Processor> Flow<P> {
    /// A flow that runs this on every message.
    pub fn process(processor: P) -> Self {
        Self {
            processor: Arc::new(processor),
            ends: Vec::new(),
            steps: Vec::new(),
            hooks: Hooks::default(),
        }
    }

    /// Collects outputs into batches and hands them to this handler. `name` is the batcher's name in the TOML and
    /// for [`Context::batch_to`](crate::Context::batch_to).
    #[must_use]
    pub fn batch<H: BatchHandler<Input = P::Output>>(mut self, name: &str, handler: H) -> Self {
        let handler: Arc<dyn DynBatchHandler<P::Output>> = Arc::new(handler);
        let name_of_it = name.to_owned();
        self.steps.push(Step {
            name: name.to_owned(),
            sink: false,
        });
        self.ends.push(Box::new(move |hub, spec| {
            let batcher = Batcher::new(hub, &name_of_it, spec, Arc::clone(&handler));
            Ok((Box::new(Arc::clone(&batcher)), batcher))
        }));
        self
    }

    /// Writes outputs to the sink that the batcher of this name has in the TOML.
    #[must_use]
    pub fn sink(mut self, name: &str) -> Self
    where
        P::Output: Into<Outgoing>,
    {
        let name_of_it = name.to_owned();
        self.steps.push(Step {
            name: name.to_owned(),
            sink: true,
        });
        self.ends.push(Box::new(move |hub, spec| {
            let Some(connector) = &spec.sink else {
                return Err(format!(
                    "batcher `{name_of_it}` ends in a sink, and its spec names none"
                ));
            };
            let handler: Arc<dyn DynBatchHandler<Outgoing>> =
                Arc::new(SinkHandler::new(SharedSinkConnector::clone(connector)));
            let batcher = Batcher::new(hub, &name_of_it, spec, handler);
            Ok((Box::new(IntoOutgoing(Arc::clone(&batcher))), batcher))
        }));
        self
    }

    /// Runs before a pipeline with this flow opens its source; an error keeps it from starting.
    #[must_use]
    pub fn on_start<F>(mut self, hook: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.hooks.on_start.push(Box::new(move || Box::pin(hook())));
        self
    }

    /// Runs after a pipeline with this flow has drained; an error is logged.
    #[must_use]
    pub fn on_stop<F>(mut self, hook: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        self.hooks.on_stop.push(Box::new(move || Box::pin(hook())));
        self
    }
}

impl<P: Processor> fmt::Debug for Flow<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flow")
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

/// One end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The batcher's name in the TOML.
    pub name: String,
    /// Whether it ends in a sink that the batcher's spec must name, or in a batch handler of the user's.
    pub sink: bool,
}

impl Step {
    /// The names of stages that are no batchers: none of a flow's may have one of them.
    pub const RESERVED: [&'static str; 2] = ["source", "processor"];
}

/// A flow as pipelines hold it: its types are checked and forgotten.
#[derive(Clone)]
pub struct SharedFlow(Arc<dyn AnyFlow>);

impl SharedFlow {
    /// The batchers and sinks that it ends in, in the order in which they were added; empty where the processor
    /// is the end.
    pub fn steps(&self) -> &[Step] {
        self.0.steps()
    }

    pub(crate) fn build(&self, hub: &Arc<Hub>) -> Result<Machine, String> {
        self.0.build(hub)
    }

    pub(crate) async fn on_start(&self) -> Result<(), Failure> {
        for hook in &self.0.hooks().on_start {
            hook().await?;
        }
        Ok(())
    }

    pub(crate) async fn on_stop(&self) -> Result<(), Failure> {
        for hook in &self.0.hooks().on_stop {
            hook().await?;
        }
        Ok(())
    }
}

impl fmt::Debug for SharedFlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedFlow").field(&self.steps()).finish()
    }
}

impl<P: Processor> From<Flow<P>> for SharedFlow {
    fn from(flow: Flow<P>) -> Self {
        Self(Arc::new(flow))
    }
}

trait AnyFlow: Send + Sync {
    fn steps(&self) -> &[Step];
    fn hooks(&self) -> &Hooks;
    fn build(&self, hub: &Arc<Hub>) -> Result<Machine, String>;
}

impl<P: Processor> AnyFlow for Flow<P> {
    fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    fn build(&self, hub: &Arc<Hub>) -> Result<Machine, String> {
        let mut entrances = Vec::new();
        let mut batchers = Vec::new();
        for (step, end) in self.steps.iter().zip(&self.ends) {
            let spec = hub.spec.batchers.get(&step.name).cloned().unwrap_or_default();
            let (entrance, batcher) = end(hub, spec)?;
            entrances.push(entrance);
            batchers.push(batcher);
        }
        let entrances: Arc<[_]> = entrances.into();
        let processor = Arc::clone(&self.processor);
        let hub = Arc::clone(hub);
        let worker = Box::new(move |seat| -> BoxFuture<'static, ()> {
            let worker = Worker {
                hub: Arc::clone(&hub),
                processor: Arc::clone(&processor),
                entrances: Arc::clone(&entrances),
                seat,
            };
            Box::pin(worker.run())
        });
        Ok(Machine { worker, batchers })
    }
}

/// Makes outgoing messages of outputs on their way into a batcher.
struct IntoOutgoing(Arc<Batcher<Outgoing>>);

impl<T: Into<Outgoing> + Send + 'static> Entrance<T> for IntoOutgoing {
    fn enter(&self, hub: &Hub, entries: &mut Entries<T>) {
        let envelopes = std::mem::take(&mut entries.envelopes);
        let outputs = entries
            .outputs
            .drain(..)
            .zip(&envelopes)
            .map(|(output, envelope)| {
                let mut outgoing: Outgoing = output.into();
                outgoing.ticket = envelope.unsettled();
                outgoing
            });
        let mut entries = Entries {
            outputs: outputs.collect(),
            envelopes,
            marks: std::mem::take(&mut entries.marks),
        };
        self.0.enter(hub, &mut entries);
    }

    fn is_stuck(&self) -> bool {
        self.0.is_stuck()
    }
}
