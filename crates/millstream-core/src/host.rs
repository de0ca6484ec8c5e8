//! Many pipelines by name in one process: [`Host`].

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use thiserror::Error;
use tokio::sync::watch;
use tracing::warn;

use crate::dedup::{IdBy, Ids};
use crate::engine::{
    BreakerState, Change, Counts, DrainReport, End, Hub, Order, Stall, Supervisor, take_over,
};
use crate::flow::Step;
use crate::measures::Measures;
use crate::rt::{self, Duration};
use crate::spec::{OnGiveUp, Ordering, PipelineSpec, RetryStrategy};

/// The pipelines of a process. Cheap to clone; every clone speaks of the same ones.
///
/// It runs in the tokio runtime in which it is started. Dropping it stops nothing: [`drain`](Self::drain) it.
#[derive(Clone, Debug)]
pub struct Host(Arc<RwLock<BTreeMap<Arc<str>, Pipeline>>>);

/// Why a host, or a pipeline, did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A caught panic is part of what is promised.
    #[error(
        "built with panic = \"abort\": a panic in a handler would end the process; build with panic = \"unwind\""
    )]
    PanicAbort,
    /// Two pipelines have one name.
    #[error("two pipelines are named `{0}`: give each a name of its own")]
    SameName(String),
    /// Specification and flow do not fit.
    #[error("pipeline `{pipeline}`: {cause}")]
    Pipeline {
        /// The pipeline's name.
        pipeline: String,
        /// What does not fit.
        cause: String,
    },
    /// It runs already.
    #[error("pipeline `{0}` is running already")]
    Running(String),
}

impl PipelineSpec {
    /// Whether its parts fit each other, as a start finds out first.
    ///
    /// # Errors
    /// [`StartError::Pipeline`] says what does not.
    pub fn check(&self) -> Result<(), StartError> {
        prepare(self).map(drop)
    }
}

impl Host {
    /// Starts these pipelines in the current tokio runtime.
    ///
    /// A pipeline whose broker cannot be reached starts nonetheless, and is degraded until it can.
    ///
    /// # Errors
    /// See [`StartError`]; nothing has been started then.
    pub fn start(specs: impl IntoIterator<Item = PipelineSpec>) -> Result<Self, StartError> {
        if cfg!(panic = "abort") {
            return Err(StartError::PanicAbort);
        }
        let mut pipelines = BTreeMap::new();
        for spec in specs {
            let name = Arc::clone(&spec.name);
            if pipelines.insert(Arc::clone(&name), Pipeline::new(spec)).is_some() {
                return Err(StartError::SameName(name.to_string()));
            }
        }
        let prepared: Vec<_> = pipelines
            .values()
            .map(|pipeline| prepare(&pipeline.0.spec.read()))
            .collect::<Result<_, _>>()?;
        for (pipeline, prepared) in pipelines.values().zip(prepared) {
            pipeline.launch(&mut pipeline.0.state.lock(), prepared);
        }
        Ok(Self(Arc::new(RwLock::new(pipelines))))
    }

    /// The pipeline of this name.
    pub fn pipeline(&self, name: &str) -> Option<Pipeline> {
        self.0.read().get(name).cloned()
    }

    /// All pipelines that there are now, by name.
    pub fn pipelines(&self) -> impl Iterator<Item = Pipeline> + use<> {
        let pipelines: Vec<_> = self.0.read().values().cloned().collect();
        pipelines.into_iter()
    }

    /// Starts one more pipeline.
    ///
    /// # Errors
    /// See [`StartError`]; it has not been started then.
    pub fn add(&self, spec: PipelineSpec) -> Result<Pipeline, StartError> {
        let prepared = prepare(&spec)?;
        let name = Arc::clone(&spec.name);
        let pipeline = Pipeline::new(spec);
        let mut pipelines = self.0.write();
        match pipelines.entry(name) {
            Entry::Occupied(other) => Err(StartError::SameName(other.key().to_string())),
            Entry::Vacant(free) => {
                pipeline.launch(&mut pipeline.0.state.lock(), prepared);
                Ok(free.insert(pipeline).clone())
            }
        }
    }

    /// Drains this pipeline within this time (P6), and knows it no more then. `None` where there is none of that name.
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on, and the pipeline stays known.
    pub async fn remove(&self, name: &str, within: Duration) -> Option<DrainReport> {
        let report = self.pipeline(name)?.drain(within).await;
        self.0.write().remove(name);
        Some(report)
    }

    /// Drains all pipelines at once, within this time in all (P6).
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on; ask again for its reports.
    pub async fn drain(&self, within: Duration) -> Vec<(Arc<str>, DrainReport)> {
        let order = Order::within(within);
        for pipeline in self.pipelines() {
            pipeline.order(order);
        }
        let mut reports = Vec::new();
        for pipeline in self.pipelines() {
            if let Some(end) = pipeline.ended().await {
                reports.push((Arc::clone(&pipeline.0.name), end.report));
            }
        }
        reports
    }

    /// Cuts short a drain that is under way, or begins one: nothing runs on, everything goes back.
    pub fn release_now(&self) {
        for pipeline in self.pipelines() {
            pipeline.order(Order::now());
        }
    }

    /// Waits until every pipeline has ended, or one has given up that ends the process with it.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn ended(&self) {
        loop {
            let mut changes: Vec<_> = self
                .pipelines()
                .map(|pipeline| pipeline.0.state.lock().end.subscribe())
                .collect();
            let ends: Vec<_> = changes
                .iter_mut()
                .map(|change| change.borrow_and_update().clone())
                .collect();
            let fatal = self.pipelines().zip(&ends).any(|(pipeline, end)| {
                pipeline.0.spec.read().supervisor.on_give_up == OnGiveUp::Exit
                    && end.as_ref().is_some_and(|end| end.gave_up.is_some())
            });
            if fatal || ends.iter().all(Option::is_some) {
                return;
            }
            let mut waits: Vec<_> = changes
                .iter_mut()
                .map(|change| Box::pin(change.changed()))
                .collect();
            std::future::poll_fn(|cx| {
                if waits.iter_mut().any(|wait| wait.as_mut().poll(cx).is_ready()) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            })
            .await;
        }
    }

    /// Waits until nothing has been in flight and nothing has arrived for this long, in every running pipeline.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self, quiet: Duration) {
        for pipeline in self.pipelines() {
            pipeline.idle(quiet).await;
        }
        // One may have been busy again while another was waited for.
        while !self.pipelines().all(|pipeline| pipeline.is_idle(quiet)) {
            for pipeline in self.pipelines() {
                pipeline.idle(quiet).await;
            }
        }
    }
}

/// One pipeline of a [`Host`]: starts, stops, pauses, resumes and drains alone. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Pipeline(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    /// What it is started with next; of the run that is under way, what may change holds already.
    spec: RwLock<PipelineSpec>,
    state: Mutex<Current>,
}

/// The run that is under way, or the last one.
#[derive(Debug)]
struct Current {
    hub: Arc<Hub>,
    orders: watch::Sender<Option<Order>>,
    end: watch::Sender<Option<End>>,
}

type Prepared = (Arc<Hub>, crate::engine::Machine);

/// How long a stop hook may take where the drain leaves it no more.
const STOP_HOOK: Duration = Duration::from_secs(2);

/// Says how a run has ended, also when its task dies.
struct Ending {
    end: watch::Sender<Option<End>>,
    how: Option<End>,
}

impl Drop for Ending {
    fn drop(&mut self) {
        let how = self.how.take().unwrap_or_else(|| End {
            report: DrainReport::default(),
            gave_up: Some("a hook or a sink panicked while the pipeline started or ended".to_owned()),
        });
        self.end.send_replace(Some(how));
    }
}

/// Whether the parts of a pipeline fit.
fn fits(spec: &PipelineSpec) -> Result<(), StartError> {
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
    if matches!(spec.dead_letter, crate::DeadLetter::Source) && !spec.source.capabilities().keeps_rejected {
        return Err(error(
            "its source keeps no rejected messages: name a dead letter".to_owned(),
        ));
    }
    if matches!(spec.dead_letter, crate::DeadLetter::Halt) && !spec.source.capabilities().halts {
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
        if sequence.held >= spec.limits.in_flight {
            return Err(error(
                "what a sequence holds would fill the limit in flight: hold fewer".to_owned(),
            ));
        }
    }
    Ok(())
}

/// What a pipeline runs on, if its parts fit.
fn prepare(spec: &PipelineSpec) -> Result<Prepared, StartError> {
    fits(spec)?;
    let hub = Arc::new(Hub::new(spec.clone()));
    let machine = spec.flow.build(&hub).map_err(|cause| StartError::Pipeline {
        pipeline: spec.name.to_string(),
        cause,
    })?;
    let _ = hub.batchers.set(machine.batchers.clone());
    Ok((hub, machine))
}

impl Pipeline {
    fn new(spec: PipelineSpec) -> Self {
        let hub = Arc::new(Hub::new(spec.clone()));
        let state = Current {
            hub,
            orders: watch::Sender::new(None),
            end: watch::Sender::new(None),
        };
        Self(Arc::new(Inner {
            name: Arc::clone(&spec.name),
            spec: RwLock::new(spec),
            state: Mutex::new(state),
        }))
    }

    fn launch(&self, current: &mut Current, (hub, machine): Prepared) {
        let orders = watch::Sender::new(None);
        let end = watch::Sender::new(None);
        let supervisor = Supervisor::new(Arc::clone(&hub), machine, orders.subscribe());
        let flow = self.0.spec.read().flow.clone();
        let mut ending = Ending {
            end: end.clone(),
            how: None,
        };
        let mut ordered = orders.subscribe();
        let kept = orders.clone();
        *current = Current {
            hub: Arc::clone(&hub),
            orders,
            end,
        };
        rt::spawn(async move {
            // A host that is dropped orders nothing.
            let _kept = kept;
            let started = tokio::select! {
                biased;
                started = flow.on_start() => Some(started),
                _ = ordered.wait_for(Option::is_some) => None,
            };
            ending.how = Some(match started {
                Some(Ok(())) => supervisor.run().await,
                Some(Err(failure)) => End {
                    report: DrainReport::default(),
                    gave_up: Some(format!("its start hook failed: {failure}")),
                },
                None => End {
                    report: DrainReport::default(),
                    gave_up: None,
                },
            });
            let in_time = ordered
                .borrow_and_update()
                .map_or(STOP_HOOK, |order| order.rest().max(STOP_HOOK));
            tokio::select! {
                biased;
                stopped = flow.on_stop() => {
                    if let Err(failure) = stopped {
                        warn!(pipeline = hub.name(), %failure, "the stop hook failed");
                    }
                }
                () = rt::sleep(in_time) => warn!(pipeline = hub.name(), "the stop hook did not end in time"),
            }
            drop(ending);
        });
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Starts it again after it has ended.
    ///
    /// # Errors
    /// [`StartError::Running`] while it has not.
    pub fn start(&self) -> Result<(), StartError> {
        let prepared = prepare(&self.0.spec.read())?;
        let mut state = self.0.state.lock();
        if state.end.borrow().is_none() {
            return Err(StartError::Running(self.name().to_owned()));
        }
        self.launch(&mut state, prepared);
        Ok(())
    }

    /// Takes over from this spec what may change while the pipeline runs and is different from the spec that it has, at
    /// once, and says what that is: of limits; `concurrency`, `max_demand` and `timeout` of the processor; all of the
    /// batchers but their sinks; the schedule of retries; rate limit; breakers; `held` and `wait` of a sequence; and the
    /// supervisor's settings. Nothing in
    /// flight is lost over it: limits that are lower than what is there let it go on and fetch nothing meanwhile, and workers
    /// that are too many end with their message. What was [changed](Self::change) in this run stays, where the spec says of
    /// it what it said before.
    ///
    /// The rest of the spec is not looked at: name, ordering, source, flow, sinks, dead letter and the strategy of retries,
    /// for which there is [`restart`](Self::restart). A pipeline that has ended starts with the changes.
    ///
    /// # Errors
    /// [`StartError::Pipeline`] where the settings do not fit the flow or each other; nothing has changed then.
    pub fn apply(&self, spec: &PipelineSpec) -> Result<Vec<Change>, StartError> {
        let state = self.0.state.lock();
        let mut kept = self.0.spec.write();
        let (mut next, mut live) = (kept.clone(), state.hub.live());
        let changes = take_over(&mut next, &mut live, spec);
        fits(&next)?;
        if !changes.is_empty() {
            fits(&live)?;
            state.hub.apply(live);
            *kept = next;
        }
        Ok(changes)
    }

    /// Changes settings of this run: `set` is given those that hold now, and of what it makes of them all holds from now on
    /// that [`apply`](Self::apply) takes over. A later [`start`](Self::start) begins with its spec again.
    ///
    /// ```
    /// # use std::num::NonZeroUsize;
    /// # use millstream_core::{Pipeline, StartError};
    /// # fn example(pipeline: &Pipeline) -> Result<(), StartError> {
    /// pipeline.change(|spec| {
    ///     spec.rate_limit = None;
    ///     spec.processor.concurrency = NonZeroUsize::new(64).unwrap();
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As of [`apply`](Self::apply).
    pub fn change(&self, set: impl FnOnce(&mut PipelineSpec)) -> Result<Vec<Change>, StartError> {
        let mut before = self.hub().live();
        let mut wanted = before.clone();
        set(&mut wanted);
        let state = self.0.state.lock();
        // Others may have changed something meanwhile.
        let mut live = state.hub.live();
        let changes = take_over(&mut before, &mut live, &wanted);
        fits(&before)?;
        if !changes.is_empty() {
            fits(&live)?;
            state.hub.apply(live);
        }
        Ok(changes)
    }

    /// Drains it within this time (P6) and starts it again with this spec, under the name that it has.
    ///
    /// # Errors
    /// See [`StartError`]; where the parts of the spec do not fit, the pipeline runs on as it is.
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on, and the pipeline is not started again.
    pub async fn restart(&self, spec: PipelineSpec, within: Duration) -> Result<DrainReport, StartError> {
        let spec = PipelineSpec {
            name: Arc::clone(&self.0.name),
            ..spec
        };
        let prepared = prepare(&spec)?;
        let report = self.drain(within).await;
        let mut state = self.0.state.lock();
        if state.end.borrow().is_none() {
            return Err(StartError::Running(self.name().to_owned()));
        }
        *self.0.spec.write() = spec;
        self.launch(&mut state, prepared);
        Ok(report)
    }

    /// Stops fetching; what is in flight goes on.
    pub fn pause(&self) {
        self.hub().gate.change(|gate| gate.paused = true);
    }

    /// Fetches again.
    pub fn resume(&self) {
        self.hub().gate.change(|gate| gate.paused = false);
    }

    /// Stops fetching, lets what is in flight end, and gives back what has not by two seconds before the time is
    /// up (P6). The pipeline has ended then; [`start`](Self::start) starts it again.
    ///
    /// # Cancel safety
    /// Cancel safe: the drain goes on.
    pub async fn drain(&self, within: Duration) -> DrainReport {
        self.order(Order::within(within));
        self.ended().await.map(|end| end.report).unwrap_or_default()
    }

    /// Ends it at once: nothing runs on, everything goes back to the source.
    ///
    /// # Cancel safety
    /// Cancel safe: the stop goes on.
    pub async fn stop(&self) -> DrainReport {
        self.order(Order::now());
        self.ended().await.map(|end| end.report).unwrap_or_default()
    }

    fn order(&self, order: Order) {
        self.0.state.lock().orders.send_replace(Some(order));
    }

    async fn ended(&self) -> Option<End> {
        let mut end = self.0.state.lock().end.subscribe();
        end.wait_for(Option::is_some).await.ok()?.clone()
    }

    /// Waits until nothing has been in flight and nothing has arrived for this long, or it has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn idle(&self, quiet: Duration) {
        let hub = self.hub();
        let mut end = self.0.state.lock().end.subscribe();
        let idle = async {
            loop {
                hub.places.until(|places| places.idle_since().is_some()).await;
                let Some(since) = hub.places.idle_since() else {
                    continue;
                };
                if since.elapsed() >= quiet {
                    return;
                }
                tokio::select! {
                    biased;
                    () = hub.places.until(|places| places.idle_since() != Some(since)) => {}
                    () = rt::sleep_until(since + quiet) => {}
                }
            }
        };
        tokio::select! {
            biased;
            _ = end.wait_for(Option::is_some) => {}
            () = idle => {}
        }
    }

    fn is_idle(&self, quiet: Duration) -> bool {
        let state = self.0.state.lock();
        state.end.borrow().is_some()
            || state
                .hub
                .places
                .idle_since()
                .is_some_and(|since| since.elapsed() >= quiet)
    }

    /// How it is now.
    pub fn status(&self) -> Status {
        let (hub, end) = {
            let state = self.0.state.lock();
            (Arc::clone(&state.hub), state.end.borrow().clone())
        };
        let gate = hub.gate.state();
        let degraded = hub.degradations();
        let faults = hub.faults();
        let condition = match end {
            Some(End {
                gave_up: Some(why), ..
            }) => Condition::GaveUp(why),
            Some(_) => Condition::Ended,
            None if gate.draining => Condition::Draining,
            None if !faults.is_empty() => Condition::Degraded([faults, degraded].concat().join("; ")),
            None if gate.paused => Condition::Paused,
            None if !degraded.is_empty() => Condition::Degraded(degraded.join("; ")),
            None if !hub.places.has_source() => Condition::Starting,
            None => Condition::Running,
        };
        let load = hub.ready.load();
        Status {
            condition,
            counts: hub.counts(),
            in_flight: hub.places.messages(),
            bytes: hub.places.bytes(),
            ready: load.ready,
            waiting: load.waiting,
            parked: load.parked,
            held: load.aside + hub.sequence.as_ref().map_or(0, crate::engine::Sequence::held),
            running: load.running,
            concurrency: hub.ready.seats(),
            lanes: load.lanes,
            batchers: hub
                .batchers()
                .iter()
                .map(|batcher| (batcher.name().to_owned(), batcher.held()))
                .collect(),
            depth: hub.depth(),
            halted: hub.halts(),
            stalled: hub.stalled.lock().clone(),
            breaker: hub.breakers.own(),
        }
    }

    /// What it has measured since it was started, stage by stage.
    pub fn measures(&self) -> Measures {
        self.hub().measures()
    }

    fn hub(&self) -> Arc<Hub> {
        Arc::clone(&self.0.state.lock().hub)
    }
}

/// How a pipeline is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// In one word.
    pub condition: Condition,
    /// What has happened since it was started.
    pub counts: Counts,
    /// Messages fetched and not yet settled.
    pub in_flight: usize,
    /// Bytes of the same.
    pub bytes: usize,
    /// Messages that may run now.
    pub ready: usize,
    /// Messages that wait behind others of their key.
    pub waiting: usize,
    /// Messages between two attempts.
    pub parked: usize,
    /// Messages that wait for another one: for what comes of one with their id, or for one that is missing before them.
    pub held: usize,
    /// Messages taken by workers.
    pub running: usize,
    /// Messages that may be processed at a time now; none once it has ended.
    pub concurrency: usize,
    /// Keys that have a message at work.
    pub lanes: usize,
    /// Messages that each batcher holds, by its name.
    pub batchers: Vec<(String, usize)>,
    /// The pipeline's own breaker, where it has one; those of dependencies are among the [`Measures`].
    pub breaker: Option<BreakerState>,
    /// Messages that wait at the source, handed out to nobody, where it says so.
    pub depth: Option<u64>,
    /// Places of the source, such as partitions, that stand still at a message that was given up:
    /// [`DeadLetter::Halt`](crate::DeadLetter::Halt).
    pub halted: usize,
    /// What moves no more although it should: [`SupervisorSpec::stall_after`](crate::SupervisorSpec::stall_after).
    pub stalled: Option<Stall>,
}

/// A pipeline's condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It has not opened its source yet.
    Starting,
    /// It runs.
    Running,
    /// It runs, but a part of it cannot do its work; this says which and why.
    Degraded(String),
    /// It fetches nothing because somebody said so.
    Paused,
    /// It is ending.
    Draining,
    /// It was drained or stopped.
    Ended,
    /// It ended by itself; this says why.
    GaveUp(String),
}

impl Condition {
    /// The words for all of them.
    pub const WORDS: [&'static str; 7] = [
        "starting", "running", "degraded", "paused", "draining", "ended", "gave_up",
    ];

    /// It in a word that metrics can carry.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Degraded(_) => "degraded",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Ended => "ended",
            Self::GaveUp(_) => "gave_up",
        }
    }
}

/// It for people, with its cause where there is one.
impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Degraded(why) => write!(f, "degraded: {why}"),
            Self::GaveUp(why) => write!(f, "gave up: {why}"),
            other => f.write_str(other.as_str()),
        }
    }
}
