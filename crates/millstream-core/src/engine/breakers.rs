//! The breakers of one pipeline: its own, which counts runs, and one for each dependency that it names, which counts
//! calls.
//!
//! They gate demand: while one is not closed the source fetches nothing but a probe, and failures count no attempt.
//! One message at a time probes for all that are half open, and none while one is open.
//!
//! A message that fails for ever must not be all that they hear of. So probes go by rounds: a message whose run failed is
//! *doubtful* for the rest of the round, and those that are not go first. Where there are no others, intake has a while to
//! fetch some, one at a time and for as long as they succeed; that ends the round, and all have their turn again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;
use tracing::{info, warn};

use super::breaker::{Breaker, BreakerState, OpenedBy, Runs, Turn};
use super::counters::{Counter, Tally};
use super::gate::Gate;
use super::probes::{Permit, Probe, Probes};
use crate::measures::BreakerMeasures;
use crate::rt::{self, Duration, Instant};
use crate::spec::BreakerSpec;

/// How many names that code uses and the pipeline does not have are said.
const UNKNOWN_SAID: usize = 100;

/// How long intake has at least to fetch a probe.
const FETCHING: Duration = Duration::from_secs(1);

/// How long intake has to fetch a probe, where a breaker stays open for so long.
fn fetching(open_for: Duration) -> Duration {
    FETCHING.max(open_for / 5)
}

#[derive(Debug)]
pub(crate) struct Breakers {
    pipeline: Arc<str>,
    gate: Gate,
    /// Whether there are any: read whenever runs have ended.
    any: AtomicBool,
    /// Whether all of them are closed: read on every take.
    closed: AtomicBool,
    /// Nanoseconds from which on a run is slow for the pipeline's own; `u64::MAX` for never.
    slow_after: AtomicU64,
    /// The pipeline's own first, where it has one.
    all: RwLock<Vec<Arc<Named>>>,
    probes: Mutex<Probes>,
    /// Names that code uses, and no breaker has.
    unknown: Mutex<Vec<String>>,
    /// The timer task looks again.
    pub(crate) changed: Notify,
}

/// One of them, with what it has done.
#[derive(Debug)]
pub(crate) struct Named {
    /// What it stands for; nothing for the pipeline's own.
    pub(crate) dependency: Option<Arc<str>>,
    pub(crate) breaker: Breaker,
    opened: Tally<{ OpenedBy::ALL.len() }>,
    closed: Counter,
}

impl Named {
    fn measures(&self) -> BreakerMeasures {
        BreakerMeasures {
            dependency: self.dependency.clone(),
            state: self.breaker.state(),
            opened: OpenedBy::ALL.into_iter().zip(self.opened.get()).collect(),
            closed: self.closed.get(),
        }
    }
}

impl Breakers {
    pub(crate) fn new(
        pipeline: &Arc<str>,
        gate: &Gate,
        own: Option<BreakerSpec>,
        dependencies: &BTreeMap<String, BreakerSpec>,
    ) -> Self {
        let breakers = Self {
            pipeline: Arc::clone(pipeline),
            gate: gate.clone(),
            any: AtomicBool::new(false),
            closed: AtomicBool::new(true),
            slow_after: AtomicU64::new(u64::MAX),
            all: RwLock::default(),
            probes: Mutex::default(),
            unknown: Mutex::default(),
            changed: Notify::new(),
        };
        breakers.set(own, dependencies);
        breakers
    }

    /// From now on these, with these settings. One that there was already stays in its state; one that there is no
    /// more holds nothing back.
    pub(crate) fn set(&self, own: Option<BreakerSpec>, dependencies: &BTreeMap<String, BreakerSpec>) {
        {
            let mut all = self.all.write();
            let named = dependencies
                .iter()
                .map(|(name, spec)| (Some(name.as_str()), *spec));
            let next = own
                .map(|spec| (None, spec))
                .into_iter()
                .chain(named)
                .map(|(name, spec)| {
                    let kept = all.iter().find(|kept| kept.dependency.as_deref() == name);
                    if let Some(kept) = kept {
                        kept.breaker.set(spec);
                        return Arc::clone(kept);
                    }
                    Arc::new(Named {
                        dependency: name.map(Into::into),
                        breaker: Breaker::new(spec),
                        opened: Tally::default(),
                        closed: Counter::default(),
                    })
                })
                .collect();
            *all = next;
            self.any.store(!all.is_empty(), Ordering::Release);
            let slow_after = own.and_then(|spec| spec.slow_after);
            let nanos = slow_after.map_or(u64::MAX, |slow| {
                u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX)
            });
            self.slow_after.store(nanos, Ordering::Relaxed);
        }
        self.gate();
        self.changed.notify_one();
    }

    /// Whether all of them are closed.
    #[inline]
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Whether one of them may be about to open.
    pub(crate) fn may_open(&self) -> bool {
        let now = rt::now();
        self.any() && self.all.read().iter().any(|named| named.breaker.may_open(now))
    }

    /// Whether what ends is to be counted.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Whether a run that took so long is slow for the pipeline's own breaker.
    pub(crate) fn is_slow(&self, took: Duration) -> bool {
        took.as_nanos() >= u128::from(self.slow_after.load(Ordering::Relaxed))
    }

    /// The state of the pipeline's own, where it has one.
    pub(crate) fn own(&self) -> Option<BreakerState> {
        let all = self.all.read();
        let own = all.first().filter(|named| named.dependency.is_none())?;
        Some(own.breaker.state())
    }

    pub(crate) fn measures(&self) -> Vec<BreakerMeasures> {
        self.all.read().iter().map(|named| named.measures()).collect()
    }

    /// How often one of them has opened.
    pub(crate) fn opened(&self) -> u64 {
        let all = self.all.read();
        all.iter().flat_map(|named| named.opened.get()).sum()
    }

    /// The breaker of this dependency; where there is none, that is said once.
    pub(crate) fn dependency(&self, name: &str) -> Option<Arc<Named>> {
        let all = self.all.read();
        let known = all.iter().find(|named| named.dependency.as_deref() == Some(name));
        if let Some(known) = known {
            return Some(Arc::clone(known));
        }
        let mut unknown = self.unknown.lock();
        if unknown.len() < UNKNOWN_SAID && !unknown.iter().any(|said| said == name) {
            unknown.push(name.to_owned());
            warn!(
                pipeline = &*self.pipeline,
                dependency = name,
                "a call names a dependency that the pipeline does not have: it is not counted"
            );
        }
        None
    }

    // === probes

    /// Whether a message may run as a probe now; if so, no other may until that is dropped, or has taken as long as a breaker
    /// stays open, which does not count where one has to run alone `strictly`.
    ///
    /// `doubtful` says whether the message is in this round; it is asked only where one may run at all.
    pub(crate) fn try_probe(
        self: &Arc<Self>,
        now: Instant,
        strictly: bool,
        doubtful: impl FnOnce(u32) -> bool,
    ) -> Option<Box<Probe>> {
        let patience = self.patience()?;
        let mut probes = self.probes.lock();
        if !probes.is_free(now) || (strictly && probes.running.is_some()) {
            return None;
        }
        if doubtful(probes.round) {
            probes.ends_round = true;
            if probes.fetches_until.is_some_and(|then| now < then) {
                return None;
            }
            probes.next_round();
        }
        let number = probes.begin(now, patience);
        let breakers = Arc::clone(self);
        Some(Box::new(Probe { breakers, number }))
    }

    /// Whether one may run alone while all are closed; if so, no other may until that is dropped.
    pub(crate) fn try_alone(self: &Arc<Self>) -> Option<Box<Probe>> {
        let mut probes = self.probes.lock();
        if probes.running.is_some() {
            return None;
        }
        let number = probes.begin(rt::now(), Duration::ZERO);
        let breakers = Arc::clone(self);
        Some(Box::new(Probe { breakers, number }))
    }

    /// How long a probe may take: the longest that one of those stays open which are not closed; nothing while one is open.
    fn patience(&self) -> Option<Duration> {
        let all = self.all.read();
        let mut patience = Duration::ZERO;
        for named in all.iter().filter(|named| !named.breaker.is_closed()) {
            if named.breaker.state() == BreakerState::Open {
                return None;
            }
            patience = patience.max(named.breaker.spec().open_for);
        }
        Some(patience)
    }

    /// This probe has ended: another may.
    pub(super) fn probe_over(&self, number: u64) {
        {
            let mut probes = self.probes.lock();
            probes.running = probes.running.filter(|(running, _)| *running != number);
        }
        self.changed.notify_one();
    }

    /// Whether this probe is the latest.
    pub(super) fn is_running(&self, number: u64) -> bool {
        self.probes
            .lock()
            .running
            .is_some_and(|(running, _)| running == number)
    }

    /// Which round of probes it is.
    pub(crate) fn round(&self) -> u32 {
        self.probes.lock().round
    }

    /// Whether they wait for a probe.
    pub(crate) fn wants_probe(&self, now: Instant) -> bool {
        !self.is_closed() && self.patience().is_some() && self.probes.lock().is_free(now)
    }

    // === what ended

    /// The era of the pipeline's own, where it has one.
    pub(crate) fn era(&self) -> u64 {
        match self.any() {
            true => self.all.read().first().map_or(0, |first| first.breaker.era()),
            false => 0,
        }
    }

    /// Counts runs that began with this permit for the pipeline's own.
    pub(crate) fn record(&self, permit: &Permit, runs: Runs) {
        let own = {
            let all = self.all.read();
            all.first().filter(|named| named.dependency.is_none()).cloned()
        };
        if let Some(own) = own
            && let Some(turn) = own.breaker.record(permit.era, runs, rt::now())
        {
            self.turned(&own, turn);
        }
        if permit.probe.is_some() && runs.succeeded > 0 && runs.failed == 0 {
            let patience = self.patience();
            let mut probes = self.probes.lock();
            if probes.fetches_until.is_some() {
                probes.fetches_until = patience.map(|patience| rt::now() + fetching(patience));
            }
        }
    }

    /// Counts a call of a dependency that was permitted in this era.
    pub(crate) fn record_call(&self, named: &Named, era: u64, runs: Runs) {
        if let Some(turn) = named.breaker.record(era, runs, rt::now()) {
            self.turned(named, turn);
        }
    }

    fn turned(&self, named: &Named, turn: Turn) {
        let dependency = named.dependency.as_deref();
        let pipeline = &*self.pipeline;
        match turn {
            Turn::Opened(by) => {
                named.opened.add(by as usize, 1);
                let cause = by.as_str();
                warn!(pipeline, dependency, cause, "breaker opened; the source pauses");
            }
            Turn::Closed => {
                named.closed.add(1);
                info!(pipeline, dependency, "breaker closed");
            }
        }
        self.gate();
        self.changed.notify_one();
    }

    /// Opens or shuts the gate as they are now.
    fn gate(&self) {
        // Under the lock, so that the last to look is the last to say.
        let all = self.all.write();
        let is = |state| all.iter().any(|named| named.breaker.state() == state);
        let (open, half_open) = (is(BreakerState::Open), is(BreakerState::HalfOpen));
        self.closed.store(!open && !half_open, Ordering::Release);
        self.gate.change(|gate| {
            gate.broken = open || half_open;
            gate.probing = half_open && !open;
        });
    }

    /// Half-opens those whose time has come. Says when to look again, if they are not all closed.
    pub(crate) fn tick(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut turned = false;
        for named in self.all.read().iter() {
            let (then, half_opened) = named.breaker.tick(now);
            next = [next, then].into_iter().flatten().min();
            if half_opened {
                turned = true;
                let (pipeline, dependency) = (&*self.pipeline, named.dependency.as_deref());
                info!(
                    pipeline,
                    dependency, "breaker half open: one message at a time tries it"
                );
            }
        }
        if turned {
            let patience = self.patience();
            {
                let mut probes = self.probes.lock();
                if probes.ends_round {
                    probes.next_round();
                }
                probes.fetches_until = patience.map(|patience| now + fetching(patience));
            }
            self.gate();
        }
        let fetches_until = self.probes.lock().fetches_until;
        let fetches_until = fetches_until.filter(|then| next.is_some() && *then > now);
        [next, fetches_until].into_iter().flatten().min()
    }
}
