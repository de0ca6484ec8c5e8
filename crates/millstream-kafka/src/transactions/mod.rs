//! Exactly once: what is written to topics, and the offsets of what it came from, committed in one transaction.
//!
//! A [`TransactionalSink`](crate::TransactionalSink) has no producer of its own. What it is given goes, with the deliveries
//! that it comes of ([`Outgoing::ticket`](millstream_core::Outgoing::ticket)), to one thread for each open source, the
//! [`writer`], by way of [`Work`]. The thread takes all that waits there, writes it, adds the offsets of the group as they
//! are once these deliveries are settled, and commits both at once. Only then is the sink answered. So a batch is in one
//! transaction, a transaction holds the batches that came while the one before it was committed, and batchers say how large
//! either gets.
//!
//! # What makes it exact
//!
//! - *Every input is told.* Offsets are committed with what is settled beyond them, and a transaction is worth nothing if
//!   that is cut off at 4096 bytes. So it never has to be: a partition hands out no more than can be told of, whichever of
//!   it comes to be settled ([`Offsets::has_room`](crate::offsets::Offsets::has_room)). What was settled without an output
//!   goes along, and all commits of such a source are transactions.
//! - *Nothing is written twice within the process.* A sink's call may be dropped, by a timeout or a drain. Before its
//!   transaction has begun to commit, that aborts it, and the rest of it is written again. Later, it is committed all the
//!   same; the deliveries are settled then, and if they come to a sink again, it is answered without writing.
//! - *An aborted transaction is written again from memory.* The sink's call still waits, and neither did the processor fail
//!   nor is an attempt counted. So nothing has to be read again either.
//! - *What is not ours is not committed.* The offsets go with the member's generation, and a broker refuses those of an
//!   older one. It does not look at who has which partition, so the deliveries are looked up after the generation was
//!   read: if one is stale, or partitions have moved in between, the transaction is aborted. A generation is not used
//!   while the assignment is lost, as a member without one is not checked.
//! - *A revocation waits* for the transaction that holds the last of its partition, and gives the partition up after that.
//!   If that takes too long, what comes later is stale; and what the brokers have taken by then, they hold back from the
//!   next owner until the transaction has ended, since it asks for stable offsets.
//! - *A process that is gone* left a transaction open at most, which the next with the same id aborts before it joins the
//!   group, and a broker after ten seconds.
//!
//! A producer that another one with the same id has taken the place of is of no use any more. Then the source ends, and the
//! supervisor opens it again, which makes another; so two processes with the same id end each other's until one gives up.

pub(crate) mod producer;
pub(crate) mod sink;
pub(crate) mod work;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use rdkafka::ClientConfig;

use crate::properties::{InvalidProperty, check_sink};
use crate::shared::Left;
use work::Work;

/// What a source shares with the sinks that write within its transactions.
#[derive(Debug)]
pub(crate) struct Transactions {
    id: String,
    /// What the sinks want of the producer.
    properties: Mutex<BTreeMap<String, String>>,
    /// The open source's.
    work: Mutex<Option<Arc<Work>>>,
    /// By the source that was open before.
    pub(crate) left: Arc<Left>,
}

impl Transactions {
    pub(crate) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            properties: Mutex::default(),
            work: Mutex::default(),
            left: Arc::default(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Sets a property of the one producer, for all sinks.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<(), InvalidProperty> {
        check_sink(name, value)?;
        let mut properties = self.properties.lock();
        let set = properties
            .entry(name.to_owned())
            .or_insert_with(|| value.to_owned());
        if set == value {
            return Ok(());
        }
        Err(InvalidProperty {
            name: name.to_owned(),
            why: "has another value at another sink of the same transactions, and they share one producer",
        })
    }

    /// What the producer is made with.
    pub(crate) fn config(&self, source: &ClientConfig) -> ClientConfig {
        let mut config = producer::config(source);
        for (name, value) in &*self.properties.lock() {
            config.set(name, value);
        }
        config.set("transactional.id", &self.id);
        config
    }

    /// Whether a source is open.
    pub(crate) fn are_open(&self) -> bool {
        self.work.lock().as_ref().is_some_and(|work| work.is_open())
    }

    /// The source is open: from now on sinks write to its transactions. False if another is open, which would fence it.
    pub(crate) fn begin(&self, work: &Arc<Work>) -> bool {
        let mut current = self.work.lock();
        if current.as_ref().is_some_and(|current| current.is_open()) {
            return false;
        }
        *current = Some(Arc::clone(work));
        true
    }

    fn work(&self) -> Option<Arc<Work>> {
        self.work.lock().clone()
    }
}
