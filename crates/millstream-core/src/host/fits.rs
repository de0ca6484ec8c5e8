//! Whether the parts of a pipeline's specification fit each other.

use super::StartError;
use super::pipeline::prepare;
use crate::dedup::{IdBy, Ids};
use crate::flow::Step;
use crate::ordering::Ordering;
use crate::spec::{DeadLetter, PipelineSpec, RetryStrategy};

impl PipelineSpec {
    /// Whether its parts fit each other, as a start finds out first.
    ///
    /// # Errors
    /// [`StartError::Pipeline`] says what does not.
    pub fn check(&self) -> Result<(), StartError> {
        prepare(self).map(drop)
    }
}

/// Whether the parts of a pipeline fit.
pub(super) fn fits(spec: &PipelineSpec) -> Result<(), StartError> {
    let error = |cause: String| StartError::Pipeline {
        pipeline: spec.name.to_string(),
        cause,
    };
    let steps = spec.flow.steps();
    for (index, step) in steps.iter().enumerate() {
        if Step::RESERVED.contains(&&*step.name) {
            return Err(error(format!(
                "a batcher cannot be named `{}`: another stage is",
                step.name
            )));
        }
        if steps.iter().skip(index + 1).any(|other| other.name == step.name) {
            return Err(error(format!("its flow has two batchers `{}`", step.name)));
        }
    }
    for name in spec.batchers.keys() {
        if !steps.iter().any(|step| step.name == *name) {
            return Err(error(format!("its flow has no batcher `{name}`")));
        }
    }
    if matches!(spec.dead_letter, DeadLetter::Source) && !spec.source.capabilities().keeps_rejected {
        return Err(error(
            "its source keeps no rejected messages: name a dead letter".to_owned(),
        ));
    }
    if matches!(spec.dead_letter, DeadLetter::Halt) && !spec.source.capabilities().halts {
        return Err(error(
            "its source cannot stop at a message: name a dead letter, or discard".to_owned(),
        ));
    }
    if spec.retry.strategy == RetryStrategy::Redeliver {
        let capabilities = spec.source.capabilities();
        if !capabilities.delay && spec.source.retry_sink().is_none() {
            return Err(error(
                "its source cannot hold a message back: retry in place".to_owned(),
            ));
        }
        if spec.ordering.is_ordered() && !capabilities.orders_keys {
            return Err(error("redelivery breaks the order: retry in place".to_owned()));
        }
    }
    if spec
        .deduplicate
        .as_ref()
        .is_some_and(|deduplicate| matches!(deduplicate.by, IdBy::Source))
        && spec.source.capabilities().ids == Ids::None
    {
        return Err(error(
            "its source gives messages no id: deduplicate by a header or a value in the payload".to_owned(),
        ));
    }
    if spec.deduplicate.is_some() && spec.source.capabilities().transacts {
        return Err(error(
            "its source settles in transactions: what is undone with one would count as done".to_owned(),
        ));
    }
    if let Some(sequence) = &spec.sequence {
        if !matches!(spec.ordering, Ordering::Key | Ordering::By(_)) {
            return Err(error(
                "a sequence is of a key's messages: order by key".to_owned(),
            ));
        }
        if spec.source.capabilities().leases_singly {
            return Err(error(
                "its source leases each message by itself, so a sequence would find no gap: remove it"
                    .to_owned(),
            ));
        }
        if sequence.held >= spec.limits.in_flight {
            return Err(error(
                "what a sequence holds would fill the limit in flight: hold fewer".to_owned(),
            ));
        }
    }
    Ok(())
}
