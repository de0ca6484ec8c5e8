//! What the stock binary knows: [`stock`].

use millstream_config::Registry;

use crate::connectors::{FileKind, MemoryKind, StdoutKind};
use crate::handlers::ForwardHandler;
use crate::stores::MemoryStoreKind;

/// A registry with the connectors and handlers of this build, and with the names of those that it leaves out.
pub fn stock() -> Registry {
    let mut registry = Registry::new();
    registry
        .connector("memory", MemoryKind::default())
        .connector("file", FileKind)
        .sink("stdout", StdoutKind)
        .store("memory", MemoryStoreKind)
        .handler("forward", ForwardHandler);
    kafka(&mut registry);
    rabbitmq(&mut registry);
    redis(&mut registry);
    sqlite(&mut registry);
    sqs(&mut registry);
    http(&mut registry);
    registry
}

#[cfg(feature = "kafka")]
fn kafka(registry: &mut Registry) {
    registry.connector("kafka", crate::connectors::KafkaKind);
}

#[cfg(not(feature = "kafka"))]
fn kafka(registry: &mut Registry) {
    registry.left_out("kafka", "kafka");
}

#[cfg(feature = "rabbitmq")]
fn rabbitmq(registry: &mut Registry) {
    registry.connector("rabbitmq", crate::connectors::RabbitKind);
}

#[cfg(not(feature = "rabbitmq"))]
fn rabbitmq(registry: &mut Registry) {
    registry.left_out("rabbitmq", "rabbitmq");
}

#[cfg(feature = "redis")]
fn redis(registry: &mut Registry) {
    registry.store("redis", crate::stores::RedisStoreKind);
}

#[cfg(not(feature = "redis"))]
fn redis(registry: &mut Registry) {
    registry.left_out("redis", "redis");
}

#[cfg(feature = "sqlite")]
fn sqlite(registry: &mut Registry) {
    registry
        .connector("sqlite", crate::connectors::SqliteKind)
        .store("sqlite", crate::stores::SqliteStoreKind);
}

#[cfg(not(feature = "sqlite"))]
fn sqlite(registry: &mut Registry) {
    registry.left_out("sqlite", "sqlite");
}

#[cfg(feature = "sqs")]
fn sqs(registry: &mut Registry) {
    registry.connector("sqs", crate::connectors::SqsKind);
}

#[cfg(not(feature = "sqs"))]
fn sqs(registry: &mut Registry) {
    registry.left_out("sqs", "sqs");
}

#[cfg(feature = "http")]
fn http(registry: &mut Registry) {
    registry.handler("http", crate::handlers::HttpHandler);
}

#[cfg(not(feature = "http"))]
fn http(registry: &mut Registry) {
    registry.left_out("http", "http");
}
