//! Apache Kafka: one node, or several in a cluster.

mod builder;
mod cluster;
mod installation;
mod node;

pub use builder::KafkaBuilder;
pub use cluster::Kafka;
