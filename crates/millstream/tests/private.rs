//! What a message holds stays out of logs, metrics and the errors of dead letters, however it fails.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use millstream::Host;
use millstream::cli::MemoryKind;
use millstream::prelude::*;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What every payload holds.
const MARK: &str = "hunter2";

const FILE: &str = r#"
    [pipelines.orders]
    source = { type = "memory", queue = "orders" }
    batchers.db = { size = 1 }
    retry = { attempts = 2, backoff = "1ms" }
    processor = { timeout = "50ms" }
    dead_letter = { type = "memory", queue = "dead" }
"#;

#[derive(Deserialize)]
struct Order {
    what: What,
    #[expect(dead_code, reason = "it is only read into")]
    note: String,
    #[serde(default)]
    #[expect(dead_code, reason = "it is only read into")]
    count: u8,
}

#[derive(Deserialize)]
enum What {
    Fail,
    Reject,
    Panic,
    Hang,
    Pass,
}

struct Troubled;

impl Processor for Troubled {
    type Input = Json<Order>;
    type Output = ();

    async fn process(&self, Json(order): Json<Order>, _: &mut Context<'_>) -> Result<(), Failure> {
        match order.what {
            What::Fail => Err(Failure::retry("the catalog is away")),
            What::Reject => Err(Failure::reject("empty order")),
            What::Panic => panic!("out of range"),
            What::Hang => std::future::pending().await,
            What::Pass => Ok(()),
        }
    }
}

struct Full;

impl BatchHandler for Full {
    type Input = ();

    async fn handle(&self, _: &mut Batch<()>) -> Result<(), Failure> {
        Err(Failure::retry("the table is full"))
    }
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn metrics(host: &Host) -> String {
    let listener = millstream_ops::Listener::bind("127.0.0.1:0".parse().unwrap())
        .await
        .unwrap();
    let address = listener.address();
    let asked = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    tokio::select! {
        () = listener.serve(host.clone()) => panic!("the listener has ended"),
        answer = asked => answer,
    }
}

#[tokio::test]
async fn no_payload_gets_into_logs_metrics_or_errors() {
    let log = Kept::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let payloads = [
        format!(r#"{{"what": "Fail", "note": "{MARK}"}}"#),
        format!(r#"{{"what": "Reject", "note": "{MARK}"}}"#),
        format!(r#"{{"what": "Panic", "note": "{MARK}"}}"#),
        format!(r#"{{"what": "Hang", "note": "{MARK}"}}"#),
        format!(r#"{{"what": "Pass", "note": "{MARK}"}}"#),
        // These do not decode: serde's own errors would quote the value, the variant, and the text.
        format!(r#"{{"what": "Pass", "note": "", "count": "{MARK}"}}"#),
        format!(r#"{{"what": "{MARK}", "note": ""}}"#),
        MARK.to_owned(),
    ];
    let memory = MemoryKind::default();
    let app = App::new()
        .connector("memory", memory.clone())
        .pipeline("orders", Flow::process(Troubled).batch("db", Full));
    let config = app.config_from(FILE, "m.toml").unwrap();
    let orders = memory.queue("orders");
    for payload in &payloads {
        orders.publish(Message::new(payload.clone()));
    }
    let host = app.start(config).await.unwrap();
    let dead = memory.queue("dead");
    let all_dead = async {
        while dead.len() < payloads.len() {
            host.idle(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), all_dead)
        .await
        .unwrap();
    let metrics = metrics(&host).await;
    host.drain(Duration::from_secs(10)).await;

    assert!(metrics.contains("millstream_"), "{metrics}");
    assert!(!metrics.contains(MARK), "{metrics}");
    let log = String::from_utf8(log.0.lock().clone()).unwrap();
    assert!(log.contains("message given up"), "{log}");
    let leaks: Vec<_> = log.lines().filter(|line| line.contains(MARK)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
    for letter in dead.messages() {
        assert!(
            letter
                .payload
                .windows(MARK.len())
                .any(|part| part == MARK.as_bytes())
        );
        for (name, value) in letter.headers.iter() {
            assert!(!value.contains(MARK), "{name}: {value}");
        }
    }
}
