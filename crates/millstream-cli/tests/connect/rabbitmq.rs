//! RabbitMQ, with and without its management API.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::rt;

use crate::support::{Changes, Checked, OK};

const FILE: &str = r#"
[pipelines.orders]
dead_letter = { type = "rabbitmq", url = "${RABBITMQ}", queue = "dead" }

[pipelines.orders.source]
type = "rabbitmq"
url = "${RABBITMQ}"
management_url = "${MANAGEMENT}"
queue = "orders"
prefetch = 100

[pipelines.orders.processor]
handler = "forward"
concurrency = 16
timeout = "10s"

[pipelines.orders.retry]
max_deliveries = 16

[pipelines.orders.batchers.out]
size = 100
timeout = "10s"
sink = { type = "rabbitmq", url = "${RABBITMQ}", exchange = "amq.topic" }
"#;

const QUEUE: &str = "queue = \"orders\"";
const NO_MANAGEMENT: (&str, &str) = ("management_url = \"${MANAGEMENT}\"\n", "\n");
/// What a file says of a quorum queue whose nodes nobody tells.
const REDELIVERS: &str = "\
m.toml:18:12: warning: what waits for its next attempt leaves the quorum queue `orders` for classic ones, `orders.retry.*`, \
which one node of a cluster has alone: if that is lost for good, so is what waits there
  help: write `strategy = \"in_place\"`, with which it stays in its queue, or bear that
";
const NO_DEAD_LETTER: (&str, &str) = (
    "dead_letter = { type = \"rabbitmq\", url = \"${RABBITMQ}\", queue = \"dead\" }\n",
    "\n",
);

/// What is changed in the file, and what is said then: on both series.
const FINDINGS: &[(Changes, &str)] = &[
    (&[], OK),
    (
        &[("prefetch = 100", "prefetch = 8")],
        "ok: 1 pipeline, 1 warning
m.toml:10:12: warning: with a `prefetch` of 8 no more than 8 of the 16 workers ever have a message
  help: write 16 or more, or leave it out: it then follows demand
",
    ),
    (
        &[("prefetch = 100", "prefetch = 50")],
        "ok: 1 pipeline, 1 warning
m.toml:10:12: warning: with a `prefetch` of 50 a batch of `out` never has its 100 messages, and waits for its age
  help: write 100 or more, leave it out, or lower `size` of the batcher
",
    ),
    (
        &[("prefetch = 100", "prefetch = 50"), ("size = 100", "size = 50")],
        OK,
    ),
    (
        &[
            ("[pipelines.orders]\n", "[pipelines.orders]\nordering = \"key\"\n"),
            ("prefetch = 100", ""),
            ("concurrency = 16", "concurrency = 2000"),
        ],
        "ok: 1 pipeline, 1 warning
m.toml:10:9: warning: with an `ordering` and without a `prefetch` no more than 1024 of the 2000 workers may ever have a \
message: so many of 64 KiB fit into `limits.bytes`
  help: write `prefetch = 2000` or more, if messages are smaller
",
    ),
    (
        &[("timeout = \"10s\"", "timeout = \"6m\"")],
        "ok: 1 pipeline, 1 warning
m.toml:15:11: warning: attempts, the waits between them and batches may keep a message for 2162s, and the broker closes the \
channel after 1800s (`consumer_timeout`), unless the broker was told otherwise
  help: lower `timeout`, `attempts` or a batcher's `max_age`, or raise the broker's `consumer_timeout`
",
    ),
    (
        &[NO_MANAGEMENT],
        "ok: 1 pipeline
m.toml:5:1: note: not compared, as AMQP does not tell what policies give queue `orders`: a quorum queue's delivery limit, \
`consumer_timeout`
  help: set `management_url` to have the broker asked
",
    ),
    (
        &[NO_DEAD_LETTER],
        "m.toml:9:9: the quorum queue `orders` has no dead-letter exchange, so a rejected message would be lost
  help: give it one by a policy or its arguments, or name a `dead_letter`
status Some(2)
",
    ),
    (
        &[
            (QUEUE, "queue = \"nowhere\""),
            ("queue = \"dead\"", "queue = \"gone\""),
            ("amq.topic", "missing"),
        ],
        "m.toml:3:65: there is no queue `gone`
  help: make it, or let `declare` make it
m.toml:9:9: there is no queue `nowhere`
  help: make it, or let `declare` make it
m.toml:23:61: there is no exchange `missing`
  help: make it, or name another
status Some(2)
",
    ),
    (
        &[(
            "prefetch = 100",
            "bindings = [{ exchange = \"amq.direct\" }, { exchange = \"missing\" }]",
        )],
        "m.toml:10:12: queue `orders` cannot be bound: there is no exchange `missing`
  help: make it, or remove the binding
status Some(2)
",
    ),
    (
        &[("${MANAGEMENT}", "http://guest:wrong@127.0.0.1:1")],
        "m.toml:8:18: http://127.0.0.1:PORT/: error sending request: client error (Connect): tcp connect error: Connection \
refused (os error 111)
  help: see that it runs and can be reached from here, or name another
status Some(2)
",
    ),
    (
        &[("prefetch = 100", "declare = { arguments = { x-queue-type = \"quorum\" } }")],
        OK,
    ),
    // The queue is on one node, and so is what waits elsewhere.
    (&[("max_deliveries = 16", "strategy = \"redeliver\"")], OK),
    (
        &[(QUEUE, "queue = \"new\"\ndeclare = {}")],
        "ok: 1 pipeline
m.toml:9:9: note: queue `new` is not there yet, so what policies will give it is not known
  help: check again once it is
",
    ),
    // The look before made none.
    (
        &[(QUEUE, "queue = \"new\"")],
        "m.toml:9:9: there is no queue `new`
  help: make it, or let `declare` make it
status Some(2)
",
    ),
];

/// What policies bring about, and what is said of them: with a dead letter in the file, and without.
const POLICIES: &[(&str, Changes, &str)] = &[
    (
        r#"{"delivery-limit":5}"#,
        &[],
        "ok: 1 pipeline, 1 warning
m.toml:18:18: warning: the quorum queue `orders` drops a message, as there is no dead-letter exchange, after 5 deliveries, \
before the pipeline gives it up after 16
  help: set `max_deliveries` to 5 at most, or raise the queue's delivery limit
",
    ),
    (r#"{"delivery-limit":16}"#, &[], OK),
    (
        r#"{"dead-letter-exchange":"amq.fanout","delivery-limit":15}"#,
        &[],
        "ok: 1 pipeline, 1 warning
m.toml:18:18: warning: the quorum queue `orders` dead-letters a message after 15 deliveries, before the pipeline gives it up \
after 16
  help: set `max_deliveries` to 15 at most, or raise the queue's delivery limit
",
    ),
    (r#"{"dead-letter-exchange":"amq.fanout"}"#, &[NO_DEAD_LETTER], OK),
    (
        r#"{"dead-letter-exchange":"missing"}"#,
        &[NO_DEAD_LETTER],
        "m.toml:9:9: queue `orders` has `missing` for its dead-letter exchange, which is not there: a rejected message would \
be lost
  help: make the exchange, or name a `dead_letter`
status Some(2)
",
    ),
];

const REFUSED: &str = "\
m.toml:3:42: 127.0.0.1:PORT: Connection refused (os error 111)
  help: see that it runs and can be reached from here, or name another
m.toml:7:7: 127.0.0.1:PORT: Connection refused (os error 111)
  help: see that it runs and can be reached from here, or name another
m.toml:23:35: 127.0.0.1:PORT: Connection refused (os error 111)
  help: see that it runs and can be reached from here, or name another
status Some(2)
";

/// A broker with the queues of the file: `orders`, a quorum queue, and `dead`.
fn start(series: Series) -> (RabbitMq, Checked) {
    let broker = RabbitMq::builder(series)
        .management(true)
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let environment = [
        ("RABBITMQ", broker.url()),
        ("MANAGEMENT", broker.management_url()),
    ];
    let file = Checked::new(FILE, environment);
    for (queue, arguments) in [("orders", "x-queue-type = \"quorum\""), ("dead", "")] {
        let declared = format!("queue = \"{queue}\"\ndeclare = {{ arguments = {{ {arguments} }} }}");
        file.publish(&FILE.replace(QUEUE, &declared), "orders");
    }
    (broker, file)
}

/// Gives the queue this policy, and waits until the management API shows it, which takes it seconds.
fn policy(broker: &RabbitMq, definition: &str) {
    let arguments = [
        "set_policy",
        "lint",
        "^orders$",
        definition,
        "--apply-to",
        "queues",
    ];
    broker.ctl(&arguments).unwrap_or_else(|error| panic!("{error}"));
    let expected: serde_json::Value = serde_json::from_str(definition).unwrap();
    let begin = rt::now();
    loop {
        let queue = broker.management("/api/queues/%2F/orders").unwrap();
        if queue["effective_policy_definition"] == expected {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(60), "{definition}: {queue}");
        thread::park_timeout(Duration::from_millis(100));
    }
}

fn both_find_the_same(file: &Checked, broker: &RabbitMq) {
    for (changes, said) in FINDINGS {
        assert_eq!(file.with(changes), *said, "{changes:?}");
    }
    for (definition, changes, said) in POLICIES {
        policy(broker, definition);
        assert_eq!(file.with(changes), *said, "{definition}");
    }
}

#[test]
fn each_finding_of_rabbitmq_4_has_its_cause() {
    let (mut broker, file) = start(Series::V4);
    both_find_the_same(&file, &broker);
    policy(&broker, r#"{"consumer-timeout":60000}"#);
    assert_eq!(
        file.with(&[]),
        "ok: 1 pipeline, 1 warning
m.toml:15:11: warning: attempts, the waits between them and batches may keep a message for 62s, and the broker closes the \
channel after 60s (`consumer_timeout`)
  help: lower `timeout`, `attempts` or a batcher's `max_age`, or raise the broker's `consumer_timeout`
"
    );
    policy(&broker, r#"{"consumer-timeout":70000}"#);
    assert_eq!(file.with(&[]), OK);
    // Unless it is told otherwise, the broker itself gives up after 20.
    assert_eq!(
        file.with(&[("max_deliveries = 16", "max_deliveries = 21")]),
        "ok: 1 pipeline, 1 warning
m.toml:18:18: warning: the quorum queue `orders` drops a message, as there is no dead-letter exchange, after 20 deliveries, \
before the pipeline gives it up after 21
  help: set `max_deliveries` to 20 at most, or raise the queue's delivery limit
"
    );
    let other = "declare = { arguments = { x-queue-type = \"quorum\", x-max-length = 5 } }";
    let found = file.with(&[("prefetch = 100", other)]);
    assert!(
        found.starts_with(
            "m.toml:10:11: queue `orders` is there with other properties than `declare` gives it"
        ) && found.ends_with("status Some(2)\n"),
        "{found}"
    );
    let stream = "queue = \"log\"\ndeclare = { arguments = { x-queue-type = \"stream\" } }";
    file.publish(&FILE.replace(QUEUE, stream), "orders");
    assert!(!file.with(&[(QUEUE, stream)]).contains("is a stream"));
    let found = file.with(&[(QUEUE, "queue = \"log\"")]);
    assert!(
        found.starts_with("m.toml:9:9: `log` is a stream: say so"),
        "{found}"
    );
    broker.kill();
    assert_eq!(file.with(&[]), REFUSED);
}

#[test]
fn each_finding_of_rabbitmq_3_has_its_cause() {
    let (broker, file) = start(Series::V3);
    both_find_the_same(&file, &broker);
    policy(&broker, r#"{"dead-letter-exchange":"amq.fanout"}"#);
    assert_eq!(
        file.with(&[("max_deliveries = 16", "max_deliveries = 100")]),
        OK,
        "it has no limit unless it is told one"
    );
    // What the declaration says is known without the management API.
    let found = file.with(&[
        (
            "prefetch = 100",
            "declare = { arguments = { x-queue-type = \"quorum\" } }",
        ),
        ("max_deliveries = 16", "strategy = \"redeliver\""),
        ("management_url = \"${MANAGEMENT}\"\n", "\n"),
    ]);
    assert!(found.contains(REDELIVERS), "{found}");
    let unknown = file.with(&[("max_deliveries = 16", "strategy = \"redeliver\""), NO_MANAGEMENT]);
    assert!(
        unknown
            .contains(", whether what waits for its next attempt leaves a quorum queue for classic ones\n"),
        "{unknown}"
    );
    let by_key =
        "[pipelines.orders.rate_limit]\nmessages = 1000\nkey = \"header:tenant\"\n\n[pipelines.orders.retry]";
    let found = file.with(&[
        (
            "prefetch = 100",
            "declare = { arguments = { x-queue-type = \"quorum\" } }",
        ),
        ("[pipelines.orders.retry]", by_key),
        NO_MANAGEMENT,
    ]);
    assert!(
        found.contains("what is over the limit of one key leaves the quorum queue `orders` for classic ones"),
        "{found}"
    );
    let limited =
        "queue = \"limited\"\ndeclare = { arguments = { x-queue-type = \"quorum\", x-delivery-limit = 9 } }";
    file.publish(&FILE.replace(QUEUE, limited), "orders");
    let found = file.with(&[(QUEUE, limited), NO_MANAGEMENT]);
    assert!(
        found.contains("the quorum queue `limited` drops a message") && found.contains("after 9 deliveries"),
        "{found}"
    );
}

#[test]
fn without_connect_nothing_is_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let environment = [
        ("RABBITMQ", format!("amqp://{address}")),
        ("MANAGEMENT", format!("http://{address}")),
    ];
    let file = Checked::new(FILE, environment);
    let (said, complaints, code) = file.run(&["check", "m.toml"], FILE, "");
    assert_eq!((said.as_str(), complaints.as_str(), code), (OK, "", Some(0)));
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err(), "it connected");
    // It would have been seen.
    listener.set_nonblocking(false).unwrap();
    let hung_up = thread::spawn(move || (0..3).for_each(|_| drop(listener.accept())));
    assert!(file.with(&[]).ends_with("status Some(2)\n"));
    hung_up.join().unwrap();
}
