//! Writing within a source's transactions: [`TransactionalSink`], [`TransactionalWriter`].

use std::sync::Arc;

use millstream_core::{Delivered, OpenError, Outgoing, SharedLetterBox, Sink, SinkConnector, SinkError};
use rdkafka::ClientConfig;

use super::work::Letter;
use super::{Transactions, producer};
use crate::letters::TopicLetters;
use crate::properties::InvalidProperty;
use crate::sink::look_for;

/// Writes to a topic within the transactions of a [`KafkaConnector`](crate::KafkaConnector), whose
/// [`sink`](crate::KafkaConnector::sink) makes it: what a message comes of counts as settled when the message can be read,
/// and not before. A message is confirmed once its transaction is committed.
///
/// It is for the pipeline that reads with that connector. What other pipelines write to it comes of nothing that this
/// source has handed out, and is left out.
#[derive(Clone, Debug)]
pub struct TransactionalSink {
    transactions: Arc<Transactions>,
    /// What it takes to connect.
    config: ClientConfig,
    topic: Arc<str>,
}

impl TransactionalSink {
    pub(crate) fn new(transactions: &Arc<Transactions>, source: &ClientConfig, topic: &str) -> Self {
        Self {
            transactions: Arc::clone(transactions),
            config: producer::config(source),
            topic: topic.into(),
        }
    }

    /// A property for librdkafka's producer, which all sinks of the same transactions share.
    ///
    /// # Errors
    /// If it would break a promise, is what another setting says, or has another value at another sink.
    pub fn property(self, name: &str, value: &str) -> Result<Self, InvalidProperty> {
        self.transactions.set(name, value)?;
        Ok(self)
    }
}

impl SinkConnector for TransactionalSink {
    type Sink = TransactionalWriter;

    fn letters(&self) -> Option<SharedLetterBox> {
        Some(Arc::new(TopicLetters::new(&self.config, &self.topic)))
    }

    async fn open(&self) -> Result<TransactionalWriter, OpenError> {
        look_for(&self.config, &self.topic).await?;
        Ok(TransactionalWriter {
            transactions: Arc::clone(&self.transactions),
            topic: Arc::clone(&self.topic),
        })
    }
}

/// The writing side of a [`TransactionalSink`].
#[derive(Debug)]
pub struct TransactionalWriter {
    transactions: Arc<Transactions>,
    topic: Arc<str>,
}

impl Sink for TransactionalWriter {
    async fn send(&mut self, messages: &[Outgoing], results: &mut Vec<Delivered>) -> Result<(), SinkError> {
        let letters = messages.iter().map(|message| Letter {
            topic: Arc::clone(&self.topic),
            partition: None,
            message: message.clone(),
        });
        write(&self.transactions, letters.collect(), results).await
    }
}

/// Has these written within the transactions; otherwise as [`Sink::send`].
pub(crate) async fn write(
    transactions: &Transactions,
    letters: Vec<Letter>,
    results: &mut Vec<Delivered>,
) -> Result<(), SinkError> {
    let Some(work) = transactions.work() else {
        return Err(SinkError(format!(
            "the source of the transactions `{}` is not open",
            transactions.id()
        )));
    };
    let answer = work.write(letters).answer().await;
    results.extend(answer.ok_or_else(|| SinkError("the thread of the transactions died".to_owned()))?);
    Ok(())
}
