//! What is asked of SQS: [`Calls`], which a client tells of each call.

use std::ops::Sub;
use std::sync::Arc;

use millstream_core::rt::{self, Instant};
use millstream_sqs::aws_sdk_sqs::config::interceptors::{
    BeforeSerializationInterceptorContextRef as Before, FinalizerInterceptorContextRef as After,
};
use millstream_sqs::aws_sdk_sqs::config::{ConfigBag, Intercept, RuntimeComponents};
use millstream_sqs::aws_sdk_sqs::error::BoxError;
use millstream_sqs::aws_sdk_sqs::operation::delete_message_batch::{
    DeleteMessageBatchInput, DeleteMessageBatchOutput,
};
use millstream_sqs::aws_sdk_sqs::operation::receive_message::{ReceiveMessageInput, ReceiveMessageOutput};
use parking_lot::Mutex;

/// Receives, deletions, and whatever else is called.
pub(crate) const KINDS: usize = 3;
const RECEIVES: usize = 0;
const DELETIONS: usize = 1;
const OTHERS: usize = 2;

/// Counts calls by their kind. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    since: Instant,
    kinds: Arc<Mutex<[Kind; KINDS]>>,
}

/// Calls of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Kind {
    pub(crate) calls: f64,
    /// What they brought or took.
    pub(crate) messages: f64,
    under_way: f64,
    /// Seconds for which they were under way, all together.
    pub(crate) seconds: f64,
}

impl Sub for Kind {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            calls: self.calls - before.calls,
            messages: self.messages - before.messages,
            under_way: self.under_way,
            seconds: self.seconds - before.seconds,
        }
    }
}

impl Calls {
    pub(crate) fn new() -> Self {
        Self {
            since: rt::now(),
            kinds: Arc::default(),
        }
    }

    /// What was counted until now.
    pub(crate) fn so_far(&self) -> [Kind; KINDS] {
        let now = self.since.elapsed().as_secs_f64();
        self.kinds.lock().map(|kind| Kind {
            seconds: kind.seconds + kind.under_way * now,
            ..kind
        })
    }

    /// A call of this kind begins, or ends. What is under way counts from the beginning of all, less when it began.
    fn note(&self, kind: usize, begins: bool, messages: usize) {
        let now = self.since.elapsed().as_secs_f64();
        if let Some(kind) = self.kinds.lock().get_mut(kind) {
            let sign = if begins { 1.0 } else { -1.0 };
            kind.calls += if begins { 1.0 } else { 0.0 };
            kind.messages += messages as f64;
            kind.under_way += sign;
            kind.seconds -= sign * now;
        }
    }
}

impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn read_before_execution(&self, context: &Before<'_>, _: &mut ConfigBag) -> Result<(), BoxError> {
        let input = context.input();
        if input.downcast_ref::<ReceiveMessageInput>().is_some() {
            self.note(RECEIVES, true, 0);
        } else if let Some(input) = input.downcast_ref::<DeleteMessageBatchInput>() {
            self.note(DELETIONS, true, input.entries().len());
        } else {
            self.note(OTHERS, true, 0);
        }
        Ok(())
    }

    fn read_after_execution(
        &self,
        context: &After<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        // Its input is used up by now. One that fails stays under way: a run with failures is none to be compared.
        let Some(Ok(output)) = context.output_or_error() else {
            return Ok(());
        };
        if let Some(output) = output.downcast_ref::<ReceiveMessageOutput>() {
            self.note(RECEIVES, false, output.messages().len());
        } else if output.downcast_ref::<DeleteMessageBatchOutput>().is_some() {
            self.note(DELETIONS, false, 0);
        } else {
            self.note(OTHERS, false, 0);
        }
        Ok(())
    }
}
