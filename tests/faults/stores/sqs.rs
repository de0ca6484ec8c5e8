//! Standard queues of SQS, as ElasticMQ has it, with its messages on the disk.

use std::sync::Arc;
use std::time::Duration;

use millstream_brokers::ElasticMq;
use millstream_core::{SharedConnector, SharedSinkConnector};
use millstream_sqs::{SqsConnector, SqsSink};
use millstream_tests::{QUEUE, sqs};

use super::{DEAD, HandsOut, Store, wait_for};

pub(crate) struct OnSqs(ElasticMq);

impl Store for OnSqs {
    const TAKES_BACK: bool = false;

    fn start() -> Self {
        let broker = ElasticMq::start().unwrap_or_else(|error| panic!("{error}"));
        for queue in [QUEUE, DEAD] {
            broker.create_queue(queue, &[]).unwrap();
        }
        Self(broker)
    }

    fn name(&self) -> String {
        "ElasticMQ".to_owned()
    }

    fn source(&self, queue: &str) -> String {
        let (url, endpoint) = (self.url(queue), self.0.url());
        format!(
            "{{ type = \"sqs\", queue_url = \"{url}\", region = \"elasticmq\", endpoint_url = \"{endpoint}\", \
             visibility_timeout = \"10s\", wait_time = \"1s\" }}"
        )
    }

    fn sink(&self, queue: &str) -> String {
        let (url, endpoint) = (self.url(queue), self.0.url());
        format!(
            "{{ type = \"sqs\", queue_url = \"{url}\", region = \"elasticmq\", endpoint_url = \"{endpoint}\" }}"
        )
    }

    fn inlet(&self, queue: &str) -> SharedConnector {
        let connector = SqsConnector::new(&self.url(queue)).client(sqs::client(&self.0.url()));
        Arc::new(
            connector
                .visibility_timeout(Duration::from_secs(10))
                .wait_time(Duration::from_secs(1)),
        )
    }

    fn outlet(&self, queue: &str) -> SharedSinkConnector {
        Arc::new(SqsSink::new(&self.url(queue)).client(sqs::client(&self.0.url())))
    }

    fn remaining(&self, queue: &str) -> u32 {
        let (waiting, out) = self.counts(queue);
        u32::try_from(waiting + out).unwrap()
    }

    fn restart(&mut self, kill: bool) {
        match kill {
            true => self.0.kill(),
            false => self.0.stop().unwrap(),
        }
        self.0.start_again().unwrap();
    }
}

impl HandsOut for OnSqs {
    fn handed_out(&self, queue: &str) -> u32 {
        u32::try_from(self.counts(queue).1).unwrap()
    }
}

impl OnSqs {
    fn counts(&self, queue: &str) -> (usize, usize) {
        let (client, url) = (sqs::client(&self.0.url()), self.url(queue));
        wait_for(sqs::counts(&client, &url))
    }

    fn url(&self, queue: &str) -> String {
        format!("{}/000000000000/{queue}", self.0.url())
    }
}
