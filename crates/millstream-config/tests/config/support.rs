//! Connectors and handlers that do nothing but be configured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millstream_config::{
    Config, Count, Diagnostics, HandlerContext, HandlerKind, HumanDuration, Invalid, Registry, Secret,
    SinkContext, SinkKind, SourceContext, SourceKind, StoreContext, StoreKind,
};
use millstream_core::{
    Acknowledger, Ask, Batch, BatchHandler, BoxFuture, Capabilities, Chunk, Connector, Context, Credit,
    DeduplicateSpec, Delivered, EngineHandle, Failure, Flow, Ids, MemoryStore, OpenError, Outcome, Outgoing,
    Processor, RateError, RateStore, Read, Settle, SharedConnector, SharedDedupStore, SharedFlow,
    SharedRateStore, SharedSinkConnector, Sink, SinkConnector, SinkError, Source, SourceError, Turns,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The environment that files are parsed with.
pub(crate) fn environment(name: &str) -> Option<String> {
    match name {
        "QUEUE" => Some("orders".to_owned()),
        "PASSWORD" => Some("zebra quartz".to_owned()),
        "STREAM_URL" => Some("stream://admin:maple onyx@host:1".to_owned()),
        "TIMEOUT" => Some("5 seconds".to_owned()),
        _ => None,
    }
}

pub(crate) fn parse(text: &str) -> Result<Config, Diagnostics> {
    Config::parse(text, "test.toml", &registry(), &environment)
}

/// `sqlite` is a source and a sink, `stream` a source alone, which keeps nothing, and `print` a sink alone.
/// `orders` has a batch handler `db` and a sink `out`; `audit` has neither.
pub(crate) fn registry() -> Registry {
    let mut registry = Registry::new();
    registry
        .connector("sqlite", Sqlite)
        .source("stream", Stream)
        .sink("print", Print)
        .store("disk", Disk)
        .handler("forward", Forward)
        .handler("http", Http)
        .flow("audit", Flow::process(Nothing))
        .flow("orders", Flow::process(Nothing).batch("db", Nothing).sink("out"))
        .left_out("kafka", "kafka");
    registry
}

#[derive(Clone)]
struct Sqlite;

/// A queue in an SQLite database.
#[derive(Deserialize, JsonSchema)]
struct SqliteSettings {
    /// The database's file.
    path: String,
    /// The queue's name.
    queue: Option<String>,
    /// How long a message stays leased.
    #[serde(default = "lease")]
    lease: HumanDuration,
}

fn lease() -> HumanDuration {
    HumanDuration::from_millis(30_000)
}

impl SourceKind for Sqlite {
    type Settings = SqliteSettings;

    fn source(&self, settings: &SqliteSettings, cx: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        self.sink(settings, &SinkContext::new(cx.pipeline))?;
        if cx.ordered && settings.queue.as_deref() == Some("unordered") {
            return Err(Invalid::new("this queue keeps no order", "name another queue").at("queue"));
        }
        let capabilities = Capabilities {
            keeps_rejected: true,
            delay: settings.queue.as_deref() == Some("delayed"),
            ids: Ids::Position,
            transacts: settings.queue.as_deref() == Some("transacted"),
            ..Capabilities::default()
        };
        Ok(Arc::new(Fake { capabilities }))
    }

    fn publish(
        &self,
        settings: &SqliteSettings,
        cx: &SinkContext<'_>,
    ) -> Result<Option<SharedSinkConnector>, Invalid> {
        self.sink(settings, cx).map(Some)
    }
}

impl SinkKind for Sqlite {
    type Settings = SqliteSettings;

    fn sink(&self, settings: &SqliteSettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        if settings.path.is_empty() {
            return Err(Invalid::new("`path` is empty", "name the database's file").at("path"));
        }
        if HumanDuration::from_millis(1_000) > settings.lease {
            return Err(Invalid::new("`lease` is too short to renew", "write at least \"1s\"").at("lease"));
        }
        Ok(Arc::new(FakeSink))
    }
}

struct Stream;

/// A stream that keeps nothing.
#[derive(Deserialize, JsonSchema)]
struct StreamSettings {
    /// Where it is.
    url: Secret,
    /// Fetched ahead. Default: from demand.
    prefetch: Option<Count>,
    /// Where to begin.
    #[serde(default)]
    start: Start,
    /// What to create.
    #[serde(default)]
    declare: Declare,
    /// Several of them.
    #[serde(default)]
    topics: Vec<String>,
    /// Handed on as they are.
    #[serde(default)]
    properties: BTreeMap<String, String>,
    /// How often to look.
    #[serde(default)]
    partition: u16,
}

/// Where to begin.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Start {
    /// At the first message.
    Earliest,
    /// After the last.
    #[default]
    Latest,
}

/// What to create.
#[derive(Default, Deserialize, Serialize, JsonSchema)]
#[serde(default)]
struct Declare {
    /// To survive a restart.
    durable: bool,
    /// Bounds its length.
    max_length: Option<u32>,
}

impl SourceKind for Stream {
    type Settings = StreamSettings;

    fn source(&self, settings: &StreamSettings, _: &SourceContext<'_>) -> Result<SharedConnector, Invalid> {
        let StreamSettings {
            url,
            prefetch,
            start,
            declare,
            topics,
            properties,
            partition,
        } = settings;
        let _ = (
            prefetch,
            start,
            declare.durable,
            declare.max_length,
            topics,
            properties,
            partition,
        );
        if !url.expose().starts_with("stream://") {
            let message = format!("no stream can be reached at {}", url.expose());
            return Err(Invalid::new(message, "write a URL, as in \"stream://host\"").at("url"));
        }
        Ok(Arc::new(Fake {
            capabilities: Capabilities {
                leases_singly: url.expose().ends_with("/leased"),
                ..Capabilities::default()
            },
        }))
    }
}

struct Disk;

/// Ids on a disk.
#[derive(Deserialize, JsonSchema)]
struct DiskSettings {
    /// The file.
    path: String,
}

impl StoreKind for Disk {
    type Settings = DiskSettings;

    fn store(&self, settings: &DiskSettings, cx: &StoreContext<'_>) -> Result<SharedDedupStore, Invalid> {
        if settings.path.is_empty() {
            return Err(Invalid::new("`path` is empty", "name the file").at("path"));
        }
        let most = cx.max_entries.unwrap_or(DeduplicateSpec::MAX_ENTRIES);
        Ok(Arc::new(MemoryStore::new(most)))
    }

    fn rates(
        &self,
        settings: &DiskSettings,
        cx: &StoreContext<'_>,
    ) -> Result<Option<SharedRateStore>, Invalid> {
        self.store(settings, cx)?;
        // What is in memory is nobody else's.
        Ok((settings.path != "memory").then(|| Arc::new(Unlimited) as _))
    }
}

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

struct Print;

/// Standard output.
#[derive(Deserialize, JsonSchema)]
struct PrintSettings {
    /// Printed before each line.
    #[serde(default)]
    prefix: String,
}

impl SinkKind for Print {
    type Settings = PrintSettings;

    fn sink(&self, settings: &PrintSettings, _: &SinkContext<'_>) -> Result<SharedSinkConnector, Invalid> {
        let _ = &settings.prefix;
        Ok(Arc::new(FakeSink))
    }
}

struct Forward;

/// Nothing to set.
#[derive(Deserialize, JsonSchema)]
struct ForwardSettings {}

impl HandlerKind for Forward {
    type Settings = ForwardSettings;

    fn flow(&self, _: &ForwardSettings, cx: &HandlerContext<'_>) -> Result<SharedFlow, Invalid> {
        match cx.batchers {
            [] => Err(Invalid::new(
                "`forward` needs a batcher to forward to",
                "add one with a `sink`",
            )),
            names => Ok(names
                .iter()
                .fold(Flow::process(Nothing), |flow, name| flow.sink(name))
                .into()),
        }
    }
}

struct Http;

/// Posts each message.
#[derive(Deserialize, JsonSchema)]
struct HttpSettings {
    /// Where to.
    url: Secret,
    /// With this header.
    #[serde(default)]
    token: String,
}

impl HandlerKind for Http {
    type Settings = HttpSettings;

    fn flow(&self, settings: &HttpSettings, _: &HandlerContext<'_>) -> Result<SharedFlow, Invalid> {
        let _ = &settings.token;
        if settings.url.expose().starts_with("http") {
            Ok(Flow::process(Nothing).into())
        } else {
            Err(Invalid::new("`url` is not one of HTTP", "write it as in \"https://host/path\"").at("url"))
        }
    }
}

#[derive(Clone)]
struct Fake {
    capabilities: Capabilities,
}

struct FakeSink;
struct Nothing;

impl Connector for Fake {
    type Source = Nothing;
    type Acknowledger = Nothing;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn open(&self, _: EngineHandle) -> Result<(Nothing, Nothing), OpenError> {
        Ok((Nothing, Nothing))
    }
}

impl SinkConnector for FakeSink {
    type Sink = Nothing;

    async fn open(&self) -> Result<Nothing, OpenError> {
        Ok(Nothing)
    }
}

impl Source for Nothing {
    async fn read(&mut self, _: Credit, _: &mut Chunk) -> Result<Read, SourceError> {
        Ok(Read::Ended)
    }

    fn drain(&mut self) {}
}

impl Acknowledger for Nothing {
    async fn settle(&mut self, _: &[Settle], _: &mut Vec<(Settle, Outcome)>) {}

    async fn flush(&mut self, _: &mut Vec<(Settle, Outcome)>) {}
}

impl Sink for Nothing {
    async fn send(&mut self, _: &[Outgoing], _: &mut Vec<Delivered>) -> Result<(), SinkError> {
        Ok(())
    }
}

impl Processor for Nothing {
    type Input = ();
    type Output = String;

    async fn process(&self, (): (), _: &mut Context<'_>) -> Result<String, Failure> {
        Ok(String::new())
    }
}

impl BatchHandler for Nothing {
    type Input = String;

    async fn handle(&self, _: &mut Batch<String>) -> Result<(), Failure> {
        Ok(())
    }
}
