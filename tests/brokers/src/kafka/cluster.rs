//! Kafka as a test sees it: [`Kafka`].

use std::path::{Path, PathBuf};

use super::builder::KafkaBuilder;
use super::installation::Installation;
use super::node::Node;
use crate::{ControlError, StartError, tls};

/// A Kafka of its own, of one node or several. Dropped, it is killed and its data removed.
#[derive(Debug)]
pub struct Kafka {
    installation: Installation,
    nodes: Vec<Node>,
}

impl Kafka {
    /// Who may log in where it is [`secured`](Self::secured), by SASL's PLAIN.
    pub const USER: &str = "millstream";
    /// The password of [`USER`](Self::USER).
    pub const PASSWORD: &str = "a secret of the tests";

    /// What a Kafka is to be like.
    pub const fn builder() -> KafkaBuilder {
        KafkaBuilder::new()
    }

    pub(super) fn start(builder: &KafkaBuilder) -> Result<Self, StartError> {
        let installation = Installation::find()?;
        let nodes = (1..=builder.nodes)
            .map(|id| Node::new(id, builder))
            .collect::<Result<Vec<_>, _>>()?;
        let voters = nodes.iter().map(Node::voter).collect::<Vec<_>>().join(",");
        for node in &nodes {
            node.write(&voters, nodes.len(), &builder.settings)
                .map_err(StartError::io("configure Kafka"))?;
            if builder.formatted {
                node.format(&installation)?;
            } else {
                node.name().map_err(StartError::io("configure Kafka"))?;
            }
        }
        let mut kafka = Self { installation, nodes };
        kafka.start_again()?;
        Ok(kafka)
    }

    fn what(&self) -> String {
        format!("Kafka {}", self.installation.version)
    }

    /// Starts every node that was killed or stopped, with the same ports and data, and returns once all of them
    /// answer.
    ///
    /// # Errors
    /// If one does not start.
    pub fn start_again(&mut self) -> Result<(), StartError> {
        let what = self.what();
        // None is ready before most of them run.
        for node in &mut self.nodes {
            node.spawn(&self.installation)?;
        }
        self.nodes.iter_mut().try_for_each(|node| node.ready(&what))
    }

    /// Kills every node with SIGKILL, and returns once they are gone.
    pub fn kill(&mut self) {
        self.nodes.iter_mut().for_each(Node::kill);
    }

    /// Kills the node of this number, counted from zero, with SIGKILL; the others run on.
    /// [`start_again`](Self::start_again) brings it back.
    pub fn kill_node(&mut self, number: usize) {
        if let Some(node) = self.nodes.get_mut(number) {
            node.kill();
        }
    }

    /// Has every node stop as for its administrator, one after the other, and returns once they are gone.
    ///
    /// # Errors
    /// If one took more than half a minute, and was killed.
    pub fn stop(&mut self) -> Result<(), ControlError> {
        let what = self.what();
        self.nodes.iter_mut().try_for_each(|node| node.stop(&what))
    }

    /// Whether every node was started and neither killed nor stopped since.
    #[must_use]
    pub fn runs(&self) -> bool {
        self.nodes.iter().all(Node::runs)
    }

    /// The process ids of the nodes that run.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.iter().filter_map(Node::process)
    }

    /// Its version, as `4.1.1`.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.installation.version
    }

    /// What clients are given to find it: each node's address, separated by commas.
    #[must_use]
    pub fn brokers(&self) -> String {
        self.nodes.iter().map(Node::address).collect::<Vec<_>>().join(",")
    }

    /// How often anybody has asked any node for messages, whether there were any or not. A node hands them out in answers
    /// to such requests, and in nothing else.
    ///
    /// # Panics
    /// If it was not started with [`KafkaBuilder::counted`].
    #[must_use]
    pub fn fetches(&self) -> usize {
        let fetches = |node: &Node| node.fetches().expect("started with counted(true)");
        self.nodes.iter().map(fetches).sum()
    }

    /// As [`brokers`](Self::brokers), where clients have to speak TLS and to log in.
    ///
    /// # Panics
    /// If it was not started with [`KafkaBuilder::secured`].
    #[must_use]
    pub fn secured(&self) -> String {
        let address = |node: &Node| node.secured_address().expect("started with secured(true)");
        self.nodes.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// The file with the certificate of the authority that gave the first node its own, as PEM.
    #[must_use]
    pub fn authority(&self) -> Option<PathBuf> {
        self.nodes.first().map(|node| node.file(tls::CA))
    }

    /// The folder of each node.
    pub fn folders(&self) -> impl Iterator<Item = &Path> + '_ {
        self.nodes.iter().map(Node::folder)
    }

    /// The log of each node.
    #[must_use]
    pub fn log_paths(&self) -> Vec<PathBuf> {
        self.nodes.iter().map(Node::printed).collect()
    }
}
