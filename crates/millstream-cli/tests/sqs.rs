//! The `sqs` connector through the commands, with credentials and region from the environment.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::process::{Command, Output, Stdio};

use millstream_brokers::ElasticMq;
use tempfile::TempDir;

const FILE: &str = r#"
    [pipelines.orders]
    ordering = "key"
    source = { type = "sqs", queue = "orders.fifo", endpoint_url = "${SQS}", wait_time = "1s" }
    processor.handler = "forward"
    batchers.out = { sink = { type = "sqs", queue = "priced", endpoint_url = "${SQS}" }, max_age = "5ms" }
    dead_letter = { type = "sqs", queue = "dead", endpoint_url = "${SQS}" }

    [pipelines.priced]
    source = { type = "sqs", queue_url = "${SQS}/000000000000/priced", endpoint_url = "${SQS}", wait_time = "1s" }
    processor.handler = "forward"
    batchers.out = { sink = { type = "stdout" }, max_age = "5ms" }
    dead_letter = "discard"
"#;

/// Runs `millstream` with these arguments on this file, with this on its standard input.
fn millstream(file: &str, sqs: &str, arguments: &[&str], input: &str) -> Output {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("m.toml"), file).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_millstream"))
        .args(arguments)
        .current_dir(folder.path())
        .env("SQS", sqs)
        .env("HOME", folder.path())
        .env("AWS_ACCESS_KEY_ID", "x")
        .env("AWS_SECRET_ACCESS_KEY", "x")
        .env("AWS_REGION", "elasticmq")
        .env_remove("AWS_PROFILE")
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that ends early does not read on.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn messages_go_from_publish_through_two_queues_to_the_end() {
    let broker = ElasticMq::start_in_memory().unwrap();
    broker
        .create_queue("orders.fifo", &[("FifoQueue", "true")])
        .unwrap();
    broker.create_queue("priced", &[]).unwrap();
    broker.create_queue("dead", &[]).unwrap();
    let lines: String = (0..100).map(|number| format!("{number}\n")).collect();
    let arguments = ["publish", "m.toml", "--pipeline", "orders", "--key", "k"];
    let published = millstream(FILE, &broker.url(), &arguments, &lines);
    assert_eq!(
        text(&published.stdout),
        "published 100 messages\n",
        "{}",
        text(&published.stderr)
    );
    let arguments = ["run", "m.toml", "--until-idle", "3s"];
    let ended = millstream(FILE, &broker.url(), &arguments, "");
    assert_eq!(ended.status.code(), Some(0), "{}", text(&ended.stderr));
    let printed = text(&ended.stdout);
    let mut payloads: Vec<usize> = printed
        .lines()
        .map(|line| {
            let envelope: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(envelope.get("key").unwrap(), "k");
            envelope
                .get("payload")
                .unwrap()
                .as_str()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    payloads.sort_unstable();
    assert_eq!(payloads, (0..100).collect::<Vec<_>>());
}

#[test]
fn a_queue_that_would_lose_what_is_given_up_is_refused() {
    let broker = ElasticMq::start_in_memory().unwrap();
    broker.create_queue("priced", &[]).unwrap();
    let file = FILE.replace("dead_letter = \"discard\"", "");
    let file = file.split_once("[pipelines.priced]").unwrap().1;
    let file = format!("[pipelines.priced]{file}");
    let ended = millstream(&file, &broker.url(), &["run", "m.toml"], "");
    assert_ne!(ended.status.code(), Some(0));
    assert!(
        text(&ended.stderr).contains("redrive policy"),
        "{}",
        text(&ended.stderr)
    );
}

#[test]
fn its_settings_are_checked() {
    let wrong = |right: &str, wrong: &str, why: &str| {
        let ended = millstream(
            &FILE.replace(right, wrong),
            "http://127.0.0.1:1",
            &["check", "m.toml"],
            "",
        );
        let said = text(&ended.stderr);
        assert_eq!(ended.status.code(), Some(2), "{said}");
        assert!(said.contains(why), "{said}");
    };
    wrong("\"orders.fifo\"", "\"orders/x\"", "`queue` is no name of a queue");
    wrong(
        "wait_time = \"1s\"",
        "wait_time = \"25s\"",
        "`wait_time` is out of bounds",
    );
    wrong("wait_time = \"1s\"", "waittime = \"1s\"", "wait_time");
}
