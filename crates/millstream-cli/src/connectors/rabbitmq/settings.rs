//! The keys, and what both sides make of those they share.

use std::collections::BTreeSet;
use std::time::Duration;

use millstream_config::{Invalid, PositiveDuration, Secret};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::{Binding, Declare, Dial, OnFailure, Topology};
use schemars::JsonSchema;
use serde::Deserialize;

use super::values::{Arguments, Urls};

/// A queue or stream of RabbitMQ.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RabbitSettings {
    /// amqp:// or amqps://, as in `amqp://user:password@host:5672/vhost`; a list of them is tried in turn.
    pub url: Urls,
    /// The queue's or stream's name. Empty: the broker makes one up for the queue that `declare` describes.
    pub queue: String,
    /// Unacknowledged messages that the broker sends ahead, over all connections. Absent: by demand. From a stream,
    /// RabbitMQ 3 sends whole chunks, and so some more.
    pub prefetch: Option<u16>,
    /// Connections that read the queue at once.
    #[serde(default = "one")]
    pub connections: usize,
    /// The management plugin's HTTP API, `http://user:password@host:15672`: asked whether the queue has a dead-letter
    /// exchange, which a policy may give it, and by `check --connect` for the queue's limits.
    pub management_url: Option<Secret>,
    /// How the queue is declared at every connection. Absent: it must be there. A stream is one whose arguments have
    /// `x-queue-type = "stream"`.
    pub declare: Option<DeclareSettings>,
    /// What exchanges send to it.
    #[serde(default)]
    pub bindings: Vec<BindingSettings>,
    /// What becomes of a message that is given up while there is no `dead_letter`.
    #[serde(default)]
    pub on_failure: OnFailureSetting,
    /// The consumer's name. Absent: the broker makes one up. The position in a stream is stored under this name, or
    /// else under the pipeline's, in the queue `STREAM.position.NAME`; one process at a time reads under a name.
    pub consumer_tag: Option<String>,
    /// Arguments of the consumer, such as `x-priority`. With `x-stream-offset` it is a stream that is read: "first",
    /// "last", "next", the number of a message or an age such as "1h" says where it begins while no position is
    /// stored. A stream that `declare` describes begins with its first message.
    #[serde(default)]
    pub arguments: Arguments,
    /// For amqps://, the authorities to trust instead of the system's: a PEM file.
    pub ca_file: Option<String>,
    /// A broker that is silent for this long is gone.
    #[serde(default = "heartbeat")]
    pub heartbeat: PositiveDuration,
}

/// A queue or an exchange of RabbitMQ. A message is confirmed once the queues that it goes to have it.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RabbitSinkSettings {
    /// amqp:// or amqps://, as in `amqp://user:password@host:5672/vhost`; a list of them is tried in turn.
    pub url: Urls,
    /// The queue to write to. Either this or `exchange`.
    pub queue: Option<String>,
    /// How the queue is declared at every connection. Absent: it must be there.
    pub declare: Option<DeclareSettings>,
    /// The exchange to write to, which must be there.
    pub exchange: Option<String>,
    /// With `exchange`: the routing key, where `routing_key_from` gives none.
    pub routing_key: Option<String>,
    /// With `exchange`: where each message has its routing key, `key` or `header:NAME`.
    pub routing_key_from: Option<String>,
    /// How long the broker may be silent while confirmations are awaited.
    #[serde(default = "timeout")]
    pub timeout: PositiveDuration,
    /// For amqps://, the authorities to trust instead of the system's: a PEM file.
    pub ca_file: Option<String>,
    /// A broker that is silent for this long is gone.
    #[serde(default = "heartbeat")]
    pub heartbeat: PositiveDuration,
}

/// How a queue is declared. One that is there already must agree.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeclareSettings {
    /// It outlives a restart of the broker.
    #[serde(default = "yes")]
    pub durable: bool,
    /// Only the connection that declared it may use it, and it goes with that connection.
    #[serde(default)]
    pub exclusive: bool,
    /// It goes when its last consumer has gone.
    #[serde(default)]
    pub auto_delete: bool,
    /// Not made, only checked to be there.
    #[serde(default)]
    pub passive: bool,
    /// `x-queue-type`, `x-dead-letter-exchange` and the like.
    #[serde(default)]
    pub arguments: Arguments,
}

/// What an exchange sends to the queue.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BindingSettings {
    /// The exchange, which must be there.
    pub exchange: String,
    /// The routing key or pattern.
    #[serde(default)]
    pub routing_key: String,
    /// What a headers exchange matches, for example.
    #[serde(default)]
    pub arguments: Arguments,
}

/// What becomes of a message that is given up while there is no `dead_letter`.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailureSetting {
    /// The queue's dead-letter exchange gets it.
    #[default]
    Reject,
    /// It goes back into the queue, for ever.
    Requeue,
    /// It goes back into the queue once, and to the dead-letter exchange after that.
    RequeueOnce,
}

impl From<OnFailureSetting> for OnFailure {
    fn from(setting: OnFailureSetting) -> Self {
        match setting {
            OnFailureSetting::Reject => Self::Reject,
            OnFailureSetting::Requeue => Self::Requeue,
            OnFailureSetting::RequeueOnce => Self::RequeueOnce,
        }
    }
}

fn one() -> usize {
    1
}

fn yes() -> bool {
    true
}

fn heartbeat() -> PositiveDuration {
    PositiveDuration::from_millis(20_000)
}

fn timeout() -> PositiveDuration {
    PositiveDuration::from_millis(30_000)
}

/// How the broker is reached.
pub(super) fn dial(
    urls: &Urls,
    pipeline: &str,
    heartbeat: PositiveDuration,
    ca_file: Option<&str>,
) -> Result<Dial, Invalid> {
    let mut dial = Dial::new(urls.0.iter().map(|url| url.expose()))
        .map_err(|error| {
            let which = if urls.0.len() > 1 {
                format!("URL {} of the list", error.index + 1)
            } else {
                "this URL".to_owned()
            };
            Invalid::new(format!("{which} cannot be used"), error.why).at("url")
        })?
        .name(&format!("millstream {pipeline}"))
        .heartbeat(heartbeat.get());
    if heartbeat.get() < Duration::from_secs(1) {
        return Err(
            Invalid::new("`heartbeat` is below a second", "AMQP counts it in seconds").at("heartbeat"),
        );
    }
    if let Some(path) = ca_file {
        if !dial.encrypts() {
            return Err(Invalid::new(
                "`ca_file` without a URL that is amqps://",
                "write amqps://, mostly with port 5671, or remove it",
            )
            .at("ca_file"));
        }
        dial = dial.ca_file(path);
    }
    Ok(dial)
}

/// The queue and what is to be done at every connection.
pub(super) fn topology(
    queue: &str,
    declare: Option<&DeclareSettings>,
    bindings: &[BindingSettings],
) -> Result<Topology, Invalid> {
    if queue.len() > 255 {
        return Err(too_long("`queue`").at("queue"));
    }
    let mut topology = Topology::new(queue);
    if let Some(settings) = declare {
        let mut declare = Declare::default();
        declare.durable = settings.durable;
        declare.exclusive = settings.exclusive;
        declare.auto_delete = settings.auto_delete;
        declare.passive = settings.passive;
        declare.arguments = arguments(&settings.arguments, "declare")?;
        topology = topology.declare(declare);
    }
    let mut seen = BTreeSet::new();
    for settings in bindings {
        let BindingSettings {
            exchange,
            routing_key,
            ..
        } = settings;
        if exchange.is_empty() {
            return Err(Invalid::new(
                "nothing can be bound to the default exchange",
                "it knows every queue by its name: remove the binding",
            )
            .at("bindings"));
        }
        if exchange.len() > 255 || routing_key.len() > 255 {
            return Err(too_long("a binding's `exchange` or `routing_key`").at("bindings"));
        }
        let mut binding = Binding::new(exchange, routing_key);
        binding.arguments = arguments(&settings.arguments, "bindings")?;
        if settings.arguments == Arguments::default() && !seen.insert((exchange, routing_key)) {
            return Err(Invalid::new("two bindings are the same", "remove one of them").at("bindings"));
        }
        topology = topology.bind(binding);
    }
    Ok(topology)
}

pub(super) fn arguments(arguments: &Arguments, key: &str) -> Result<FieldTable, Invalid> {
    arguments
        .table()
        .map_err(|_| too_long("the name of an argument").at(key))
}

pub(super) fn too_long(what: &str) -> Invalid {
    Invalid::new(format!("{what} is too long"), "AMQP has room for 255 bytes")
}
