//! Quorum queues of RabbitMQ.

use std::sync::Arc;

use millstream_brokers::{RabbitMq, Series};
use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_rabbitmq::lapin::types::AMQPValue;
use millstream_rabbitmq::{Declare, Dial, RabbitConnector, RabbitSink, ReaderSettings, Topology};
use millstream_tests::QUEUE;

use super::{DEAD, HandsOut, Store, wait_for};
use crate::rabbit_faults::counts;

pub(crate) struct OnRabbitMq(RabbitMq);

impl Store for OnRabbitMq {
    const TAKES_BACK: bool = false;

    fn start() -> Self {
        let broker = RabbitMq::builder(Series::V4).start();
        let store = Self(broker.unwrap_or_else(|error| panic!("{error}")));
        // Who writes to a queue declares it.
        for queue in [QUEUE, DEAD] {
            let sink = store.outlet(queue);
            wait_for(async { drop(sink.open().await.unwrap()) });
        }
        store
    }

    fn name(&self) -> String {
        format!("RabbitMQ {}", self.0.version())
    }

    fn source(&self, queue: &str) -> String {
        self.sink(queue)
    }

    fn sink(&self, queue: &str) -> String {
        let url = self.0.url();
        format!("{{ type = \"rabbitmq\", url = \"{url}\", queue = \"{queue}\" }}")
    }

    fn inlet(&self, queue: &str) -> SharedConnector {
        let dial = Dial::new([self.0.url()]).unwrap();
        Arc::new(RabbitConnector::new(ReaderSettings::new(
            dial,
            Topology::new(queue),
        )))
    }

    fn outlet(&self, queue: &str) -> SharedSinkConnector {
        let mut declare = Declare::default();
        let quorum = AMQPValue::LongString("quorum".into());
        declare.arguments.insert("x-queue-type".into(), quorum);
        let topology = Topology::new(queue).declare(declare);
        let dial = Dial::new([self.0.url()]).unwrap();
        Arc::new(RabbitSink::queue(dial, topology))
    }

    fn remaining(&self, queue: &str) -> u32 {
        let (ready, unsettled) = counts(&self.0, queue);
        ready + unsettled
    }

    fn restart(&mut self, kill: bool) {
        match kill {
            true => self.0.kill(),
            false => self.0.stop().unwrap(),
        }
        self.0.start_again().unwrap();
    }
}

impl HandsOut for OnRabbitMq {
    fn handed_out(&self, queue: &str) -> u32 {
        counts(&self.0, queue).1
    }
}
