//! Supervision: what dies is started again, until it dies too often.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use millstream_core::memory::{MemoryAcknowledger, MemoryQueue, MemorySource};
use millstream_core::{
    Capabilities, Chunk, Condition, Connector, Credit, EngineHandle, Host, Message, OnGiveUp, OpenError,
    PipelineSpec, Read, Source, SourceError, StartError,
};

use crate::support::{Rig, scripted, until};

/// A queue whose source dies after so many reads, each time it is opened.
struct Mortal {
    queue: MemoryQueue,
    reads: usize,
    opened: Arc<AtomicUsize>,
    panics: bool,
}

struct MortalSource {
    source: MemorySource,
    left: usize,
    panics: bool,
}

impl Connector for Mortal {
    type Source = MortalSource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.queue)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MortalSource, MemoryAcknowledger), OpenError> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let (source, acknowledger) = Connector::open(&self.queue, engine).await?;
        Ok((
            MortalSource {
                source,
                left: self.reads,
                panics: self.panics,
            },
            acknowledger,
        ))
    }
}

impl Source for MortalSource {
    async fn read(&mut self, credit: Credit, chunk: &mut Chunk) -> Result<Read, SourceError> {
        if self.left == 0 {
            assert!(!self.panics, "the source panics");
            return Err(SourceError("the source died".to_owned()));
        }
        let read = self
            .source
            .read(
                Credit {
                    messages: 2,
                    ..credit
                },
                chunk,
            )
            .await;
        self.left -= 1;
        read
    }

    fn drain(&mut self) {
        self.source.drain();
    }
}

fn mortal(panics: bool) -> (MemoryQueue, Arc<AtomicUsize>, Mortal) {
    let (queue, opened) = (MemoryQueue::new(), Arc::new(AtomicUsize::new(0)));
    let connector = Mortal {
        queue: queue.clone(),
        reads: 3,
        opened: Arc::clone(&opened),
        panics,
    };
    (queue, opened, connector)
}

#[tokio::test(start_paused = true)]
async fn p2_a_source_that_dies_is_opened_again_and_loses_nothing() {
    for panics in [false, true] {
        let (queue, opened, connector) = mortal(panics);
        let (log, flow) = scripted();
        let mut spec = PipelineSpec::new("test", Arc::new(connector), flow);
        spec.supervisor.max_restarts = 100;
        queue.publish_all((0..20).map(|number| Message::new(format!("sleep=10 {number}"))));
        let host = Host::start([spec]).unwrap();
        until(|| queue.is_empty()).await;
        let mut ended = log.ended();
        ended.sort();
        ended.dedup();
        assert_eq!(ended.len(), 20);
        assert!(opened.load(Ordering::SeqCst) > 1);
        let status = host.pipeline("test").unwrap().status();
        assert_eq!(status.in_flight, 0);
        assert!(status.counts.restarts > 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_whose_source_dies_too_often_gives_up_and_releases_what_it_held() {
    let (queue, _, connector) = mortal(false);
    let (_, flow) = scripted();
    let mut spec = PipelineSpec::new("test", Arc::new(connector), flow);
    spec.supervisor.max_restarts = 2;
    queue.publish_all((0..100).map(|_| Message::new("hang")));
    let host = Host::start([spec]).unwrap();
    host.ended().await;
    let condition = host.pipeline("test").unwrap().status().condition;
    assert!(
        matches!(&condition, Condition::GaveUp(why) if why.contains("more than 2 restarts")),
        "{condition:?}"
    );
    assert_eq!((queue.len(), queue.leased()), (100, 0));
}

#[tokio::test(start_paused = true)]
async fn giving_up_ends_the_host_only_where_the_pipeline_says_so() {
    let failing = |on_give_up| {
        let (queue, _, connector) = mortal(false);
        queue.publish_all((0..100).map(|_| Message::new("a")));
        let mut spec = PipelineSpec::new("failing", Arc::new(connector), scripted().1);
        spec.supervisor.max_restarts = 0;
        spec.supervisor.on_give_up = on_give_up;
        spec
    };
    let steady = || PipelineSpec::new("steady", Arc::new(MemoryQueue::new()), scripted().1);
    let host = Host::start([failing(OnGiveUp::Exit), steady()]).unwrap();
    tokio::time::timeout(Duration::from_secs(60), host.ended())
        .await
        .unwrap();
    let host = Host::start([failing(OnGiveUp::Stop), steady()]).unwrap();
    assert!(
        tokio::time::timeout(Duration::from_secs(60), host.ended())
            .await
            .is_err()
    );
    assert_eq!(
        host.pipeline("steady").unwrap().status().condition,
        Condition::Running
    );
}

/// A broker that cannot be reached at first.
struct Late(MemoryQueue, AtomicUsize);

impl Connector for Late {
    type Source = MemorySource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, MemoryAcknowledger), OpenError> {
        if self.1.fetch_add(1, Ordering::SeqCst) < 20 {
            return Err(OpenError::Unavailable("nobody listens".to_owned()));
        }
        Connector::open(&self.0, engine).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_cannot_be_reached_is_tried_for_ever_without_a_restart() {
    let queue = MemoryQueue::new();
    queue.publish(Message::new("a"));
    let late = Late(queue.clone(), AtomicUsize::new(0));
    let host = Host::start([PipelineSpec::new("test", Arc::new(late), scripted().1)]).unwrap();
    let pipeline = host.pipeline("test").unwrap();
    until(|| matches!(pipeline.status().condition, Condition::Degraded(_))).await;
    until(|| queue.is_empty()).await;
    assert_eq!(pipeline.status().condition, Condition::Running);
    assert_eq!(pipeline.status().counts.restarts, 0);
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_drains_while_its_broker_cannot_be_reached() {
    let late = Late(MemoryQueue::new(), AtomicUsize::new(0));
    let host = Host::start([PipelineSpec::new("test", Arc::new(late), scripted().1)]).unwrap();
    until(|| {
        matches!(
            host.pipeline("test").unwrap().status().condition,
            Condition::Degraded(_)
        )
    })
    .await;
    let report = host
        .pipeline("test")
        .unwrap()
        .drain(Duration::from_secs(25))
        .await;
    assert_eq!(report.in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_host_refuses_what_does_not_fit() {
    let spec = |name: &str| PipelineSpec::new(name, Arc::new(MemoryQueue::new()), scripted().1);
    assert!(matches!(
        Host::start([spec("a"), spec("a")]),
        Err(StartError::SameName(_))
    ));
    let mut wrong = spec("a");
    wrong
        .batchers
        .insert("nowhere".to_owned(), millstream_core::BatcherSpec::default());
    let error = Host::start([wrong]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "pipeline `a`: its flow has no batcher `nowhere`"
    );
    let forgetful = MemoryQueue::with_capabilities(Capabilities::default());
    let wrong = PipelineSpec::new("a", Arc::new(forgetful), scripted().1);
    assert!(
        Host::start([wrong])
            .unwrap_err()
            .to_string()
            .contains("name a dead letter")
    );
}

#[tokio::test(start_paused = true)]
async fn start_and_stop_hooks_frame_a_run_and_a_failing_start_hook_prevents_it() {
    let calls = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (on_start, on_stop) = (Arc::clone(&calls), Arc::clone(&calls));
    let (_, flow) = scripted();
    let flow = flow
        .on_start(move || {
            on_start.lock().push("start");
            async { Ok(()) }
        })
        .on_stop(move || {
            on_stop.lock().push("stop");
            async { Ok(()) }
        });
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["a"]);
    rig.settled().await;
    assert_eq!(*calls.lock(), ["start"]);
    rig.pipeline().stop().await;
    assert_eq!(*calls.lock(), ["start", "stop"]);

    let (_, flow) = scripted();
    let rig = Rig::start(flow.on_start(|| async { Err("no database".into()) }), |_| {});
    rig.host.ended().await;
    let condition = rig.pipeline().status().condition;
    assert_eq!(
        condition,
        Condition::GaveUp("its start hook failed: no database".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_is_not_idle_while_its_broker_cannot_be_reached() {
    let queue = MemoryQueue::new();
    queue.publish(Message::new("a"));
    let late = Late(queue.clone(), AtomicUsize::new(0));
    let host = Host::start([PipelineSpec::new("test", Arc::new(late), scripted().1)]).unwrap();
    host.idle(Duration::from_secs(1)).await;
    assert!(queue.is_empty(), "it was idle before it had read anything");
}

#[tokio::test(start_paused = true)]
async fn a_panicking_start_hook_ends_the_pipeline_and_hangs_nobody() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow.on_start(|| async { panic!("no database") }), |_| {});
    tokio::time::timeout(Duration::from_secs(60), rig.host.ended())
        .await
        .unwrap();
    assert!(matches!(rig.pipeline().status().condition, Condition::GaveUp(_)));
    assert!(rig.pipeline().start().is_ok());
}

#[tokio::test(start_paused = true)]
async fn p6_a_hook_that_hangs_does_not_outlast_the_drain() {
    let (_, flow) = scripted();
    let rig = Rig::start(
        flow.on_start(std::future::pending).on_stop(std::future::pending),
        |_| {},
    );
    let pipeline = rig.pipeline();
    let drain = pipeline.drain(Duration::from_secs(5));
    tokio::time::timeout(Duration::from_secs(6), drain).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_dropped_stops_nothing() {
    let (log, flow) = scripted();
    let Rig { queue, host } = Rig::start(flow, |_| {});
    queue.publish(Message::new("sleep=1000"));
    until(|| log.len() == 1).await;
    drop(host);
    until(|| queue.is_empty()).await;
    assert_eq!(log.ended(), ["sleep=1000"]);
}

/// Keeps the last settlement of each call back until it is flushed or called again.
struct Coalescing(MemoryAcknowledger, Option<millstream_core::Settle>);

impl millstream_core::Acknowledger for Coalescing {
    async fn settle(
        &mut self,
        settlements: &[millstream_core::Settle],
        outcomes: &mut Vec<(millstream_core::Settle, millstream_core::Outcome)>,
    ) {
        let mut all: Vec<_> = self
            .1
            .take()
            .into_iter()
            .chain(settlements.iter().cloned())
            .collect();
        self.1 = all.pop();
        self.0.settle(&all, outcomes).await;
    }

    async fn flush(&mut self, outcomes: &mut Vec<(millstream_core::Settle, millstream_core::Outcome)>) {
        if let Some(kept) = self.1.take() {
            self.0.settle(&[kept], outcomes).await;
        }
    }
}

struct Coalesces(MemoryQueue);

impl Connector for Coalesces {
    type Source = MemorySource;
    type Acknowledger = Coalescing;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, Coalescing), OpenError> {
        let (source, acknowledger) = Connector::open(&self.0, engine).await?;
        Ok((source, Coalescing(acknowledger, None)))
    }
}

#[tokio::test(start_paused = true)]
async fn p2_what_an_acknowledger_keeps_back_is_flushed_soon() {
    let queue = MemoryQueue::new();
    let (_, flow) = scripted();
    let host = Host::start([PipelineSpec::new(
        "test",
        Arc::new(Coalesces(queue.clone())),
        flow,
    )])
    .unwrap();
    for _ in 0..50 {
        queue.publish(Message::new("a"));
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let started = tokio::time::Instant::now();
    until(|| queue.is_empty()).await;
    assert!(
        started.elapsed() < Duration::from_millis(100),
        "{:?}",
        started.elapsed()
    );
    until(|| host.pipeline("test").unwrap().status().in_flight == 0).await;
}

/// An acknowledger that panics at its first settlement, each of the first two times that it is opened.
struct Clumsy(MemoryQueue, Arc<AtomicUsize>);

struct ClumsyAcknowledger(MemoryAcknowledger, bool);

impl Connector for Clumsy {
    type Source = MemorySource;
    type Acknowledger = ClumsyAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(MemorySource, ClumsyAcknowledger), OpenError> {
        let (source, acknowledger) = Connector::open(&self.0, engine).await?;
        let panics = self.1.fetch_add(1, Ordering::SeqCst) < 2;
        Ok((source, ClumsyAcknowledger(acknowledger, panics)))
    }
}

impl millstream_core::Acknowledger for ClumsyAcknowledger {
    async fn settle(
        &mut self,
        settlements: &[millstream_core::Settle],
        outcomes: &mut Vec<(millstream_core::Settle, millstream_core::Outcome)>,
    ) {
        assert!(!self.1, "the acknowledger panics");
        self.0.settle(settlements, outcomes).await;
    }

    async fn flush(&mut self, outcomes: &mut Vec<(millstream_core::Settle, millstream_core::Outcome)>) {
        self.0.flush(outcomes).await;
    }
}

#[tokio::test(start_paused = true)]
async fn p2_an_acknowledger_that_dies_is_opened_again_with_its_source_and_loses_nothing() {
    let (queue, opened) = (MemoryQueue::new(), Arc::new(AtomicUsize::new(0)));
    let (log, flow) = scripted();
    let clumsy = Clumsy(queue.clone(), Arc::clone(&opened));
    let host = Host::start([PipelineSpec::new("test", Arc::new(clumsy), flow)]).unwrap();
    queue.publish_all((0..20).map(|number| Message::new(format!("sleep=10 {number}"))));
    until(|| queue.is_empty()).await;
    assert_eq!(opened.load(Ordering::SeqCst), 3);
    let mut ended = log.ended();
    ended.sort();
    ended.dedup();
    assert_eq!(ended.len(), 20);
    until(|| host.pipeline("test").unwrap().status().in_flight == 0).await;
    assert_eq!(host.pipeline("test").unwrap().status().counts.restarts, 2);
}

/// A connector that no trying again can open.
struct Refuses;

impl Connector for Refuses {
    type Source = MemorySource;
    type Acknowledger = MemoryAcknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&MemoryQueue::new())
    }

    async fn open(&self, _: EngineHandle) -> Result<(MemorySource, MemoryAcknowledger), OpenError> {
        Err(OpenError::Refused("no queue of that name".to_owned()))
    }
}

#[tokio::test(start_paused = true)]
async fn a_connector_that_refuses_to_open_ends_its_pipeline_and_says_why() {
    let host = Host::start([PipelineSpec::new("test", Arc::new(Refuses), scripted().1)]).unwrap();
    tokio::time::timeout(Duration::from_secs(60), host.ended())
        .await
        .unwrap();
    let condition = host.pipeline("test").unwrap().status().condition;
    assert!(
        matches!(&condition, Condition::GaveUp(why) if why.contains("no queue of that name")),
        "{condition:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn pipelines_are_known_by_name_and_one_that_is_stopped_leaves_the_others_alone() {
    let queue = MemoryQueue::new();
    let (log, flow) = scripted();
    let host = Host::start([
        PipelineSpec::new("one", Arc::new(MemoryQueue::new()), scripted().1),
        PipelineSpec::new("other", Arc::new(queue.clone()), flow),
    ])
    .unwrap();
    let names: Vec<_> = host
        .pipelines()
        .map(|pipeline| pipeline.name().to_owned())
        .collect();
    assert_eq!(names, ["one", "other"]);
    assert!(host.pipeline("neither").is_none());
    host.pipeline("one").unwrap().stop().await;
    queue.publish(Message::new("a"));
    until(|| queue.is_empty()).await;
    assert_eq!(log.ended(), ["a"]);
    let condition = |name| host.pipeline(name).unwrap().status().condition;
    assert_eq!(
        (condition("one"), condition("other")),
        (Condition::Ended, Condition::Running)
    );
}
