//! What moves no more although it should, and what only waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    BatcherSpec, BreakerSpec, Capabilities, Chunk, Condition, Connector, Credit, DeadLetter, Delivered,
    EngineHandle, Host, Message, OpenError, Outgoing, PipelineSpec, Read, Sentinel, Sink, SinkConnector,
    SinkError, Source, SourceError,
};

use crate::support::{Rig, ScriptedBatches, Slow, keyed, scripted, until};

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn p8_a_broker_that_does_not_answer_is_a_stall_until_it_does_also_while_paused() {
    let queue = MemoryQueue::new();
    queue.publish(Message::new("a"));
    let slow = Slow(queue.clone(), 5 * MINUTE);
    let host = Host::start([PipelineSpec::new("test", Arc::new(slow), scripted().1)]).unwrap();
    let pipeline = host.pipeline("test").unwrap();
    until(|| pipeline.status().stalled.is_some()).await;
    let status = pipeline.status();
    let stall = status.stalled.unwrap();
    assert_eq!(&*stall.stage, "settlement");
    assert!((MINUTE..2 * MINUTE).contains(&stall.after), "{stall:?}");
    assert!(stall.age >= Some(stall.after));
    let says =
        |condition: &Condition| matches!(condition, Condition::Degraded(why) if why.contains("`settlement`"));
    assert!(says(&status.condition), "{:?}", status.condition);
    pipeline.pause();
    assert!(says(&pipeline.status().condition));
    pipeline.resume();
    until(|| queue.is_empty()).await;
    until(|| pipeline.status().stalled.is_none()).await;
    let status = pipeline.status();
    assert_eq!((status.condition, status.counts.stalls), (Condition::Running, 1));
}

/// A sink that takes messages and never answers.
struct Silent;

impl SinkConnector for Silent {
    type Sink = Self;

    async fn open(&self) -> Result<Self, OpenError> {
        Ok(Self)
    }
}

impl Sink for Silent {
    async fn send(&mut self, _: &[Outgoing], _: &mut Vec<Delivered>) -> Result<(), SinkError> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn p8_a_dead_letter_sink_that_does_not_answer_is_a_stall_that_names_the_message() {
    let rig = Rig::start(scripted().1, |spec| {
        spec.dead_letter = DeadLetter::Sink(Arc::new(Silent));
    });
    rig.queue.publish(Message::new("ok"));
    rig.queue.publish(keyed("customer", "reject"));
    until(|| rig.pipeline().status().stalled.is_some()).await;
    let stall = rig.pipeline().status().stalled.unwrap();
    assert_eq!(&*stall.stage, "dead letter");
    assert!(
        stall
            .at
            .as_ref()
            .is_some_and(|at| at.ends_with("@1") || at.ends_with("@2")),
        "{stall:?}"
    );
    assert_eq!(stall.key.as_deref(), Some(&b"customer"[..]));
    let text = rig.pipeline().status().condition.to_string();
    assert!(!text.contains("customer"), "a key is the user's data: {text}");
}

/// Nothing here has stalled for an hour, though nothing moves for minutes.
async fn waits(rig: &Rig, begun: impl Fn() -> bool) {
    until(begun).await;
    for _ in 0..60 {
        tokio::time::sleep(MINUTE).await;
        let status = rig.pipeline().status();
        assert_eq!((status.stalled, status.counts.stalls), (None, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_within_its_timeout_is_no_stall() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.processor.timeout = 5 * MINUTE);
    // A run of nearly five minutes, again and again, and one that is cut at five.
    rig.publish(&["sleep=290000", "sleep=170000 fail", "hang"]);
    waits(&rig, || log.len() >= 3).await;
    assert!(rig.pipeline().status().counts.timed_out > 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_handler_within_its_timeout_is_no_stall_and_neither_is_a_batch_that_fills() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(scripted().1.batch("db", batches), |spec| {
        let batcher = BatcherSpec {
            timeout: 5 * MINUTE,
            max_age: 20 * MINUTE,
            ..BatcherSpec::default()
        };
        spec.batchers.insert("db".to_owned(), batcher);
    });
    rig.publish(&["batch-sleep=290000"]);
    waits(&rig, || rig.pipeline().status().in_flight > 0).await;
    assert_eq!(seen.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_is_parked_for_long_is_no_stall() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = millstream_core::Ordering::Key;
        spec.retry.backoff = 30 * MINUTE;
        spec.retry.max_backoff = 30 * MINUTE;
    });
    rig.publish_keyed(&[("a", "fail"), ("a", "behind it")]);
    waits(&rig, || log.len() > 0).await;
    assert!(rig.pipeline().status().counts.retried > 1);
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_an_open_breaker_is_no_stall() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.breaker = Some(BreakerSpec {
            minimum: std::num::NonZeroU32::MIN,
            open_for: 20 * MINUTE,
            ..BreakerSpec::default()
        });
    });
    rig.publish(&["fail", "fail"]);
    waits(&rig, || log.len() > 0).await;
    assert!(rig.pipeline().status().in_flight > 0);
}

/// A failed batch has had all turns for minutes, and what the processor retries has none for as long.
#[tokio::test(start_paused = true)]
async fn what_is_due_and_beyond_the_retry_budget_is_no_stall() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(scripted().1.batch("db", batches), |spec| {
        spec.retry.budget = Some(0.1);
        let batcher = BatcherSpec {
            size: crate::support::non_zero(4_000),
            bytes: crate::support::non_zero(16 << 20),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("db".to_owned(), batcher);
    });
    rig.publish(&["batch-fail"; 4_000]);
    until(|| seen.lock().len() == 1).await;
    rig.publish(&["fail"]);
    waits(&rig, || rig.pipeline().status().parked == 1).await;
    assert!(rig.pipeline().status().counts.over_budget > 0);
}

/// A queue that gives more than it is asked for, once.
struct Generous(MemoryQueue, Arc<AtomicUsize>);

struct GenerousSource(MemorySource, Arc<AtomicUsize>);

impl Connector for Generous {
    type Source = GenerousSource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(GenerousSource, MemoryAcknowledger), OpenError> {
        let (source, acknowledger) = Connector::open(&self.0, engine).await?;
        Ok((GenerousSource(source, Arc::clone(&self.1)), acknowledger))
    }
}

impl Source for GenerousSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        let more = Credit {
            messages: credit.messages + 3,
            ..credit
        };
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.read(more, chunk).await
    }

    fn drain(&mut self) {
        self.0.drain();
    }
}

#[tokio::test(start_paused = true)]
async fn p4_a_source_that_gives_more_than_it_is_asked_for_fires_the_sentinel() {
    let queue = MemoryQueue::new();
    queue.publish_all((0..10).map(|_| Message::new("hang")));
    let generous = Generous(queue, Arc::default());
    let mut spec = PipelineSpec::new("test", Arc::new(generous), scripted().1);
    spec.limits.in_flight = crate::support::non_zero(4);
    let host = Host::start([spec]).unwrap();
    let pipeline = host.pipeline("test").unwrap();
    until(|| pipeline.status().in_flight > 0).await;
    let fired: Vec<_> = pipeline
        .measures()
        .sentinels
        .into_iter()
        .filter(|(_, times)| *times > 0)
        .collect();
    assert_eq!(fired, [(Sentinel::Overfetch, 3)]);
    let condition = pipeline.status().condition;
    assert!(
        matches!(&condition, Condition::Degraded(why) if why.contains("the source gave more")),
        "{condition}"
    );
    pipeline.pause();
    assert!(
        matches!(pipeline.status().condition, Condition::Degraded(_)),
        "a pause hides no defect"
    );
}

/// A source that fails at each read, and says when it was opened.
struct Failing(MemoryQueue, Arc<parking_lot::Mutex<Vec<tokio::time::Instant>>>);

struct FailingSource;

impl Source for FailingSource {
    async fn read(&mut self, _: Credit, _: &mut Chunk) -> Result<Read, SourceError> {
        Err(SourceError("the source died".to_owned()))
    }

    fn drain(&mut self) {}
}

impl Connector for Failing {
    type Source = FailingSource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(FailingSource, MemoryAcknowledger), OpenError> {
        self.1.lock().push(tokio::time::Instant::now());
        Ok((FailingSource, Connector::open(&self.0, engine).await?.1))
    }
}

fn failing(max_restarts: u32) -> (Host, Arc<parking_lot::Mutex<Vec<tokio::time::Instant>>>) {
    let opened = Arc::default();
    let failing = Failing(MemoryQueue::new(), Arc::clone(&opened));
    let mut spec = PipelineSpec::new("test", Arc::new(failing), scripted().1);
    spec.supervisor.max_restarts = max_restarts;
    spec.supervisor.jitter = false;
    (Host::start([spec]).unwrap(), opened)
}

#[tokio::test(start_paused = true)]
async fn each_restart_of_what_dies_again_waits_twice_as_long_and_the_pipeline_says_so() {
    let (host, opened) = failing(4);
    let pipeline = host.pipeline("test").unwrap();
    until(|| opened.lock().len() == 2).await;
    until(|| matches!(pipeline.status().condition, Condition::Degraded(_))).await;
    assert_eq!(
        pipeline.status().condition.to_string(),
        "degraded: source: the source died"
    );
    host.ended().await;
    let opened = opened.lock();
    let waits: Vec<_> = opened
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_millis())
        .collect();
    let wanted = [100, 200, 400, 800];
    assert_eq!(waits.len(), wanted.len());
    assert!(
        waits
            .iter()
            .zip(wanted)
            .all(|(wait, wanted)| wait.abs_diff(wanted) <= 2),
        "{waits:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_does_not_wait_for_a_restart() {
    let (host, opened) = failing(100);
    until(|| opened.lock().len() == 9).await;
    // The next one would be in 25 seconds.
    let report = host.pipeline("test").unwrap().drain(10 * MINUTE).await;
    assert!(report.took < Duration::from_secs(1), "{report}");
}
