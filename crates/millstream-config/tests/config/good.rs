//! Files that are right, and the specs that they make.

use std::time::Duration;

use millstream_config::{Config, LogFormat};
use millstream_core::{
    DeadLetter, DeduplicateSpec, IdBy, Message, OnGap, OnGiveUp, OnStoreFailure, Ordering, PipelineSpec,
    ProcessorSpec, SequenceSpec,
};

use super::support::parse;

/// The reference, as far as this build honours it, with every key at its default.
const REFERENCE: &str = r#"
[host]
listen = "127.0.0.1:9464"
shutdown_timeout = "25s"
log = "info"
log_format = "text"

[pipelines.orders]
ordering = "none"
order_by = "key"
limits = { in_flight = 10000, bytes = "64MiB", per_key = 1000, per_batcher = 0.5 }

[pipelines.orders.source]
type = "sqlite"
path = "orders.db"
queue = "orders"

[pipelines.orders.processor]
handler = "forward"
concurrency = 16
max_demand = 100
timeout = "30s"

[pipelines.orders.batchers.db]
size = 100
bytes = "1MiB"
max_age = "1s"
timeout = "60s"
concurrency = 1
bisect = false
sink = { type = "print", prefix = "> " }

[pipelines.orders.retry]
attempts = 5
max_deliveries = 16
backoff = "100ms"
factor = 2.0
max_backoff = "30s"
jitter = true
strategy = "in_place"

[pipelines.orders.dead_letter]
type = "sqlite"
path = "orders.db"
queue = "orders.dead"

[pipelines.orders.rate_limit]
messages = 1000
per = "1s"
burst = 1000

[pipelines.orders.breaker]
failure_rate = 0.5
window = "10s"
minimum = 20
open_for = "5s"
probes = 3

[pipelines.orders.deduplicate]
by = "id"
window = "10m"
max_entries = 100000
on_store_failure = "run"
store = { type = "disk", path = "orders.db" }

[pipelines.orders.supervisor]
max_restarts = 5
within = "60s"
on_give_up = "stop"
backoff = "100ms"
factor = 2.0
max_backoff = "30s"
jitter = true
stall_after = "60s"
"#;

fn config(text: &str) -> Config {
    parse(text).unwrap_or_else(|errors| panic!("{errors}"))
}

fn only(text: &str) -> PipelineSpec {
    let mut config = config(text);
    assert_eq!(config.pipelines.len(), 1);
    config.pipelines.remove(0).spec
}

#[test]
fn the_reference_makes_the_specs_it_says() {
    let config = config(REFERENCE);
    insta::assert_snapshot!("reference", format!("{config:#?}"));
    assert!(config.pipelines[0].publish_to.is_some());
}

#[test]
fn the_reference_says_the_defaults() {
    let full = only(REFERENCE);
    let bare = only(
        "[pipelines.orders.source]\ntype = \"sqlite\"\npath = \"orders.db\"\n\
         [pipelines.orders.batchers.out]\nsink = { type = \"print\" }\n",
    );
    assert_eq!(bare.limits, full.limits);
    assert_eq!(bare.processor, full.processor);
    assert_eq!(bare.retry, full.retry);
    assert_eq!(bare.supervisor, full.supervisor);
    assert_eq!((&bare.rate_limit, bare.breaker), (&None, None));
    assert!(matches!(bare.dead_letter, DeadLetter::Source));
    assert!(matches!(bare.ordering, Ordering::None));
    let shown = |spec: &PipelineSpec, name: &str| format!("{:?}", spec.batchers[name]);
    assert_eq!(shown(&bare, "out"), shown(&full, "db"));
    assert_eq!(
        bare.batchers.keys().collect::<Vec<_>>(),
        ["db", "out"],
        "every step of the flow has a spec"
    );
    assert_eq!(bare.batchers["db"].size, bare.batchers["out"].size);
}

#[test]
fn every_key_reaches_its_place_in_the_spec() {
    let config = config(
        r#"
        [host]
        shutdown_timeout = "1m"
        log = "millstream=debug"
        log_format = "json"

        [pipelines.orders]
        ordering = "key"
        order_by = "header:tenant"
        limits = { in_flight = 20, bytes = "2KB", per_key = 3, per_batcher = 1 }
        dead_letter = "discard"
        retry = { attempts = 1, max_deliveries = 2, backoff = "1m", factor = 1, jitter = false, max_age = "1h", budget = 0.2 }
        rate_limit = { messages = 7, key = "header:tenant", weights = { gold = 4, "x y" = 2 }, on_store_failure = "wait", store = { type = "disk", path = "limits.db" } }
        breaker = { failure_rate = 1.0, slow_after = "3s", slow_rate = 0.25, window = "1s", minimum = 1, open_for = "2s", probes = 1 }
        dependencies = { db = { slow_after = "250ms" }, "the cache" = {} }
        deduplicate = { by = "json:/id", window = "1h", max_entries = 5, on_store_failure = "wait" }
        sequence = { by = "header:seq", on_gap = "dead_letter", held = 4, wait = "5s" }
        [pipelines.orders.supervisor]
        max_restarts = 0
        within = "1h"
        on_give_up = "exit"
        backoff = "31s"
        factor = 3
        jitter = false
        stall_after = "2m"

        [pipelines.orders.source]
        type = "stream"
        url = "${STREAM_URL}"

        [pipelines.orders.processor]
        concurrency = { min = 2, max = 20 }
        max_demand = 3
        timeout = "4s"

        [pipelines.orders.batchers]
        db = { size = 5, bytes = "1KB", max_age = "6ms", timeout = "7s", concurrency = 8, bisect = true }
        out = { sink = { type = "print" } }
        "#,
    );
    insta::assert_snapshot!("every_key", format!("{config:#?}"));
    assert_eq!(config.host.log_format, LogFormat::Json);
    let pipeline = &config.pipelines[0];
    assert!(pipeline.publish_to.is_none(), "a stream cannot be published to");
    assert_eq!(
        pipeline.spec.retry.max_backoff,
        Duration::from_secs(60),
        "no less than backoff"
    );
    assert_eq!(
        pipeline.spec.batchers["out"].size.get(),
        20,
        "no more than the batcher's share"
    );
    assert_eq!(
        pipeline.spec.rate_limit.as_ref().unwrap().burst.get(),
        7,
        "as many as messages"
    );
    assert_eq!(pipeline.spec.supervisor.on_give_up, OnGiveUp::Exit);
}

#[test]
fn order_by_gives_what_messages_are_ordered_by() {
    let ordering = |order_by: &str| {
        only(&format!(
            "[pipelines.audit]\nordering = \"key\"\norder_by = \"{order_by}\"\n\
             [pipelines.audit.source]\ntype = \"sqlite\"\npath = \"audit.db\"\n"
        ))
        .ordering
    };
    assert!(matches!(ordering("key"), Ordering::Key));
    let message = Message::new(r#"{"order": {"id": 7}}"#).with_header("tenant", "acme");
    for (order_by, key) in [("header:tenant", "acme"), ("json:/order/id", "7")] {
        let Ordering::By(by) = ordering(order_by) else {
            panic!("{order_by}")
        };
        assert_eq!(by(&message).as_deref(), Some(key.as_bytes()));
    }
}

#[test]
fn pipelines_come_in_the_order_of_the_file_and_may_share_a_flow() {
    let pipeline = |name: &str| {
        format!(
            "[pipelines.{name}.source]\ntype = \"sqlite\"\npath = \"x.db\"\n\
             [pipelines.{name}.processor]\nhandler = \"audit\"\nconcurrency = 1\n"
        )
    };
    let config = config(&(pipeline("zebra") + &pipeline("ant") + &pipeline("\"a b\"")));
    let names: Vec<_> = config
        .pipelines
        .iter()
        .map(|pipeline| &*pipeline.spec.name)
        .collect();
    assert_eq!(names, ["zebra", "ant", "a b"]);
    let run = config.pipelines[0].spec.processor;
    assert_eq!(run.concurrency.get(), 1);
    assert_eq!(run.timeout, ProcessorSpec::default().timeout);
}

#[test]
fn a_file_is_loaded_by_its_path() {
    let path = std::env::temp_dir().join(format!("millstream-config-{}.toml", std::process::id()));
    std::fs::write(&path, REFERENCE).unwrap();
    let config = Config::load(&path, &super::support::registry()).unwrap();
    assert_eq!(config.pipelines.len(), 1);
    std::fs::write(&path, b"[host]\nlog = \"\xff\"\n").unwrap();
    let errors = Config::load(&path, &super::support::registry()).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    let error = errors.iter().next().unwrap();
    assert_eq!((error.line, error.column), (2, 8));
    let errors = Config::load(&path, &super::support::registry()).unwrap_err();
    assert!(
        errors.to_string().contains(":1:1: cannot read the file: "),
        "{errors}"
    );
}

#[test]
fn a_byte_order_mark_counts_for_nothing() {
    let text = "\u{feff}[hosts]\nlog = \"info\"\n";
    let errors = parse(text).unwrap_err();
    let error = errors
        .iter()
        .find(|error| error.message.contains("hosts"))
        .unwrap();
    assert_eq!((error.line, error.column), (1, 2));
    assert_eq!(&text[error.span.clone()], "hosts");
}

#[test]
fn dead_letters_may_share_a_file_with_their_source_and_not_a_queue() {
    let text = |queue: &str| {
        format!(
            "[pipelines.audit.source]\ntype = \"sqlite\"\npath = \"x.db\"\nqueue = \"audit\"\nlease = \"1m\"\n\
             [pipelines.audit.dead_letter]\ntype = \"sqlite\"\npath = \"x.db\"\n{queue}\n"
        )
    };
    assert!(parse(&text("queue = \"audit\"")).is_err());
    assert!(parse(&text("queue = \"dead\"")).is_ok());
    assert!(parse(&text("")).is_ok(), "the default may be another");
}

#[test]
fn what_is_left_out_of_the_tables_of_repeats_is_at_its_default() {
    let spec = |limits: &str, tables: &str| {
        only(&format!(
            "[pipelines.audit]\nordering = \"key\"\nlimits = {{ {limits} }}\n{tables}\n\
             [pipelines.audit.source]\ntype = \"sqlite\"\npath = \"audit.db\"\n"
        ))
    };
    let bare = spec("", "");
    assert!(bare.deduplicate.is_none() && bare.sequence.is_none());
    let spare = spec(
        "in_flight = 100",
        "deduplicate = {}\nsequence = { by = \"json:/seq\" }",
    );
    let (deduplicate, sequence) = (spare.deduplicate.unwrap(), spare.sequence.unwrap());
    assert!(matches!(deduplicate.by, IdBy::Source));
    assert_eq!(deduplicate.window, DeduplicateSpec::WINDOW);
    assert_eq!(deduplicate.on_store_failure, OnStoreFailure::Run);
    assert_eq!(sequence.on_gap, OnGap::Hold);
    assert_eq!(
        (sequence.held.get(), sequence.wait),
        (50, SequenceSpec::WAIT),
        "half of what may be in flight"
    );
    let by = sequence.by;
    assert_eq!(by(&Message::new(r#"{"seq": 7}"#)).as_deref(), Some(&b"7"[..]));
    let roomy = spec("", "sequence = { by = \"header:seq\" }").sequence.unwrap();
    assert_eq!(roomy.held, SequenceSpec::HELD);
}
