//! The queue and what is bound to it: [`Topology`].

use lapin::options::{QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, Queue};

use crate::trouble::{self, Trouble, code};

/// How a queue is declared. Declaring one that is there already changes nothing, but its properties must agree.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Declare {
    /// It outlives a restart of the broker.
    pub durable: bool,
    /// Only the connection that declared it may use it, and it goes with that connection.
    pub exclusive: bool,
    /// It goes when its last consumer has gone.
    pub auto_delete: bool,
    /// Not made, only checked to be there.
    pub passive: bool,
    /// `x-queue-type`, `x-dead-letter-exchange` and the like.
    pub arguments: FieldTable,
}

impl Default for Declare {
    fn default() -> Self {
        Self {
            durable: true,
            exclusive: false,
            auto_delete: false,
            passive: false,
            arguments: FieldTable::default(),
        }
    }
}

/// What an exchange sends to the queue.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Binding {
    /// The exchange, which must be there.
    pub exchange: String,
    /// The routing key or pattern.
    pub routing_key: String,
    /// What a headers exchange matches, for example.
    pub arguments: FieldTable,
}

impl Binding {
    /// A binding without arguments.
    pub fn new(exchange: &str, routing_key: &str) -> Self {
        Self {
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            arguments: FieldTable::default(),
        }
    }
}

/// A queue, how it is declared, and its bindings: made anew at every connection.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Topology {
    /// The queue's name; empty: the broker makes one up, which needs `declare`.
    pub queue: String,
    /// Absent: the queue must be there.
    pub declare: Option<Declare>,
    /// Bindings to make; those that exist beside them stay.
    pub bindings: Vec<Binding>,
}

impl Topology {
    /// A queue that must be there.
    pub fn new(queue: &str) -> Self {
        Self {
            queue: queue.to_owned(),
            ..Self::default()
        }
    }

    /// The same, declared like this.
    #[must_use]
    pub fn declare(mut self, declare: Declare) -> Self {
        self.declare = Some(declare);
        self
    }

    /// The same with one more binding.
    #[must_use]
    pub fn bind(mut self, binding: Binding) -> Self {
        self.bindings.push(binding);
        self
    }

    /// An argument of the declaration, where it is a string.
    pub fn argument(&self, name: &str) -> Option<&str> {
        let arguments = &self.declare.as_ref()?.arguments;
        match arguments.inner().get(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// Whether the queue is declared as a stream.
    pub fn declares_stream(&self) -> bool {
        self.argument("x-queue-type") == Some("stream")
    }

    /// Whether the queue is declared as another kind than a stream, which the broker then makes sure of.
    pub(crate) fn declares_queue(&self) -> bool {
        self.declare.as_ref().is_some_and(|declare| !declare.passive) && !self.declares_stream()
    }

    /// Whether the queue is declared as a classic one, or as what only a classic one can be.
    pub fn declares_classic(&self) -> bool {
        self.declare.as_ref().is_some_and(|declare| {
            let kind = self.argument("x-queue-type");
            kind.map_or(
                !declare.durable || declare.exclusive || declare.auto_delete,
                |kind| kind == "classic",
            )
        })
    }

    /// Whether the queue's declaration says where rejected messages go.
    pub fn declares_dead_letters(&self) -> bool {
        self.argument("x-dead-letter-exchange").is_some()
    }

    /// Declares, or checks that the queue is there, and binds. Answers with the queue's name.
    ///
    /// After an error the channel is closed, as AMQP has it: take another.
    pub(crate) async fn apply(&self, channel: &Channel) -> Result<String, Trouble> {
        let name = short("queue", &self.queue)?;
        let queue = self
            .declare_on(channel, name, false)
            .await
            .map_err(|error| self.declaring(&error))?;
        let name = queue.name();
        for binding in &self.bindings {
            let exchange = short("exchange", &binding.exchange)?;
            let routing_key = short("routing_key", &binding.routing_key)?;
            channel
                .queue_bind(
                    name.clone(),
                    exchange,
                    routing_key,
                    QueueBindOptions::default(),
                    binding.arguments.clone(),
                )
                .await
                .map_err(|error| binding.failed(&self.queue, &error))?;
        }
        Ok(name.as_str().to_owned())
    }

    /// Declares the queue, or has it only looked for.
    pub(crate) async fn declare_on(
        &self,
        channel: &Channel,
        name: ShortString,
        only_look: bool,
    ) -> lapin::Result<Queue> {
        let passive = Declare {
            passive: true,
            ..Declare::default()
        };
        let declare = self.declare.as_ref().unwrap_or(&passive);
        let options = QueueDeclareOptions {
            passive: declare.passive || only_look,
            durable: declare.durable,
            exclusive: declare.exclusive,
            auto_delete: declare.auto_delete,
            nowait: false,
        };
        channel
            .queue_declare(name, options, declare.arguments.clone())
            .await
    }

    pub(crate) fn declaring(&self, error: &lapin::Error) -> Trouble {
        let queue = &self.queue;
        let Some((reply, text)) = trouble::reply(error) else {
            return Trouble::passing(format!("queue `{queue}`: {}", trouble::describe(error)));
        };
        match reply {
            code::NOT_FOUND if trouble::is_missing(error) => Trouble::lasting(format!(
                "there is no queue `{queue}`: make it, or let `declare` make it"
            )),
            // The node that has the queue is down; the queue itself is not gone.
            code::NOT_FOUND => Trouble::passing(format!(
                "queue `{queue}` is out of reach; the broker says: {text}"
            )),
            code::PRECONDITION_FAILED => Trouble::lasting(format!(
                "queue `{queue}` is there with other properties than `declare` gives it: \
                 bring the two in line, or remove `declare`; the broker says: {text}"
            )),
            code::RESOURCE_LOCKED => Trouble::passing(format!(
                "queue `{queue}` belongs to another connection alone; the broker says: {text}"
            )),
            code::ACCESS_REFUSED => Trouble::lasting(format!(
                "the user may not {} queue `{queue}`; the broker says: {text}",
                if self.declare.as_ref().is_some_and(|declare| !declare.passive) {
                    "declare"
                } else {
                    "see"
                }
            )),
            code::NOT_IMPLEMENTED | code::NOT_ALLOWED => Trouble::lasting(format!(
                "queue `{queue}` cannot be declared; the broker says: {text}"
            )),
            _ => Trouble::passing(format!("queue `{queue}`: the broker says: {text}")),
        }
    }
}

impl Binding {
    fn failed(&self, queue: &str, error: &lapin::Error) -> Trouble {
        let exchange = &self.exchange;
        let Some((reply, text)) = trouble::reply(error) else {
            return Trouble::passing(format!(
                "binding `{queue}` to exchange `{exchange}`: {}",
                trouble::describe(error)
            ));
        };
        match reply {
            code::NOT_FOUND => Trouble::lasting(format!(
                "queue `{queue}` cannot be bound: there is no exchange `{exchange}`; make it first"
            )),
            code::ACCESS_REFUSED if exchange.is_empty() => Trouble::lasting(
                "nothing can be bound to the default exchange, which knows every queue by its name: \
                 remove the binding"
                    .to_owned(),
            ),
            code::ACCESS_REFUSED => Trouble::lasting(format!(
                "the user may not bind queue `{queue}` to exchange `{exchange}`; the broker says: {text}"
            )),
            _ => Trouble::passing(format!(
                "binding `{queue}` to exchange `{exchange}`: the broker says: {text}"
            )),
        }
    }
}

/// A name as AMQP has it, of 255 bytes at most.
pub(crate) fn short(what: &str, name: &str) -> Result<ShortString, Trouble> {
    ShortString::try_new(name)
        .map_err(|_| Trouble::lasting(format!("`{what}` is {} bytes long; 255 is the most", name.len())))
}
