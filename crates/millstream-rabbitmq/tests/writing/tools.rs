//! What these tests share: a broker, and a plain client to look into its queues with.

use std::sync::LazyLock;
use std::time::Duration;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::rt;
use millstream_core::{Delivered, Outgoing, Sink, SinkError};
use millstream_rabbitmq::Dial;
use millstream_rabbitmq::lapin::message::Delivery;
use millstream_rabbitmq::lapin::options::{BasicGetOptions, QueueDeclareOptions, QueueDeleteOptions};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::lapin::{Channel, Connection, ConnectionProperties};

/// The broker of all tests that do it no harm.
pub(crate) static BROKER: LazyLock<RabbitMq> = LazyLock::new(|| start(Series::V3));

pub(crate) fn start(series: Series) -> RabbitMq {
    RabbitMq::builder(series).start().unwrap()
}

pub(crate) fn dial(broker: &RabbitMq) -> Dial {
    Dial::new([broker.url()]).unwrap().name("millstream tests")
}

/// A client without anything of ours.
pub(crate) struct Client {
    _connection: Connection,
    pub(crate) channel: Channel,
}

impl Client {
    pub(crate) async fn of(broker: &RabbitMq) -> Self {
        let connection = Connection::connect(&broker.url(), ConnectionProperties::default())
            .await
            .unwrap();
        let channel = connection.create_channel().await.unwrap();
        Self {
            _connection: connection,
            channel,
        }
    }

    pub(crate) async fn declare(&self, queue: &str, arguments: FieldTable) {
        self.channel
            .queue_declare(queue.into(), QueueDeclareOptions::durable(), arguments)
            .await
            .unwrap();
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.channel
            .queue_delete(queue.into(), QueueDeleteOptions::default())
            .await
            .unwrap();
    }

    /// The next message, if one is there.
    pub(crate) async fn get(&self, queue: &str) -> Option<Delivery> {
        let message = self
            .channel
            .basic_get(queue.into(), BasicGetOptions { no_ack: true })
            .await
            .unwrap();
        message.map(|message| message.delivery)
    }

    /// The next message, which must come soon.
    pub(crate) async fn wait_for(&self, queue: &str) -> Delivery {
        let found = tokio::time::timeout(Duration::from_secs(30), async {
            loop {
                if let Some(message) = self.get(queue).await {
                    return message;
                }
                rt::sleep(Duration::from_millis(2)).await;
            }
        });
        found.await.expect("no message came")
    }

    /// Payloads of all that is there.
    pub(crate) async fn payloads(&self, queue: &str) -> Vec<String> {
        let mut payloads = Vec::new();
        while let Some(message) = self.get(queue).await {
            payloads.push(String::from_utf8(message.data).unwrap());
        }
        payloads
    }
}

pub(crate) async fn send(sink: &mut impl Sink, messages: &[Outgoing]) -> Result<Vec<Delivered>, SinkError> {
    let mut results = Vec::new();
    sink.send(messages, &mut results).await?;
    assert_eq!(results.len(), messages.len());
    Ok(results)
}

pub(crate) fn numbered(count: usize) -> Vec<Outgoing> {
    (0..count)
        .map(|number| Outgoing::new(number.to_string()))
        .collect()
}
