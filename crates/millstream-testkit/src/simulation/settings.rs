//! The pipeline that a plan describes.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::{
    BatcherSpec, BreakerSpec, DeadLetter, DeduplicateSpec, IdBy, Limits, OnGap, OrderBy, Ordering,
    PipelineSpec, ProcessorSpec, RateLimit, RetrySpec, SequenceSpec, SharedFlow, SupervisorSpec,
};

use super::connector::Door;
use super::letters::Mailbox;
use super::plan::{Letters, Order, Plan, Rate, ms};
use super::script::{NUMBER, TENANT, group};
use super::twins::{ID, Ids};
use super::world::World;

/// How long what has died may wait for its restart.
pub(super) const LONGEST_RESTART: Duration = Duration::from_secs(1);

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

fn number32(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

/// The pipeline that a plan describes.
pub(super) fn spec(world: &World, process: u32, plan: &Plan, flow: SharedFlow) -> PipelineSpec {
    let capabilities = plan.broker.capabilities();
    let door = Door {
        world: world.clone(),
        process,
        capabilities,
        // What holds places needs none, unless it is to redeliver.
        puts_off: !capabilities.delay,
    };
    let steps = flow.steps().to_vec();
    let mut spec = PipelineSpec::new("simulated", Arc::new(door), flow);
    spec.ordering = match plan.ordering {
        Order::None => Ordering::None,
        Order::Key => Ordering::Key,
        Order::Header => Ordering::By(Arc::new(|message| group(message).map(Bytes::copy_from_slice))),
        Order::Partition => Ordering::Partition,
    };
    spec.limits = Limits {
        in_flight: number(plan.in_flight),
        bytes: number(plan.bytes),
        per_key: number(plan.per_key),
        per_batcher: plan.per_batcher,
    };
    spec.processor = ProcessorSpec {
        concurrency: number(plan.concurrency),
        max_demand: number(plan.max_demand),
        timeout: plan.timeout,
        adapts_from: plan.adapts_from.map(number),
    };
    for (index, step) in steps.iter().enumerate() {
        let Some(batches) = plan.batchers.get(index % plan.batchers.len().max(1)) else {
            continue;
        };
        let batcher = BatcherSpec {
            size: number(batches.size),
            bytes: number(batches.bytes),
            max_age: batches.max_age,
            timeout: batches.timeout,
            concurrency: number(batches.concurrency),
            bisect: plan.features.bisects,
            sink: step.sink.then(|| Mailbox::outputs(world, process)),
        };
        spec.batchers.insert(step.name.clone(), batcher);
    }
    spec.retry = RetrySpec {
        attempts: number32(plan.attempts),
        max_deliveries: number32(plan.max_deliveries),
        backoff: plan.backoff,
        factor: 2.0,
        max_backoff: Duration::from_secs(30),
        jitter: true,
        strategy: plan.strategy,
        max_age: None,
        budget: None,
    };
    spec.dead_letter = match plan.letters {
        Letters::Source => DeadLetter::Source,
        Letters::Sink => DeadLetter::Sink(Mailbox::dead_letters(world, process)),
        Letters::Discard => DeadLetter::Discard,
        Letters::Halt => DeadLetter::Halt,
    };
    spec.breaker = plan.breaker.then(|| BreakerSpec {
        failure_rate: 0.3,
        window: Duration::from_secs(1),
        minimum: number32(5),
        open_for: ms(300),
        probes: number32(2),
        ..BreakerSpec::default()
    });
    let rate = |messages, burst, key: Option<&str>| RateLimit {
        messages: number32(messages),
        per: Duration::from_secs(1),
        burst: number32(burst),
        key: key.map(str::to_owned),
        weights: BTreeMap::new(),
    };
    spec.rate_limit = match plan.rate {
        Rate::Nothing => None,
        Rate::Pipeline => Some(rate(400, 50, None)),
        Rate::Keys => Some(rate(100, 20, Some(TENANT))),
    };
    let header = |name: &'static str| -> OrderBy {
        Arc::new(move |message| {
            let value = message.headers.get(name)?;
            Some(Bytes::copy_from_slice(value.as_bytes()))
        })
    };
    spec.deduplicate = plan.features.deduplicates.map(|policy| DeduplicateSpec {
        by: IdBy::By(header(ID)),
        window: policy.window,
        store: Arc::new(Ids {
            world: world.clone(),
            process,
        }),
        on_store_failure: policy.on_store_failure,
    });
    spec.sequence = plan.features.sequence.map(|policy| SequenceSpec {
        on_gap: if policy.holds { OnGap::Hold } else { OnGap::Report },
        held: number(policy.held),
        wait: policy.wait,
        ..SequenceSpec::new(header(NUMBER))
    });
    spec.supervisor = SupervisorSpec {
        max_restarts: 10_000,
        max_backoff: LONGEST_RESTART,
        ..SupervisorSpec::default()
    };
    spec
}
