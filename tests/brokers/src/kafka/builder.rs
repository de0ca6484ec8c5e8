//! What a Kafka is to be like: [`KafkaBuilder`].

use super::cluster::Kafka;
use crate::StartError;

/// What a Kafka is to be like; [`Kafka::builder`] makes one.
#[derive(Debug, Clone)]
#[must_use]
pub struct KafkaBuilder {
    pub(super) nodes: usize,
    pub(super) settings: Vec<(String, String)>,
    pub(super) formatted: bool,
    pub(super) secured: bool,
    pub(super) counted: bool,
}

impl KafkaBuilder {
    pub(super) const fn new() -> Self {
        Self {
            nodes: 1,
            settings: Vec::new(),
            formatted: false,
            secured: false,
            counted: false,
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

    /// Has Kafka's own tool make what each node keeps its log in, which takes seconds, and brings all features of this
    /// version: the newer group protocol among them. Without it they are those of the oldest version that can be
    /// brought up to this one.
    pub const fn formatted(mut self) -> Self {
        self.formatted = true;
        self
    }

    /// Whether it listens at [`Kafka::secured`] too, with TLS and a certificate of an authority of its own, for
    /// [`Kafka::USER`] alone; not, unless this says so.
    pub const fn secured(mut self, secured: bool) -> Self {
        self.secured = secured;
        self
    }

    /// Whether clients reach it by a proxy that counts how often they ask for messages, for [`Kafka::fetches`]; not, unless
    /// this says so.
    pub const fn counted(mut self, counted: bool) -> Self {
        self.counted = counted;
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
