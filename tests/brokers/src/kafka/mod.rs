//! Apache Kafka: one node, or several in a cluster.

mod builder;
mod cluster;
mod installation;
mod node;
mod proxy;

pub use builder::KafkaBuilder;
pub use cluster::Kafka;
