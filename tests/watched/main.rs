//! The stock binary, watched by a real Prometheus: it scrapes what `docs/metrics.md` tells of, finds no fault with
//! how it is written, and knows what the page's alerts ask for.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use millstream_brokers::{Kafka, Prometheus, Target, lint};
use millstream_core::rt::Instant;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use tempfile::TempDir;

/// What a user reads.
const PAGE: &str = include_str!("../../docs/metrics.md");

/// Longer than anything takes on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// Lines that go through both pipelines.
const LINES: usize = 500;

/// Two pipelines, so that the queue between them has a depth, a breaker, so that it has a state, a shared limit, so that its
/// store is asked, and one that reads Kafka, so that there are partitions.
const TOML: &str = r#"
[host]
listen = "127.0.0.1:0"

[pipelines.fill]
source = { type = "file", path = "in" }
processor = { handler = "forward" }
batchers.queue = { sink = { type = "memory", queue = "between" } }

[pipelines.empty]
source = { type = "memory", queue = "between" }
processor = { handler = "forward" }
batchers.file = { sink = { type = "file", path = "out" }, max_age = "5ms" }
breaker = {}
rate_limit = { messages = 1_000_000, store = { type = "sqlite", path = "turns" } }

[pipelines.tail]
source = { type = "kafka", brokers = "${BROKERS}", group = "watched", topics = ["watched"], properties = { "statistics.interval.ms" = "200" } }
processor = { handler = "forward" }
batchers.file = { sink = { type = "file", path = "tailed" } }
dead_letter = "discard"
"#;

/// The partitions of the topic that it reads.
const PARTITIONS: i32 = 2;

/// A Kafka with that topic.
fn kafka() -> Kafka {
    let kafka = Kafka::builder().start().unwrap();
    let made = async {
        let mut config = ClientConfig::new();
        let admin: AdminClient<_> = config.set("bootstrap.servers", kafka.brokers()).create().unwrap();
        let topic = NewTopic::new("watched", PARTITIONS, TopicReplication::Fixed(1));
        admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime
        .block_on(made)
        .into_iter()
        .for_each(|made| drop(made.unwrap()));
    kafka
}

/// A process of the stock binary; dropped, it is killed.
struct Host {
    child: Child,
    address: String,
    _folder: TempDir,
    _kafka: Kafka,
}

impl Host {
    fn start() -> Self {
        let kafka = kafka();
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("watched.toml"), TOML).unwrap();
        fs::write(folder.path().join("in"), "line\n".repeat(LINES)).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_stock"))
            .args(["run", "watched.toml"])
            .current_dir(folder.path())
            .env_remove("RUST_LOG")
            .env("BROKERS", kafka.brokers())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            let line = line.unwrap();
            let (_, rest) = line.split_once("listening: http://")?;
            Some(rest.split_once("/metrics")?.0.to_owned())
        });
        // Read on, lest it wait for room in the pipe.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| eprintln!("{line}")));
        Self {
            child,
            address: address.expect("it listens"),
            _folder: folder,
            _kafka: kafka,
        }
    }

    /// The body of an answer.
    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
            self.address
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until this gives something.
fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "waited in vain for: {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// The numbers of a query's answer.
fn values(prometheus: &Prometheus, promql: &str) -> Vec<f64> {
    let data = prometheus.query(promql).unwrap();
    let series = data["result"].as_array().unwrap();
    let texts = series.iter().map(|series| series["value"][1].as_str().unwrap());
    texts.map(|text| text.parse().unwrap()).collect()
}

/// The series of each metric that the page tells of.
fn documented() -> Vec<String> {
    let rows = PAGE
        .lines()
        .filter_map(|line| line.strip_prefix("| `millstream_"));
    let series: Vec<_> = rows
        .flat_map(|row| {
            let (name, rest) = row.split_once('`').unwrap();
            let suffixes: &[_] = if rest.starts_with(" | histogram") {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            suffixes
                .iter()
                .map(move |suffix| format!("millstream_{name}{suffix}"))
        })
        .collect();
    assert!(series.len() > 40, "{series:?}");
    series
}

/// The rules that the page suggests, indented as they are there.
fn rules() -> &'static str {
    let (_, rest) = PAGE.split_once("```yaml\n").unwrap();
    rest.split_once("```").unwrap().0
}

#[test]
fn p8_prometheus_scrapes_all_that_the_page_tells_of_and_finds_no_fault_with_it() {
    let host = Host::start();
    let targets = [Target {
        job: "millstream".to_owned(),
        address: host.address.clone(),
    }];
    let prometheus = Prometheus::start(&targets, Duration::from_millis(500)).unwrap();
    prometheus.await_targets().unwrap();

    let lines = LINES as f64;
    for settled in [
        "millstream_settled_total{pipeline=\"fill\",outcome=\"acked\"}",
        "millstream_settled_total{pipeline=\"empty\",outcome=\"acked\"}",
    ] {
        until(settled, || {
            (values(&prometheus, settled) == [lines]).then_some(())
        });
    }
    for (promql, value) in [
        ("sum(millstream_received_total)", 2.0 * lines),
        (
            "sum(millstream_processed_total{stage=\"processor\"})",
            2.0 * lines,
        ),
        ("sum(millstream_failures_total)", 0.0),
        ("sum(millstream_handler_duration_seconds_count)", 2.0 * lines),
        ("sum(millstream_batch_size_messages_sum)", 2.0 * lines),
        ("sum(millstream_time_to_settlement_seconds_count)", 2.0 * lines),
        ("sum(millstream_in_flight_messages)", 0.0),
        ("sum(millstream_source_depth_messages)", 0.0),
        ("sum(millstream_condition{condition=\"running\"})", 3.0),
        ("millstream_partitions{state=\"fetched\"}", f64::from(PARTITIONS)),
        ("sum(millstream_partition_lag_messages)", 0.0),
        ("count(millstream_partition_lag_messages)", f64::from(PARTITIONS)),
        ("millstream_rebalances_total{kind=\"lost\"}", 0.0),
        ("millstream_breaker_state{state=\"closed\"}", 1.0),
    ] {
        until(promql, || (values(&prometheus, promql) == [value]).then_some(()));
    }
    for series in documented() {
        assert!(
            !values(&prometheus, &series).is_empty(),
            "{series} was not scraped"
        );
    }

    let text = host.get("/metrics");
    lint(&text).unwrap_or_else(|fault| panic!("{fault}\n{text}"));
    assert_eq!(
        host.get("/readyz"),
        "empty: running\nfill: running\ntail: running\n"
    );
}

#[test]
fn the_alerts_that_the_page_suggests_are_rules_that_prometheus_takes_and_a_well_host_does_not_fire() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("rules.yml");
    fs::write(&file, rules()).unwrap();
    check_rules(&file);

    let host = Host::start();
    let targets = [Target {
        job: "millstream".to_owned(),
        address: host.address.clone(),
    }];
    let prometheus = Prometheus::start(&targets, Duration::from_millis(500)).unwrap();
    let done = "millstream_settled_total{pipeline=\"empty\",outcome=\"acked\"}";
    until(done, || {
        (values(&prometheus, done) == [LINES as f64]).then_some(())
    });
    // An expression of several lines on one.
    let rules = rules().replace("expr: >\n", "expr:").replace("\n          ", " ");
    let expressions: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr:"))
        .collect();
    assert_eq!(expressions.len(), rules.matches("- alert:").count());
    for expression in expressions {
        let firing = values(&prometheus, expression);
        assert!(firing.is_empty(), "{expression}: {firing:?}");
    }
}

fn check_rules(file: &Path) {
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(file)
        .output()
        .expect("promtool is installed: tests/run --install");
    let said =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
}
