//! P6, P8: what runs when its pipeline ends under it was cancelled, and has not failed.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    BatcherSpec, Capabilities, Chunk, Connector, Credit, EngineHandle, Flow, Host, Message, OpenError,
    Pipeline, PipelineSpec, Read, SharedFlow, Source, SourceError,
};

use crate::support::{Scripted, ScriptedBatches, non_zero, until};

/// A queue whose source dies when it is to drain.
struct Dies(MemoryQueue);

struct DyingSource {
    source: MemorySource,
    draining: bool,
}

impl Connector for Dies {
    type Source = DyingSource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(DyingSource, MemoryAcknowledger), OpenError> {
        let (source, acknowledger) = Connector::open(&self.0, engine).await?;
        let draining = false;
        Ok((DyingSource { source, draining }, acknowledger))
    }
}

impl Source for DyingSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        match self.draining {
            true => Err(SourceError("the source died".to_owned())),
            false => self.source.read(credit, chunk).await,
        }
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

/// Starts this flow on such a queue with one message in it that has one attempt.
fn start(flow: impl Into<SharedFlow>, message: &str) -> (MemoryQueue, Host, Pipeline) {
    let queue = MemoryQueue::new();
    queue.publish(Message::new(message.to_owned()));
    let mut spec = PipelineSpec::new("test", Arc::new(Dies(queue.clone())), flow);
    spec.retry.attempts = NonZeroU32::MIN;
    let batcher = BatcherSpec {
        size: non_zero(1),
        ..BatcherSpec::default()
    };
    spec.batchers = spec
        .flow
        .steps()
        .iter()
        .map(|step| (step.name.clone(), batcher.clone()))
        .collect();
    let host = Host::start([spec]).unwrap();
    let pipeline = host.pipeline("test").unwrap();
    (queue, host, pipeline)
}

/// Drains, and looks at what became of the message once `ended`.
async fn assert_cancelled(queue: &MemoryQueue, pipeline: &Pipeline, ended: impl Fn() -> bool) {
    let report = pipeline.drain(Duration::from_secs(25)).await;
    assert_eq!((report.in_flight, report.given_up), (1, 0), "{report}");
    until(ended).await;
    let counts = pipeline.status().counts;
    assert_eq!(
        (counts.failed, counts.batch_failed, counts.given_up),
        (0, 0, 0),
        "it is counted as a failure"
    );
    assert!(queue.dead().is_empty());
}

#[tokio::test(start_paused = true)]
async fn p8_a_run_whose_pipeline_ends_without_its_source_has_not_failed() {
    let handler = Scripted::default();
    let running = Arc::clone(&handler.running);
    let (queue, _host, pipeline) = start(Flow::process(handler), "hang");
    until(|| running.load(SeqCst) == 1).await;
    assert_cancelled(&queue, &pipeline, || running.load(SeqCst) == 0).await;
}

#[tokio::test(start_paused = true)]
async fn p8_a_batch_whose_pipeline_ends_without_its_source_has_not_failed() {
    let batches = ScriptedBatches::default();
    let running = Arc::clone(&batches.running);
    let flow = Flow::process(Scripted::default()).batch("out", batches);
    let (queue, _host, pipeline) = start(flow, "batch-hang");
    until(|| !running.lock().is_empty()).await;
    assert_cancelled(&queue, &pipeline, || running.lock().is_empty()).await;
}
