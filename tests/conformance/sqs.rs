//! Queues of SQS, standard and FIFO, as ElasticMQ has them.

use std::sync::Arc;
use std::time::Duration;

use millstream_brokers::{ElasticMq, SqsProxy};
use millstream_core::rt;
use millstream_core::{
    Capabilities, Chunk, Connector as _, Credit, EngineHandle, Ids, SharedConnector, SharedSinkConnector,
    Source as _,
};
use millstream_sqs::aws_sdk_sqs::Client;
use millstream_sqs::aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_sqs::{SqsConnector, SqsSink};
use millstream_testkit::conformance::{Features, Place, Rejected, Subject};
use millstream_tests::sqs::client;
use parking_lot::Mutex;

/// How long a delivery is hidden: what a reader whose connection was cut held comes again after that.
const VISIBILITY: Duration = Duration::from_secs(10);

/// All places are queues of one broker.
pub(crate) struct Sqs {
    broker: Arc<Mutex<ElasticMq>>,
    port: u16,
    url: String,
    fifo: bool,
}

impl Sqs {
    pub(crate) fn new(fifo: bool) -> Self {
        let broker = ElasticMq::start().unwrap();
        Self {
            port: broker.port(),
            url: broker.url(),
            broker: Arc::new(Mutex::new(broker)),
            fifo,
        }
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

impl Subject for Sqs {
    type Place = InSqs;

    fn name(&self) -> &str {
        if self.fifo { "sqs, FIFO" } else { "sqs" }
    }

    fn declares(&self) -> Features {
        Features {
            capabilities: Capabilities {
                delay: true,
                keeps_rejected: true,
                counts_deliveries: true,
                longest_delay: Some(Duration::from_secs(12 * 3_600)),
                orders_keys: self.fifo,
                ids: Ids::Header("sqs-message-id"),
                leases_singly: true,
                ..Capabilities::default()
            },
            retry_sink: false,
            keys: true,
            headers: true,
            // A FIFO queue orders its groups, and a message without a key is of none.
            ordered: false,
            consumers: true,
            groups: false,
            backlog: true,
            settles_singly: true,
            // Within a process it does: the count is SQS', and only goes up.
            takes_back: false,
            restarts: true,
            cuts: true,
        }
    }

    async fn place(&self, name: &str) -> InSqs {
        let direct = client(&self.url);
        let suffix = if self.fifo { ".fifo" } else { "" };
        // A queue's name has 80 characters at most.
        let name: String = name
            .chars()
            .rev()
            .take(60)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        let dead = create(&direct, &format!("{name}-dead{suffix}"), None).await;
        let policy = format!(
            r#"{{"deadLetterTargetArn":"arn:aws:sqs:elasticmq:000000000000:{name}-dead{suffix}","maxReceiveCount":"1000"}}"#
        );
        let queue = create(&direct, &format!("{name}{suffix}"), Some(&policy)).await;
        let proxy = SqsProxy::start(self.port).unwrap();
        InSqs {
            through: client(&proxy.url()),
            proxy,
            direct,
            queue,
            dead,
        }
    }

    async fn restart(&self) {
        let broker = Arc::clone(&self.broker);
        let restarted = tokio::task::spawn_blocking(move || {
            let mut broker = broker.lock();
            broker.kill();
            broker.start_again().unwrap();
        });
        restarted.await.unwrap();
    }
}

pub(crate) struct InSqs {
    proxy: SqsProxy,
    /// Past the proxy.
    direct: Client,
    through: Client,
    queue: String,
    dead: String,
}

impl Place for InSqs {
    fn connector(&self) -> SharedConnector {
        let connector = SqsConnector::new(&self.queue).client(self.through.clone());
        Arc::new(
            connector
                .visibility_timeout(VISIBILITY)
                .wait_time(Duration::from_secs(1)),
        )
    }

    fn sink(&self) -> SharedSinkConnector {
        Arc::new(SqsSink::new(&self.queue).client(self.through.clone()))
    }

    /// Nobody reaches the queue until it has handed back what it had handed out.
    async fn cut(&self) {
        self.proxy.cut();
        let name = Attribute::ApproximateNumberOfMessagesNotVisible;
        loop {
            let asked = self.direct.get_queue_attributes().queue_url(&self.queue);
            let answer = asked.attribute_names(name.clone()).send().await.unwrap();
            let attributes = answer.attributes.unwrap_or_default();
            if attributes.get(&name).is_some_and(|out| out == "0") {
                break;
            }
            rt::sleep(Duration::from_millis(20)).await;
        }
        self.proxy.mend();
    }

    async fn rejected(&self) -> Vec<Rejected> {
        let connector = SqsConnector::new(&self.dead).client(self.direct.clone());
        let (engine, told) = EngineHandle::detached();
        told.rejects_elsewhere();
        let (mut source, _acknowledger) = connector.open(engine).await.unwrap();
        let mut chunk = Chunk::new();
        let credit = Credit {
            messages: 10,
            bytes: usize::MAX,
        };
        let read = source.read(credit, &mut chunk);
        tokio::time::timeout(Duration::from_secs(1), read).await.ok();
        chunk
            .drain()
            .map(|(_, message)| Rejected {
                error: message
                    .headers
                    .get("millstream-error")
                    .unwrap_or_default()
                    .to_owned(),
                payload: message.payload,
                key: message.key,
            })
            .collect()
    }
}
