//! One pipeline under its supervisor: it starts the tasks, restarts what dies, and drains.

use std::fmt;
use std::sync::Arc;

use rustc_hash::FxHashSet;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::any_batcher::AnyBatcher;
use super::drain::{Beginning, DrainReport, Order};
use super::hub::{Hub, SOURCE};
use super::link::{self, LinkEnd};
use super::restarts::Restarts;
use super::{balance, drain, outbox, text_of, timers, watchdog};
use crate::connector::Opened;
use crate::future::BoxFuture;
use crate::mutants::{Mutant, mutant};
use crate::rt::{self, Instant, Tasks};
use crate::spec::DeadLetter;

/// What a flow is made into for one pipeline: the parts whose types matter to user code alone.
pub(crate) struct Machine {
    /// Makes the worker for a seat.
    pub(crate) worker: Box<dyn Fn(usize) -> BoxFuture<'static, ()> + Send + Sync>,
    pub(crate) batchers: Vec<Arc<dyn AnyBatcher>>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("batchers", &self.batchers)
            .finish_non_exhaustive()
    }
}

/// A task of a pipeline. Each is restarted alone; the link to the broker is source and acknowledger together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Child {
    Link,
    Worker(usize),
    BatchWorker(usize, usize),
    DeadLetters,
    Retries,
    Timers,
    Watchdog,
}

/// How a task ended, when it ended by itself.
#[derive(Debug)]
enum Exit {
    Ended,
    Link(LinkEnd),
}

/// What a supervisor acts on.
enum Event {
    Exited((Child, Result<Exit, rt::Died>)),
    /// A restart has waited long enough.
    Due(Child),
    /// There are to be more workers, or fewer.
    Resized,
}

/// How a pipeline ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub(crate) report: DrainReport,
    /// Why it gave up, if it did.
    pub(crate) gave_up: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Supervisor {
    hub: Arc<Hub>,
    machine: Machine,
    orders: watch::Receiver<Option<Order>>,
    tasks: Tasks<Child, Exit>,
    restarts: Restarts,
    /// The workers and batch workers that there are, also those that wait for their restart.
    seated: FxHashSet<Child>,
}

impl Supervisor {
    pub(crate) fn new(hub: Arc<Hub>, machine: Machine, orders: watch::Receiver<Option<Order>>) -> Self {
        Self {
            hub,
            machine,
            orders,
            tasks: Tasks::default(),
            restarts: Restarts::default(),
            seated: FxHashSet::default(),
        }
    }

    /// Runs the pipeline until it is ordered to drain or gives up.
    pub(crate) async fn run(mut self) -> End {
        let gave_up = match self.start().await {
            Ok(()) => self.serve().await.err(),
            Err(refused) => Some(refused),
        };
        if let Some(why) = &gave_up {
            error!(pipeline = self.hub.name(), cause = %why, "pipeline gives up");
        }
        let order = match &gave_up {
            Some(_) => Order::now(),
            None => (*self.orders.borrow_and_update()).unwrap_or_else(Order::now),
        };
        let (report, deadline) = self.drain(order).await;
        info!(pipeline = self.hub.name(), "{report}");
        // The source may have to tell its broker that it leaves.
        self.tasks.stop(|child| child == Child::Link, deadline).await;
        End { report, gave_up }
    }

    /// Opens what the pipeline needs, and starts its tasks.
    async fn start(&mut self) -> Result<(), String> {
        for batcher in &self.machine.batchers {
            tokio::select! {
                biased;
                started = batcher.start() => {
                    started.map_err(|failure| format!("batcher `{}`: {failure}", batcher.name()))?;
                }
                _ = self.orders.wait_for(Option::is_some) => return Ok(()),
            }
        }
        let hub = Arc::clone(&self.hub);
        // While the broker cannot be reached there is nothing to drain.
        let opened = tokio::select! {
            biased;
            opened = link::open(&hub) => opened?,
            _ = self.orders.wait_for(Option::is_some) => return Ok(()),
        };
        self.fill_seats();
        self.spawn(Child::DeadLetters, None);
        self.spawn(Child::Retries, None);
        self.spawn(Child::Timers, None);
        self.spawn(Child::Watchdog, None);
        self.spawn(Child::Link, Some(opened));
        info!(pipeline = hub.name(), "running");
        Ok(())
    }

    /// Starts a worker in each seat that may take and has none, and the batch workers that are wanted.
    fn fill_seats(&mut self) {
        let workers = (0..self.hub.ready.seats()).map(Child::Worker);
        let batchers = self.machine.batchers.iter().enumerate();
        let batch_workers = batchers.flat_map(|(index, batcher)| {
            (0..batcher.concurrency()).map(move |worker| Child::BatchWorker(index, worker))
        });
        let wanted: Vec<_> = workers.chain(batch_workers).collect();
        for child in wanted {
            if self.seated.insert(child) {
                self.spawn(child, None);
            }
        }
    }

    fn spawn(&mut self, child: Child, opened: Option<Opened>) {
        let hub = Arc::clone(&self.hub);
        let task: BoxFuture<'static, Exit> = match child {
            Child::Link => Box::pin(async move { Exit::Link(link::run(hub, opened).await) }),
            Child::Worker(seat) => ending((self.machine.worker)(seat)),
            Child::BatchWorker(index, worker) => match self.machine.batchers.get(index) {
                Some(batcher) => ending(Arc::clone(batcher).work(hub, worker)),
                None => return,
            },
            Child::DeadLetters => match &hub.spec.dead_letter {
                DeadLetter::Sink(connector) => {
                    let connector = Arc::clone(connector);
                    ending(Box::pin(outbox::run(hub, connector, |hub| &hub.dead_letters)))
                }
                DeadLetter::Source | DeadLetter::Discard | DeadLetter::Halt => return,
            },
            Child::Retries => match &hub.retry_sink {
                Some(connector) => {
                    let connector = Arc::clone(connector);
                    ending(Box::pin(outbox::run(hub, connector, |hub| &hub.retries)))
                }
                None => return,
            },
            Child::Timers => ending(Box::pin(timers::run(hub))),
            Child::Watchdog => ending(Box::pin(watchdog::run(hub))),
        };
        self.tasks.spawn(child, task);
    }

    /// Keeps the tasks running until the pipeline is ordered to drain.
    async fn serve(&mut self) -> Result<(), String> {
        loop {
            let event = tokio::select! {
                biased;
                _ = self.orders.wait_for(Option::is_some) => return Ok(()),
                () = self.hub.resized.notified() => Event::Resized,
                exited = self.tasks.next() => Event::Exited(exited),
                child = self.restarts.due() => Event::Due(child),
            };
            match event {
                Event::Exited(exited) => self.replace(exited)?,
                Event::Due(child) => self.spawn(child, None),
                Event::Resized => self.fill_seats(),
            }
        }
    }

    /// Has what has died started again after a while, unless that has happened too often. A drain waits for nothing.
    fn replace(&mut self, (child, exit): (Child, Result<Exit, rt::Died>)) -> Result<(), String> {
        let cause = match exit {
            Ok(Exit::Ended) => {
                // Its seat may be wanted again by now.
                if self.seated.remove(&child) {
                    self.fill_seats();
                }
                return Ok(());
            }
            Ok(Exit::Link(LinkEnd::Refused(why))) => return Err(why),
            Ok(Exit::Link(LinkEnd::Failed(error))) => error.to_string(),
            Err(rt::Died::Panicked(panic)) => format!("panicked: {}", text_of(&*panic)),
            Err(rt::Died::Killed) => "was killed".to_owned(),
        };
        let spec = self.hub.settings.supervisor();
        let Some(wait) = self.restarts.next(&spec, child) else {
            return Err(format!(
                "{child:?} {cause}: more than {} restarts within {:?}",
                spec.max_restarts, spec.within
            ));
        };
        self.hub.counters.restarts.add(1);
        let draining = self.hub.is_draining();
        let wait = if draining { rt::Duration::ZERO } else { wait };
        warn!(pipeline = self.hub.name(), ?child, %cause, ?wait, "restarting");
        if child == Child::Link {
            self.hub.lose_all();
        }
        if mutant(Mutant::SeatLost) && matches!(child, Child::Worker(_)) {
            return Ok(());
        }
        if wait.is_zero() {
            self.spawn(child, None);
            return Ok(());
        }
        if child == Child::Link {
            self.hub.degraded(SOURCE, Some(&cause));
        }
        self.restarts.wait(child, rt::after(wait));
        Ok(())
    }

    /// Ends the pipeline: what runs may end until the cut, what has not by then goes back, and by the deadline it is
    /// over. What became of it, and when that deadline is.
    async fn drain(&mut self, mut order: Order) -> (DrainReport, Instant) {
        let hub = Arc::clone(&self.hub);
        let beginning = Beginning::of(&hub);
        hub.gate.change(|gate| gate.draining = true);
        hub.begin_drain();
        for child in self.restarts.take() {
            self.spawn(child, None);
        }
        let mut cut = false;
        let no_source = self.tasks.is_empty();
        loop {
            if !cut && rt::now() >= order.cut {
                cut = true;
                hub.cut();
            }
            let mut gate = hub.gate.watch();
            let empty = async {
                if !no_source {
                    let _ = gate.wait_for(|gate| gate.ended).await;
                }
                hub.flush_now.notify_one();
                hub.places.until(|places| places.messages() == 0).await;
            };
            tokio::select! {
                biased;
                () = empty => break,
                exited = self.tasks.next() => {
                    // A source that dies now needs no successor, and what it gave is gone with it.
                    if matches!(exited.0, Child::Link) {
                        hub.lose_all();
                        break;
                    }
                    if let Err(why) = self.replace(exited) {
                        warn!(pipeline = hub.name(), cause = %why, "no further restarts while draining");
                    }
                }
                () = hub.resized.notified() => self.fill_seats(),
                Ok(()) = self.orders.changed() => {
                    if let Some(sooner) = *self.orders.borrow_and_update() {
                        order = Order { cut: order.cut.min(sooner.cut), deadline: order.deadline.min(sooner.deadline) };
                    }
                }
                () = rt::sleep_until(order.cut), if !cut => {}
                () = rt::sleep_until(order.deadline - (order.deadline - order.cut) / 4), if cut => {
                    let uncut = hub.seats.uncancelled();
                    // What its sink has not taken by now goes back to the source.
                    self.tasks.kill(|child| matches!(child, Child::DeadLetters | Child::Retries)).await;
                    hub.release(hub.dead_letters.take_all());
                    hub.release(hub.retries.take_all());
                    tokio::select! {
                        biased;
                        () = hub.places.until(|places| places.messages() == 0) => {}
                        () = rt::sleep_until(order.deadline) => drain::find_uncut(&hub, &uncut),
                    }
                    break;
                }
            }
        }
        hub.ready.close();
        if hub.places.messages() > 0 && !watchdog::holds(&hub) {
            watchdog::leak(&hub, hub.places.messages());
        }
        if hub.places.messages() == 0 && hub.gate.state().ended {
            balance::tell(&hub, balance::look(&hub));
        }
        let report = beginning.report(&hub);
        if !cut {
            // What runs still was lost, or settled by its handler: it has no outcome, and ends with the pipeline.
            hub.cut();
        }
        (report, order.deadline)
    }
}

fn ending(task: BoxFuture<'static, ()>) -> BoxFuture<'static, Exit> {
    Box::pin(async move {
        task.await;
        Exit::Ended
    })
}
