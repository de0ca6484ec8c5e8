//! What the engine's tests are written with: handlers that do what the payload says, and a record of what ran.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    Acknowledger, Batch, BatchHandler, Capabilities, Connector, Context, EngineHandle, Failure, Flow, Host,
    Message, OpenError, Outcome, Pipeline, PipelineSpec, Processor, Settle, SharedFlow,
};
use parking_lot::Mutex;

/// One run of a handler, as it began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) what: What,
    pub(crate) payload: String,
    pub(crate) key: Option<String>,
    pub(crate) attempt: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    Began,
    Ended,
}

/// What ran, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().clone()
    }

    pub(crate) fn count(&self, what: What, payload: &str) -> usize {
        self.0
            .lock()
            .iter()
            .filter(|event| event.what == what && event.payload == payload)
            .count()
    }

    pub(crate) fn ended(&self) -> Vec<String> {
        self.events()
            .into_iter()
            .filter(|event| event.what == What::Ended)
            .map(|event| event.payload)
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    fn push(&self, event: Event) {
        self.0.lock().push(event);
    }
}

/// Does what each payload says, word by word: `ok`, `fail`, `fail-once`, `panic`, `reject`, `hang`, `sleep=MS`,
/// `to=BATCHER`, `batch-key=KEY`, `flush`, `done`, `settle`, `bomb` (its future panics when it is dropped).
/// Anything else is a name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Scripted {
    pub(crate) log: Log,
    pub(crate) running: Arc<AtomicUsize>,
    pub(crate) most_running: Arc<AtomicUsize>,
}

/// Panics when it is dropped.
pub(crate) struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("dropped");
        }
    }
}

struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Processor for Scripted {
    type Input = String;
    type Output = String;

    async fn process(&self, payload: String, cx: &mut Context<'_>) -> Result<String, Failure> {
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_running.fetch_max(running, Ordering::SeqCst);
        let _counted = Counted(&self.running);
        let event = Event {
            what: What::Began,
            payload: payload.clone(),
            key: cx.key().map(|key| String::from_utf8_lossy(key).into_owned()),
            attempt: cx.attempt(),
        };
        self.log.push(event.clone());
        for word in payload.split_whitespace() {
            match word {
                "fail" => return Err("scripted".into()),
                "fail-once" if cx.attempt() == 1 => return Err("scripted once".into()),
                "panic" => panic!("scripted panic"),
                "reject" => return Err(Failure::reject("scripted reject")),
                "hang" => std::future::pending().await,
                "bomb" => {
                    let _bomb = Bomb;
                    std::future::pending::<()>().await;
                }
                "flush" => drop(cx.flush_batch()),
                "done" => drop(cx.done()),
                "settle" => cx.settle_now(millstream_core::Settlement::Ack),
                word => {
                    if let Some(ms) = word.strip_prefix("sleep=") {
                        tokio::time::sleep(Duration::from_millis(ms.parse().expect("milliseconds"))).await;
                    } else if let Some(name) = word.strip_prefix("to=") {
                        cx.batch_to(name);
                    } else if let Some(key) = word.strip_prefix("batch-key=") {
                        cx.batch_key(key);
                    }
                }
            }
        }
        self.log.push(Event {
            what: What::Ended,
            ..event
        });
        Ok(payload)
    }
}

/// A batch as a handler saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) items: Vec<String>,
    pub(crate) key: Option<String>,
    pub(crate) closed_by: millstream_core::ClosedBy,
    pub(crate) attempt: u32,
}

/// Does what its items say: `batch-fail`, `batch-fail-once`, `batch-reject`, `batch-panic`, `batch-hang`,
/// `batch-take`, `batch-sleep=MS` for all of it, `item-fail`, `item-fail-once`, `item-reject` for one.
#[derive(Clone, Debug, Default)]
pub(crate) struct ScriptedBatches {
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    /// Items of the batches that run now, and those of a key that ever ran twice at the same time.
    pub(crate) running: Arc<Mutex<Vec<String>>>,
    pub(crate) overlaps: Arc<AtomicUsize>,
}

impl BatchHandler for ScriptedBatches {
    type Input = String;

    async fn handle(&self, batch: &mut Batch<String>) -> Result<(), Failure> {
        let attempt = batch.attempt();
        let items = batch.items().to_vec();
        self.seen.lock().push(Seen {
            items: items.clone(),
            key: batch.key().map(str::to_owned),
            closed_by: batch.closed_by(),
            attempt,
        });
        // The first word of an item names its key.
        let keys: Vec<_> = items
            .iter()
            .map(|item| item.split_whitespace().next().unwrap_or_default().to_owned())
            .collect();
        {
            let mut running = self.running.lock();
            if keys.iter().any(|key| running.contains(key)) {
                self.overlaps.fetch_add(1, Ordering::SeqCst);
            }
            running.extend(keys.iter().cloned());
        }
        let _leave = Leave(&self.running, keys);
        for (index, item) in items.iter().enumerate() {
            for word in item.split_whitespace() {
                match word {
                    "batch-fail" => return Err("scripted".into()),
                    "batch-fail-once" if attempt == 1 => return Err("scripted once".into()),
                    "batch-reject" => return Err(Failure::reject("scripted reject")),
                    "batch-panic" => panic!("scripted panic"),
                    "batch-hang" => std::future::pending().await,
                    "batch-take" => {
                        batch.take_items();
                        if attempt == 1
                            && !self
                                .seen
                                .lock()
                                .iter()
                                .rev()
                                .skip(1)
                                .any(|seen| seen.items == items)
                        {
                            return Err("took the items and failed".into());
                        }
                    }
                    "item-fail" => batch.fail(index, "scripted"),
                    "item-fail-once" if attempt == 1 => batch.fail(index, "scripted once"),
                    "item-reject" => batch.fail(index, Failure::reject("scripted reject")),
                    word => {
                        if let Some(ms) = word.strip_prefix("batch-sleep=") {
                            tokio::time::sleep(Duration::from_millis(ms.parse().expect("milliseconds")))
                                .await;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

struct Leave<'a>(&'a Mutex<Vec<String>>, Vec<String>);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        let mut running = self.0.lock();
        for key in &self.1 {
            if let Some(index) = running.iter().position(|running| running == key) {
                running.swap_remove(index);
            }
        }
    }
}

/// A pipeline on a queue in memory.
pub(crate) struct Rig {
    pub(crate) queue: MemoryQueue,
    pub(crate) host: Host,
}

impl Rig {
    pub(crate) fn start(flow: impl Into<SharedFlow>, set: impl FnOnce(&mut PipelineSpec)) -> Self {
        Self::on(MemoryQueue::new(), flow, set)
    }

    pub(crate) fn on(
        queue: MemoryQueue,
        flow: impl Into<SharedFlow>,
        set: impl FnOnce(&mut PipelineSpec),
    ) -> Self {
        let mut spec = PipelineSpec::new("test", Arc::new(queue.clone()), flow);
        spec.retry.jitter = false;
        set(&mut spec);
        let host = Host::start([spec]).unwrap();
        Self { queue, host }
    }

    pub(crate) fn pipeline(&self) -> Pipeline {
        self.host.pipeline("test").unwrap()
    }

    /// Has so many messages processed at a time.
    pub(crate) fn resize(&self, concurrency: usize) {
        let set = |spec: &mut PipelineSpec| {
            spec.processor.concurrency = non_zero(concurrency);
            spec.processor.adapts_from = None;
        };
        self.pipeline().change(set).unwrap();
    }

    /// Has as many messages processed at a time as latency and errors allow, between these two.
    pub(crate) fn adapt(&self, min: usize, max: usize) {
        let set = |spec: &mut PipelineSpec| {
            spec.processor.concurrency = non_zero(max);
            spec.processor.adapts_from = Some(non_zero(min));
        };
        self.pipeline().change(set).unwrap();
    }

    pub(crate) fn publish(&self, payloads: &[&str]) {
        self.queue
            .publish_all(payloads.iter().map(|payload| Message::new((*payload).to_owned())));
    }

    pub(crate) fn publish_keyed(&self, messages: &[(&str, &str)]) {
        self.queue
            .publish_all(messages.iter().map(|(key, payload)| keyed(key, payload)));
    }

    /// Fails if the watchdog has found anything, or a sentinel has fired.
    pub(crate) fn assert_sound(&self) {
        let fired = self.pipeline().measures().sentinels;
        assert!(fired.iter().all(|(_, times)| *times == 0), "{fired:?}");
        assert_eq!(self.pipeline().status().counts.stalls, 0);
    }

    /// Waits until every message is settled.
    pub(crate) async fn settled(&self) {
        until(|| self.queue.is_empty()).await;
    }
}

pub(crate) fn keyed(key: &str, payload: &str) -> Message {
    Message::new(payload.to_owned()).with_key(Bytes::copy_from_slice(key.as_bytes()))
}

/// Waits, on paused time, until the condition holds, and looks the less often the longer that takes; fails the test if
/// it does not within a day.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let started = tokio::time::Instant::now();
    while !condition() {
        assert!(
            started.elapsed() < Duration::from_secs(86_400),
            "the condition never came true"
        );
        let pause = (started.elapsed() / 1_000).max(Duration::from_millis(1));
        tokio::time::sleep(pause).await;
    }
}

pub(crate) fn non_zero(number: usize) -> std::num::NonZeroUsize {
    std::num::NonZeroUsize::new(number).unwrap()
}

pub(crate) fn scripted() -> (Log, Flow<Scripted>) {
    let processor = Scripted::default();
    (processor.log.clone(), Flow::process(processor))
}

/// A queue whose acknowledger answers only after so long, each time.
pub(crate) struct Slow(pub(crate) MemoryQueue, pub(crate) Duration);

pub(crate) struct SlowAcknowledger(MemoryAcknowledger, Duration);

impl Connector for Slow {
    type Source = MemorySource;
    type Acknowledger = SlowAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, SlowAcknowledger), OpenError> {
        let (source, acknowledger) = Connector::open(&self.0, engine).await?;
        Ok((source, SlowAcknowledger(acknowledger, self.1)))
    }
}

impl Acknowledger for SlowAcknowledger {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        tokio::time::sleep(self.1).await;
        self.0.settle(settlements, outcomes).await;
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        self.0.flush(outcomes).await;
    }
}
