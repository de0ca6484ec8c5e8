//! What a permit is worth where a breaker turns between a take and the end of its runs.

use std::sync::Arc;

use super::breaker::{BreakerState, Runs};
use super::hub::Hub;
use super::probes::Permit;
use crate::flow::Flow;
use crate::memory::MemoryQueue;
use crate::processor::{Context, Processor};
use crate::rt::{self, Duration};
use crate::spec::{BreakerSpec, PipelineSpec};

const OPEN_FOR: Duration = Duration::from_secs(5);

struct NoOp;

impl Processor for NoOp {
    type Input = ();
    type Output = ();

    async fn process(&self, (): (), _: &mut Context<'_>) -> Result<(), crate::Failure> {
        Ok(())
    }
}

fn hub() -> Hub {
    let mut spec = PipelineSpec::new("test", Arc::new(MemoryQueue::new()), Flow::process(NoOp));
    spec.breaker = Some(BreakerSpec::default());
    Hub::new(spec)
}

/// How many of a hundred may be taken, and with what.
fn take(hub: &Hub) -> (usize, Permit) {
    let mut permit = Permit::default();
    let number = hub.may_take(100, &mut |_| false, &mut permit);
    (number, permit)
}

fn runs(succeeded: usize, failed: usize) -> Runs {
    Runs {
        succeeded,
        failed,
        slow: 0,
    }
}

/// A hub whose breaker has just half-opened, and what was permitted before it opened.
async fn half_open() -> (Hub, Permit) {
    let hub = hub();
    let (number, before) = take(&hub);
    assert_eq!((number, before.probe.is_none()), (100, true));
    hub.record(&before, runs(0, 20));
    assert_eq!(hub.breakers.own(), Some(BreakerState::Open));
    assert_eq!(take(&hub).0, 0);
    tokio::time::advance(OPEN_FOR).await;
    hub.breakers.tick(rt::now());
    (hub, before)
}

#[tokio::test(start_paused = true)]
async fn what_was_permitted_before_the_breaker_opened_is_no_probe_and_ends_none() {
    let (hub, before) = half_open().await;
    let (number, probe) = take(&hub);
    assert_eq!((number, probe.probe.is_some()), (1, true));
    hub.record(&before, runs(50, 0));
    hub.record(&before, runs(0, 50));
    drop(before);
    assert_eq!(hub.breakers.own(), Some(BreakerState::HalfOpen));
    assert_eq!(take(&hub).0, 0, "the probe runs");
    hub.record(&probe, runs(0, 1));
    assert_eq!(hub.breakers.own(), Some(BreakerState::Open));
}

#[tokio::test(start_paused = true)]
async fn a_probe_ends_where_it_is_dropped_and_ends_no_other() {
    let (hub, _) = half_open().await;
    let (_, first) = take(&hub);
    assert_eq!(take(&hub).0, 0);
    drop(first);
    let (number, slow) = take(&hub);
    assert_eq!(number, 1);
    tokio::time::advance(OPEN_FOR).await;
    let (number, second) = take(&hub);
    assert_eq!(number, 1, "one that takes too long does not hold the next back");
    drop(slow);
    assert_eq!(take(&hub).0, 0, "the second runs on");
    for _ in 0..3 {
        hub.record(&second, runs(1, 0));
    }
    assert_eq!(hub.breakers.own(), Some(BreakerState::Closed));
}
