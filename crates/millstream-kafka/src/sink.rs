//! Writing: [`KafkaSink`], [`KafkaWriter`].

use std::sync::Arc;
use std::time::Duration;

use millstream_core::{
    Delivered, Finding, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError, rt,
};
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use tracing::{debug, warn};

use crate::check;
use crate::connector::refused;
use crate::letters::TopicLetters;
use crate::properties::{InvalidProperty, check_sink};

/// How long an open waits for brokers, and a poll for confirmations.
pub(crate) const REACH: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

/// How long to wait where librdkafka's queue is full.
const FULL: Duration = Duration::from_millis(5);

/// Writes to a topic. A message is confirmed once every replica in sync has it, and is written once however often it
/// had to be sent; the same keys go to the same partitions as with Kafka's own clients.
///
/// ```
/// let priced = millstream_kafka::KafkaSink::new("127.0.0.1:9092", "priced")
///     .property("compression.type", "lz4")?;
/// # Ok::<(), millstream_kafka::InvalidProperty>(())
/// ```
#[derive(Clone, Debug)]
pub struct KafkaSink {
    config: ClientConfig,
    topic: Arc<str>,
}

impl KafkaSink {
    /// Writes to this topic.
    pub fn new(brokers: &str, topic: &str) -> Self {
        let mut reach = ClientConfig::new();
        reach
            .set("bootstrap.servers", brokers)
            .set("client.id", "millstream");
        Self {
            topic: topic.into(),
            ..Self::with(&reach)
        }
    }

    /// Writes to whatever topics it is told to, at brokers that are reached so.
    pub(crate) fn with(reach: &ClientConfig) -> Self {
        let mut config = config(reach);
        config.set("message.timeout.ms", "30000");
        Self {
            config,
            topic: "".into(),
        }
    }

    /// A property for librdkafka.
    ///
    /// # Errors
    /// If it would break a promise, is what another setting says, or asks for what is not built in.
    pub fn property(mut self, name: &str, value: &str) -> Result<Self, InvalidProperty> {
        check_sink(name, value)?;
        self.config.set(name, value);
        Ok(self)
    }
}

impl KafkaSink {
    /// Opens one without a look at its topic.
    pub(crate) fn writer(&self) -> Result<KafkaWriter, OpenError> {
        let producer =
            BaseProducer::from_config_and_context(&self.config, Reports::default()).map_err(refused)?;
        Ok(KafkaWriter {
            producer: Arc::new(producer),
            topic: Arc::clone(&self.topic),
            calls: 0,
        })
    }
}

/// What every producer of ours is made with, at brokers that are reached so.
pub(crate) fn config(reach: &ClientConfig) -> ClientConfig {
    let mut config = reach.clone();
    config
        .set("acks", "all")
        .set("enable.idempotence", "true")
        .set("partitioner", "murmur2_random")
        // A chunk comes at once, and nothing follows before it is confirmed.
        .set("linger.ms", "1")
        // As the source: by itself a producer may find its broker ten seconds and more after it is back.
        .set("reconnect.backoff.max.ms", "1000");
    config
}

/// Looks for a topic, with a producer of its own.
pub(crate) async fn look_for(config: &ClientConfig, topic: &Arc<str>) -> Result<(), OpenError> {
    let producer = BaseProducer::from_config_and_context(config, Reports::default()).map_err(refused)?;
    find(&Arc::new(producer), topic).await
}

async fn find(producer: &Arc<BaseProducer<Reports>>, topic: &Arc<str>) -> Result<(), OpenError> {
    let (producer, topic) = (Arc::clone(producer), Arc::clone(topic));
    beside(move || {
        let unavailable = |why: String| OpenError::Unavailable(format!("the topic `{topic}`: {why}"));
        let metadata = producer
            .client()
            .fetch_metadata(Some(&topic), REACH)
            .map_err(|error| unavailable(error.to_string()))?;
        match metadata.topics().first().and_then(|topic| topic.error()) {
            Some(error) => Err(unavailable(RDKafkaErrorCode::from(error).to_string())),
            None => Ok(()),
        }
    })
    .await
    .map_err(|error| OpenError::Unavailable(error.0))?
}

impl SinkConnector for KafkaSink {
    type Sink = KafkaWriter;

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(TopicLetters::new(&self.config, &self.topic)))
    }

    async fn open(&self) -> Result<KafkaWriter, OpenError> {
        let writer = self.writer()?;
        find(&writer.producer, &self.topic).await?;
        Ok(writer)
    }

    async fn check(&self) -> Vec<Finding> {
        check::sink(self.config.clone(), &self.topic).await
    }
}

/// What the broker says of the messages of one call.
#[derive(Debug, Default)]
pub(crate) struct Reports(Mutex<Call>);

#[derive(Debug, Default)]
struct Call {
    number: u32,
    /// Of each of its messages, in order.
    results: Vec<Option<Result<(), KafkaError>>>,
    missing: usize,
}

impl Reports {
    pub(crate) fn begin(&self, number: u32, messages: usize) {
        *self.0.lock() = Call {
            number,
            results: vec![None; messages],
            missing: messages,
        };
    }

    /// Takes note of what came of a message; reports for a call that was given up are none of this one's.
    pub(crate) fn report(&self, id: usize, result: Result<(), KafkaError>) {
        let mut call = self.0.lock();
        let (number, index) = split(id);
        if call.number != number {
            return;
        }
        if let Some(place @ None) = call.results.get_mut(index) {
            *place = Some(result);
            call.missing -= 1;
        }
    }

    pub(crate) fn missing(&self) -> usize {
        self.0.lock().missing
    }

    pub(crate) fn end(&self) -> Vec<Result<(), KafkaError>> {
        let results = std::mem::take(&mut self.0.lock().results);
        results.into_iter().flatten().collect()
    }
}

/// A message's name to librdkafka: its call and its place there.
pub(crate) fn id(call: u32, index: usize) -> usize {
    (call as usize) << 32 | index
}

fn split(id: usize) -> (u32, usize) {
    ((id >> 32) as u32, id & 0xffff_ffff)
}

fn result_of(result: Result<(), KafkaError>) -> Delivered {
    match result {
        Ok(()) => Delivered::Confirmed,
        Err(error) => own_fault(&error).unwrap_or_else(|| Delivered::Failed(error.to_string())),
    }
}

/// What came of a message that was not written, if that says something of the message or its topic, and not of what it
/// was sent with.
pub(crate) fn own_fault(error: &KafkaError) -> Option<Delivered> {
    use RDKafkaErrorCode::{
        InvalidMessageSize, InvalidRecord, InvalidTimestamp, InvalidTopic, MessageSizeTooLarge,
        PolicyViolation, TopicAuthorizationFailed, UnknownPartition, UnknownTopic, UnknownTopicOrPartition,
    };
    match error.rdkafka_error_code()? {
        MessageSizeTooLarge | InvalidRecord | InvalidTimestamp | InvalidMessageSize => {
            Some(Delivered::Refused(error.to_string()))
        }
        InvalidTopic
        | PolicyViolation
        | TopicAuthorizationFailed
        | UnknownPartition
        | UnknownTopic
        | UnknownTopicOrPartition => Some(Delivered::Failed(error.to_string())),
        _ => None,
    }
}

/// A message as librdkafka takes it, for a topic and, where one is given, that partition of it.
pub(crate) fn record<'a>(
    topic: &'a str,
    partition: Option<i32>,
    id: usize,
    message: &'a Outgoing,
) -> BaseRecord<'a, [u8], [u8], usize> {
    let mut record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, id).payload(&message.payload);
    record.partition = partition;
    if let Some(key) = &message.key {
        record = record.key(key);
    }
    if !message.headers.is_empty() {
        let headers = OwnedHeaders::new_with_capacity(message.headers.len());
        let headers = message.headers.iter().fold(headers, |headers, (key, value)| {
            headers.insert(Header {
                key,
                value: Some(value),
            })
        });
        record = record.headers(headers);
    }
    record
}

impl ClientContext for Reports {
    fn log(&self, _: RDKafkaLogLevel, facility: &str, message: &str) {
        // What comes of it is in the reports.
        debug!(facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        warn!(%error, reason, "the producer complains");
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, id: usize) {
        let result = result.as_ref().map(drop).map_err(|(error, _)| error.clone());
        self.report(id, result);
    }
}

/// The writing side of a [`KafkaSink`].
pub struct KafkaWriter {
    pub(crate) producer: Arc<BaseProducer<Reports>>,
    topic: Arc<str>,
    calls: u32,
}

impl std::fmt::Debug for KafkaWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaWriter")
            .field("topic", &self.topic)
            .finish_non_exhaustive()
    }
}

impl Sink for KafkaWriter {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let topic = Arc::clone(&self.topic);
        self.write(messages.iter().map(|message| (&*topic, None, message)), results)
            .await
    }
}

impl KafkaWriter {
    /// Writes each of these to its topic, and where one is given to that partition of it; otherwise as [`Sink::send`].
    pub(crate) async fn write<'m>(
        &mut self,
        messages: impl ExactSizeIterator<Item = (&'m str, Option<i32>, &'m Outgoing)> + Send,
        results: &mut Vec<Delivered>,
    ) -> Result<(), SinkError> {
        self.calls = self.calls.wrapping_add(1);
        self.producer.context().begin(self.calls, messages.len());
        for (index, (topic, partition, message)) in messages.enumerate() {
            self.enqueue(id(self.calls, index), topic, partition, message)
                .await;
        }
        let producer = Arc::clone(&self.producer);
        beside(move || {
            while producer.context().missing() > 0 {
                producer.poll(POLL);
            }
        })
        .await?;
        // After such an error nothing goes through it any more.
        if let Some((code, why)) = self.producer.client().fatal_error() {
            return Err(SinkError(format!("{code}: {why}")));
        }
        results.extend(self.producer.context().end().into_iter().map(result_of));
        Ok(())
    }

    async fn enqueue(&self, id: usize, topic: &str, partition: Option<i32>, message: &Outgoing) {
        let mut record = record(topic, partition, id, message);
        loop {
            match self.producer.send(record) {
                Ok(()) => return,
                Err((error, again)) => {
                    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                        self.producer.context().report(id, Err(error));
                        return;
                    }
                    record = again;
                }
            }
            self.producer.poll(Duration::ZERO);
            rt::sleep(FULL).await;
        }
    }
}

/// Where blocking keeps nobody else waiting.
pub(crate) async fn beside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SinkError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| SinkError(error.to_string()))
}
