//! SQS, on ElasticMQ.

use millstream_brokers::ElasticMq;

use crate::support::{Changes, Checked, OK};

const FILE: &str = r#"
[pipelines.orders.source]
type = "sqs"
queue = "orders"
endpoint_url = "${SQS}"

[pipelines.orders.processor]
handler = "forward"
timeout = "20s"

[pipelines.orders.retry]
max_deliveries = 16

[pipelines.orders.batchers.out]
timeout = "20s"
sink = { type = "sqs", queue_url = "${SQS}/000000000000/priced", endpoint_url = "${SQS}" }
"#;

const QUEUE: &str = "queue = \"orders\"";

/// What is changed in the file, and what is said then.
const FINDINGS: &[(Changes, &str)] = &[
    (
        &[("timeout = \"20s\"", "timeout = \"40s\"")],
        "ok: 1 pipeline, 2 warnings
m.toml:9:11: warning: the handler may run for 40s, and the queue orders hides a message for 30s: it is another's as soon as \
a process stalls for that long and its heartbeats fail
  help: set `visibility_timeout` to more than 40s, here or at the queue, or lower `timeout`
m.toml:15:11: warning: a batch of `out` may run for 40s, and the queue orders hides a message for 30s: it is another's as \
soon as a process stalls for that long and its heartbeats fail
  help: set `visibility_timeout` to more than 40s, here or at the queue, or lower `timeout`
",
    ),
    (
        &[
            ("timeout = \"20s\"", "timeout = \"40s\""),
            (QUEUE, "queue = \"orders\"\nvisibility_timeout = \"1m\""),
        ],
        OK,
    ),
    (
        &[
            ("handler = \"forward\"\ntimeout = \"20s\"", "handler = \"forward\"\ntimeout = \"5s\""),
            (QUEUE, "queue = \"orders\"\nvisibility_timeout = \"10s\""),
        ],
        "ok: 1 pipeline, 1 warning
m.toml:16:11: warning: a batch of `out` may run for 20s, and the queue orders hides a message for 10s: it is another's as \
soon as a process stalls for that long and its heartbeats fail
  help: set `visibility_timeout` to more than 20s, here or at the queue, or lower `timeout`
",
    ),
    (
        &[
            ("timeout = \"20s\"", "timeout = \"4h\""),
            (QUEUE, "queue = \"orders\"\nvisibility_timeout = \"12h\""),
        ],
        "ok: 1 pipeline, 1 warning
m.toml:10:11: warning: attempts, the waits between them and batches may keep a message for 86402s, and SQS takes it back \
after 43200s whatever is asked
  help: lower `timeout`, `attempts` or a batcher's `max_age`, or write retry.strategy = \"redeliver\"
",
    ),
    (
        &[(QUEUE, "queue = \"hasty\"")],
        "ok: 1 pipeline, 1 warning
m.toml:12:18: warning: SQS moves a message of the queue hasty to its dead-letter queue after 3 receives, before the pipeline \
gives it up after 16
  help: set `max_deliveries` to 3 at most, or raise `maxReceiveCount` of the redrive policy
",
    ),
    (
        &[(QUEUE, "queue = \"hasty\""), ("max_deliveries = 16", "max_deliveries = 3")],
        OK,
    ),
    (
        &[(QUEUE, "queue = \"bare\"")],
        "m.toml:4:9: the queue bare has no redrive policy, so nothing would keep what is given up
  help: set one, or name a `dead_letter`, or write dead_letter = \"discard\"
status Some(2)
",
    ),
    (
        &[
            (QUEUE, "queue = \"bare\""),
            (
                "[pipelines.orders.source]",
                "[pipelines.orders]\ndead_letter = \"discard\"\n[pipelines.orders.source]",
            ),
        ],
        OK,
    ),
    (
        &[(QUEUE, "queue = \"nowhere\""), ("/priced", "/gone")],
        "m.toml:4:9: the queue nowhere is not there
  help: make it, or name another
m.toml:16:36: the queue gone is not there
  help: make it, or name another
status Some(2)
",
    ),
];

const REFUSED: &str = "\
m.toml:4:9: the queue orders: dispatch failure: io error: client error (Connect): tcp connect error: Connection refused (os \
error 111)
  help: see that it runs and can be reached from here, or name another
m.toml:16:36: the queue priced: dispatch failure: io error: client error (Connect): tcp connect error: Connection refused (os \
error 111)
  help: see that it runs and can be reached from here, or name another
status Some(2)
";

#[test]
fn each_finding_of_sqs_has_its_cause() {
    let mut broker = ElasticMq::start_in_memory().unwrap_or_else(|error| panic!("{error}"));
    let policy = |receives: u32| {
        let target = "arn:aws:sqs:elasticmq:000000000000:dead";
        format!(r#"{{"deadLetterTargetArn": "{target}", "maxReceiveCount": {receives}}}"#)
    };
    for (queue, policy) in [
        ("dead", None),
        ("priced", None),
        ("bare", None),
        ("orders", Some(policy(20))),
        ("hasty", Some(policy(3))),
    ] {
        let policy = policy.as_ref().map(|policy| ("RedrivePolicy", policy.as_str()));
        broker.create_queue(queue, policy.as_slice()).unwrap();
    }
    let file = Checked::new(FILE, [("SQS", broker.url())]);
    assert_eq!(file.with(&[]), OK);
    for (changes, said) in FINDINGS {
        assert_eq!(file.with(changes), *said, "{changes:?}");
    }
    broker.kill();
    assert_eq!(file.with(&[]), REFUSED);
}
