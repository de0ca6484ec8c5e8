//! What a pipeline asks of SQS, compared with what the queue says: [`source`].

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName as Attribute;
use millstream_core::{DeadLetter, Facts, Finding, OpenError};
use serde_json::Value;

use crate::address::Address;
use crate::service::{Kind, Service, Trouble};

/// The longest that SQS lets a delivery be kept, whatever it is told.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// A redrive policy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Redrive {
    /// The ARN of the dead-letter queue.
    pub(crate) target: String,
    /// After so many receives SQS itself moves a message there.
    most: Option<u64>,
}

impl Redrive {
    /// That of these attributes, if there is one.
    pub(crate) fn of(attributes: &HashMap<Attribute, String>) -> Option<Self> {
        let policy: Value = serde_json::from_str(attributes.get(&Attribute::RedrivePolicy)?).ok()?;
        let most = policy.get("maxReceiveCount");
        Some(Self {
            target: policy.get("deadLetterTargetArn")?.as_str()?.to_owned(),
            // As a number or as a string, as it was set.
            most: most.and_then(|most| most.as_u64().or_else(|| most.as_str()?.parse().ok())),
        })
    }
}

/// What there is to say of this queue, whose deliveries are hidden for so long.
pub(crate) async fn source(
    address: &Address,
    service: &Service,
    attributes: &HashMap<Attribute, String>,
    visibility: Duration,
    facts: &Facts<'_>,
) -> Vec<Finding> {
    let mut found = shown_too_early(address, visibility, facts);
    let redrive = Redrive::of(attributes);
    found.extend(too_few_receives(address, redrive.as_ref(), facts));
    if matches!(facts.pipeline.dead_letter, DeadLetter::Source) {
        match redrive {
            None => found.push(
                Finding::error(
                    format!("{address} has no redrive policy, so nothing would keep what is given up"),
                    "set one, or name a `dead_letter`, or write dead_letter = \"discard\"",
                )
                .at(address.key()),
            ),
            Some(Redrive { target, .. }) => {
                if let Err(trouble) = service.sibling(&target).await {
                    found.push(missing(
                        trouble,
                        &format!("the dead-letter queue {target}"),
                        address.key(),
                    ));
                }
            }
        }
    }
    found
}

/// Where a delivery may be shown to others while it is worked on.
fn shown_too_early(address: &Address, visibility: Duration, facts: &Facts<'_>) -> Vec<Finding> {
    let pipeline = facts.pipeline;
    let seconds = visibility.as_secs();
    let mut found = Vec::new();
    let mut compare = |who: &str, timeout: Duration, key: &[&str]| {
        if timeout > visibility {
            let what = format!(
                "{who} may run for {timeout:?}, and {address} hides a message for {seconds}s: it is another's as soon as a \
                 process stalls for that long and its heartbeats fail"
            );
            let help = format!(
                "set `visibility_timeout` to more than {timeout:?}, here or at the queue, or lower `timeout`"
            );
            found.push(Finding::warning(what, help).in_pipeline(key.iter().copied()));
        }
    };
    compare(
        "the handler",
        pipeline.processor.timeout,
        &["processor", "timeout"],
    );
    for (name, batcher) in &pipeline.batchers {
        let key = ["batchers", name, "timeout"];
        compare(&format!("a batch of `{name}`"), batcher.timeout, &key);
    }
    let hold = facts.longest_hold();
    if hold > LONGEST {
        let what = format!(
            "attempts, the waits between them and batches may keep a message for {}s, and SQS takes it back after {}s \
             whatever is asked",
            hold.as_secs(),
            LONGEST.as_secs()
        );
        let help =
            "lower `timeout`, `attempts` or a batcher's `max_age`, or write retry.strategy = \"redeliver\"";
        found.push(Finding::warning(what, help).in_pipeline(["processor", "timeout"]));
    }
    found
}

fn too_few_receives(address: &Address, redrive: Option<&Redrive>, facts: &Facts<'_>) -> Option<Finding> {
    let limit = redrive?.most?;
    let most = facts.pipeline.retry.max_deliveries.get();
    (limit < u64::from(most)).then(|| {
        let what = format!(
            "SQS moves a message of {address} to its dead-letter queue after {limit} receives, before the pipeline gives it \
             up after {most}"
        );
        let help = format!("set `max_deliveries` to {limit} at most, or raise `maxReceiveCount` of the redrive policy");
        Finding::warning(what, help).in_pipeline(["retry", "max_deliveries"])
    })
}

/// What came in the way of a look at a queue, said of the key that names it.
pub(crate) fn missing(trouble: Trouble, what: &str, key: &str) -> Finding {
    match trouble.kind {
        Kind::Missing => Finding::error(format!("{what} is not there"), "make it, or name another").at(key),
        _ => Finding::from(OpenError::from(trouble.of(what))).at(key),
    }
}
