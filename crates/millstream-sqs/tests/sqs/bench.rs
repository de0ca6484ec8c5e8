//! A broker for all tests of this binary, and for each its queue and a proxy of its own.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use millstream_brokers::{ElasticMq, SqsProxy};
use millstream_core::rt;
use millstream_core::{
    Acknowledger as _, Chunk, Connector as _, Credit, Delivered, Detached, EngineHandle, Message, Outcome,
    Outgoing, Read, Settle, Settlement, Sink as _, SinkConnector as _, Source as _, Ticket,
};
use millstream_sqs::aws_sdk_sqs::Client;
use millstream_sqs::aws_sdk_sqs::config::retry::RetryConfig;
use millstream_sqs::aws_sdk_sqs::config::{BehaviorVersion, Config, Credentials, Region};
use millstream_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_sqs::{Polling, Settling, SqsConnector, SqsSink};

/// Long enough for anything that happens at all.
pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn client(endpoint: &str) -> Client {
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("elasticmq"))
        .credentials_provider(Credentials::new("x", "x", None, None, "test"))
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .retry_config(RetryConfig::standard())
        .endpoint_url(endpoint);
    Client::from_conf(config.build())
}

/// The broker that tests share which leave it running. It ends with the process.
fn broker() -> &'static ElasticMq {
    static BROKER: OnceLock<ElasticMq> = OnceLock::new();
    BROKER.get_or_init(|| ElasticMq::start_in_memory().unwrap())
}

/// A queue of its own, with a dead-letter queue, behind a proxy of its own.
pub(crate) struct Bench {
    pub(crate) proxy: SqsProxy,
    /// Past the proxy.
    pub(crate) direct: Client,
    through: Client,
    pub(crate) url: String,
    pub(crate) dead_url: String,
}

impl Bench {
    pub(crate) async fn standard() -> Self {
        Self::of(broker(), false).await
    }

    pub(crate) async fn fifo() -> Self {
        Self::of(broker(), true).await
    }

    pub(crate) async fn of(broker: &ElasticMq, fifo: bool) -> Self {
        let proxy = SqsProxy::start(broker.port()).unwrap();
        let direct = client(&broker.url());
        let name = format!("orders-{:08x}", fastrand::u32(..));
        let suffix = if fifo { ".fifo" } else { "" };
        let dead_url = create(&direct, &format!("{name}-dead{suffix}"), None).await;
        let policy = format!(
            r#"{{"deadLetterTargetArn":"arn:aws:sqs:elasticmq:000000000000:{name}-dead{suffix}","maxReceiveCount":"1000"}}"#
        );
        let url = create(&direct, &format!("{name}{suffix}"), Some(&policy)).await;
        Self {
            through: client(&proxy.url()),
            proxy,
            direct,
            url,
            dead_url,
        }
    }

    /// Polls of a second, and a visibility timeout that no machine is too busy for.
    pub(crate) fn connector(&self) -> SqsConnector {
        SqsConnector::new(&self.url)
            .client(self.through.clone())
            .visibility_timeout(Duration::from_secs(30))
            .wait_time(Duration::from_secs(1))
    }

    /// The same with a visibility timeout of five seconds, for what is to be lost.
    pub(crate) fn short(&self) -> SqsConnector {
        self.connector().visibility_timeout(Duration::from_secs(5))
    }

    pub(crate) fn sink(&self) -> SqsSink {
        SqsSink::new(&self.url).client(self.through.clone())
    }

    pub(crate) async fn open(&self) -> Reader {
        Reader::open(&self.connector()).await
    }

    /// Sends these, all of which are confirmed.
    pub(crate) async fn publish(&self, messages: &[Outgoing]) {
        let results = self.send(messages).await;
        assert_eq!(results, vec![Delivered::Confirmed; messages.len()]);
    }

    pub(crate) async fn send(&self, messages: &[Outgoing]) -> Vec<Delivered> {
        let mut results = Vec::new();
        let mut sink = self.sink().open().await.unwrap();
        sink.send(messages, &mut results).await.unwrap();
        results
    }

    /// So many messages, named by their numbers.
    pub(crate) async fn publish_numbered(&self, number: usize) {
        let messages: Vec<_> = (0..number)
            .map(|number| Outgoing::new(number.to_string()))
            .collect();
        self.publish(&messages).await;
    }

    /// Receives all that waits so often, as processes do that do not live to settle it.
    pub(crate) async fn receive_in_vain(&self, messages: usize, times: usize) {
        for _ in 0..times {
            let receive = self.direct.receive_message().queue_url(&self.url);
            let receive = receive.max_number_of_messages(10).visibility_timeout(0);
            let received = receive.send().await.unwrap().messages.unwrap_or_default();
            assert_eq!(received.len(), messages);
        }
    }

    /// Messages that wait, and messages that are out.
    pub(crate) async fn counts(&self) -> (usize, usize) {
        let names = [
            Attribute::ApproximateNumberOfMessages,
            Attribute::ApproximateNumberOfMessagesNotVisible,
        ];
        let answer = self
            .direct
            .get_queue_attributes()
            .queue_url(&self.url)
            .set_attribute_names(Some(names.to_vec()))
            .send()
            .await
            .unwrap();
        let attributes = answer.attributes.unwrap();
        let [waiting, out] = names.map(|name| attributes.get(&name).unwrap().parse().unwrap());
        (waiting, out)
    }

    /// Waits until nothing is in the queue, out or not.
    pub(crate) async fn empties(&self) {
        soon("the queue to be empty", async {
            while self.counts().await != (0, 0) {
                rt::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

async fn create(client: &Client, name: &str, redrive: Option<&str>) -> String {
    let mut create = client.create_queue().queue_name(name);
    if name.ends_with(".fifo") {
        create = create.attributes(Attribute::FifoQueue, "true");
    }
    if let Some(policy) = redrive {
        create = create.attributes(Attribute::RedrivePolicy, policy);
    }
    create.send().await.unwrap().queue_url.unwrap()
}

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(SOON, future).await {
        Ok(done) => done,
        Err(_) => panic!("waited a minute for {what}, in vain"),
    }
}

pub(crate) type Delivery = (Ticket, Message);

/// An opened connector without an engine.
pub(crate) struct Reader {
    pub(crate) source: Polling,
    pub(crate) acknowledger: Settling,
    pub(crate) told: Detached,
}

impl Reader {
    pub(crate) async fn open(connector: &SqsConnector) -> Self {
        let (engine, told) = EngineHandle::detached();
        let (source, acknowledger) = connector.open(engine).await.unwrap();
        Self {
            source,
            acknowledger,
            told,
        }
    }

    /// One read of so many.
    pub(crate) async fn read(&mut self, messages: usize) -> Vec<Delivery> {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages,
            bytes: usize::MAX,
        };
        let read = soon("a message", self.source.read(credit, &mut chunk)).await;
        assert_eq!(read.unwrap(), Read::Messages);
        chunk.drain().collect()
    }

    pub(crate) async fn collect(&mut self, number: usize) -> Vec<Delivery> {
        let mut all = Vec::new();
        while all.len() < number {
            all.extend(self.read(number - all.len()).await);
        }
        all
    }

    /// What a read that is dropped after so long has given.
    pub(crate) async fn within(&mut self, time: Duration, messages: usize) -> Vec<Delivery> {
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages,
            bytes: usize::MAX,
        };
        tokio::time::timeout(time, self.source.read(credit, &mut chunk))
            .await
            .ok();
        chunk.drain().collect()
    }

    pub(crate) async fn settle(&mut self, deliveries: &[Delivery], settlement: &Settlement) -> Vec<Outcome> {
        let settlements: Vec<_> = deliveries
            .iter()
            .map(|(ticket, _)| Settle {
                ticket: *ticket,
                settlement: settlement.clone(),
            })
            .collect();
        let mut outcomes = Vec::new();
        soon("the settlements", async {
            self.acknowledger.settle(&settlements, &mut outcomes).await;
            while outcomes.len() < settlements.len() {
                self.acknowledger.flush(&mut outcomes).await;
            }
        })
        .await;
        let outcome = |settle: &Settle| {
            let found = outcomes.iter().find(|(of, _)| of == settle);
            found.expect("P2: each settlement has an outcome").1
        };
        assert_eq!(outcomes.len(), settlements.len());
        settlements.iter().map(outcome).collect()
    }

    pub(crate) async fn ack(&mut self, deliveries: &[Delivery]) {
        let outcomes = self.settle(deliveries, &Settlement::Ack).await;
        assert_eq!(outcomes, vec![Outcome::Sent; deliveries.len()]);
    }
}

pub(crate) fn payloads(deliveries: &[Delivery]) -> Vec<Bytes> {
    deliveries
        .iter()
        .map(|(_, message)| message.payload.clone())
        .collect()
}
