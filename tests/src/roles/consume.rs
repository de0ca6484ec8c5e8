//! Runs a host with one pipeline on the queue.

use std::io::BufRead;
use std::num::NonZero;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    BatcherSpec, Condition, DeadLetter, DeduplicateSpec, Flow, Host, IdBy, Ordering, PipelineSpec,
    SharedConnector, SharedFlow, rt,
};
use millstream_kafka::KafkaConnector;
use millstream_rabbitmq::{Dial, RabbitConnector, ReaderSettings, Topology};
use millstream_sqlite::{SqliteConnector, SqliteStore};
use millstream_sqs::SqsConnector;
use millstream_tests::QUEUE;
use tokio::sync::oneshot;

use super::handler::{Handler, Keeps};
use crate::Arguments;

pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    let spec = spec(arguments);
    let within = Duration::from_millis(arguments.get_or("within_ms", 10_000));
    // Says so once it holds this many.
    let tell_at = arguments.get_or("tell_at", usize::MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    runtime.block_on(async {
        let host = Host::start([spec]).expect("the pipeline starts");
        tokio::select! {
            biased;
            () = dismissed() => {}
            () = host.ended() => {}
            () = holds(&host, tell_at) => {}
        }
        let early = conditions(&host);
        host.drain(within).await;
        match early {
            None => ExitCode::SUCCESS,
            Some(why) => {
                eprintln!("the pipeline ended by itself: {why}");
                ExitCode::FAILURE
            }
        }
    })
}

fn spec(arguments: &Arguments) -> PipelineSpec {
    let by_key = arguments.get_or("by_key", false);
    let handler = Handler::new(arguments);
    let batcher = arguments.get_or("batch", 0);
    let flow: SharedFlow = match NonZero::new(batcher) {
        None => Flow::process(handler).into(),
        Some(_) => Flow::process(handler).batch("keep", Keeps).into(),
    };
    let mut spec = PipelineSpec::new("faults", source(arguments, by_key), flow);
    if let Some(size) = NonZero::new(batcher) {
        let batcher = BatcherSpec {
            size,
            bytes: NonZero::<usize>::MAX,
            max_age: Duration::from_secs(3600),
            timeout: Duration::from_secs(3600),
            ..BatcherSpec::default()
        };
        spec.batchers.insert("keep".to_owned(), batcher);
        spec.limits.per_batcher = 1.0;
    }
    if by_key {
        spec.ordering = Ordering::Key;
    }
    if arguments.get_or("discard", false) {
        spec.dead_letter = DeadLetter::Discard;
    }
    if arguments.get_or("deduplicate", false) {
        let path: String = arguments.get("path");
        spec.deduplicate = Some(DeduplicateSpec {
            // The number is all that tells a test's messages apart.
            by: IdBy::By(Arc::new(|message| Some(message.payload.clone()))),
            store: Arc::new(SqliteStore::new(path, "faults")),
            ..DeduplicateSpec::new()
        });
    }
    spec.limits.in_flight = arguments.get_or("in_flight", spec.limits.in_flight);
    spec.limits.per_key = arguments.get_or("per_key", spec.limits.per_key);
    spec.processor.concurrency = arguments.get_or("concurrency", spec.processor.concurrency);
    spec.processor.timeout = Duration::from_secs(3600);
    spec
}

fn source(arguments: &Arguments, by_key: bool) -> SharedConnector {
    let brokers: String = arguments.get_or("kafka", String::new());
    if !brokers.is_empty() {
        let interval = Duration::from_millis(arguments.get("commit_interval_ms"));
        let session: String = arguments.get("session_timeout_ms");
        let connector = KafkaConnector::new(&brokers, QUEUE, [QUEUE])
            .commit_interval(interval)
            .property("session.timeout.ms", &session)
            .and_then(|connector| connector.property("heartbeat.interval.ms", "1000"))
            .expect("a member may say how long its session is");
        return Arc::new(connector);
    }
    let endpoint: String = arguments.get_or("sqs", String::new());
    if !endpoint.is_empty() {
        let queue: String = arguments.get("queue");
        let hidden = Duration::from_secs(arguments.get("visibility_s"));
        let connector = SqsConnector::new(&queue).endpoint_url(&endpoint);
        return Arc::new(
            connector
                .visibility_timeout(hidden)
                .wait_time(Duration::from_secs(1))
                .ordered(by_key),
        );
    }
    let url: String = arguments.get_or("rabbitmq", String::new());
    if url.is_empty() {
        let path: String = arguments.get("path");
        let group = arguments.get_or("group", "default".to_owned());
        return Arc::new(SqliteConnector::new(path, QUEUE).group(&group).ordered(by_key));
    }
    let dial = Dial::new([url]).expect("the test gives a URL");
    Arc::new(RabbitConnector::new(ReaderSettings::new(
        dial,
        Topology::new(QUEUE),
    )))
}

/// Waits for a line on the standard input, or its end: a test that is gone needs no processes.
pub(super) async fn dismissed() {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        std::io::stdin().lock().read_line(&mut String::new()).ok();
        tell.send(()).ok();
    });
    told.await.ok();
}

/// Says when the pipeline holds this many messages; never ends.
async fn holds(host: &Host, messages: usize) {
    let pipeline = host.pipelines().next().expect("there is one");
    if messages < usize::MAX {
        while pipeline.status().in_flight != messages {
            rt::sleep(Duration::from_millis(10)).await;
        }
        eprintln!("told: holds {messages}: {:?}", pipeline.status());
    }
    std::future::pending::<()>().await;
}

/// Why a pipeline ended though nobody asked it to.
fn conditions(host: &Host) -> Option<String> {
    host.pipelines()
        .find_map(|pipeline| match pipeline.status().condition {
            Condition::GaveUp(why) => Some(why),
            _ => None,
        })
}
