//! What a reader is made from: [`ReaderSettings`].

use std::fmt;
use std::sync::Arc;

use lapin::types::{AMQPValue, FieldTable};
use millstream_core::SharedSinkConnector;

use crate::dial::Dial;
#[cfg(feature = "management")]
use crate::management::Management;
use crate::position::Place;
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
    /// Whether the pipeline keeps an order: the prefetch then does not change while messages arrive, as a quorum
    /// queue would reorder what is on its way.
    pub ordered: bool,
    /// How many connections read the queue at once.
    pub connections: usize,
    /// The management plugin's HTTP API, with user and password, to ask whether rejected messages are kept.
    pub management_url: Option<String>,
    /// What `Settlement::Reject` means.
    pub on_failure: OnFailure,
    /// The consumer's name in the management UI; absent: the broker makes one up. The name of a stream's reader.
    pub consumer_tag: Option<String>,
    /// Arguments of `basic.consume`, such as `x-priority` and `x-stream-offset`.
    pub arguments: FieldTable,
    /// The name of a stream's reader where there is no consumer tag: its position is stored under it.
    pub reader: String,
}

/// Where a stream is begun when no position is stored.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Begin {
    /// At this offset, or the first after it that there is.
    At(u64),
    /// Where the broker finds this to be when it is asked.
    Found(AMQPValue),
}

impl ReaderSettings {
    /// One connection to this queue, everything else by default.
    pub fn new(dial: Dial, topology: Topology) -> Self {
        Self {
            dial,
            topology,
            prefetch: None,
            ordered: false,
            connections: 1,
            management_url: None,
            on_failure: OnFailure::default(),
            consumer_tag: None,
            arguments: FieldTable::default(),
            reader: "default".to_owned(),
        }
    }

    /// Asks the management plugin's HTTP API, at `http://user:password@host:15672`, whether rejected messages are
    /// kept.
    ///
    /// # Errors
    /// When it is no such URL; the text does not show it.
    pub fn ask_management(&mut self, url: &str) -> Result<(), String> {
        #[cfg(feature = "management")]
        Management::new(url)?;
        self.management_url = Some(url.to_owned());
        Ok(())
    }

    /// Whether this reads a stream, from which nothing is taken out.
    pub fn is_stream(&self) -> bool {
        self.topology.declares_stream() || self.arguments.contains_key(OFFSET)
    }

    /// Whether a stream can be read like this. Of what is no stream it says nothing.
    ///
    /// # Errors
    /// When it cannot: the setting that is at fault, and why.
    pub fn check_stream(&self) -> Result<(), (&'static str, String)> {
        if !self.is_stream() {
            return Ok(());
        }
        if self.connections > 1 {
            let why = "each connection would read the whole stream";
            return Err(("connections", why.to_owned()));
        }
        self.begin().map_err(|why| ("arguments", why))?;
        self.place()
            .map(drop)
            .map_err(|trouble| ("consumer_tag", trouble.text))
    }

    /// Where the position of this reader is kept.
    pub(crate) fn place(&self) -> Result<Place, Trouble> {
        Place::new(
            &self.topology.queue,
            self.consumer_tag.as_deref().unwrap_or(&self.reader),
        )
    }

    /// Where a stream is begun when no position is stored: with the first message, unless the arguments say
    /// otherwise. RabbitMQ's own default is `next`, which passes over all that was published before.
    pub(crate) fn begin(&self) -> Result<Begin, String> {
        let Some(value) = self.arguments.inner().get(OFFSET) else {
            return Ok(Begin::At(0));
        };
        let offset = match value {
            AMQPValue::LongLongInt(offset) => Some(*offset),
            AMQPValue::LongInt(offset) => Some(i64::from(*offset)),
            AMQPValue::LongUInt(offset) => Some(i64::from(*offset)),
            AMQPValue::ShortInt(offset) => Some(i64::from(*offset)),
            AMQPValue::ShortUInt(offset) => Some(i64::from(*offset)),
            AMQPValue::ShortShortInt(offset) => Some(i64::from(*offset)),
            AMQPValue::ShortShortUInt(offset) => Some(i64::from(*offset)),
            _ => None,
        };
        let text = match value {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        };
        match (offset.map(u64::try_from), text, value) {
            (Some(Ok(offset)), ..) => Ok(Begin::At(offset)),
            (_, Some("first"), _) => Ok(Begin::At(0)),
            (_, Some(text), _) if matches!(text, "last" | "next") || is_age(text) => {
                Ok(Begin::Found(AMQPValue::LongString(text.into())))
            }
            (.., AMQPValue::Timestamp(_)) => Ok(Begin::Found(value.clone())),
            _ => Err(
                "`x-stream-offset` is `first`, `last`, `next`, the number of a message, or an age such as `1h`"
                    .to_owned(),
            ),
        }
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
        if self.is_stream() {
            return Err(Trouble::lasting(format!(
                "stream `{}` keeps nothing that is rejected: name a `dead_letter`, or set it to \"discard\"",
                self.topology.queue
            )));
        }
        if self.on_failure == OnFailure::Requeue || self.topology.declares_dead_letters() {
            return Ok(());
        }
        self.ask().await
    }

    /// The management API, if it is said where that is.
    #[cfg(feature = "management")]
    pub(crate) fn management(&self) -> Result<Option<Management>, Trouble> {
        let management = self.management_url.as_deref().map(Management::new).transpose();
        management.map_err(|why| Trouble::lasting(format!("`management_url`: {why}")))
    }

    #[cfg(feature = "management")]
    async fn ask(&self) -> Result<(), Trouble> {
        let queue = &self.topology.queue;
        let Some(management) = self.management()? else {
            return Err(Trouble::lasting(format!(
                "nothing is known of a dead-letter exchange of queue `{queue}`: {REMEDY}, or set `management_url`"
            )));
        };
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
    async fn ask(&self) -> Result<(), Trouble> {
        Err(Trouble::lasting(
            "this program is built without the management API: name a `dead_letter`",
        ))
    }
}

/// The argument of the consumer, and the header of a delivery.
pub(crate) const OFFSET: &str = "x-stream-offset";

/// Whether the broker takes it for a time before now: a number, and a unit from years to seconds.
fn is_age(text: &str) -> bool {
    let number = text.strip_suffix(['Y', 'M', 'D', 'h', 'm', 's']);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What to do where a rejected message would be lost.
pub(crate) const REMEDY: &str = "give it one by a policy or its arguments, or name a `dead_letter`";

impl fmt::Debug for ReaderSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReaderSettings")
            .field("dial", &self.dial)
            .field("topology", &self.topology)
            .field("prefetch", &self.prefetch)
            .field("connections", &self.connections)
            .field("on_failure", &self.on_failure)
            .field("reader", &self.reader)
            .finish_non_exhaustive()
    }
}
