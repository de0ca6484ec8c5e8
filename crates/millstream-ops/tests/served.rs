//! What the listener answers for a host at work.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use millstream_core::memory::MemoryQueue;
use millstream_core::{
    Ask, Batch, BatchHandler, BoxFuture, BreakerSpec, Capabilities, Connector, Context, EngineHandle,
    Failure, Flow, Host, Message, OnStoreFailure, OpenError, Partition, PipelineSpec, Processor, RateError,
    RateStore, Rebalance, SharedRateSpec, Turns, rt,
};
use millstream_ops::{CONTENT_TYPE, Listener, metrics, router};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tower::ServiceExt;

/// `reject` is rejected, anything else goes on.
struct Picky;

impl Processor for Picky {
    type Input = String;
    type Output = String;

    async fn process(&self, text: String, _: &mut Context<'_>) -> Result<String, Failure> {
        if text == "reject" {
            return Err(Failure::reject("told to"));
        }
        Ok(text)
    }
}

struct Keep;

impl BatchHandler for Keep {
    type Input = String;

    async fn handle(&self, _: &mut Batch<String>) -> Result<(), Failure> {
        Ok(())
    }
}

fn spec(name: &str, queue: &MemoryQueue) -> PipelineSpec {
    PipelineSpec::new(
        name,
        Arc::new(queue.clone()),
        Flow::process(Picky).batch("keep", Keep),
    )
}

async fn get(host: &Host, path: &str) -> (StatusCode, String) {
    let request = Request::get(path).body(Body::empty()).unwrap();
    let response = router(host.clone()).oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// Waits, on paused time, until `/readyz` answers so.
async fn until_ready_is(host: &Host, wanted: (StatusCode, &str)) {
    let wait = async {
        loop {
            let (status, text) = get(host, "/readyz").await;
            if (status, &*text) == wanted {
                return;
            }
            rt::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(600), wait).await;
    assert!(
        waited.is_ok(),
        "not {wanted:?} but {:?}",
        get(host, "/readyz").await
    );
}

/// A source that cannot be opened yet, or never.
struct Away(MemoryQueue, fn() -> OpenError);

impl Connector for Away {
    type Source = <MemoryQueue as Connector>::Source;
    type Acknowledger = <MemoryQueue as Connector>::Acknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, _: EngineHandle) -> Result<(Self::Source, Self::Acknowledger), OpenError> {
        // After the first look at it.
        rt::sleep(Duration::from_secs(1)).await;
        Err((self.1)())
    }
}

fn away(name: &str, why: fn() -> OpenError) -> PipelineSpec {
    let queue = MemoryQueue::new();
    PipelineSpec {
        source: Arc::new(Away(queue.clone(), why)),
        ..spec(name, &queue)
    }
}

/// One whose source has partitions, and the handle by which it speaks of them.
struct Partitioned(MemoryQueue, Arc<OnceLock<EngineHandle>>);

impl Connector for Partitioned {
    type Source = <MemoryQueue as Connector>::Source;
    type Acknowledger = <MemoryQueue as Connector>::Acknowledger;

    fn capabilities(&self) -> Capabilities {
        Connector::capabilities(&self.0)
    }

    async fn open(&self, engine: EngineHandle) -> Result<(Self::Source, Self::Acknowledger), OpenError> {
        engine.partitions(vec![partition(0, None), partition(3, Some(7))]);
        self.1.get_or_init(|| engine.clone());
        Connector::open(&self.0, engine).await
    }
}

fn partition(number: u32, lag: Option<u64>) -> Partition {
    Partition {
        topic: "clicks".into(),
        number,
        lag,
        held: number == 3,
    }
}

/// The pipeline `orders` with such a source.
fn partitioned(queue: &MemoryQueue) -> (PipelineSpec, Arc<OnceLock<EngineHandle>>) {
    let engine = Arc::default();
    let mut spec = spec("orders", queue);
    spec.breaker = Some(BreakerSpec::default());
    spec.source = Arc::new(Partitioned(queue.clone(), Arc::clone(&engine)));
    spec.shared_rate = Some(SharedRateSpec {
        store: Arc::new(Unlimited),
        on_store_failure: OnStoreFailure::Run,
    });
    (spec, engine)
}

/// A store of rate limits that lets all pass.
struct Unlimited;

impl RateStore for Unlimited {
    fn take<'a>(&'a self, asks: &'a [Ask]) -> BoxFuture<'a, Result<Vec<Turns>, RateError>> {
        let turns = asks.iter().map(|ask| Turns {
            now: ask.number,
            wait: Duration::ZERO,
        });
        Box::pin(std::future::ready(Ok(turns.collect())))
    }
}

#[tokio::test(start_paused = true)]
async fn p8_a_partition_that_goes_takes_its_series_with_it() {
    let (spec, engine) = partitioned(&MemoryQueue::new());
    let host = Host::start([spec]).unwrap();
    until_ready_is(&host, (StatusCode::OK, "orders: running\n")).await;
    let lines = || {
        let text = metrics(&host);
        let told =
            |line: &&str| line.starts_with("millstream_partition") || line.starts_with("millstream_rebal");
        text.lines().filter(told).map(str::to_owned).collect::<Vec<_>>()
    };
    let rebalances = |revoked| {
        [("assigned", 0), ("revoked", revoked), ("lost", 0)].map(|(kind, times)| {
            format!("millstream_rebalances_total{{pipeline=\"orders\",kind=\"{kind}\"}} {times}")
        })
    };
    let partitions = |fetched, held| {
        [("fetched", fetched), ("held", held)].map(|(state, partitions)| {
            format!("millstream_partitions{{pipeline=\"orders\",state=\"{state}\"}} {partitions}")
        })
    };
    let lag = "millstream_partition_lag_messages{pipeline=\"orders\",topic=\"clicks\",partition=\"3\"} 7";
    let [before, after] = [(1, 1), (1, 0)].map(|(fetched, held)| partitions(fetched, held).to_vec());
    assert_eq!(
        lines(),
        [before, vec![lag.to_owned()], rebalances(0).to_vec()].concat()
    );

    let engine = engine.get().unwrap();
    engine.partitions(vec![partition(0, None)]);
    engine.rebalanced(Rebalance::Revoked);
    engine.commit_failed();
    assert_eq!(lines(), [after, rebalances(1).to_vec()].concat());
    let failures = "millstream_commit_failures_total{pipeline=\"orders\"} 1\n";
    assert!(metrics(&host).contains(failures));
}

#[tokio::test(start_paused = true)]
async fn a_host_is_ready_while_every_pipeline_runs_or_was_paused() {
    let queue = MemoryQueue::new();
    let host = Host::start([spec("one", &queue), spec("two", &queue)]).unwrap();
    until_ready_is(&host, (StatusCode::OK, "one: running\ntwo: running\n")).await;
    host.pipeline("two").unwrap().pause();
    until_ready_is(&host, (StatusCode::OK, "one: running\ntwo: paused\n")).await;
    host.pipeline("one").unwrap().stop().await;
    until_ready_is(
        &host,
        (StatusCode::SERVICE_UNAVAILABLE, "one: ended\ntwo: paused\n"),
    )
    .await;
    assert_eq!(
        get(&host, "/healthz").await,
        (StatusCode::OK, "alive\n".to_owned())
    );
}

#[tokio::test(start_paused = true)]
async fn p7_a_broken_promise_makes_a_host_unready_and_is_counted_also_while_the_pipeline_is_paused() {
    let queue = MemoryQueue::new();
    let (spec, engine) = partitioned(&queue);
    let host = Host::start([spec]).unwrap();
    until_ready_is(&host, (StatusCode::OK, "orders: running\n")).await;
    engine.get().unwrap().commit_gap("clicks[3]", 20, 17);
    let says = "orders: degraded: promises: a commit would have passed an unsettled message\n";
    for _ in 0..2 {
        until_ready_is(&host, (StatusCode::SERVICE_UNAVAILABLE, says)).await;
        host.pipeline("orders").unwrap().pause();
    }
    let line = "millstream_sentinels_total{pipeline=\"orders\",sentinel=\"commit_gap\"} 1\n";
    assert!(metrics(&host).contains(line));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_away_makes_a_host_unready_and_no_less_alive() {
    let unavailable = || OpenError::Unavailable("connection refused".to_owned());
    let refused = || OpenError::Refused("no such queue".to_owned());
    let host = Host::start([
        spec("fine", &MemoryQueue::new()),
        away("never", refused),
        away("later", unavailable),
    ])
    .unwrap();
    let busy = StatusCode::SERVICE_UNAVAILABLE;
    until_ready_is(&host, (busy, "fine: running\nlater: starting\nnever: starting\n")).await;
    let text = "fine: running\nlater: degraded: source: connection refused\nnever: gave up: no such queue\n";
    until_ready_is(&host, (busy, text)).await;
    assert_eq!(get(&host, "/healthz").await.0, StatusCode::OK);
    let text = metrics(&host);
    for line in [
        "millstream_condition{pipeline=\"later\",condition=\"degraded\"} 1",
        "millstream_condition{pipeline=\"later\",condition=\"running\"} 0",
        "millstream_condition{pipeline=\"never\",condition=\"gave_up\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_happened_is_told_by_pipeline_stage_and_reason() {
    let queue = MemoryQueue::new();
    let mut spec = spec("orders", &queue);
    spec.batchers.entry("keep".to_owned()).or_default().size = NonZeroUsize::new(2).unwrap();
    let host = Host::start([spec]).unwrap();
    queue.publish_all(["a", "b", "reject"].map(Message::new));
    host.idle(Duration::from_secs(2)).await;
    let (status, text) = get(&host, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    for line in [
        "millstream_received_total{pipeline=\"orders\"} 3",
        "millstream_processed_total{pipeline=\"orders\",stage=\"processor\"} 2",
        "millstream_processed_total{pipeline=\"orders\",stage=\"keep\"} 2",
        "millstream_failures_total{pipeline=\"orders\",stage=\"processor\",reason=\"rejected\"} 1",
        "millstream_failures_total{pipeline=\"orders\",stage=\"keep\",reason=\"panic\"} 0",
        "millstream_given_up_total{pipeline=\"orders\",reason=\"rejected\"} 1",
        "millstream_settled_total{pipeline=\"orders\",outcome=\"acked\"} 2",
        "millstream_settled_total{pipeline=\"orders\",outcome=\"rejected\"} 1",
        "millstream_handler_duration_seconds_count{pipeline=\"orders\"} 3",
        "millstream_batch_size_messages_bucket{pipeline=\"orders\",stage=\"keep\",le=\"1\"} 0",
        "millstream_batch_size_messages_bucket{pipeline=\"orders\",stage=\"keep\",le=\"2\"} 1",
        "millstream_batch_size_messages_bucket{pipeline=\"orders\",stage=\"keep\",le=\"+Inf\"} 1",
        "millstream_batch_size_messages_sum{pipeline=\"orders\",stage=\"keep\"} 2",
        "millstream_batches_closed_total{pipeline=\"orders\",stage=\"keep\",cause=\"size\"} 1",
        "millstream_time_to_settlement_seconds_count{pipeline=\"orders\"} 3",
        "millstream_in_flight_messages{pipeline=\"orders\"} 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
}

/// Each metric with its type and labels.
type Metrics = BTreeMap<String, (String, BTreeSet<String>)>;

/// What is exported.
fn exported(text: &str) -> Metrics {
    let mut all = Metrics::new();
    for line in text.lines() {
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of.split_once(' ').unwrap();
            all.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((series, _)) = line.split_once('}').filter(|_| !line.starts_with('#')) {
            let (name, labels) = series.split_once('{').unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .into_iter()
                .filter_map(|suffix| name.strip_suffix(suffix))
                .find(|family| all.contains_key(*family))
                .unwrap_or(name);
            let labels = labels.split(',').filter_map(|label| label.split('=').next());
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            all.get_mut(family).unwrap().1.extend(labels);
        }
    }
    all
}

/// What the page tells.
fn documented(page: &str) -> Metrics {
    let mut all = Metrics::new();
    for line in page.lines().filter(|line| line.starts_with("| `millstream_")) {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        let labels = cells[3].split(", ").map(str::to_owned).collect();
        let twice = all.insert(cells[1].clone(), (cells[2].clone(), labels));
        assert_eq!(twice, None, "{}", cells[1]);
        assert!(!cells[4].is_empty(), "{line}");
    }
    all
}

#[tokio::test(start_paused = true)]
async fn the_page_tells_of_every_metric_and_of_no_other() {
    let queue = MemoryQueue::new();
    let host = Host::start([partitioned(&queue).0]).unwrap();
    until_ready_is(&host, (StatusCode::OK, "orders: running\n")).await;
    queue.publish(Message::new("a"));
    host.idle(Duration::from_secs(2)).await;
    let page = include_str!("../../../docs/metrics.md");
    assert_eq!(exported(&metrics(&host)), documented(page));
}

#[tokio::test(start_paused = true)]
async fn the_page_tells_of_every_word_of_a_label() {
    let host = Host::start([partitioned(&MemoryQueue::new()).0]).unwrap();
    until_ready_is(&host, (StatusCode::OK, "orders: running\n")).await;
    let page = include_str!("../../../docs/metrics.md");
    for line in metrics(&host).lines().filter(|line| !line.starts_with('#')) {
        let (name, labels) = line.split_once('{').unwrap();
        let told = page.lines().find(|row| row.starts_with(&format!("| `{name}`")));
        for (label, word) in labels.split(',').filter_map(|label| label.split_once("=\"")) {
            if ["reason", "cause", "outcome", "condition", "state", "kind"].contains(&label) {
                let word = format!("`{}`", word.split('"').next().unwrap());
                assert!(told.unwrap().contains(&word), "{name}: {label} {word}");
            }
        }
    }
}

#[tokio::test]
async fn the_listener_answers_over_http_and_a_second_one_is_told_that_its_address_is_taken() {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address: SocketAddr = listener.address();
    let taken = Listener::bind(address).await.unwrap_err();
    assert!(taken.is_taken());
    assert!(
        taken
            .to_string()
            .starts_with(&format!("cannot listen at {address}: "))
    );

    let host = Host::start([spec("orders", &MemoryQueue::new())]).unwrap();
    let serving = rt::spawn(listener.serve(host));
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = "GET /metrics HTTP/1.1\r\nhost: millstream\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains(&format!("content-type: {CONTENT_TYPE}")), "{head}");
    assert!(
        body.contains("millstream_received_total{pipeline=\"orders\"} 0"),
        "{body}"
    );
    serving.abort();
}

/// A listener for a host without work, and where it is.
async fn listens() -> SocketAddr {
    let listener = Listener::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.address();
    let host = Host::start([spec("quiet", &MemoryQueue::new())]).unwrap();
    rt::spawn(listener.serve(host));
    address
}

const REQUEST: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";

async fn connect(address: SocketAddr, sends: &[u8]) -> tokio::net::TcpStream {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(sends).await.unwrap();
    stream
}

#[tokio::test(start_paused = true)]
async fn who_does_not_end_the_head_of_a_request_is_hung_up_on() {
    let address = listens().await;
    let mut stream = connect(address, &REQUEST[..30]).await;
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    let ended = tokio::time::timeout(Duration::from_secs(600), read).await;
    assert!(ended.is_ok(), "it may stay for ever");
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test(start_paused = true)]
async fn who_does_not_take_its_answers_is_hung_up_on() {
    const REQUESTS: usize = 2000;
    let address = listens().await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    let asks = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n".repeat(REQUESTS - 1);
    let last = b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n";
    let asks = [&asks[..], last].concat();
    let (mut reads, mut writes) = stream.split();
    writes.write_all(&asks).await.unwrap();
    // What answers them does not fit into what the system holds between the two.
    rt::sleep(Duration::from_secs(600)).await;
    let mut answers = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(600), reads.read_to_end(&mut answers)).await;
    assert!(read.is_ok(), "it may stay for ever");
    let answers = answers
        .windows(12)
        .filter(|bytes| bytes == b"HTTP/1.1 200")
        .count();
    assert!(answers < REQUESTS, "all were answered");
}

#[tokio::test]
async fn no_more_than_so_many_are_connected_and_the_next_has_its_turn() {
    const MOST: usize = 64;
    let address = listens().await;
    let mut slow = Vec::new();
    for _ in 0..MOST {
        slow.push(connect(address, &REQUEST[..30]).await);
    }
    let mut next = connect(address, REQUEST).await;
    let mut first = [0; 12];
    let early = tokio::time::timeout(Duration::from_millis(300), next.read_exact(&mut first)).await;
    assert!(early.is_err(), "it was answered beside {MOST} others");
    slow[0].write_all(&REQUEST[30..]).await.unwrap();
    next.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
}
