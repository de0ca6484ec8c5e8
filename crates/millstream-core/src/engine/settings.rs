//! What may change while a pipeline runs: [`Settings`], and how that is done.
//!
//! The spec in the hub stays what the pipeline was started with: of it, source, sinks, flow, ordering and dead letter
//! hold until it is started again. Everything here is read where it is needed, numbers of the hot path as atomics, so
//! that a change holds from then on. Limits, retries, rate, breakers, batchers and the number of workers keep their own.
//!
//! There are two books: what the pipeline is started with, and what holds in this run. A change that somebody makes while
//! it runs is in the second alone; one of the spec goes into both, key by key, and leaves all other keys as they are.

use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

use super::hub::Hub;
use crate::rt::Duration;
use crate::spec::{PipelineSpec, ProcessorSpec, SupervisorSpec};

/// The settings that may change while the pipeline runs, as they are now.
#[derive(Debug)]
pub(crate) struct Settings {
    /// All of them, as they hold now. How many workers there are may follow latency and errors.
    live: Mutex<PipelineSpec>,
    max_demand: AtomicUsize,
    per_key: AtomicUsize,
    /// Nanoseconds.
    timeout: AtomicU64,
    supervisor: RwLock<SupervisorSpec>,
}

impl Settings {
    pub(crate) fn new(spec: &PipelineSpec) -> Self {
        let settings = Self {
            live: Mutex::new(spec.clone()),
            max_demand: AtomicUsize::new(0),
            per_key: AtomicUsize::new(0),
            timeout: AtomicU64::new(0),
            supervisor: RwLock::new(spec.supervisor),
        };
        settings.set(spec);
        settings
    }

    fn set(&self, spec: &PipelineSpec) {
        self.max_demand.store(spec.processor.max_demand.get(), Relaxed);
        self.per_key.store(spec.limits.per_key.get(), Relaxed);
        let timeout = u64::try_from(spec.processor.timeout.as_nanos());
        self.timeout.store(timeout.unwrap_or(u64::MAX), Relaxed);
        *self.supervisor.write() = spec.supervisor;
    }

    /// The most that a worker takes at a time.
    pub(crate) fn max_demand(&self) -> usize {
        self.max_demand.load(Relaxed)
    }

    /// How many may wait in a lane.
    pub(crate) fn per_key(&self) -> usize {
        self.per_key.load(Relaxed)
    }

    /// How long the processor may run on a message.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_nanos(self.timeout.load(Relaxed))
    }

    pub(crate) fn supervisor(&self) -> SupervisorSpec {
        *self.supervisor.read()
    }
}

impl Hub {
    /// The settings that hold now.
    pub(crate) fn live(&self) -> PipelineSpec {
        self.settings.live.lock().clone()
    }

    /// From now on these settings hold: those that may change. Nothing that is in flight is lost over it.
    pub(crate) fn apply(&self, spec: PipelineSpec) {
        self.settings.set(&spec);
        self.places.set(spec.limits);
        *self.retry.write() = spec.retry;
        self.budget.set(spec.retry.budget);
        self.rate_limit.send_if_modified(|limit| {
            let differs = *limit != spec.rate_limit;
            limit.clone_from(&spec.rate_limit);
            differs
        });
        for (step, batcher) in self.steps().iter().zip(self.batchers()) {
            let settings = spec.batchers.get(&step.name).cloned().unwrap_or_default();
            batcher.set(self, settings, spec.limits);
        }
        self.breakers.set(spec.breaker, &spec.dependencies);
        if let (Some(sequence), Some(spec)) = (&self.sequence, &spec.sequence) {
            sequence.set(spec);
        }
        self.wake_all();
        let processor = spec.processor;
        let before = std::mem::replace(&mut *self.settings.live.lock(), spec).processor;
        self.set_workers(before, processor);
        // A message may wait for room in its lane.
        self.ready.lane_room.notify_one();
    }

    fn set_workers(&self, before: ProcessorSpec, spec: ProcessorSpec) {
        let most = spec.concurrency.get();
        match spec.adapts_from {
            _ if (before.concurrency, before.adapts_from) == (spec.concurrency, spec.adapts_from) => {}
            Some(least) => self
                .adaptive
                .adapt(least.get(), most, |workers| self.resize(workers)),
            None => self.adaptive.fix(|| self.resize(most)),
        }
        // Batchers may want others too.
        self.resized.notify_one();
    }
}

/// A setting that has changed while its pipeline ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting, by the name of its key in the TOML.
    pub key: String,
    /// What it was.
    pub from: String,
    /// What it is now.
    pub to: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} -> {}", self.key, self.from, self.to)
    }
}

/// Takes over into `kept` what may change while a pipeline runs, and says what of it is different. That goes into `live`
/// too; what is the same stays there as it is.
pub(crate) fn take_over(
    kept: &mut PipelineSpec,
    live: &mut PipelineSpec,
    from: &PipelineSpec,
) -> Vec<Change> {
    let mut changes = Changes(Vec::new());
    macro_rules! take {
        ($($($part:ident).+),* $(,)?) => {
            $(changes.take(
                stringify!($($part).+),
                [&mut kept.$($part).+, &mut live.$($part).+],
                &from.$($part).+,
            );)*
        };
    }
    take!(
        limits.in_flight,
        limits.bytes,
        limits.per_key,
        limits.per_batcher,
        processor.concurrency,
        processor.adapts_from,
        processor.max_demand,
        processor.timeout,
        retry.attempts,
        retry.max_deliveries,
        retry.backoff,
        retry.factor,
        retry.max_backoff,
        retry.jitter,
        retry.max_age,
        retry.budget,
        rate_limit,
        breaker,
        dependencies,
        supervisor.max_restarts,
        supervisor.within,
        supervisor.on_give_up,
        supervisor.backoff,
        supervisor.factor,
        supervisor.max_backoff,
        supervisor.jitter,
        supervisor.stall_after,
    );
    if let (Some(kept), Some(live), Some(from)) = (&mut kept.sequence, &mut live.sequence, &from.sequence) {
        changes.take("sequence.held", [&mut kept.held, &mut live.held], &from.held);
        changes.take("sequence.wait", [&mut kept.wait, &mut live.wait], &from.wait);
    }
    let PipelineSpec { flow, batchers, .. } = kept;
    // One that the flow does not have is for whoever checks the spec to find.
    let unknown = |name: &String| !flow.steps().iter().any(|step| step.name == *name);
    for (name, spec) in from.batchers.iter().filter(|(name, _)| unknown(name)) {
        batchers.insert(name.clone(), spec.clone());
    }
    for step in flow.steps() {
        let from = from.batchers.get(&step.name).cloned().unwrap_or_default();
        let kept = batchers.entry(step.name.clone()).or_default();
        let live = live.batchers.entry(step.name.clone()).or_default();
        macro_rules! take {
            ($($part:ident),*) => {
                $(changes.take(
                    &format!("batchers.{}.{}", step.name, stringify!($part)),
                    [&mut kept.$part, &mut live.$part],
                    &from.$part,
                );)*
            };
        }
        take!(size, bytes, max_age, timeout, concurrency, bisect);
    }
    changes.0
}

struct Changes(Vec<Change>);

impl Changes {
    fn take<T: Clone + PartialEq + fmt::Debug>(&mut self, key: &str, [kept, live]: [&mut T; 2], from: &T) {
        if kept != from {
            self.0.push(Change {
                key: key.to_owned(),
                from: format!("{kept:?}"),
                to: format!("{from:?}"),
            });
            kept.clone_from(from);
            live.clone_from(from);
        }
    }
}
