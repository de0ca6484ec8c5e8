//! What one simulated run consists of: [`World`], which outlives the processes in it.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use millstream_core::rt::{self, Instant};
use millstream_core::simulation::Ended;
use millstream_core::{EngineHandle, Message, Pipeline};
use parking_lot::{Mutex, MutexGuard};
use rustc_hash::FxHasher;
use tokio::sync::Notify;

use super::broker::Broker;
use super::model::Model;
use super::plan::{Plan, Step};
use super::twins::Known;

/// More than happens in any run that comes to rest: in a circle, simulated time may stand still.
const MOST_EVENTS: usize = 200_000;

/// One run: broker, model and log. Every clone is the same.
#[derive(Clone, Debug)]
pub(super) struct World(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    /// Something may be read that could not before.
    changed: Notify,
    /// The process dies, or the run is over because a promise is broken.
    over: Notify,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) plan: Plan,
    /// Chance in brokers and handlers.
    pub(super) rng: Rng,
    /// What has happened, and when.
    pub(super) events: Vec<(Duration, Event)>,
    /// The kinds of faults that have struck.
    pub(super) met: BTreeSet<&'static str>,
    pub(super) violation: Option<Violation>,
    pub(super) broker: Broker,
    pub(super) model: Model,
    /// What the store of ids has.
    pub(super) known: Known,
    /// The pipeline drains.
    pub(super) draining: bool,
    /// The process that lives; those before it are dead, and nobody hears them.
    pub(super) process: u32,
    pub(super) pipeline: Option<Pipeline>,
    pub(super) engine: Option<EngineHandle>,
    /// When the clock of this process began, by the world's and by its own.
    clock: (Duration, Option<Instant>),
    /// The time, once somebody who holds this has asked: none passes until he lets go.
    now: Cell<Option<Duration>>,
    /// The process shall die.
    pub(super) dies: bool,
    /// Faults have stopped.
    pub(super) calm: bool,
    /// What was out when the last acknowledger went, and what was lost without the engine's having heard so.
    pub(super) left_behind: Option<(usize, usize)>,
}

/// A promise that was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    /// `P1` to `P8`, as `ARCHITECTURE.md` has them, or the policy whose word was not kept: `bisect`, `deduplication`,
    /// `halt` or `sequence`.
    pub promise: &'static str,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is broken: {}", self.promise, self.what)
    }
}

/// What happens in a run. Messages are named by their number at the broker.
#[derive(Clone, Debug, Hash)]
pub(super) enum Event {
    Started(u32),
    Published(usize),
    HandedOut {
        delivery: usize,
        post: usize,
        generation: u32,
    },
    Began(usize),
    Ended(usize, Ended),
    BatchBegan(usize, Vec<usize>),
    BatchEnded(usize, Vec<(usize, Ended)>),
    SettledNow(usize),
    Settled(usize, &'static str, &'static str),
    Letter(usize, &'static str),
    Committed(usize, u64),
    Lost(usize),
    Entered(usize),
    Mended(usize),
    Step(Step),
    Assigned(usize, u32),
    Died(u32),
    Drained(String),
    Calm,
}

impl World {
    pub(super) fn new(seed: u64, plan: Plan) -> Self {
        let state = State {
            rng: Rng::with_seed(seed ^ 0x5eed),
            events: Vec::new(),
            met: plan.features().collect(),
            violation: None,
            broker: Broker::new(&plan),
            model: Model::default(),
            known: Known::default(),
            draining: false,
            process: 0,
            pipeline: None,
            engine: None,
            clock: (Duration::ZERO, None),
            now: Cell::new(None),
            dies: false,
            calm: false,
            left_behind: None,
            plan,
        };
        Self(Arc::new(Inner {
            state: Mutex::new(state),
            changed: Notify::new(),
            over: Notify::new(),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        let state = self.0.state.lock();
        state.now.set(None);
        state
    }

    /// The same while this process lives.
    pub(super) fn of(&self, process: u32) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| state.process == process && !state.dies)
    }

    /// Something may be read now.
    pub(super) fn wake_readers(&self) {
        self.0.changed.notify_waiters();
    }

    pub(super) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.0.changed.notified()
    }

    /// Ends the process as a kill would.
    pub(super) fn crash(&self) {
        self.lock().dies = true;
        self.0.over.notify_one();
    }

    /// Waits until the process dies, or the run is over because a promise is broken.
    pub(super) async fn dying(&self) {
        loop {
            {
                let state = self.lock();
                if state.dies || state.violation.is_some() {
                    return;
                }
            }
            self.0.over.notified().await;
        }
    }

    /// Looks whether a promise was broken meanwhile.
    pub(super) fn look(&self) {
        if self.lock().violation.is_some() {
            self.0.over.notify_one();
        }
    }
}

impl State {
    /// A process begins; its clock goes on from the last one's.
    pub(super) fn boot(&mut self) {
        self.clock = (self.now(), Some(rt::now()));
        self.process += 1;
        self.dies = false;
        self.draining = false;
        let process = self.process;
        self.note(Event::Started(process));
    }

    /// The process is dead, and its runtime about to be.
    pub(super) fn die(&mut self) {
        self.dies = true;
        if !self.draining {
            self.count_ends();
        }
        self.pipeline = None;
        self.engine = None;
        let process = self.process;
        self.note(Event::Died(process));
        self.clock = (self.now(), None);
    }

    /// Time since the run began.
    pub(super) fn now(&self) -> Duration {
        if let Some(now) = self.now.get() {
            return now;
        }
        let (offset, started) = self.clock;
        let now = offset + started.map_or(Duration::ZERO, |started| started.elapsed());
        self.now.set(Some(now));
        now
    }

    /// A moment of the world on the clock of this process.
    pub(super) fn instant(&self, moment: Duration) -> Instant {
        let (offset, started) = self.clock;
        started.unwrap_or_else(rt::now) + moment.saturating_sub(offset)
    }

    pub(super) fn note(&mut self, event: Event) {
        let now = self.now();
        self.events.push((now, event));
        if self.events.len() == MOST_EVENTS {
            self.violate("P1", format!("there is no end of it after {MOST_EVENTS} events"));
        }
    }

    pub(super) fn met(&mut self, fault: &'static str) {
        self.met.insert(fault);
    }

    /// With this chance of a thousand.
    pub(super) fn chance(&mut self, thousandths: u32) -> bool {
        thousandths > 0 && self.rng.u32(..1_000) < thousandths
    }

    /// The first broken promise ends the run.
    pub(super) fn violate(&mut self, promise: &'static str, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(Violation {
                promise,
                what: what.into(),
            });
        }
    }

    /// Two runs with the same number went the same way.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = FxHasher::default();
        self.events.hash(&mut hasher);
        hasher.finish()
    }
}

/// A message as its publisher knows it.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) message: Message,
    pub(super) deed: super::script::Deed,
    /// Handler runs so far, of its processor and of its batch.
    pub(super) runs: u32,
    pub(super) done: bool,
    pub(super) dead: bool,
    /// It failed in a batch.
    pub(super) failed_in_batch: bool,
}
