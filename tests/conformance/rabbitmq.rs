//! RabbitMQ: a classic queue on the third series, a quorum queue on the fourth, each on one broker for all cases.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millstream_brokers::{RabbitMq, Series};
use millstream_core::{Capabilities, Ids, SharedConnector, SharedSinkConnector};
use millstream_rabbitmq::lapin::options::{
    BasicGetOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use millstream_rabbitmq::lapin::types::{AMQPValue, FieldTable};
use millstream_rabbitmq::lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use millstream_rabbitmq::{Declare, Dial, RabbitConnector, RabbitSink, ReaderSettings, RoutingKey, Topology};
use millstream_testkit::conformance::{Features, Place, Rejected, Subject};
use parking_lot::Mutex;

/// The two kinds of queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Classic,
    Quorum,
}

impl Kind {
    const fn series(self) -> Series {
        match self {
            Self::Classic => Series::V3,
            Self::Quorum => Series::V4,
        }
    }
}

pub(crate) struct Rabbit {
    kind: Kind,
    broker: Arc<Mutex<RabbitMq>>,
    url: String,
}

impl Rabbit {
    /// Starts the broker.
    pub(crate) async fn start(kind: Kind) -> Self {
        let starting = move || RabbitMq::builder(kind.series()).start();
        let broker = blocking(starting).await.unwrap_or_else(|error| panic!("{error}"));
        Self {
            kind,
            url: broker.url(),
            broker: Arc::new(Mutex::new(broker)),
        }
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Subject for Rabbit {
    type Place = InBroker;

    fn name(&self) -> &str {
        match self.kind {
            Kind::Classic => "rabbitmq 3.10, classic",
            Kind::Quorum => "rabbitmq 4.0, quorum",
        }
    }

    fn declares(&self) -> Features {
        Features {
            capabilities: Capabilities {
                delay: false,
                keeps_rejected: true,
                // A classic queue says no more than whether a message was delivered before.
                counts_deliveries: self.kind == Kind::Quorum,
                orders_keys: false,
                ids: Ids::Header("amqp-message-id"),
                ..Capabilities::default()
            },
            retry_sink: true,
            keys: true,
            headers: true,
            ordered: true,
            consumers: true,
            groups: true,
            backlog: true,
            settles_singly: true,
            // What is released is marked as redelivered, and up to 4.2 counted by a quorum queue.
            takes_back: false,
            restarts: true,
            cuts: true,
        }
    }

    async fn place(&self, name: &str) -> InBroker {
        let place = InBroker {
            kind: self.kind,
            broker: Arc::clone(&self.broker),
            url: self.url.clone(),
            name: name.to_owned(),
            grouped: AtomicBool::new(false),
        };
        let client = Client::of(&self.url).await;
        client.declare(name, place.declared().arguments).await;
        client.declare(&place.dead(), FieldTable::default()).await;
        place
    }

    async fn restart(&self) {
        let broker = Arc::clone(&self.broker);
        blocking(move || {
            let mut broker = broker.lock();
            broker.stop().unwrap();
            broker.start_again().unwrap();
        })
        .await;
    }
}

/// A queue with a queue for its dead letters. Where there are groups, there is a fanout exchange of the same name too,
/// with a queue for each, and that is what is written to.
pub(crate) struct InBroker {
    kind: Kind,
    broker: Arc<Mutex<RabbitMq>>,
    url: String,
    name: String,
    grouped: AtomicBool,
}

impl InBroker {
    fn dead(&self) -> String {
        format!("{}.dead", self.name)
    }

    fn dial(&self) -> Dial {
        Dial::new([&self.url]).unwrap().name("conformance")
    }

    fn declared(&self) -> Declare {
        let text = |text: &str| AMQPValue::LongString(text.into());
        let mut declare = Declare::default();
        let mut set = |name: &str, value| {
            declare.arguments.insert(name.into(), value);
        };
        set("x-dead-letter-exchange", text(""));
        set("x-dead-letter-routing-key", text(&self.dead()));
        match self.kind {
            Kind::Classic => set("x-queue-type", text("classic")),
            Kind::Quorum => {
                set("x-queue-type", text("quorum"));
                set("x-dead-letter-strategy", text("at-least-once"));
                set("x-overflow", text("reject-publish"));
            }
        }
        declare
    }

    fn reads(&self, queue: &str) -> SharedConnector {
        let topology = Topology::new(queue).declare(self.declared());
        let mut settings = ReaderSettings::new(self.dial(), topology);
        settings.ordered = true;
        Arc::new(RabbitConnector::new(settings))
    }
}

impl Place for InBroker {
    fn connector(&self) -> SharedConnector {
        self.reads(&self.name)
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(if self.grouped.load(Ordering::Relaxed) {
            RabbitSink::exchange(self.dial(), &self.name, RoutingKey::default())
        } else {
            RabbitSink::queue(self.dial(), Topology::new(&self.name))
        })
    }

    async fn group(&self, name: &str) -> SharedConnector {
        let queue = format!("{}.{name}", self.name);
        let client = Client::of(&self.url).await;
        client.declare(&queue, self.declared().arguments).await;
        client.fan_out(&self.name, &queue).await;
        self.grouped.store(true, Ordering::Relaxed);
        self.reads(&queue)
    }

    async fn cut(&self) {
        let broker = Arc::clone(&self.broker);
        blocking(move || broker.lock().close_all_connections("cut by the suite").unwrap()).await;
    }

    async fn rejected(&self) -> Vec<Rejected> {
        Client::of(&self.url).await.look_into(&self.dead()).await
    }
}

/// A client without anything of ours.
struct Client {
    _connection: Connection,
    channel: Channel,
}

impl Client {
    async fn of(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default())
            .await
            .unwrap();
        Self {
            channel: connection.create_channel().await.unwrap(),
            _connection: connection,
        }
    }

    async fn declare(&self, queue: &str, arguments: FieldTable) {
        let declaring = self
            .channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments);
        declaring.await.unwrap();
    }

    /// Binds the queue to a fanout exchange.
    async fn fan_out(&self, exchange: &str, queue: &str) {
        let (channel, none) = (&self.channel, FieldTable::default());
        let options = ExchangeDeclareOptions {
            durable: true,
            ..ExchangeDeclareOptions::default()
        };
        let declaring =
            channel.exchange_declare(exchange.into(), ExchangeKind::Fanout, options, none.clone());
        declaring.await.unwrap();
        let binding = channel.queue_bind(
            queue.into(),
            exchange.into(),
            "".into(),
            QueueBindOptions::default(),
            none,
        );
        binding.await.unwrap();
    }

    /// What is in the queue, which it stays in: nothing is acknowledged, and this client goes.
    async fn look_into(self, queue: &str) -> Vec<Rejected> {
        let mut all = Vec::new();
        let next = || self.channel.basic_get(queue.into(), BasicGetOptions::default());
        while let Some(message) = next().await.unwrap() {
            let message = message.delivery;
            let headers = message.properties.headers().clone().unwrap_or_default();
            let key = headers
                .inner()
                .get("millstream-key")
                .and_then(AMQPValue::as_long_string);
            all.push(Rejected {
                key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
                payload: message.data.into(),
                // The broker keeps no reason but that it was rejected.
                error: String::new(),
            });
        }
        all
    }
}
