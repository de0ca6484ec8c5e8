//! The transactional producer: each call in the form in which the [`writer`](super::writer) needs it.

use std::time::Duration;

use millstream_core::{OpenError, rt};
use rdkafka::config::FromClientConfigAndContext;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, Producer as _, PurgeConfig};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

use super::Transactions;
use super::work::{Work, Write};
use crate::connector::refused;
use crate::properties::reach;
use crate::shared::Commit;
use crate::sink::{self, Reports, record};

/// How long a call may take before it is looked whether to go on with it.
const CALL: Duration = Duration::from_secs(2);

/// How long to wait for the id: what was left open under it is aborted first.
const INIT: Duration = Duration::from_secs(10);

/// For how long a poll waits for confirmations, and a full queue for room.
const POLL: Duration = Duration::from_millis(100);
const FULL: Duration = Duration::from_millis(5);

/// After how long a broker aborts a transaction that was left open, and a message is given up; and how long confirmations
/// may be missing beyond that.
const TIMEOUT: &str = "10000";
const OVERDUE: Duration = Duration::from_secs(15);

/// What a producer is made with that connects like this consumer.
pub(crate) fn config(source: &ClientConfig) -> ClientConfig {
    let mut config = sink::config(&reach(source));
    config
        .set("transaction.timeout.ms", TIMEOUT)
        .set("message.timeout.ms", TIMEOUT);
    config
}

/// Why a transaction was not committed.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// It can be made again.
    Again(String),
    /// Not with this producer.
    Fatal(String),
}

/// What to do after an error.
enum Remedy {
    Retry,
    Abort,
    End,
}

fn remedy(error: &KafkaError) -> Remedy {
    match error {
        KafkaError::Transaction(error) if error.is_fatal() => Remedy::End,
        KafkaError::Transaction(error) if error.txn_requires_abort() => Remedy::Abort,
        KafkaError::Transaction(error) if error.is_retriable() => Remedy::Retry,
        KafkaError::Flush(_) => Remedy::Retry,
        _ => Remedy::End,
    }
}

pub(crate) struct Producer {
    id: String,
    producer: BaseProducer<Reports>,
    round: u32,
}

impl Producer {
    /// Takes the id over, and has what was left open under it aborted.
    pub(crate) async fn open(transactions: &Transactions, source: &ClientConfig) -> Result<Self, OpenError> {
        if source
            .get("isolation.level")
            .is_some_and(|level| level != "read_committed")
        {
            return Err(OpenError::Refused(
                "the property `isolation.level` must be `read_committed` with a transactional id: what another process's \
                 transactions have not committed would be read, and their offsets not be waited for"
                    .to_owned(),
            ));
        }
        let config = transactions.config(source);
        let producer = BaseProducer::from_config_and_context(&config, Reports::default()).map_err(refused)?;
        let opened = Self {
            id: transactions.id().to_owned(),
            producer,
            round: 0,
        };
        sink::beside(move || match opened.producer.init_transactions(INIT) {
            Ok(()) => Ok(opened),
            Err(error) => Err(OpenError::Unavailable(format!(
                "the transactions `{}` cannot begin: {error}",
                opened.id
            ))),
        })
        .await
        .map_err(|error| OpenError::Unavailable(error.0))?
    }

    fn end(&self, error: &KafkaError) -> Trouble {
        Trouble::Fatal(self.explain(error.rdkafka_error_code(), &error.to_string()))
    }

    fn explain(&self, code: Option<RDKafkaErrorCode>, error: &str) -> String {
        use RDKafkaErrorCode::{Fenced, InvalidProducerEpoch, ProducerFenced};
        let id = &self.id;
        match code {
            Some(Fenced | ProducerFenced | InvalidProducerEpoch) => format!(
                "the transactional id `{id}` was taken by another producer, or its transaction took too long ({error}): \
                 every process needs a `transactional_id` of its own"
            ),
            _ => format!("the transactions `{id}` cannot go on: {error}"),
        }
    }

    /// After such an error nothing goes through it any more.
    pub(crate) fn dead(&self) -> Option<Trouble> {
        let (code, why) = self.producer.client().fatal_error()?;
        Some(Trouble::Fatal(self.explain(Some(code), &why)))
    }

    pub(crate) fn begin(&self) -> Result<(), Trouble> {
        self.producer
            .begin_transaction()
            .map_err(|error| self.end(&error))
    }

    /// Writes all that is unwritten, and notes of each message that was not taken why. Whether all was taken.
    pub(crate) fn write(&mut self, writes: &mut [Write]) -> Result<bool, Trouble> {
        self.round = self.round.wrapping_add(1);
        let reports = self.producer.context();
        let places: Vec<(usize, usize)> = writes
            .iter()
            .enumerate()
            .flat_map(|(write, one)| one.unwritten().map(move |(message, _)| (write, message)))
            .collect();
        reports.begin(self.round, places.len());
        let unwritten = writes
            .iter()
            .flat_map(|write| write.unwritten().map(|(_, letter)| letter));
        for (index, letter) in unwritten.enumerate() {
            let id = sink::id(self.round, index);
            let mut next = record(&letter.topic, letter.partition, id, &letter.message);
            while let Err((error, again)) = self.producer.send(next) {
                if error.rdkafka_error_code() != Some(RDKafkaErrorCode::QueueFull) {
                    reports.report(id, Err(error));
                    break;
                }
                next = again;
                self.producer.poll(FULL);
            }
        }
        self.confirmations(OVERDUE);
        if let Some(dead) = self.dead() {
            return Err(dead);
        }
        if reports.missing() > 0 {
            return Err(Trouble::Again("nothing is known of what was written".to_owned()));
        }
        let mut taken = true;
        let mut why = None;
        for ((write, message), result) in places.into_iter().zip(reports.end()) {
            let Some(error) = result.err() else { continue };
            taken = false;
            let own = sink::own_fault(&error);
            if own.is_none() {
                why = Some(error.to_string());
            }
            let results = writes.get_mut(write).map(|write| &mut write.results);
            if let Some(place) = results.and_then(|results| results.get_mut(message)) {
                *place = own;
            }
        }
        match why {
            Some(why) => Err(Trouble::Again(why)),
            None => Ok(taken),
        }
    }

    /// Waits for what is not confirmed, but not for longer than this.
    fn confirmations(&self, most: Duration) {
        let until = rt::Instant::now() + most;
        while self.producer.context().missing() > 0 && rt::Instant::now() < until {
            self.producer.poll(POLL);
        }
    }

    /// Adds the offsets.
    pub(crate) fn offsets(
        &self,
        work: &Work,
        commits: &[Commit],
        generation: &ConsumerGroupMetadata,
    ) -> Result<(), Trouble> {
        let mut list = TopicPartitionList::with_capacity(commits.len());
        for commit in commits {
            let mut partition = list.add_partition(&commit.place.topic, commit.place.partition);
            let offset = Offset::Offset(i64::try_from(commit.offset).unwrap_or(i64::MAX));
            partition.set_offset(offset).map_err(|error| self.end(&error))?;
            partition.set_metadata(&commit.metadata);
        }
        loop {
            let Err(error) = self.producer.send_offsets_to_transaction(&list, generation, CALL) else {
                return Ok(());
            };
            match remedy(&error) {
                Remedy::Retry if work.is_open() => {}
                Remedy::Retry | Remedy::Abort => return Err(Trouble::Again(error.to_string())),
                Remedy::End => return Err(self.end(&error)),
            }
        }
    }

    /// Commits. An error that can be made good by another try is tried again for as long as it takes: what came of it is
    /// not known before.
    pub(crate) fn commit(&self, work: &Work) -> Result<(), Trouble> {
        loop {
            let Err(error) = self.producer.commit_transaction(CALL) else {
                return Ok(());
            };
            match remedy(&error) {
                Remedy::Retry if work.is_open() => {}
                Remedy::Abort => return Err(Trouble::Again(error.to_string())),
                Remedy::Retry | Remedy::End => return Err(self.end(&error)),
            }
        }
    }

    /// Takes everything back.
    pub(crate) fn abort(&self, work: &Work) -> Result<(), Trouble> {
        if self.producer.context().missing() > 0 {
            self.producer.purge(PurgeConfig::default().queue().inflight());
            self.confirmations(CALL);
        }
        loop {
            let Err(error) = self.producer.abort_transaction(CALL) else {
                return Ok(());
            };
            match remedy(&error) {
                Remedy::Retry if work.is_open() => {}
                Remedy::Retry | Remedy::Abort | Remedy::End => return Err(self.end(&error)),
            }
        }
    }
}
