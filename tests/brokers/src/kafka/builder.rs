//! What a Kafka is to be like: [`KafkaBuilder`].

use super::cluster::Kafka;
use crate::StartError;

/// What a Kafka is to be like; [`Kafka::builder`] makes one.
#[derive(Debug, Clone)]
#[must_use]
pub struct KafkaBuilder {
    pub(super) nodes: usize,
    pub(super) settings: Vec<(String, String)>,
}

impl KafkaBuilder {
    pub(super) const fn new() -> Self {
        Self {
            nodes: 1,
            settings: Vec::new(),
        }
    }

    /// How many nodes, each of them broker and controller: one, or as many as make a majority of controllers, three.
    pub const fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// A line of every node's `server.properties`.
    pub fn setting(mut self, key: &str, value: &str) -> Self {
        self.settings.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Starts it, and returns once every node answers.
    ///
    /// # Errors
    /// If it is not installed, or does not start.
    pub fn start(&self) -> Result<Kafka, StartError> {
        Kafka::start(self)
    }
}
