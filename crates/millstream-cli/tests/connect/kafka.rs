//! Kafka.

use millstream_brokers::Kafka;

use crate::support::{Changes, Checked, OK};

const FILE: &str = r#"
[host]
shutdown_timeout = "25s"

[pipelines.orders]
ordering = "partition"
dead_letter = { type = "kafka", brokers = "${KAFKA}", topic = "dead" }

[pipelines.orders.source]
type = "kafka"
brokers = "${KAFKA}"
group = "pricing"
topics = ["orders", "returns"]

[pipelines.orders.source.properties]
"max.poll.interval.ms" = "60000"
"session.timeout.ms" = "6000"

[pipelines.orders.processor]
handler = "forward"
concurrency = 6

[pipelines.orders.batchers.out]
sink = { type = "kafka", brokers = "${KAFKA}", topic = "priced" }
"#;

const MISSING: &str = "\
m.toml:7:63: there is no topic `dead`
  help: make it with the partitions that it shall have, or name another
m.toml:13:10: there is no topic `orders`
  help: make it with the partitions that it shall have, or name another
m.toml:13:10: there is no topic `returns`
  help: make it with the partitions that it shall have, or name another
m.toml:24:56: there is no topic `priced`
  help: make it with the partitions that it shall have, or name another
status Some(2)
";

const SILENT: &str = "\
m.toml:7:43: no broker answers within 10s
  help: see that it runs and can be reached from here, or name another
m.toml:11:11: no broker answers within 10s
  help: see that it runs and can be reached from here, or name another
m.toml:24:36: no broker answers within 10s
  help: see that it runs and can be reached from here, or name another
status Some(2)
";

/// What is changed in the file, and what is said then.
const FINDINGS: &[(Changes, &str)] = &[
    (
        &[("concurrency = 6", "concurrency = 7")],
        "ok: 1 pipeline, 1 warning
m.toml:21:15: warning: with ordering = \"partition\" no more than 6 of the 7 workers ever have a message: there are 6 \
partitions
  help: set `concurrency` to 6, order by key, or give the topics more partitions
",
    ),
    (
        &[
            ("concurrency = 6", "concurrency = 7"),
            ("\"partition\"", "\"key\""),
        ],
        OK,
    ),
    (
        &[("shutdown_timeout = \"25s\"", "shutdown_timeout = \"2m\"")],
        "ok: 1 pipeline, 1 warning
m.toml:16:26: warning: a drain may take 120s (`shutdown_timeout`), and the group gives the partitions of a member to others \
after 60s (`max.poll.interval.ms`): what is settled later is repeated there
  help: raise `max.poll.interval.ms` above `shutdown_timeout`, or lower that
",
    ),
    (
        &[
            ("shutdown_timeout = \"25s\"", "shutdown_timeout = \"2m\""),
            ("\"60000\"", "\"150000\""),
        ],
        OK,
    ),
    (
        &[("\"returns\"", "\"^ret\"")],
        "ok: 1 pipeline
m.toml:13:10: note: which topics `^ret` means is not looked at
  help: name the topics, to have them compared
",
    ),
    (
        &[("session.timeout.ms", "session.timeout.sm")],
        "m.toml:15:1: librdkafka knows no property `session.timeout.sm`
  help: put that right: `run` would refuse to start
status Some(2)
",
    ),
    (
        &[(
            "topic = \"priced\"",
            "topic = \"priced\", properties = { \"linger.sm\" = \"5\" }",
        )],
        "m.toml:24:79: librdkafka knows no property `linger.sm`
  help: put that right: `run` would refuse to start
status Some(2)
",
    ),
];

#[test]
fn each_finding_of_kafka_has_its_cause() {
    // Its brokers make a topic that is asked for, with three partitions, unless they are asked not to.
    let mut broker = Kafka::builder()
        .setting("auto.create.topics.enable", "true")
        .setting("num.partitions", "3")
        .start()
        .unwrap_or_else(|error| panic!("{error}"));
    let file = Checked::new(FILE, [("KAFKA", broker.brokers())]);
    for _ in 0..2 {
        assert_eq!(file.with(&[]), MISSING, "the first look made a topic");
    }
    for topic in ["orders", "returns", "priced", "dead"] {
        let topics = format!("[\"{topic}\"]");
        file.publish(&FILE.replace("[\"orders\", \"returns\"]", &topics), "orders");
    }
    assert_eq!(file.with(&[]), OK);
    for (changes, said) in FINDINGS {
        assert_eq!(file.with(changes), *said, "{changes:?}");
    }
    broker.kill();
    assert_eq!(file.with(&[]), SILENT);
}
