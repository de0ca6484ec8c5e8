//! What the tasks of one pipeline share: [`Hub`].
//!
//! What comes of a message is decided in `fate`, what happens when leases are lost in `losses`, what runs is cancelled in
//! `cancelling`.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, watch};
use tracing::{info, warn};

use super::adaptive::Adaptive;
use super::any_batcher::AnyBatcher;
use super::balance::Balance;
use super::breaker::Runs;
use super::breakers::Breakers;
use super::budget::Budget;
use super::counters::Counters;
use super::elsewhere::Elsewhere;
use super::gate::Gate;
use super::losses::Losses;
use super::outbox::Outbox;
use super::places::Places;
use super::probes::Permit;
use super::rare::Rare;
use super::ready::Ready;
use super::returning::Returning;
use super::seat::Seats;
use super::sentinels::Sentinels;
use super::sequence::Sequence;
use super::settings::Settings;
use super::settling::Settling;
use super::shared_rate::SharedRate;
use super::stage::{PROCESSOR, Stage};
use super::stall::Stall;
use super::suspects::Suspects;
use super::twins::Twins;
use crate::connector::{Capabilities, Credit, SharedSinkConnector};
use crate::flow::Step;
use crate::handle::intern;
use crate::measures::Measures;
use crate::message::OriginId;
use crate::mutants::{Mutant, mutant};
use crate::partition::{Partition, Rebalance};
use crate::rt::{self, Duration};
use crate::settlement::Reason;
use crate::spec::{PipelineSpec, RateLimit, RetrySpec};

/// What the tasks of one pipeline share.
#[derive(Debug)]
pub(crate) struct Hub {
    /// What it was started with; what may have changed since is in `settings`.
    pub(crate) spec: PipelineSpec,
    pub(crate) settings: Settings,
    pub(crate) capabilities: Capabilities,
    pub(crate) sentinels: Arc<Sentinels>,
    pub(crate) ready: Ready,
    pub(crate) places: Places,
    pub(crate) settling: Settling,
    pub(crate) returning: Returning,
    pub(crate) elsewhere: Elsewhere,
    pub(crate) dead_letters: Outbox,
    /// What shall come again later, where the source has a sink for that.
    pub(crate) retries: Outbox,
    pub(crate) retry_sink: Option<SharedSinkConnector>,
    pub(crate) gate: Gate,
    pub(crate) breakers: Arc<Breakers>,
    pub(crate) suspects: Suspects,
    pub(crate) twins: Option<Twins>,
    pub(crate) sequence: Option<Sequence>,
    /// When and how often to try again, as it is set now.
    pub(crate) retry: RwLock<RetrySpec>,
    pub(crate) budget: Budget,
    /// How fast to fetch, as it is set now.
    pub(crate) rate_limit: watch::Sender<Option<RateLimit>>,
    pub(crate) shared_rate: Option<SharedRate>,
    pub(crate) batcher_full: Notify,
    pub(crate) counters: Counters,
    pub(crate) balance: Balance,
    pub(crate) processor: Stage,
    pub(crate) seats: Seats,
    pub(crate) adaptive: Adaptive,
    /// The supervisor waits here for seats to be filled.
    pub(crate) resized: Notify,
    pub(crate) batchers: OnceLock<Vec<Arc<dyn AnyBatcher>>>,
    /// Acknowledgers shall keep nothing back.
    pub(crate) flush_now: Notify,
    /// Nothing is parked any more: what would be is given back.
    draining: AtomicBool,
    /// Nothing is run any more.
    pub(super) cut: AtomicBool,
    /// Nanoseconds that a run has taken of late.
    pace: AtomicU64,
    origin_names: Mutex<Vec<String>>,
    /// Messages that wait at the source, where it says so; `u64::MAX` where it does not.
    depth: AtomicU64,
    /// The partitions that the source reads, where it has any.
    pub(super) partitions: Mutex<Option<Vec<Partition>>>,
    /// Places that stand still.
    halts: AtomicUsize,
    pub(super) losses: Losses,
    /// What moves no more although it should, since the watchdog has said so.
    pub(crate) stalled: Mutex<Option<Stall>>,
    /// Intake holds messages that have places and are not in the queue.
    pub(crate) admitting: AtomicBool,
    degraded: Mutex<FxHashMap<&'static str, String>>,
    pub(super) rare: RareLines,
}

#[derive(Debug, Default)]
pub(super) struct RareLines {
    pub(super) given_up: Rare,
    pub(super) settled_early: Rare,
    pub(super) stale: Rare,
    pub(super) settle_failed: Rare,
    pub(super) split: Rare,
}

impl Hub {
    pub(crate) fn new(spec: PipelineSpec) -> Self {
        let sentinels = Sentinels::new(Arc::clone(&spec.name));
        let gate = Gate::new();
        let breakers = Breakers::new(&spec.name, &gate, spec.breaker, &spec.dependencies);
        Self {
            settings: Settings::new(&spec),
            capabilities: spec.source.capabilities(),
            ready: Ready::new(spec.processor.least().get(), Arc::clone(&sentinels)),
            adaptive: Adaptive::new(
                spec.processor.adapts_from.map(NonZeroUsize::get),
                spec.processor.concurrency.get(),
            ),
            places: Places::new(spec.limits, Arc::clone(&sentinels)),
            sentinels,
            stalled: Mutex::new(None),
            admitting: AtomicBool::new(false),
            settling: Settling::default(),
            dead_letters: Outbox::new("dead letter"),
            retries: Outbox::new("retry"),
            retry_sink: spec.source.retry_sink(),
            gate,
            breakers: Arc::new(breakers),
            suspects: Suspects::default(),
            twins: spec.deduplicate.clone().map(Twins::new),
            sequence: spec.sequence.clone().map(Sequence::new),
            retry: RwLock::new(spec.retry),
            budget: Budget::new(spec.retry.budget),
            rate_limit: watch::Sender::new(spec.rate_limit.clone()),
            shared_rate: spec.shared_rate.clone().map(SharedRate::new),
            batcher_full: Notify::new(),
            counters: Counters::default(),
            balance: Balance::default(),
            processor: Stage::new(PROCESSOR),
            seats: Seats::default(),
            resized: Notify::new(),
            batchers: OnceLock::new(),
            returning: Returning::default(),
            elsewhere: Elsewhere::default(),
            flush_now: Notify::new(),
            draining: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            pace: AtomicU64::new(FAIR_TAKE.as_nanos() as u64),
            origin_names: Mutex::new(Vec::new()),
            depth: AtomicU64::new(u64::MAX),
            partitions: Mutex::new(None),
            halts: AtomicUsize::new(0),
            losses: Losses::default(),
            degraded: Mutex::new(FxHashMap::default()),
            rare: RareLines::default(),
            spec,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn batchers(&self) -> &[Arc<dyn AnyBatcher>] {
        self.batchers.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn steps(&self) -> &[Step] {
        self.spec.flow.steps()
    }

    /// Whether a message can be given back to the source for a later time, out of its order.
    pub(crate) fn can_put_off(&self) -> bool {
        self.capabilities.delay || self.retry_sink.is_some()
    }

    /// The index of the step with this name.
    pub(crate) fn batcher(&self, name: &str) -> Option<usize> {
        self.steps().iter().position(|step| step.name == name)
    }

    // === where messages come from

    pub(crate) fn origin(&self, name: &str) -> OriginId {
        intern(&mut self.origin_names.lock(), name)
    }

    pub(crate) fn origin_name(&self, origin: OriginId) -> Arc<str> {
        self.origin_names
            .lock()
            .get(origin.0 as usize)
            .map_or("", String::as_str)
            .into()
    }

    // === what waits there

    pub(crate) fn deepen(&self, messages: Option<u64>) {
        self.depth.store(messages.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(crate) fn depth(&self) -> Option<u64> {
        Some(self.depth.load(Ordering::Relaxed)).filter(|depth| *depth != u64::MAX)
    }

    // === what stands still

    /// These places stand still, and no others.
    pub(crate) fn halted(&self, at: &[String]) {
        self.halts.store(at.len(), Ordering::Relaxed);
        let cause = (!at.is_empty()).then(|| {
            let named: Vec<_> = at.iter().take(NAMED).map(String::as_str).collect();
            let more = match at.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("stopped at {}{more}", named.join(", "))
        });
        self.degraded("halt", cause.as_deref());
    }

    pub(crate) fn halts(&self) -> usize {
        self.halts.load(Ordering::Relaxed)
    }

    // === pace

    /// How long a run has taken of late.
    pub(crate) fn pace(&self) -> Duration {
        Duration::from_nanos(self.pace.load(Ordering::Relaxed))
    }

    /// How many messages about a millisecond of work is at the recent pace.
    pub(crate) fn fair_take(&self) -> usize {
        let pace = self.pace.load(Ordering::Relaxed).max(1);
        let most = self.settings.max_demand();
        usize::try_from(FAIR_TAKE.as_nanos() as u64 / pace)
            .unwrap_or(most)
            .clamp(1, most)
    }

    /// How many ready messages are not worth waking another worker for: never more than one take.
    pub(crate) fn spare(&self) -> usize {
        let pace = self.pace.load(Ordering::Relaxed).max(1);
        let most = self.settings.max_demand();
        usize::try_from(WAKE_WORTH.as_nanos() as u64 / pace)
            .unwrap_or(most)
            .min(most)
    }

    /// Takes note of how long so many runs took.
    pub(crate) fn ran(&self, runs: usize, took: Duration) {
        let latest = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) / runs.max(1) as u64;
        let pace = self.pace.load(Ordering::Relaxed);
        // Slower counts at once, faster bit by bit: a worker must not sit on messages because of a past lull.
        let next = if latest > pace {
            latest
        } else {
            pace - (pace - latest) / 4
        };
        self.pace.store(next, Ordering::Relaxed);
    }

    // === workers

    /// From now on so many messages are processed at a time, at least one. New workers are started at once; those that
    /// are too many end as soon as they ask for more, so nothing that runs is broken off.
    pub(crate) fn resize(&self, workers: usize) {
        self.ready.resize(workers.max(1));
        self.resized.notify_one();
    }

    /// How many ready messages are enough, where that follows the number of workers.
    pub(crate) fn enough(&self, workers: usize) -> Option<usize> {
        self.adaptive.enough(workers, self.fair_take())
    }

    // === draining

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// From now on nothing is parked: what is, and what waits behind it, goes back to the source.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        if let Some(sequence) = &self.sequence {
            self.release(sequence.remove(|_| true));
        }
        let now = rt::now();
        // What intake has in hand of their keys goes back behind them.
        for (due, envelope, followers) in self.ready.remove_parked(&self.returning) {
            if mutant(Mutant::DrainForgetsParked) {
                continue;
            }
            self.return_failed(envelope, due.saturating_duration_since(now));
            self.release(followers);
        }
        for batcher in self.batchers() {
            batcher.begin_drain();
        }
        self.settling.look_again();
    }

    // === breakers

    /// How many of so many messages may be taken to run now, and with what. `doubtful` says whether the first of them is in
    /// this round of probes.
    pub(crate) fn may_take(
        &self,
        number: usize,
        doubtful: &mut dyn FnMut(u32) -> bool,
        permit: &mut Permit,
    ) -> usize {
        // Before it is known that all are closed: one that opens meanwhile is in another era.
        permit.era = self.breakers.era();
        if !self.one_at_a_time() {
            return number;
        }
        permit.probe = self.try_one(doubtful);
        permit.era = self.breakers.era();
        usize::from(permit.probe.is_some())
    }

    /// Counts runs that began with this permit for the pipeline's breaker.
    pub(crate) fn record(&self, permit: &Permit, runs: Runs) {
        if self.breakers.any() && runs.succeeded + runs.failed > 0 {
            self.breakers.record(permit, runs);
        }
    }

    /// How many messages wait, unrun for now, because not all breakers are closed.
    pub(super) fn held_by_breakers(&self) -> usize {
        if self.breakers.is_closed() {
            return 0;
        }
        // First: what is processed meanwhile is not counted twice.
        let batched: usize = self.batchers().iter().map(|batcher| batcher.held()).sum();
        let load = self.ready.load();
        load.ready + load.waiting + load.parked + load.aside + batched
    }

    /// Something may run now that could not before.
    pub(crate) fn wake_all(&self) {
        self.ready.wake_takers();
        for batcher in self.batchers() {
            batcher.wake();
        }
        // Intake may fetch a probe where there is nothing else to probe with, or have a suspect that waits.
        if self.one_at_a_time() {
            self.places.freed.notify_waiters();
        }
    }

    // === measures

    /// What was measured beside the counts.
    pub(crate) fn measures(&self) -> Measures {
        let gate = self.gate.state();
        let open = !(gate.paused || gate.draining || gate.broken || gate.full_batchers > 0);
        Measures {
            processor: self.processor.measures(),
            batchers: self
                .batchers()
                .iter()
                .map(|batcher| batcher.batches().measures(batcher.held()))
                .collect(),
            given_up: Reason::ALL.into_iter().zip(self.counters.reasons.get()).collect(),
            rebalances: Rebalance::ALL
                .into_iter()
                .zip(self.counters.rebalances.get())
                .collect(),
            sentinels: self.sentinels.counts(),
            partitions: self.partitions.lock().clone(),
            settled_after: self.places.settled_after.snapshot(),
            oldest: self.places.oldest().map(|at| at.elapsed()),
            breakers: self.breakers.measures(),
            rate_store: self.shared_rate.as_ref().map(|shared| shared.took.snapshot()),
            demand: self.places.credit().filter(|_| open).unwrap_or(Credit {
                messages: 0,
                bytes: 0,
            }),
        }
    }

    // === condition

    /// A part cannot do its work now (`Some`) or can again.
    pub(crate) fn degraded(&self, part: &'static str, cause: Option<&str>) {
        if part == SOURCE {
            self.places.source_is(cause.is_none());
        }
        let mut degraded = self.degraded.lock();
        match cause {
            Some(cause) => {
                if degraded.insert(part, cause.to_owned()).as_deref() != Some(cause) {
                    warn!(pipeline = self.name(), part, cause, "degraded");
                }
            }
            None => {
                if degraded.remove(part).is_some() {
                    if part == SOURCE {
                        self.counters.reconnects.add(1);
                    }
                    info!(pipeline = self.name(), part, "recovered");
                }
            }
        }
    }

    /// Whether this part cannot do its work now.
    pub(crate) fn is_degraded(&self, part: &str) -> bool {
        self.degraded.lock().contains_key(part)
    }

    /// What is wrong whatever else the pipeline was told to do: nothing moves that should, or a promise was broken.
    pub(crate) fn faults(&self) -> Vec<String> {
        let stalled = self.stalled.lock().as_ref().map(Stall::to_string);
        stalled.into_iter().chain(self.sentinels.cause()).collect()
    }

    /// Why the pipeline cannot do all its work, if so.
    pub(crate) fn degradations(&self) -> Vec<String> {
        let mut causes: Vec<_> = self
            .degraded
            .lock()
            .iter()
            .map(|(part, cause)| format!("{part}: {cause}"))
            .collect();
        causes.sort();
        causes
    }
}

/// How much work a worker takes at a time.
pub(crate) const FAIR_TAKE: Duration = Duration::from_millis(1);

/// How many places that stand still a pipeline's condition names.
const NAMED: usize = 3;

/// The part of a pipeline that reads and settles.
pub(crate) const SOURCE: &str = "source";

/// How much work is worth waking another worker for.
const WAKE_WORTH: Duration = Duration::from_micros(20);
