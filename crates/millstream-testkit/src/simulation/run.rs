//! One run: processes that start on one broker, are meddled with, die, and start again, until faults stop and
//! everything has to come to rest.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_core::rt::{self, Instant};
use millstream_core::simulation::enter;
use millstream_core::{
    BatcherSpec, BreakerSpec, DeadLetter, DrainReport, Host, Limits, Ordering, Pipeline, PipelineSpec,
    ProcessorSpec, RateLimit, Rebalance, RetrySpec, Scope, SharedFlow, SupervisorSpec,
};
use tokio::runtime::Builder;

use super::connector::Door;
use super::letters::Mailbox;
use super::plan::{Letters, Order, Plan, Rate, Step, ms};
use super::script::{TENANT, group};
use super::world::{Event, Violation, World, Written};

/// Everything has to come to rest within this time once faults have stopped.
const REST: Duration = Duration::from_secs(900);
/// How often the model looks whether what may run does.
const LOOK: Duration = ms(250);
/// A drain with time enough.
const LAST: Duration = Duration::from_secs(25);
/// What a drain may take beyond its deadline: tasks are waited for a moment.
const GRACE: Duration = ms(250);

/// Makes the flow for a process.
pub(super) type MakeFlow<'a> = &'a dyn Fn(&World, u32, &Plan) -> SharedFlow;
/// Changes the settings that a seed has chosen.
pub(super) type Settings<'a> = &'a dyn Fn(&mut PipelineSpec);

/// What a run came to.
#[derive(Debug)]
pub(super) struct Outcome {
    pub(super) violation: Option<Violation>,
    pub(super) fingerprint: u64,
    pub(super) met: BTreeSet<&'static str>,
    pub(super) messages: usize,
    /// The log, a line for each event.
    pub(super) log: Vec<String>,
}

/// Runs one seed. The log is written out where it is wanted, or a promise is broken.
pub(super) fn run(
    seed: u64,
    plan: &Plan,
    messages: Vec<Written>,
    flow: MakeFlow<'_>,
    settings: Settings<'_>,
    log: bool,
) -> Outcome {
    let world = World::new(seed, plan.clone());
    let mut rest = Script {
        messages: messages.into_iter(),
        steps: plan.steps.clone().into_iter(),
        bursts: plan.bursts,
    };
    let messages = rest.messages.len();
    loop {
        let runtime = Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build();
        let Ok(runtime) = runtime else {
            world.lock().violate("P6", "no runtime could be built");
            break;
        };
        let watched = world.clone();
        let process = world.lock().process + 1;
        // A process that was started again goes another way than the last one.
        let inside = enter(seed ^ (u64::from(process) << 32), plan.lateness, move |seen| {
            watched.see(process, &seen);
        });
        let over = runtime.block_on(async {
            let over = process_of(&world, plan, flow, settings, &mut rest).await;
            world.lock().die();
            over
        });
        drop(runtime);
        drop(inside);
        let mut state = world.lock();
        state.close();
        state.model.reset();
        if over || state.violation.is_some() {
            break;
        }
    }
    let state = world.lock();
    let wanted = log || state.violation.is_some();
    Outcome {
        violation: state.violation.clone(),
        fingerprint: state.fingerprint(),
        met: state.met.clone(),
        messages,
        log: if wanted {
            state
                .events
                .iter()
                .map(|(at, event)| format!("{:>10.3} {event:?}", at.as_secs_f64()))
                .collect()
        } else {
            Vec::new()
        },
    }
}

/// What is still to be done in a run, whatever process it is done to.
struct Script {
    messages: std::vec::IntoIter<Written>,
    steps: std::vec::IntoIter<(Duration, Step)>,
    bursts: usize,
}

/// One process, from its start to its death or to the end of the run. Says whether it is over.
async fn process_of(
    world: &World,
    plan: &Plan,
    flow: MakeFlow<'_>,
    settings: Settings<'_>,
    rest: &mut Script,
) -> bool {
    let process = {
        let mut state = world.lock();
        state.boot();
        state.process
    };
    let mut spec = spec(world, process, plan, flow(world, process, plan));
    settings(&mut spec);
    {
        let mut state = world.lock();
        let limits = spec.limits;
        state.plan.in_flight = limits.in_flight.get();
        state.plan.bytes = limits.bytes.get();
        state.plan.per_key = limits.per_key.get();
        state.plan.concurrency = spec.processor.concurrency.get();
        state.plan.attempts = spec.retry.attempts.get();
        state.plan.breaker = spec.breaker.is_some() || !spec.dependencies.is_empty();
    }
    let host = match Host::start([spec]) {
        Ok(host) => host,
        Err(error) => {
            world
                .lock()
                .violate("P6", format!("the pipeline does not start: {error}"));
            return true;
        }
    };
    let Some(pipeline) = host.pipelines().next() else {
        return true;
    };
    world.lock().pipeline = Some(pipeline.clone());
    let script = play(world, &pipeline, rest);
    tokio::select! {
        biased;
        () = world.dying() => false,
        () = script => true,
        never = watch(world) => never,
    }
}

/// Looks every now and then whether what may run does.
async fn watch(world: &World) -> bool {
    loop {
        rt::sleep(LOOK).await;
        let pipeline = world.lock().pipeline.clone();
        let status = pipeline.map(|pipeline| pipeline.status());
        let serving = status.filter(|status| {
            matches!(
                status.condition,
                millstream_core::Condition::Running | millstream_core::Condition::Paused
            )
        });
        // What has died may still wait for its restart, longer each time.
        let gone = serving.map(|status| usize::try_from(status.counts.restarts).unwrap_or(usize::MAX));
        world.lock().check_progress(gone);
        world.look();
    }
}

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap_or(NonZeroUsize::MIN)
}

fn number32(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)
}

/// The pipeline that a plan describes.
fn spec(world: &World, process: u32, plan: &Plan, flow: SharedFlow) -> PipelineSpec {
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
            bisect: false,
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
    spec.supervisor = SupervisorSpec {
        max_restarts: 10_000,
        ..SupervisorSpec::default()
    };
    spec
}

/// Does what is still to be done, lets everything come to rest, drains, and compares.
async fn play(world: &World, pipeline: &Pipeline, rest: &mut Script) {
    loop {
        burst(world, rest);
        let Some((after, step)) = rest.steps.next() else {
            break;
        };
        rt::sleep(after).await;
        world.lock().note(Event::Step(step));
        take(world, pipeline, step).await;
    }
    while rest.messages.len() > 0 {
        burst(world, rest);
    }
    {
        let mut state = world.lock();
        state.calm = true;
        state.broker.publishing = false;
        state.note(Event::Calm);
    }
    world.wake_readers();
    let by = rt::now() + REST;
    loop {
        if world.lock().broker.is_at_rest() {
            break;
        }
        if rt::now() > by {
            let status = pipeline.status();
            let mut state = world.lock();
            let left = state.broker.left();
            let some: Vec<_> = left.iter().take(10).cloned().collect();
            let what = format!(
                "{} never end, such as {}; {status:?}",
                left.len(),
                some.join(", ")
            );
            return state.violate("P1", what);
        }
        rt::sleep(ms(100)).await;
    }
    drain(world, pipeline, LAST).await;
    world.lock().check_fates();
}

/// Publishes the next part of the messages.
fn burst(world: &World, rest: &mut Script) {
    let some = rest.messages.len().div_ceil(rest.bursts.max(1));
    rest.bursts = rest.bursts.saturating_sub(1);
    {
        let mut state = world.lock();
        for written in rest.messages.by_ref().take(some) {
            state.publish(written);
        }
    }
    world.wake_readers();
}

async fn take(world: &World, pipeline: &Pipeline, step: Step) {
    let until = |lasts| world.lock().now() + lasts;
    match step {
        Step::Crash => {
            world.lock().met("crash");
            world.crash();
            std::future::pending::<()>().await;
        }
        Step::Disconnect => {
            let (generations, engine) = {
                let mut state = world.lock();
                state.met("disconnect");
                (state.disconnect(), state.engine.clone())
            };
            for generation in &generations {
                if let Some(engine) = &engine {
                    engine.lost(Scope::Generation(*generation));
                }
            }
            world.lock().model.tell(&generations);
            world.wake_readers();
        }
        Step::SourceFails => {
            let mut state = world.lock();
            state.broker.trouble.read_fails = true;
            state.broker.trouble.opens_fail = state.rng.u32(..3);
            drop(state);
            world.wake_readers();
        }
        Step::Revoke { within } => rebalance(world, Some(within)).await,
        Step::LosePartition => rebalance(world, None).await,
        Step::Pause { lasts } => {
            world.lock().met("pause");
            pipeline.pause();
            rt::sleep(lasts).await;
            pipeline.resume();
        }
        Step::Drain { within } => {
            world.lock().met("drain");
            drain(world, pipeline, within).await;
            start(world, pipeline);
        }
        Step::Stop => {
            world.lock().met("stop");
            drain(world, pipeline, Duration::ZERO).await;
            start(world, pipeline);
        }
        Step::SlowAcks { lasts } => world.lock().broker.trouble.slow_acks = until(lasts),
        Step::FailingAcks { lasts } => world.lock().broker.trouble.failing_acks = until(lasts),
        Step::SlowLetters { lasts } => world.lock().broker.trouble.slow_letters = until(lasts),
        Step::FailingLetters { lasts } => world.lock().broker.trouble.failing_letters = until(lasts),
    }
}

fn start(world: &World, pipeline: &Pipeline) {
    world.lock().model.reset();
    if let Err(error) = pipeline.start() {
        world
            .lock()
            .violate("P6", format!("a drained pipeline does not start again: {error}"));
    }
}

/// A partition goes to another member, in good order or without, and comes back.
async fn rebalance(world: &World, within: Option<Duration>) {
    let (number, generation, origin, engine) = {
        let mut state = world.lock();
        let many = state.broker.partitions.len().max(1);
        let number = state.rng.usize(..many);
        let origin = state.broker.origins.get(number).copied().unwrap_or_default();
        let Some(generation) = state
            .broker
            .partitions
            .get(number)
            .and_then(|partition| partition.assigned)
        else {
            return;
        };
        state.met(if within.is_some() {
            "revoked partition"
        } else {
            "lost partition"
        });
        let Some(engine) = state.engine.clone() else {
            return;
        };
        (number, generation, origin, engine)
    };
    let scope = Scope::Origin(origin, generation);
    let fence = || {
        let mut state = world.lock();
        // It may have been opened anew meanwhile.
        let same = state
            .broker
            .partitions
            .get(number)
            .is_some_and(|partition| partition.assigned == Some(generation));
        if same {
            state.commit(number);
            state.lose(|ticket| ticket.generation == generation);
            if let Some(partition) = state.broker.partitions.get_mut(number) {
                partition.assigned = None;
            }
        }
        same
    };
    let ours = match within {
        Some(within) => {
            // Nothing is fetched from a partition that is about to go.
            {
                let mut state = world.lock();
                state.broker.hold(number);
                // What has not started is dropped, and nothing of it is in flight any more.
                state.model.withdraw(generation);
            }
            engine.revoke(scope, rt::now() + within).await;
            engine.rebalanced(Rebalance::Revoked);
            fence()
        }
        None => {
            let ours = fence();
            engine.lost(scope);
            engine.rebalanced(Rebalance::Lost);
            ours
        }
    };
    world.lock().model.tell(&[generation]);
    world.look();
    let away = ms(world.lock().rng.u64(..300));
    rt::sleep(away).await;
    if ours {
        let mut state = world.lock();
        let gone = state
            .broker
            .partitions
            .get(number)
            .is_some_and(|partition| partition.assigned.is_none());
        if gone {
            state.assign(number);
        }
    }
    world.wake_readers();
}

/// P6, P8: drains, and compares what the pipeline reports and has counted with what the broker has seen.
async fn drain(world: &World, pipeline: &Pipeline, within: Duration) {
    let began: Instant = rt::now();
    world.lock().left_behind = None;
    let report = if within.is_zero() {
        pipeline.stop().await
    } else {
        pipeline.drain(within).await
    };
    let took = began.elapsed();
    let counts = pipeline.status().counts;
    let mut state = world.lock();
    state.note(Event::Drained(report.to_string()));
    let most = if within.is_zero() {
        Duration::from_secs(2)
    } else {
        within
    } + GRACE;
    if took > most {
        state.violate("P6", format!("a drain within {within:?} took {took:?}"));
    }
    let DrainReport {
        in_flight,
        done,
        given_up,
        released,
        lost,
        left,
        ..
    } = report;
    if in_flight != done + given_up + released + lost + left {
        state.violate("P6", format!("the report does not add up: {report}"));
    }
    // A link that was down when the drain began has left before.
    let (behind, unheard) = state.left_behind.unwrap_or((0, state.model.unheard()));
    let (behind, unheard) = (behind as u64, unheard as u64);
    let now = state.now();
    // With its source, a pipeline loses what the source gave.
    let trouble = &state.broker.trouble;
    let source_failed = trouble.read_failed;
    let troubled = [trouble.slow_acks, trouble.failing_acks]
        .into_iter()
        .any(|until| until + within + ms(2_000) > now && !until.is_zero());
    // What had not started went with a source that failed.
    let gone = if source_failed { lost } else { 0 };
    if behind > left + gone {
        state.violate(
            "P6",
            format!("{behind} messages are out at the broker after a drain that left {left}"),
        );
    }
    if left > behind + unheard {
        state.violate(
            "P6",
            format!("a drain left {left} messages, and {behind} are out at the broker"),
        );
    } else if behind > 0 && !troubled && !source_failed {
        state.violate(
            "P6",
            format!("a drain left {left} messages though the broker took every settlement"),
        );
    }
    let tally = state.model.tally;
    let pairs = [
        ("received", counts.received, tally.received),
        ("acked", counts.acked, tally.acked),
        ("rejected", counts.rejected, tally.rejected),
        ("released", counts.released, tally.released),
        ("returned", counts.returned, tally.returned),
        ("stale", counts.stale, tally.stale),
        ("settle_retries", counts.settle_retries, tally.failed_settlements),
        ("processed", counts.processed, tally.processed),
        ("failed", counts.failed, tally.failed),
        ("settled_early", counts.settled_early, tally.settled_early),
        ("dead_lettered", counts.dead_lettered, tally.dead_lettered),
        ("put_off", counts.put_off, tally.put_off),
    ];
    for (name, counted, seen) in pairs {
        if counted != seen {
            state.violate("P8", format!("`{name}` is {counted}, and {seen} were seen"));
        }
    }
    // The engine's own checks of its promises.
    for (sentinel, times) in pipeline.measures().sentinels {
        if times > 0 {
            state.violate(sentinel.promise(), format!("{sentinel}, {times} times"));
        }
    }
    drop(state);
    world.look();
}
