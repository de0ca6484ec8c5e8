//! One run: processes that start on one broker, are meddled with, die, and start again, until faults stop and
//! everything has to come to rest.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use millstream_core::rt;
use millstream_core::simulation::enter;
use millstream_core::{Host, Pipeline, PipelineSpec, SharedFlow};
use tokio::runtime::Builder;

use super::drain::drain;
use super::plan::{Plan, Step, ms};
use super::settings::{LONGEST_RESTART, spec};
use super::steps::{mend, take};
use super::world::{Event, Violation, World, Written};

/// Everything has to come to rest within this time once faults have stopped.
const REST: Duration = Duration::from_secs(900);
/// How often the model looks whether what may run does.
const LOOK: Duration = ms(250);
/// Looks within which what has died is there again, and has begun to run.
const LATELY: usize = 2 + LONGEST_RESTART.as_millis().div_ceil(LOOK.as_millis()) as usize;
/// A drain with time enough.
const LAST: Duration = Duration::from_secs(25);

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
    let mut looks = VecDeque::new();
    loop {
        rt::sleep(LOOK).await;
        let pipeline = world.lock().pipeline.clone();
        let status = pipeline.map(|pipeline| pipeline.status());
        let serving = status.as_ref().is_some_and(|status| {
            matches!(
                status.condition,
                millstream_core::Condition::Running | millstream_core::Condition::Paused
            )
        });
        // What died of late may still wait for its restart, each time for one worker.
        let restarts = status.map_or(0, |status| status.counts.restarts);
        looks.push_back(restarts);
        let before = if looks.len() > LATELY {
            looks.pop_front()
        } else {
            None
        };
        let lately = usize::try_from(restarts.saturating_sub(before.unwrap_or(0))).unwrap_or(usize::MAX);
        let gone = serving.then_some(lately);
        world.lock().check_progress(gone);
        world.look();
    }
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
        mend(world).await;
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
        mend(world).await;
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
            state.publish_again();
        }
    }
    world.wake_readers();
}
