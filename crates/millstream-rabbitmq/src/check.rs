//! What a pipeline asks of RabbitMQ, compared with what is there: [`source`] and [`queue`], [`exchange`] for a sink.
//!
//! Nothing is made or changed: a queue is declared only where it is there already, to have the broker compare its
//! properties. What AMQP does not tell is asked of the management API, and said to be unknown where there is none.

use std::time::Duration;

use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use millstream_core::{DeadLetter, Facts, Finding, OpenError, RetryStrategy};

use crate::dial::{Dial, Line};
use crate::inbox::in_order;
use crate::settings::{OnFailure, REMEDY, ReaderSettings};
use crate::stream::undeclared;
use crate::topology::{Topology, short};
use crate::trouble::{self, Trouble, code};

/// How long a broker lets a consumer keep a delivery, unless it is told otherwise.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// After how many deliveries RabbitMQ 4 gives a message of a quorum queue up, unless it is told otherwise.
#[cfg(feature = "management")]
const DELIVERY_LIMIT: i64 = 20;

/// What is known of a queue beyond that it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Known {
    /// `classic`, `quorum` or `stream`; empty if that is not known.
    pub(crate) kind: String,
    /// How many nodes have a quorum queue.
    pub(crate) members: Option<usize>,
    /// Where rejected messages go; empty is the default exchange.
    pub(crate) dead_letter_exchange: Option<String>,
    /// After so many deliveries a quorum queue gives a message up; below zero: never.
    pub(crate) delivery_limit: Option<i64>,
    /// For how long a consumer may keep a delivery.
    pub(crate) consumer_timeout: Option<Duration>,
}

/// A reader's settings, in a pipeline of these facts.
pub(crate) async fn source(settings: &ReaderSettings, facts: &Facts<'_>) -> Vec<Finding> {
    let mut found: Vec<_> = prefetch(settings, facts).into_iter().collect();
    let line = match connect(&settings.dial).await {
        Ok(line) => line,
        Err(finding) => {
            found.push(finding);
            return found;
        }
    };
    if let Err(finding) = look(&line, settings, facts, &mut found).await {
        found.push(finding);
    }
    line.close().await;
    found
}

/// A queue that is written to.
pub(crate) async fn queue(dial: &Dial, topology: &Topology) -> Vec<Finding> {
    match connect(dial).await {
        Err(finding) => vec![finding],
        Ok(line) => {
            let found = queue_is_there(&line, topology).await;
            line.close().await;
            found.err().into_iter().collect()
        }
    }
}

/// An exchange that is written to.
pub(crate) async fn exchange(dial: &Dial, name: &str) -> Vec<Finding> {
    match connect(dial).await {
        Err(finding) => vec![finding],
        Ok(line) => {
            let there = exchange_is_there(&line, name).await;
            line.close().await;
            match there {
                Ok(true) => Vec::new(),
                Ok(false) => vec![
                    Finding::error(
                        format!("there is no exchange `{name}`"),
                        "make it, or name another",
                    )
                    .at("exchange"),
                ],
                Err(finding) => vec![finding.at("exchange")],
            }
        }
    }
}

async fn connect(dial: &Dial) -> Result<Line, Finding> {
    dial.connect()
        .await
        .map_err(|error| Finding::from(error).at("url"))
}

async fn look(
    line: &Line,
    settings: &ReaderSettings,
    facts: &Facts<'_>,
    found: &mut Vec<Finding>,
) -> Result<(), Finding> {
    let Topology { queue, bindings, .. } = &settings.topology;
    for binding in bindings {
        let exchange = &binding.exchange;
        if !exchange_is_there(line, exchange).await? {
            let what = format!("queue `{queue}` cannot be bound: there is no exchange `{exchange}`");
            found.push(Finding::error(what, "make it, or remove the binding").at("bindings"));
        }
    }
    let there = queue_is_there(line, &settings.topology).await?;
    let declared = Known::declared(&settings.topology);
    let asked = match settings.management_url.is_some() && there {
        true => settings.known().await.map_err(unasked)?,
        false => None,
    };
    let known = declared.clone().and(asked.clone());
    if known.kind == "stream" && !settings.is_stream() {
        let what = undeclared(queue);
        return Err(Finding::error(what, "put that right: `run` would refuse to start").at("queue"));
    }
    found.extend(unknown(settings, facts, there, &known));
    found.extend(delivery_limit(settings, facts, &known));
    found.extend(consumer_timeout(facts, &known));
    found.extend(retry_queues(settings, facts, &known));
    if matches!(facts.pipeline.dead_letter, DeadLetter::Source) && settings.on_failure != OnFailure::Requeue {
        match &known.dead_letter_exchange {
            Some(name) if !exchange_is_there(line, name).await? => {
                let what = format!(
                    "queue `{queue}` has `{name}` for its dead-letter exchange, which is not there: a rejected message \
                     would be lost"
                );
                found.push(Finding::error(what, "make the exchange, or name a `dead_letter`").at("queue"));
            }
            None if asked.is_some() => {
                let what = format!(
                    "the {} queue `{queue}` has no dead-letter exchange, so a rejected message would be lost",
                    known.kind
                );
                found.push(Finding::error(what, REMEDY).at("queue"));
            }
            Some(_) | None => {}
        }
    }
    Ok(())
}

/// What a pool of workers and batchers wants to have in hand at least.
fn prefetch(settings: &ReaderSettings, facts: &Facts<'_>) -> Option<Finding> {
    let workers = facts.pipeline.processor.concurrency.get();
    let Some(prefetch) = settings.prefetch.map(usize::from) else {
        let prefetch = in_order(facts.pipeline.limits.bytes.get());
        let what = format!(
            "with an `ordering` and without a `prefetch` no more than {prefetch} of the {workers} workers may ever have a \
             message: so many of 64 KiB fit into `limits.bytes`"
        );
        let help = format!("write `prefetch = {workers}` or more, if messages are smaller");
        return (settings.ordered && prefetch < workers).then(|| Finding::warning(what, help).at("queue"));
    };
    if prefetch < workers {
        let what = format!(
            "with a `prefetch` of {prefetch} no more than {prefetch} of the {workers} workers ever have a message"
        );
        let help = format!("write {workers} or more, or leave it out: it then follows demand");
        return Some(Finding::warning(what, help).at("prefetch"));
    }
    let batchers = facts.pipeline.batchers.iter();
    let (name, batcher) = batchers
        .filter(|(_, batcher)| batcher.size.get() > prefetch)
        .max_by_key(|(_, batcher)| batcher.size)?;
    let size = batcher.size;
    let what = format!(
        "with a `prefetch` of {prefetch} a batch of `{name}` never has its {size} messages, and waits for its age"
    );
    let help = format!("write {size} or more, leave it out, or lower `size` of the batcher");
    Some(Finding::warning(what, help).at("prefetch"))
}

/// What could not be compared.
fn unknown(settings: &ReaderSettings, facts: &Facts<'_>, there: bool, known: &Known) -> Option<Finding> {
    let leaves = leaving(facts);
    let queue = &settings.topology.queue;
    if settings.management_url.is_some() && cfg!(feature = "management") {
        return (!there && !queue.is_empty()).then(|| {
            let what =
                format!("queue `{queue}` is not there yet, so what policies will give it is not known");
            Finding::note(what, "check again once it is").at("queue")
        });
    }
    let mut facts = vec!["`consumer_timeout`"];
    if !matches!(known.kind.as_str(), "classic" | "stream") {
        facts.insert(0, "a quorum queue's delivery limit");
    }
    let leaves = leaves.map(|(what, _, _)| format!("whether {what} leaves a quorum queue for classic ones"));
    if known.kind.is_empty() {
        facts.extend(leaves.as_deref());
    }
    let what = format!(
        "not compared, as AMQP does not tell what policies give queue `{queue}`: {}",
        facts.join(", ")
    );
    Some(Finding::note(
        what,
        "set `management_url` to have the broker asked",
    ))
}

fn delivery_limit(settings: &ReaderSettings, facts: &Facts<'_>, known: &Known) -> Option<Finding> {
    let limit = known.delivery_limit.filter(|_| known.kind == "quorum")?;
    let most = facts.pipeline.retry.max_deliveries.get();
    if limit < 0 || limit >= i64::from(most) {
        return None;
    }
    let queue = &settings.topology.queue;
    let lost = match known.dead_letter_exchange {
        Some(_) => "dead-letters a message",
        None => "drops a message, as there is no dead-letter exchange,",
    };
    let what = format!(
        "the quorum queue `{queue}` {lost} after {limit} deliveries, before the pipeline gives it up after {most}"
    );
    let help = format!(
        "set `max_deliveries` to {} at most, or raise the queue's delivery limit",
        limit.max(1)
    );
    Some(Finding::warning(what, help).in_pipeline(["retry", "max_deliveries"]))
}

fn consumer_timeout(facts: &Facts<'_>, known: &Known) -> Option<Finding> {
    let hold = facts.longest_hold();
    let timeout = known.consumer_timeout.unwrap_or(CONSUMER_TIMEOUT);
    if hold <= timeout {
        return None;
    }
    let known = match known.consumer_timeout {
        Some(_) => "",
        None => ", unless the broker was told otherwise",
    };
    let what = format!(
        "attempts, the waits between them and batches may keep a message for {}s, and the broker closes the channel after \
         {}s (`consumer_timeout`){known}",
        hold.as_secs(),
        timeout.as_secs()
    );
    let help =
        "lower `timeout`, `attempts` or a batcher's `max_age`, or raise the broker's `consumer_timeout`";
    Some(Finding::warning(what, help).in_pipeline(["processor", "timeout"]))
}

/// What goes to retry queues by the settings of the pipeline, what to do where that must not be, and which keys say so.
fn leaving(facts: &Facts<'_>) -> Option<(&'static str, &'static str, [&'static str; 2])> {
    let pipeline = facts.pipeline;
    if pipeline.retry.strategy == RetryStrategy::Redeliver {
        return Some((
            "what waits for its next attempt",
            "write `strategy = \"in_place\"`, with which it stays in its queue, or bear that",
            ["retry", "strategy"],
        ));
    }
    let of_a_key = pipeline
        .rate_limit
        .as_ref()
        .is_some_and(|limit| limit.key.is_some());
    (of_a_key && !pipeline.ordering.is_ordered()).then_some((
        "what is over the limit of one key",
        "leave `key` out of `rate_limit`, with which it stays in its queue, or bear that",
        ["rate_limit", "key"],
    ))
}

/// What waits in retry queues has fewer copies than what does not.
fn retry_queues(settings: &ReaderSettings, facts: &Facts<'_>, known: &Known) -> Option<Finding> {
    let (waits, help, key) = leaving(facts)?;
    if known.kind != "quorum" || known.members == Some(1) {
        return None;
    }
    let queue = &settings.topology.queue;
    let what = format!(
        "{waits} leaves the quorum queue `{queue}` for classic ones, `{queue}.retry.*`, which one node \
         of a cluster has alone: if that is lost for good, so is what waits there"
    );
    Some(Finding::warning(what, help).in_pipeline(key))
}

fn unasked(trouble: Trouble) -> Finding {
    Finding::from(trouble.open_error(false)).at("management_url")
}

/// Whether the queue is there; an error if it has to be and is not, or is otherwise than it would be declared.
async fn queue_is_there(line: &Line, topology: &Topology) -> Result<bool, Finding> {
    let Topology { queue, declare, .. } = topology;
    let makes = declare.as_ref().is_some_and(|declare| !declare.passive);
    if queue.is_empty() {
        return Ok(false);
    }
    let name = short("queue", queue).map_err(|trouble| at(trouble, "queue"))?;
    let looked = topology
        .declare_on(&channel(line).await?, name.clone(), true)
        .await;
    match looked {
        Ok(_) if makes => {
            let compared = topology.declare_on(&channel(line).await?, name, false).await;
            compared.map_err(|error| at(topology.declaring(&error), "declare"))?;
            Ok(true)
        }
        Ok(_) => Ok(true),
        Err(error) if trouble::is_missing(&error) && makes => Ok(false),
        Err(error) if trouble::is_missing(&error) => {
            let help = "make it, or let `declare` make it";
            Err(Finding::error(format!("there is no queue `{queue}`"), help).at("queue"))
        }
        Err(error) => Err(at(topology.declaring(&error), "queue")),
    }
}

async fn exchange_is_there(line: &Line, name: &str) -> Result<bool, Finding> {
    // The default exchange is always there and must not be asked for.
    if name.is_empty() {
        return Ok(true);
    }
    let options = ExchangeDeclareOptions {
        passive: true,
        ..ExchangeDeclareOptions::default()
    };
    let name = short("exchange", name).map_err(|trouble| at(trouble, "exchange"))?;
    let asked = channel(line).await?;
    let answer = asked
        .exchange_declare(name, ExchangeKind::Direct, options, FieldTable::default())
        .await;
    match answer {
        Ok(()) => Ok(true),
        Err(error) if trouble::reply(&error).is_some_and(|(reply, _)| reply == code::NOT_FOUND) => Ok(false),
        Err(error) => Err(Finding::from(Trouble::from(error).open_error(false))),
    }
}

async fn channel(line: &Line) -> Result<lapin::Channel, Finding> {
    let unavailable = |trouble: Trouble| Finding::from(OpenError::Unavailable(trouble.text)).at("url");
    line.channel().await.map_err(unavailable)
}

fn at(trouble: Trouble, key: &str) -> Finding {
    Finding::from(trouble.open_error(false)).at(key)
}

impl Known {
    /// What the declaration says, which the broker has then compared.
    fn declared(topology: &Topology) -> Self {
        let text = |name| topology.argument(name).map(str::to_owned);
        let number = |name: &str| match topology.declare.as_ref()?.arguments.inner().get(name)? {
            AMQPValue::LongLongInt(number) => Some(*number),
            AMQPValue::LongInt(number) => Some(i64::from(*number)),
            _ => None,
        };
        let kind = match text("x-queue-type") {
            None if topology.declares_classic() => "classic".to_owned(),
            kind => kind.unwrap_or_default(),
        };
        Self {
            kind,
            members: None,
            dead_letter_exchange: text("x-dead-letter-exchange"),
            delivery_limit: number("x-delivery-limit"),
            consumer_timeout: number("x-consumer-timeout").and_then(millis),
        }
    }

    /// This and what was asked for, which knows more.
    fn and(self, asked: Option<Self>) -> Self {
        let Some(asked) = asked else {
            return self;
        };
        Self {
            kind: asked.kind,
            members: asked.members,
            dead_letter_exchange: asked.dead_letter_exchange.or(self.dead_letter_exchange),
            // With several, the lowest counts.
            delivery_limit: asked.delivery_limit.into_iter().chain(self.delivery_limit).min(),
            consumer_timeout: asked.consumer_timeout.or(self.consumer_timeout),
        }
    }
}

/// So many milliseconds, if it is a number of them.
pub(crate) fn millis(number: i64) -> Option<Duration> {
    u64::try_from(number).ok().map(Duration::from_millis)
}

impl ReaderSettings {
    /// What the management API knows of the queue.
    #[cfg(feature = "management")]
    async fn known(&self) -> Result<Option<Known>, Trouble> {
        let Some(management) = self.management()? else {
            return Ok(None);
        };
        let Some(mut known) = management.queue(self.dial.vhost(), &self.topology.queue).await? else {
            return Ok(None);
        };
        if known.kind == "quorum" && known.delivery_limit.is_none() && management.series().await? >= 4 {
            known.delivery_limit = Some(DELIVERY_LIMIT);
        }
        Ok(Some(known))
    }

    #[cfg(not(feature = "management"))]
    async fn known(&self) -> Result<Option<Known>, Trouble> {
        Ok(None)
    }
}
