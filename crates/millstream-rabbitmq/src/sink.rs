//! The writing side: [`RabbitSink`].

use std::sync::Arc;
use std::time::Duration;

use lapin::options::ExchangeDeclareOptions;
use lapin::types::{FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};
use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError,
};

use crate::check;
use crate::dial::Dial;
use crate::letters::{ExchangeLetters, QueueLetters};
use crate::publisher::{Fate, Publisher, Route};
use crate::topology::{Topology, short};
use crate::trouble::{self, Trouble, code};

/// Publishes to an exchange or a queue, with publisher confirms.
///
/// A message is confirmed once every queue that it goes to has it, on the disk where the queue is durable. One that
/// no queue takes is refused, except where the queue is declared here: then it is declared anew. Messages are
/// persistent unless they have the header `amqp-delivery-mode` = `1`; headers, key and the `amqp-…` headers of a
/// message that RabbitMQ delivered are written as the source reads them. `Outgoing::priority` above zero is the
/// AMQP priority. Delays are not honoured: see [`RetrySink`](crate::RetrySink).
///
/// ```
/// # use millstream_rabbitmq::{Dial, RabbitSink, RoutingKey};
/// let dial = Dial::new(["amqp://localhost"])?;
/// let priced = RabbitSink::exchange(dial, "priced", RoutingKey::header("tenant").or("nobody"));
/// # Ok::<(), millstream_rabbitmq::InvalidUrl>(())
/// ```
#[derive(Clone, Debug)]
pub struct RabbitSink {
    dial: Dial,
    target: Target,
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Target {
    Queue(Topology),
    Exchange(String, RoutingKey),
}

/// What a message's routing key is made from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RoutingKey {
    from: From,
    otherwise: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum From {
    #[default]
    Nothing,
    Key,
    Header(String),
}

impl RoutingKey {
    /// The same for every message.
    pub fn fixed(key: &str) -> Self {
        Self::default().or(key)
    }

    /// The message's key.
    pub fn key() -> Self {
        Self {
            from: From::Key,
            ..Self::default()
        }
    }

    /// A header's value.
    pub fn header(name: &str) -> Self {
        Self {
            from: From::Header(name.to_owned()),
            ..Self::default()
        }
    }

    /// What to take where a message has no such thing; empty by default.
    #[must_use]
    pub fn or(mut self, key: &str) -> Self {
        key.clone_into(&mut self.otherwise);
        self
    }

    fn of(&self, message: &Outgoing) -> Result<ShortString, String> {
        let found = match &self.from {
            From::Nothing => None,
            From::Key => match &message.key {
                Some(key) => Some(
                    std::str::from_utf8(key)
                        .map_err(|_| "its key, which is its routing key, is not UTF-8".to_owned())?,
                ),
                None => None,
            },
            From::Header(name) => message.headers.get(name),
        };
        let key = found.unwrap_or(&self.otherwise);
        ShortString::try_new(key).map_err(|_| {
            format!(
                "its routing key is {} bytes long; AMQP has room for 255",
                key.len()
            )
        })
    }
}

impl RabbitSink {
    /// Publishes to this queue, which is declared or must be there.
    pub fn queue(dial: Dial, topology: Topology) -> Self {
        Self::to(dial, Target::Queue(topology))
    }

    /// Publishes to this exchange, which must be there.
    pub fn exchange(dial: Dial, exchange: &str, routing_key: RoutingKey) -> Self {
        Self::to(dial, Target::Exchange(exchange.to_owned(), routing_key))
    }

    fn to(dial: Dial, target: Target) -> Self {
        Self {
            dial,
            target,
            timeout: Duration::from_secs(30),
        }
    }

    /// How long the broker may be silent while confirmations are awaited.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    async fn connect(&self) -> Result<Publisher, OpenError> {
        let worked_before = self.dial.has_connected();
        let publisher = Publisher::open(&self.dial, self.timeout).await?;
        self.target
            .prepare(publisher.channel())
            .await
            .map_err(|trouble| trouble.open_error(worked_before))?;
        Ok(publisher)
    }
}

impl Target {
    async fn prepare(&self, channel: &Channel) -> Result<(), Trouble> {
        match self {
            Self::Queue(topology) => topology.apply(channel).await.map(drop),
            // The default exchange is always there and must not be asked for.
            Self::Exchange(name, _) if name.is_empty() => Ok(()),
            Self::Exchange(name, _) => {
                let options = ExchangeDeclareOptions {
                    passive: true,
                    ..ExchangeDeclareOptions::default()
                };
                channel
                    .exchange_declare(
                        short("exchange", name)?,
                        ExchangeKind::Direct,
                        options,
                        FieldTable::default(),
                    )
                    .await
                    .map_err(|error| match trouble::reply(&error) {
                        Some((code::NOT_FOUND, _)) => {
                            Trouble::lasting(format!("there is no exchange `{name}`: make it first"))
                        }
                        _ => Trouble::from(error),
                    })
            }
        }
    }

    fn route(&self, message: &Outgoing) -> Result<Route, String> {
        let (exchange, routing_key) = match self {
            Self::Queue(topology) => (
                "",
                short("queue", &topology.queue).map_err(|trouble| trouble.text)?,
            ),
            Self::Exchange(name, key) => (name.as_str(), key.of(message)?),
        };
        Ok(Route {
            exchange: short("exchange", exchange).map_err(|trouble| trouble.text)?,
            routing_key,
        })
    }

    /// What to say of a message that no queue takes.
    fn unroutable(&self, message: &Outgoing) -> Delivered {
        match self {
            Self::Queue(Topology { queue, declare, .. }) if declare.is_some() => {
                Delivered::Failed(format!("queue `{queue}` is gone; it is declared anew"))
            }
            Self::Queue(Topology { queue, .. }) => Delivered::Refused(format!("there is no queue `{queue}`")),
            Self::Exchange(name, key) => {
                let key = key.of(message).unwrap_or_default();
                Delivered::Refused(format!(
                    "no queue is bound to exchange `{name}` for routing key `{key}`"
                ))
            }
        }
    }
}

impl SinkConnector for RabbitSink {
    type Sink = RabbitPublishing;

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(match &self.target {
            Target::Queue(topology) => Arc::new(QueueLetters::new(self.dial.clone(), topology.clone())),
            Target::Exchange(name, _) => Arc::new(ExchangeLetters(name.clone())),
        })
    }

    async fn open(&self) -> Result<RabbitPublishing, OpenError> {
        Ok(RabbitPublishing {
            publisher: Some(self.connect().await?),
            sink: self.clone(),
        })
    }

    async fn check(&self) -> Vec<Finding> {
        match &self.target {
            Target::Queue(topology) => check::queue(&self.dial, topology).await,
            Target::Exchange(name, _) => check::exchange(&self.dial, name).await,
        }
    }
}

/// An open [`RabbitSink`].
///
/// Between two calls its connection may go; the next call takes another before it publishes.
#[derive(Debug)]
pub struct RabbitPublishing {
    sink: RabbitSink,
    /// Taken out for a call, so that none is left behind by one that is dropped.
    publisher: Option<Publisher>,
}

impl Sink for RabbitPublishing {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let mut publisher = match self.publisher.take().filter(Publisher::is_open) {
            Some(publisher) => publisher,
            None => self
                .sink
                .connect()
                .await
                .map_err(|error| SinkError(error.to_string()))?,
        };
        let target = &self.sink.target;
        let fates = publisher
            .publish(messages, |message| target.route(message))
            .await?;
        let mut gone = false;
        results.extend(messages.iter().zip(fates).map(|(message, fate)| match fate {
            Fate::Unroutable => {
                let delivered = target.unroutable(message);
                gone |= matches!(delivered, Delivered::Failed(_));
                delivered
            }
            fate => fate.into(),
        }));
        if !gone {
            self.publisher = Some(publisher);
        }
        Ok(())
    }
}
