//! What a reader is made from: [`ReaderSettings`].

use std::fmt;
use std::sync::Arc;

use lapin::types::FieldTable;
use millstream_core::SharedSinkConnector;

use crate::dial::Dial;
use crate::retry::RetrySink;
use crate::topology::Topology;
use crate::trouble::Trouble;

/// What becomes of a message that the policies give up and no dead-letter sink takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// `basic.reject`: the queue's dead-letter exchange gets it.
    #[default]
    Reject,
    /// Back into the queue, for ever.
    Requeue,
    /// Back into the queue when it was delivered for the first time, to the dead-letter exchange after that.
    RequeueOnce,
}

/// Where a reader reads, and how.
#[derive(Clone)]
#[non_exhaustive]
pub struct ReaderSettings {
    /// The brokers, of which one is connected to at a time.
    pub dial: Dial,
    /// The queue or stream, and what is declared and bound at every connection.
    pub topology: Topology,
    /// Unacknowledged messages that the broker may have underway, over all connections; absent: as demand has it,
    /// and never more than that.
    pub prefetch: Option<u16>,
    /// How many connections read the queue at once.
    pub connections: usize,
    /// The management plugin's HTTP API, with user and password, to ask whether rejected messages are kept.
    pub management_url: Option<String>,
    /// What `Settlement::Reject` means.
    pub on_failure: OnFailure,
    /// The consumer's name in the management UI; absent: the broker makes one up.
    pub consumer_tag: Option<String>,
    /// Arguments of `basic.consume`, such as `x-priority` and `x-stream-offset`.
    pub arguments: FieldTable,
}

impl ReaderSettings {
    /// One connection to this queue, everything else by default.
    pub fn new(dial: Dial, topology: Topology) -> Self {
        Self {
            dial,
            topology,
            prefetch: None,
            connections: 1,
            management_url: None,
            on_failure: OnFailure::default(),
            consumer_tag: None,
            arguments: FieldTable::default(),
        }
    }

    /// Asks the management plugin's HTTP API, at `http://user:password@host:15672`, whether rejected messages are
    /// kept.
    ///
    /// # Errors
    /// When it is no such URL; the text does not show it.
    pub fn ask_management(&mut self, url: &str) -> Result<(), String> {
        #[cfg(feature = "management")]
        crate::management::Management::new(url)?;
        self.management_url = Some(url.to_owned());
        Ok(())
    }

    /// Whether this reads a stream, from which nothing is taken out.
    pub fn is_stream(&self) -> bool {
        self.topology.declares_stream() || self.arguments.contains_key("x-stream-offset")
    }

    /// Whether a rejected message is kept, as far as can be said without the broker.
    pub fn keeps_rejected(&self) -> bool {
        match self.on_failure {
            _ if self.is_stream() => false,
            OnFailure::Requeue => true,
            OnFailure::Reject | OnFailure::RequeueOnce => {
                self.topology.declares_dead_letters() || self.management_url.is_some()
            }
        }
    }

    /// The sink that brings a message back to the queue after a delay; none for a stream, nor for a queue that the
    /// broker names.
    pub fn retry_sink(&self) -> Option<SharedSinkConnector> {
        if self.is_stream() || self.topology.queue.is_empty() {
            return None;
        }
        Some(Arc::new(RetrySink::new(self.dial.clone(), &self.topology.queue)))
    }

    /// Asks the broker whether rejected messages are kept, where that is not known without it. To be asked after
    /// the queue was declared, and where it is left to the source to keep what is given up.
    pub(crate) async fn check_rejected_are_kept(&self) -> Result<(), Trouble> {
        if self.on_failure == OnFailure::Requeue || self.topology.declares_dead_letters() {
            return Ok(());
        }
        match &self.management_url {
            Some(url) => self.ask(url).await,
            None => Err(Trouble::lasting(format!(
                "nothing is known of a dead-letter exchange of queue `{}`: {REMEDY}, or set `management_url`",
                self.topology.queue
            ))),
        }
    }

    #[cfg(feature = "management")]
    async fn ask(&self, url: &str) -> Result<(), Trouble> {
        let queue = &self.topology.queue;
        let management = crate::management::Management::new(url)
            .map_err(|why| Trouble::lasting(format!("`management_url`: {why}")))?;
        let Some(facts) = management.queue(self.dial.vhost(), queue).await? else {
            return Err(Trouble::passing(format!(
                "the management API does not know queue `{queue}`"
            )));
        };
        if facts.dead_letter_exchange.is_some() {
            return Ok(());
        }
        let limit = facts.delivery_limit.map_or_else(String::new, |limit| {
            format!(", and the broker itself gives a message up after {limit} deliveries")
        });
        Err(Trouble::lasting(format!(
            "the {} queue `{queue}` has no dead-letter exchange, so a rejected message would be lost{limit}: {REMEDY}",
            facts.kind
        )))
    }

    #[cfg(not(feature = "management"))]
    async fn ask(&self, _: &str) -> Result<(), Trouble> {
        Err(Trouble::lasting(
            "this program is built without the management API: name a `dead_letter`",
        ))
    }
}

/// What to do where a rejected message would be lost.
const REMEDY: &str = "give it one by a policy or its arguments, or name a `dead_letter`";

impl fmt::Debug for ReaderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderSettings")
            .field("dial", &self.dial)
            .field("topology", &self.topology)
            .field("prefetch", &self.prefetch)
            .field("connections", &self.connections)
            .field("on_failure", &self.on_failure)
            .finish_non_exhaustive()
    }
}
