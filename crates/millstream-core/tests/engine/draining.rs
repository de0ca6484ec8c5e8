//! P6: one deadline, and a report that adds up.

use std::sync::Arc;
use std::time::Duration;

use millstream_core::memory::MemoryQueue;
use millstream_core::{BatcherSpec, Capabilities, Condition, DeadLetter, Flow, Ordering, RetryStrategy};

use crate::support::{Rig, Scripted, ScriptedBatches, keyed, non_zero, scripted, until};

fn adds_up(report: &millstream_core::DrainReport) -> bool {
    report.in_flight == report.done + report.given_up + report.released + report.lost + report.left
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_lets_what_is_in_flight_end_and_fetches_nothing_more() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| spec.limits.in_flight = non_zero(10));
    rig.publish(&["sleep=1000"; 30]);
    until(|| log.len() == 10).await;
    let report = rig.pipeline().drain(Duration::from_secs(25)).await;
    assert_eq!((report.in_flight, report.done), (10, 10));
    assert!(adds_up(&report), "{report}");
    assert_eq!((rig.queue.len(), rig.queue.leased()), (20, 0));
    assert!(report.took < Duration::from_secs(2), "{report}");
}

#[tokio::test(start_paused = true)]
async fn p6_a_drain_with_hung_handlers_keeps_to_its_one_deadline_and_its_report_adds_up() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.processor.concurrency = non_zero(100);
        spec.limits.in_flight = non_zero(300);
    });
    let payloads: Vec<_> = (0..1_000)
        .map(|number| if number % 10 < 3 { "hang" } else { "sleep=700" })
        .collect();
    rig.publish(&payloads);
    until(|| log.len() >= 100).await;
    let started = tokio::time::Instant::now();
    let report = rig.pipeline().drain(Duration::from_secs(25)).await;
    println!("{report}");
    assert!(started.elapsed() <= Duration::from_secs(25));
    assert!(
        started.elapsed() >= Duration::from_secs(23),
        "the hung ones had until the cut"
    );
    assert!(adds_up(&report), "{report}");
    assert_eq!((report.in_flight, report.left), (300, 0));
    assert!(report.released > 0);
    assert_eq!(rig.queue.leased(), 0);
    assert_eq!(
        rig.queue.len() as u64,
        1_000 - rig.pipeline().status().counts.acked
    );
}

#[tokio::test(start_paused = true)]
async fn p6_parked_messages_and_what_waits_behind_them_go_back_at_once() {
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.retry.backoff = Duration::from_secs(3_600);
        spec.retry.max_backoff = Duration::from_secs(3_600);
    });
    rig.queue
        .publish_all([keyed("a", "fail"), keyed("a", "b"), keyed("a", "c")]);
    until(|| rig.pipeline().status().parked == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(25)).await;
    assert!(report.took < Duration::from_secs(1), "{report}");
    assert_eq!((report.in_flight, report.released), (3, 3));
    assert_eq!(
        rig.queue.messages()[0].failures,
        1,
        "its failed attempt goes back with it"
    );
}

#[tokio::test(start_paused = true)]
async fn p6_open_batches_are_flushed_and_hung_ones_released() {
    let batches = ScriptedBatches::default();
    let seen = Arc::clone(&batches.seen);
    let rig = Rig::start(Flow::process(Scripted::default()).batch("out", batches), |spec| {
        spec.processor.concurrency = non_zero(1);
        spec.batchers.insert(
            "out".to_owned(),
            BatcherSpec {
                size: non_zero(3),
                max_age: Duration::from_secs(3_600),
                concurrency: non_zero(2),
                ..BatcherSpec::default()
            },
        );
    });
    rig.publish(&["batch-hang", "b", "c", "d"]);
    until(|| rig.pipeline().status().batchers[0].1 == 4).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!((report.done, report.released, report.left), (1, 3, 0));
    assert_eq!(seen.lock().last().unwrap().items, ["d"]);
}

#[tokio::test(start_paused = true)]
async fn p6_dead_letters_that_their_sink_does_not_take_go_back() {
    struct Refusing;
    impl millstream_core::SinkConnector for Refusing {
        type Sink = millstream_core::memory::MemorySink;
        async fn open(&self) -> Result<Self::Sink, millstream_core::OpenError> {
            Err(millstream_core::OpenError::Unavailable("down".to_owned()))
        }
    }
    let (_, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.dead_letter = DeadLetter::Sink(Arc::new(Refusing));
    });
    rig.publish(&["reject", "reject"]);
    until(|| matches!(rig.pipeline().status().condition, Condition::Degraded(_))).await;
    let report = rig.pipeline().drain(Duration::from_secs(10)).await;
    assert_eq!((report.in_flight, report.released, report.left), (2, 2, 0));
    assert_eq!(rig.queue.leased(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_order_cuts_a_drain_short() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["hang"]);
    until(|| log.len() == 1).await;
    let started = tokio::time::Instant::now();
    let drain = rig.host.drain(Duration::from_secs(25));
    let (reports, ()) = tokio::join!(drain, async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        rig.host.release_now();
    });
    assert_eq!(reports[0].1.released, 1);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn a_drained_pipeline_starts_again_and_finds_what_it_released() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |_| {});
    rig.publish(&["sleep=3000 a"]);
    until(|| log.len() == 1).await;
    rig.pipeline().stop().await;
    assert_eq!(rig.pipeline().status().condition, Condition::Ended);
    assert_eq!(
        rig.queue.messages()[0].deliveries,
        0,
        "an untouched message counts as not delivered"
    );
    rig.pipeline().start().unwrap();
    assert!(rig.pipeline().start().is_err());
    rig.settled().await;
    assert_eq!(log.ended(), ["sleep=3000 a"]);
}

#[tokio::test(start_paused = true)]
async fn the_drain_of_a_host_has_one_deadline_for_all_its_pipelines() {
    let specs: Vec<_> = (0..5)
        .map(|number| {
            let queue = MemoryQueue::new();
            queue.publish(millstream_core::Message::new("hang"));
            let (_, flow) = scripted();
            millstream_core::PipelineSpec::new(&format!("p{number}"), Arc::new(queue), flow)
        })
        .collect();
    let host = millstream_core::Host::start(specs).unwrap();
    until(|| host.pipelines().all(|pipeline| pipeline.status().running == 1)).await;
    let started = tokio::time::Instant::now();
    let reports = host.drain(Duration::from_secs(10)).await;
    assert!(started.elapsed() <= Duration::from_secs(10));
    assert_eq!(reports.iter().map(|(_, report)| report.released).sum::<u64>(), 5);
}

/// Gives what it has fetched before it ends, as a broker that pushes does.
/// P3, P6: its lane is free then, but what intake has in hand must not run before what goes back comes again.
#[tokio::test(start_paused = true)]
async fn p6_what_waits_for_room_behind_a_parked_message_goes_back_with_it() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        keeps_rejected: true,
        ..Capabilities::default()
    });
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| {
        spec.ordering = Ordering::Key;
        spec.limits.per_key = non_zero(1);
        spec.retry.backoff = Duration::from_secs(3_600);
        spec.retry.max_backoff = spec.retry.backoff;
    });
    rig.publish_keyed(&[("k", "fail"), ("k", "b")]);
    until(|| rig.pipeline().status().counts.throttled == 1).await;
    let report = rig.pipeline().drain(Duration::from_secs(25)).await;
    assert_eq!((report.done, report.released), (0, 2), "{report}");
    assert!(log.ended().is_empty(), "{:?}", log.ended());
}

struct Pushed(MemoryQueue);

struct PushedSource {
    source: millstream_core::memory::MemorySource,
    fetched: millstream_core::Chunk,
    draining: bool,
}

impl millstream_core::Connector for Pushed {
    type Source = PushedSource;
    type Acknowledger = millstream_core::memory::MemoryAcknowledger;

    fn capabilities(&self) -> millstream_core::Capabilities {
        millstream_core::Connector::capabilities(&self.0)
    }

    async fn open(
        &self,
        engine: millstream_core::EngineHandle,
    ) -> Result<(PushedSource, Self::Acknowledger), millstream_core::OpenError> {
        let (source, acknowledger) = millstream_core::Connector::open(&self.0, engine).await?;
        let source = PushedSource {
            source,
            fetched: millstream_core::Chunk::new(),
            draining: false,
        };
        Ok((source, acknowledger))
    }
}

impl millstream_core::Source for PushedSource {
    async fn read(
        &mut self,
        credit: millstream_core::Credit,
        chunk: &mut millstream_core::Chunk,
    ) -> Result<millstream_core::Read, millstream_core::SourceError> {
        let all = millstream_core::Credit {
            messages: usize::MAX,
            bytes: usize::MAX,
        };
        if self.fetched.is_empty() && !self.draining {
            self.source.read(all, &mut self.fetched).await?;
        }
        let mut rest: Vec<_> = self.fetched.drain().collect();
        let kept = rest.split_off(rest.len().min(credit.messages));
        for (ticket, message) in kept {
            self.fetched.push(ticket, message);
        }
        if rest.is_empty() {
            return Ok(millstream_core::Read::Ended);
        }
        for (ticket, message) in rest {
            chunk.push(ticket, message);
        }
        Ok(millstream_core::Read::Messages)
    }

    fn drain(&mut self) {
        self.draining = true;
    }
}

#[tokio::test(start_paused = true)]
async fn p6_what_a_source_still_gives_while_it_drains_goes_back() {
    let queue = MemoryQueue::new();
    queue.publish_all((0..30).map(|_| millstream_core::Message::new("sleep=1000")));
    let (log, flow) = scripted();
    let mut spec = millstream_core::PipelineSpec::new("test", Arc::new(Pushed(queue.clone())), flow);
    spec.limits.in_flight = non_zero(10);
    let host = millstream_core::Host::start([spec]).unwrap();
    until(|| log.len() == 10).await;
    let pipeline = host.pipeline("test").unwrap();
    let report = pipeline.drain(Duration::from_secs(25)).await;
    assert_eq!((report.in_flight, report.done, report.released), (30, 10, 20));
    assert!(adds_up(&report), "{report}");
    assert_eq!((queue.len(), queue.leased()), (20, 0));
}

#[tokio::test(start_paused = true)]
async fn p6_a_rate_limited_pipeline_drains_at_once() {
    let (log, flow) = scripted();
    let rig = Rig::start(flow, |spec| {
        spec.rate_limit = Some(millstream_core::RateLimit {
            messages: std::num::NonZeroU32::MIN,
            per: Duration::from_secs(3_600),
            burst: std::num::NonZeroU32::new(2).unwrap(),
            key: None,
            weights: std::collections::BTreeMap::new(),
        });
    });
    rig.publish(&["a"; 10]);
    until(|| log.ended().len() == 2).await;
    let report = rig.pipeline().drain(Duration::from_secs(25)).await;
    assert!(report.took < Duration::from_secs(1), "{report}");
    assert_eq!((rig.queue.len(), rig.queue.leased()), (8, 0));
}

/// P6: what a retry sink has, and the source has lost meanwhile, is in the report once.
#[tokio::test(start_paused = true)]
async fn p6_a_message_put_off_whose_acknowledgement_comes_too_late_is_reported_once() {
    let queue = MemoryQueue::with_capabilities(Capabilities {
        keeps_rejected: true,
        ..Capabilities::default()
    });
    let (log, flow) = scripted();
    let rig = Rig::on(queue, flow, |spec| spec.retry.strategy = RetryStrategy::Redeliver);
    rig.publish(&["sleep=1000 fail"]);
    until(|| log.len() == 1).await;
    rig.queue.fail_settlements(1_000);
    let cut = async {
        until(|| rig.pipeline().status().counts.settle_retries > 0).await;
        rig.queue.break_connection();
        rig.queue.fail_settlements(0);
    };
    let pipeline = rig.pipeline();
    let (report, ()) = tokio::join!(pipeline.drain(Duration::from_secs(25)), cut);
    assert_eq!(
        (report.in_flight, report.lost, report.released),
        (1, 1, 0),
        "{report}"
    );
}

struct Waits(Arc<tokio::sync::Notify>, Arc<parking_lot::Mutex<Vec<String>>>);

impl millstream_core::Processor for Waits {
    type Input = String;
    type Output = ();

    async fn process(
        &self,
        payload: String,
        _: &mut millstream_core::Context<'_>,
    ) -> Result<(), millstream_core::Failure> {
        self.1.lock().push(payload.clone());
        if payload == "waits" {
            self.0.notify_one();
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

/// P3, P6: what is in a batcher has gone back by then, and what follows it in its key must not run on.
#[tokio::test(start_paused = true)]
async fn p6_nothing_that_a_worker_has_taken_begins_after_the_cut() {
    let (entered, ran) = (Arc::new(tokio::sync::Notify::new()), Arc::default());
    let flow = Flow::process(Waits(Arc::clone(&entered), Arc::clone(&ran)));
    let rig = Rig::start(flow, |spec| spec.processor.concurrency = non_zero(1));
    rig.publish(&["waits", "next", "last"]);
    entered.notified().await;
    let report = rig.pipeline().stop().await;
    assert_eq!((report.released, report.done), (3, 0), "{report}");
    assert_eq!(*ran.lock(), ["waits"]);
}
