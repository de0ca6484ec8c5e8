//! What the tests of both sides share: a broker, and a client without anything of ours.

use std::sync::LazyLock;

use millstream_brokers::{RabbitMq, Series};
use millstream_rabbitmq::lapin::options::{ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions};
use millstream_rabbitmq::lapin::types::FieldTable;
use millstream_rabbitmq::lapin::{Channel, Connection, ConnectionProperties};

/// The broker of all tests that do it no harm.
pub(crate) static BROKER: LazyLock<RabbitMq> = LazyLock::new(|| start(Series::V3));

pub(crate) fn start(series: Series) -> RabbitMq {
    RabbitMq::builder(series).start().unwrap()
}

/// A client without anything of ours, whose publishes are confirmed.
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
        channel
            .confirm_select(ConfirmSelectOptions::default())
            .await
            .unwrap();
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
}
