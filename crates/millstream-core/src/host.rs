//! Many pipelines by name in one process: [`Host`].

mod fits;
mod pipeline;
mod status;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;

use parking_lot::RwLock;
use thiserror::Error;

pub use self::pipeline::Pipeline;
pub use self::status::{Condition, Status};
use crate::engine::{DrainReport, Order};
use crate::rt::Duration;
use crate::spec::PipelineSpec;

/// The pipelines of a process. Cheap to clone; every clone speaks of the same ones.
///
/// It runs in the tokio runtime in which it is started. Dropping it stops nothing: [`drain`](Self::drain) it.
#[derive(Clone, Debug)]
pub struct Host(Arc<RwLock<BTreeMap<Arc<str>, Pipeline>>>);

/// Why a host, or a pipeline, did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A caught panic is part of what is promised.
    #[error(
        "built with panic = \"abort\": a panic in a handler would end the process; build with panic = \"unwind\""
    )]
    PanicAbort,
    /// Two pipelines have one name.
    #[error("two pipelines are named `{0}`: give each a name of its own")]
    SameName(String),
    /// Specification and flow do not fit.
    #[error("pipeline `{pipeline}`: {cause}")]
    Pipeline {
        /// The pipeline's name.
        pipeline: String,
        /// What does not fit.
        cause: String,
    },
    /// It runs already.
    #[error("pipeline `{0}` is running already")]
    Running(String),
}

impl Host {
    /// Starts these pipelines in the current tokio runtime.
    ///
    /// A pipeline whose broker cannot be reached starts nonetheless, and is degraded until it can.
    ///
    /// # Errors
    /// See [`StartError`]; nothing has been started then.
    pub fn start(specs: impl IntoIterator<Item = PipelineSpec>) -> Result<Self, StartError> {
        if cfg!(panic = "abort") {
            return Err(StartError::PanicAbort);
        }
        let mut pipelines = BTreeMap::new();
        for spec in specs {
            let name = Arc::clone(&spec.name);
            if pipelines.insert(Arc::clone(&name), Pipeline::new(spec)).is_some() {
                return Err(StartError::SameName(name.to_string()));
            }
        }
        let prepared: Vec<_> = pipelines
            .values()
            .map(Pipeline::prepare)
            .collect::<Result<_, _>>()?;
        for (pipeline, prepared) in pipelines.values().zip(prepared) {
            pipeline.begin(prepared);
        }
        Ok(Self(Arc::new(RwLock::new(pipelines))))
    }

    /// The pipeline of this name.
    pub fn pipeline(&self, name: &str) -> Option<Pipeline> {
        self.0.read().get(name).cloned()
    }

    /// All pipelines that there are now, by name.
    pub fn pipelines(&self) -> impl Iterator<Item = Pipeline> + use<> {
        let pipelines: Vec<_> = self.0.read().values().cloned().collect();
        pipelines.into_iter()
    }

    /// Starts one more pipeline.
    ///
    /// # Errors
    /// See [`StartError`]; it has not been started then.
    pub fn add(&self, spec: PipelineSpec) -> Result<Pipeline, StartError> {
        let name = Arc::clone(&spec.name);
        let pipeline = Pipeline::new(spec);
        let prepared = pipeline.prepare()?;
        let mut pipelines = self.0.write();
        match pipelines.entry(name) {
            Entry::Occupied(other) => Err(StartError::SameName(other.key().to_string())),
            Entry::Vacant(free) => {
                pipeline.begin(prepared);
                Ok(free.insert(pipeline).clone())
            }
        }
    }

    /// Drains this pipeline within this time (P6), and knows it no more then. `None` where there is none of that name.
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on, and the pipeline stays known.
    pub async fn remove(&self, name: &str, within: Duration) -> Option<DrainReport> {
        let report = self.pipeline(name)?.drain(within).await;
        self.0.write().remove(name);
        Some(report)
    }

    /// Drains all pipelines at once, within this time in all (P6).
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on; ask again for its reports.
    pub async fn drain(&self, within: Duration) -> Vec<(Arc<str>, DrainReport)> {
        let order = Order::within(within);
        for pipeline in self.pipelines() {
            pipeline.order(order);
        }
        let mut reports = Vec::new();
        for pipeline in self.pipelines() {
            if let Some(end) = pipeline.ended().await {
                reports.push((pipeline.shared_name(), end.report));
            }
        }
        reports
    }

    /// Cuts short a drain that is under way, or begins one: nothing runs on, everything goes back.
    pub fn release_now(&self) {
        for pipeline in self.pipelines() {
            pipeline.order(Order::now());
        }
    }

    /// Waits until every pipeline has ended, or one has given up that ends the process with it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) {
        loop {
            let pipelines: Vec<_> = self.pipelines().collect();
            let mut changes: Vec<_> = pipelines.iter().map(Pipeline::ends).collect();
            let ends: Vec<_> = changes
                .iter_mut()
                .map(|change| change.borrow_and_update().clone())
                .collect();
            let fatal = pipelines.iter().zip(&ends).any(|(pipeline, end)| {
                pipeline.ends_the_process() && end.as_ref().is_some_and(|end| end.gave_up.is_some())
            });
            if fatal || ends.iter().all(Option::is_some) {
                return;
            }
            let mut waits: Vec<_> = changes
                .iter_mut()
                .map(|change| Box::pin(change.changed()))
                .collect();
            std::future::poll_fn(|cx| {
                if waits.iter_mut().any(|wait| wait.as_mut().poll(cx).is_ready()) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
    }

    /// Waits until nothing has been in flight and nothing has arrived for this long, in every running pipeline.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self, quiet: Duration) {
        for pipeline in self.pipelines() {
            pipeline.idle(quiet).await;
        }
        // One may have been busy again while another was waited for.
        while !self.pipelines().all(|pipeline| pipeline.is_idle(quiet)) {
            for pipeline in self.pipelines() {
                pipeline.idle(quiet).await;
            }
        }
    }
}
