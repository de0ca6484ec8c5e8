//! One pipeline, to whoever looks after it: [`Pipeline`].

use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tracing::warn;

use super::fits::fits;
use super::{Condition, StartError, Status};
use crate::engine::{Change, DrainReport, End, Hub, Machine, Order, Supervisor, take_over};
use crate::measures::Measures;
use crate::rt::{self, Duration};
use crate::spec::{OnGiveUp, PipelineSpec};

/// One pipeline of a [`Host`](super::Host): starts, stops, pauses, resumes and drains alone. Cheap to clone.
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

pub(super) type Prepared = (Arc<Hub>, Machine);

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

/// What a pipeline runs on, if its parts fit.
pub(super) fn prepare(spec: &PipelineSpec) -> Result<Prepared, StartError> {
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
    pub(super) fn new(spec: PipelineSpec) -> Self {
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

    /// What its next run takes, if its parts fit.
    pub(super) fn prepare(&self) -> Result<Prepared, StartError> {
        prepare(&self.0.spec.read())
    }

    /// Begins its first run.
    pub(super) fn begin(&self, prepared: Prepared) {
        self.launch(&mut self.0.state.lock(), prepared);
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

    pub(super) fn shared_name(&self) -> Arc<str> {
        Arc::clone(&self.0.name)
    }

    /// Whether the process is to end if it gives up.
    pub(super) fn ends_the_process(&self) -> bool {
        self.0.spec.read().supervisor.on_give_up == OnGiveUp::Exit
    }

    /// How the run that is under way ends, once it has.
    pub(super) fn ends(&self) -> watch::Receiver<Option<End>> {
        self.0.state.lock().end.subscribe()
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
        let mut state = self.0.state.lock();
        if state.end.borrow().is_none() {
            return Err(StartError::Running(self.name().to_owned()));
        }
        let prepared = self.prepare()?;
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

    pub(super) fn order(&self, order: Order) {
        self.0.state.lock().orders.send_replace(Some(order));
    }

    pub(super) async fn ended(&self) -> Option<End> {
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

    pub(super) fn is_idle(&self, quiet: Duration) -> bool {
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
