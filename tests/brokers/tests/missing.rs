//! What a test says where its broker is not installed. It is told by the environment of a process of its own.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Command;

#[test]
fn a_missing_broker_is_named_with_what_installs_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_brokers"))
        .arg("rabbitmq4")
        .env("MILLSTREAM_RABBITMQ4_ROOT", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    if std::fs::read_dir("/usr/lib/rabbitmq/lib").is_ok_and(|mut servers| {
        servers.any(|server| server.is_ok_and(|server| server.file_name().to_string_lossy().contains("-4.")))
    }) {
        return; // This machine's own Debian has it: there is nothing to miss.
    }
    assert!(!output.status.success());
    for part in ["RabbitMQ 4", "/nowhere", "tests/run --install"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn a_missing_kafka_is_named_with_what_installs_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_brokers"))
        .arg("kafka")
        .env("MILLSTREAM_KAFKA_ROOT", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for part in ["Kafka 4", "/nowhere", "tests/run --install"] {
        assert!(said.contains(part), "{said}");
    }
}

#[test]
fn missing_jars_are_named_with_what_installs_them() {
    let output = Command::new(env!("CARGO_BIN_EXE_brokers"))
        .arg("elasticmq")
        .env("MILLSTREAM_ELASTICMQ_ROOT", "/nowhere")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    for part in ["ElasticMQ", "/nowhere", "tests/run --install"] {
        assert!(said.contains(part), "{said}");
    }
}
