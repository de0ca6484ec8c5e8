//! What there is to say of the settings of a pipeline, also compared with its broker: [`Finding`].
//!
//! The engine takes no part in it: the commands `check` and `check --connect` ask, before anything runs.

use std::time::Duration;

use crate::engine::{longest_wait, waits_there};
use crate::errors::OpenError;
use crate::spec::{BatcherSpec, PipelineSpec, RetryStrategy};

/// How much a [`Finding`] matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something could not be looked at.
    Note,
    /// It runs, and not as its settings would have it.
    Warning,
    /// It does not run.
    #[default]
    Error,
}

/// One thing that was found: the cause, the remedy, and which key it is about.
///
/// ```
/// # use millstream_core::{Finding, Severity};
/// let finding = Finding::error("there is no queue `orders`", "make it").at("queue");
/// assert_eq!((finding.severity, finding.key()), (Severity::Error, Some("queue")));
/// ```
///
/// Neither text should quote a value that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// The cause.
    pub message: String,
    /// The remedy.
    pub help: String,
    place: Place,
}

/// What a finding is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Place {
    /// The connector's table as a whole.
    #[default]
    Table,
    /// A key of it.
    Key(String),
    /// Keys of the pipeline, from the outermost.
    Pipeline(Vec<String>),
}

impl Finding {
    /// Something that keeps the pipeline from running.
    pub fn error(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Severity::Error, message.into(), help.into())
    }

    /// Something that makes it run otherwise than its settings say.
    pub fn warning(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Severity::Warning, message.into(), help.into())
    }

    /// Something that could not be looked at.
    pub fn note(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self::new(Severity::Note, message.into(), help.into())
    }

    fn new(severity: Severity, message: String, help: String) -> Self {
        Self {
            severity,
            message,
            help,
            place: Place::Table,
        }
    }

    /// The same about this key of the connector's own table; where the file does not have it, about the table.
    #[must_use]
    pub fn at(mut self, key: &str) -> Self {
        self.place = Place::Key(key.to_owned());
        self
    }

    /// The same about a key of the pipeline, as in `["processor", "timeout"]`; where the file does not have it, about the
    /// innermost table that it has.
    #[must_use]
    pub fn in_pipeline<'a>(mut self, keys: impl IntoIterator<Item = &'a str>) -> Self {
        self.place = Place::Pipeline(keys.into_iter().map(str::to_owned).collect());
        self
    }

    /// The key of the connector's own table that it is about, if it is about one.
    pub fn key(&self) -> Option<&str> {
        match &self.place {
            Place::Key(key) => Some(key),
            Place::Table | Place::Pipeline(_) => None,
        }
    }

    /// The keys that lead to what it is about, from the outermost, where these lead to the pipeline and those from there
    /// to the connector's own table.
    pub fn path<'a>(&'a self, pipeline: &[&'a str], table: &[&'a str]) -> Vec<&'a str> {
        let mut path = pipeline.to_vec();
        match &self.place {
            Place::Table => path.extend(table),
            Place::Key(key) => {
                path.extend(table);
                path.push(key);
            }
            Place::Pipeline(keys) => path.extend(keys.iter().map(String::as_str)),
        }
        path
    }
}

/// What does not open is an error.
impl From<OpenError> for Finding {
    fn from(error: OpenError) -> Self {
        let help = match &error {
            OpenError::Refused(_) => "put that right: `run` would refuse to start",
            OpenError::Unavailable(_) => "see that it runs and can be reached from here, or name another",
        };
        Self::error(error.to_string(), help)
    }
}

impl PipelineSpec {
    /// What would make it run otherwise than its settings say, as far as that is known without its broker: the command
    /// `check` says it.
    pub fn findings(&self) -> Vec<Finding> {
        self.crowding().into_iter().collect()
    }

    /// A limit of each key, while what is over it has no place to wait but those of all keys.
    fn crowding(&self) -> Option<Finding> {
        self.rate_limit.as_ref()?.key.as_ref()?;
        let can = self.source.capabilities();
        let puts_off = can.delay || self.source.retry_sink().is_some();
        if waits_there(&self.ordering, &can, puts_off) {
            return None;
        }
        let what = "what is over the limit of one key waits in the process, in places of `limits`, and all that was read \
                    after it waits too: this source cannot hold messages back";
        let help = match self.ordering.is_ordered() {
            true => {
                "remove `ordering`, or read each tenant's messages by a pipeline of its own; the embedded queue and FIFO \
                 queues of SQS hold them back with `ordering = \"key\"` by the message's own key"
            }
            false => {
                "where the source is of Kafka, set `retry.strategy` to \"redeliver\", so that retry topics hold them back; \
                 elsewhere read each tenant's messages by a pipeline of its own"
            }
        };
        Some(Finding::warning(what, help).in_pipeline(["rate_limit", "key"]))
    }
}

/// What a pipeline will ask of its broker.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Facts<'a> {
    /// The pipeline.
    pub pipeline: &'a PipelineSpec,
    /// How long its drain may take.
    pub shutdown_timeout: Duration,
}

impl<'a> Facts<'a> {
    /// The facts of a pipeline of a process that has so long to shut down.
    pub const fn new(pipeline: &'a PipelineSpec, shutdown_timeout: Duration) -> Self {
        Self {
            pipeline,
            shutdown_timeout,
        }
    }

    /// For how long a message may be worked on before the broker hears of it: every attempt up to its timeout, the waits
    /// between attempts that are made in place, the age of its batch, and one search in it for a message at fault where it
    /// is bisected. What it waits for a free worker comes on top.
    pub fn longest_hold(&self) -> Duration {
        let retry = &self.pipeline.retry;
        let attempts = match retry.strategy {
            RetryStrategy::InPlace => retry.attempts.get(),
            RetryStrategy::Redeliver => 1,
        };
        let run = self.pipeline.processor.timeout;
        let held = |batcher: &BatcherSpec| {
            let again = run.max(batcher.timeout).saturating_mul(attempts - 1);
            let searched = match batcher.bisect {
                true => batcher
                    .timeout
                    .saturating_mul(2 * (usize::BITS - batcher.size.get().leading_zeros())),
                false => Duration::ZERO,
            };
            run.saturating_add(batcher.max_age)
                .saturating_add(batcher.timeout)
                .saturating_add(searched)
                .saturating_add(again)
        };
        self.pipeline
            .batchers
            .values()
            .map(held)
            .fold(run.saturating_mul(attempts), Duration::max)
            .saturating_add(longest_wait(retry, attempts - 1))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Arc;

    use super::*;
    use crate::Failure;
    use crate::flow::Flow;
    use crate::memory::MemoryQueue;
    use crate::message::{Message, Outgoing};
    use crate::processor::{Context, Processor};

    struct Pass;

    impl Processor for Pass {
        type Input = Message;
        type Output = Outgoing;

        async fn process(&self, message: Message, _: &mut Context<'_>) -> Result<Outgoing, Failure> {
            Ok(Outgoing::new(message.payload))
        }
    }

    fn held(change: impl FnOnce(&mut PipelineSpec)) -> Duration {
        let mut pipeline = PipelineSpec::new(
            "orders",
            Arc::new(MemoryQueue::new()),
            Flow::process(Pass).sink("out"),
        );
        pipeline.processor.timeout = Duration::from_secs(10);
        pipeline.retry.backoff = Duration::from_secs(1);
        pipeline.retry.attempts = NonZeroU32::new(3).unwrap();
        change(&mut pipeline);
        Facts::new(&pipeline, Duration::from_secs(25)).longest_hold()
    }

    #[test]
    fn a_message_is_held_through_its_attempts_and_the_waits_between_them() {
        assert_eq!(held(|_| {}), Duration::from_secs(3 * 10 + 1 + 2));
        let redeliver = |pipeline: &mut PipelineSpec| pipeline.retry.strategy = RetryStrategy::Redeliver;
        assert_eq!(held(redeliver), Duration::from_secs(10));
    }

    #[test]
    fn a_batch_holds_it_for_its_age_and_its_own_attempts_too() {
        let batcher = BatcherSpec {
            max_age: Duration::from_secs(5),
            timeout: Duration::from_secs(60),
            ..BatcherSpec::default()
        };
        let batched = |pipeline: &mut PipelineSpec| {
            pipeline.batchers.insert("out".to_owned(), batcher.clone());
        };
        assert_eq!(held(batched), Duration::from_secs(10 + 5 + 3 * 60 + 1 + 2));
        let bisected = |pipeline: &mut PipelineSpec| {
            let batcher = BatcherSpec {
                bisect: true,
                ..batcher.clone()
            };
            pipeline.batchers.insert("out".to_owned(), batcher);
        };
        assert_eq!(
            held(bisected),
            Duration::from_secs(10 + 5 + (3 + 2 * 7) * 60 + 1 + 2)
        );
    }

    #[test]
    fn a_finding_names_a_key_of_its_own_table_or_of_the_pipeline() {
        let finding = Finding::warning("cause", "remedy");
        let path = |finding: &Finding| finding.path(&["pipelines", "a"], &["source"]).join(".");
        assert_eq!(path(&finding), "pipelines.a.source");
        assert_eq!(path(&finding.clone().at("queue")), "pipelines.a.source.queue");
        assert_eq!(
            path(&finding.in_pipeline(["processor", "timeout"])),
            "pipelines.a.processor.timeout"
        );
    }
}
