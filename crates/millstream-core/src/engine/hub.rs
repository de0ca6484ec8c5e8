//! What the tasks of one pipeline share: [`Hub`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::{Mutex, RwLock};
use rustc_hash::FxHashMap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::batcher::AnyBatcher;
use super::breaker::{Breaker, BreakerState};
use super::counters::Counters;
use super::dead_letters::DeadLetters;
use super::envelope::{Alone, Envelope, LaneId};
use super::gate::Gate;
use super::places::Places;
use super::rare::Rare;
use super::ready::{Left, Ready};
use super::retry;
use super::returning::Returning;
use super::settling::Settling;
use crate::connector::Capabilities;
use crate::failure::Failure;
use crate::flow::Step;
use crate::handle::intern;
use crate::message::OriginId;
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Outcome, Reason, Rejection, Settle, Settlement};
use crate::spec::{DeadLetter, PipelineSpec};
use crate::ticket::{Scope, Ticket};

/// What the tasks of one pipeline share, and where the fate of a message is decided.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) spec: PipelineSpec,
    pub(crate) capabilities: Capabilities,
    pub(crate) ready: Ready,
    pub(crate) places: Places,
    pub(crate) settling: Settling,
    pub(crate) returning: Returning,
    pub(crate) dead_letters: DeadLetters,
    pub(crate) gate: Gate,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) breaker_changed: Notify,
    pub(crate) batcher_full: Notify,
    pub(crate) counters: Counters,
    pub(crate) seats: Vec<Seat>,
    pub(crate) batchers: OnceLock<Vec<Arc<dyn AnyBatcher>>>,
    /// Acknowledgers shall keep nothing back.
    pub(crate) flush_now: Notify,
    /// Nothing is parked any more: what would be is given back.
    draining: AtomicBool,
    /// Nothing is run any more.
    cut: AtomicBool,
    /// Nanoseconds that a run has taken of late.
    pace: AtomicU64,
    places_by_name: Mutex<Vec<String>>,
    /// Scopes that are gone and of which something is still in flight.
    lost: RwLock<Vec<Scope>>,
    any_lost: AtomicBool,
    /// The last scopes that went: a chunk of theirs may have been read already and arrive late.
    lost_lately: Mutex<VecDeque<Scope>>,
    degraded: Mutex<FxHashMap<&'static str, String>>,
    rare: RareLines,
}

/// Where a worker says what it runs, so that it can be cancelled.
#[derive(Debug, Default)]
pub(crate) struct Seat(Mutex<SeatState>);

#[derive(Debug, Default)]
struct SeatState {
    ticket: Option<Ticket>,
    cancellation: CancellationToken,
}

#[derive(Debug, Default)]
struct RareLines {
    given_up: Rare,
    settled_early: Rare,
    stale: Rare,
    settle_failed: Rare,
}

/// Why a run did not succeed.
#[derive(Debug)]
pub(crate) enum Fault {
    Failure(Failure),
    Panic(String),
    Timeout(Duration),
    /// The worker died while it ran.
    Died,
}

impl Fault {
    /// Whether it says something of the message and nothing of what handling it needs.
    pub(crate) fn is_reject(&self) -> bool {
        matches!(self, Self::Failure(failure) if failure.is_reject())
    }
}

/// What comes next for a message whose run did not succeed.
#[derive(Debug)]
pub(crate) enum Next {
    /// Another attempt then.
    Park(Instant),
    /// Another attempt as soon as the breaker lets it.
    Back,
    /// The pipeline drains: given back to the source, which waits as long.
    Return(Duration),
    /// No further attempt.
    GiveUp(Reason, String),
}

impl Hub {
    pub(crate) fn new(spec: PipelineSpec) -> Self {
        Self {
            capabilities: spec.source.capabilities(),
            ready: Ready::new(spec.processor.concurrency.get()),
            places: Places::new(spec.limits),
            settling: Settling::default(),
            dead_letters: DeadLetters::default(),
            gate: Gate::new(),
            breaker: spec.breaker.map(Breaker::new),
            breaker_changed: Notify::new(),
            batcher_full: Notify::new(),
            counters: Counters::default(),
            seats: (0..spec.processor.concurrency.get())
                .map(|_| Seat::default())
                .collect(),
            batchers: OnceLock::new(),
            returning: Returning::default(),
            flush_now: Notify::new(),
            draining: AtomicBool::new(false),
            cut: AtomicBool::new(false),
            pace: AtomicU64::new(FAIR_TAKE.as_nanos() as u64),
            places_by_name: Mutex::new(Vec::new()),
            lost: RwLock::new(Vec::new()),
            any_lost: AtomicBool::new(false),
            lost_lately: Mutex::new(VecDeque::new()),
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

    /// The index of the step with this name.
    pub(crate) fn batcher(&self, name: &str) -> Option<usize> {
        self.steps().iter().position(|step| step.name == name)
    }

    // === places that messages come from

    pub(crate) fn origin(&self, name: &str) -> OriginId {
        intern(&mut self.places_by_name.lock(), name)
    }

    pub(crate) fn place(&self, origin: OriginId) -> Arc<str> {
        self.places_by_name
            .lock()
            .get(origin.0 as usize)
            .map_or("", String::as_str)
            .into()
    }

    // === pace

    /// How many messages about a millisecond of work is at the recent pace.
    pub(crate) fn fair_take(&self) -> usize {
        let pace = self.pace.load(Ordering::Relaxed).max(1);
        let most = self.spec.processor.max_demand.get();
        usize::try_from(FAIR_TAKE.as_nanos() as u64 / pace)
            .unwrap_or(most)
            .clamp(1, most)
    }

    /// How many ready messages are not worth waking another worker for: never more than one take.
    pub(crate) fn spare(&self) -> usize {
        let pace = self.pace.load(Ordering::Relaxed).max(1);
        let most = self.spec.processor.max_demand.get();
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

    // === the fate of a message

    /// What comes next for a message whose run in this stage did not succeed; its failures are counted.
    pub(crate) fn next(&self, envelope: &mut Envelope, fault: Fault) -> Next {
        let (error, after) = match fault {
            Fault::Failure(failure) if failure.is_reject() => {
                return Next::GiveUp(Reason::Rejected, failure.to_string());
            }
            Fault::Failure(failure) => (failure.to_string(), failure.after()),
            Fault::Panic(text) => (format!("the handler panicked: {text}"), None),
            Fault::Timeout(limit) => (
                format!("the handler took longer than its timeout of {limit:?}"),
                None,
            ),
            Fault::Died => ("the worker died while the handler ran".to_owned(), None),
        };
        if self.breaker.as_ref().is_some_and(|breaker| !breaker.is_closed()) {
            self.counters.uncounted.add(1);
            return if self.is_draining() {
                Next::Return(Duration::ZERO)
            } else {
                Next::Back
            };
        }
        envelope.message.failures = envelope.message.failures.saturating_add(1);
        if envelope.message.failures >= self.spec.retry.attempts.get() {
            return Next::GiveUp(Reason::Attempts, error);
        }
        let mut wait =
            retry::wait(&self.spec.retry, envelope.message.failures).max(after.unwrap_or_default());
        if wait > LONGEST_WAIT {
            self.counters.waits_cut.add(1);
            wait = LONGEST_WAIT;
        }
        if self.is_draining() {
            return Next::Return(wait);
        }
        self.counters.retried.add(1);
        Next::Park(rt::now() + wait)
    }

    /// No further attempt: the message goes where the policy says.
    pub(crate) fn give_up(&self, envelope: Envelope, stage: &Arc<str>, reason: Reason, error: String) {
        self.counters.given_up.add(1);
        let message = &envelope.message;
        let rejection = Arc::new(Rejection {
            pipeline: Arc::clone(&self.spec.name),
            stage: Arc::clone(stage),
            reason,
            error,
            attempts: message.failures,
            deliveries: message.deliveries,
            origin: format!("{}@{}", self.place(message.origin), message.position),
            at: SystemTime::now(),
        });
        if let Some(unwritten) = self.rare.given_up.tell() {
            warn!(
                pipeline = self.name(), %stage, reason = reason.as_str(), origin = %rejection.origin,
                error = %rejection.error, unwritten, "message given up"
            );
        }
        if envelope.settled {
            return self.failed_after_settlement();
        }
        match self.spec.dead_letter {
            DeadLetter::Source => {
                self.settling.add(envelope.settle(Settlement::Reject(rejection)));
            }
            DeadLetter::Discard => {
                self.counters.discarded.add(1);
                self.settling.add(envelope.settle(Settlement::Ack));
            }
            DeadLetter::Sink(_) => self.dead_letters.add(envelope, rejection),
        }
    }

    /// A message that the user's code had settled has failed.
    fn failed_after_settlement(&self) {
        if let Some(unwritten) = self.rare.settled_early.tell() {
            warn!(
                pipeline = self.name(),
                unwritten, "a message failed after the handler had settled it"
            );
        }
    }

    /// Gives messages back to the source untouched.
    pub(crate) fn release(&self, envelopes: impl IntoIterator<Item = Envelope>) {
        self.settling.add(
            envelopes
                .into_iter()
                .filter_map(|envelope| envelope.settle(Settlement::Release)),
        );
    }

    /// Gives a message back to the source, to be tried again after this long where the source can wait.
    pub(crate) fn return_later(&self, envelope: &Envelope, after: Duration) {
        let settlement = if self.capabilities.delay {
            Settlement::Retry {
                after,
                failures: envelope.message.failures,
            }
        } else {
            Settlement::Release
        };
        self.settling.add(envelope.settle(settlement));
    }

    /// Settles a delivery on behalf of the user's code.
    pub(crate) fn settle_now(&self, ticket: Ticket, settlement: Settlement) {
        self.counters.settled_early.add(1);
        self.settling.add([Settle { ticket, settlement }]);
    }

    /// Takes back what left the workers, as [`Ready::finish`], and releases what must leave with it.
    pub(crate) fn finish(
        &self,
        gone: usize,
        lanes: impl Iterator<Item = LaneId>,
        left: impl Iterator<Item = Left>,
    ) {
        let followers = self.ready.finish(gone, lanes, left);
        if !followers.is_empty() {
            self.release(followers);
        }
    }

    /// What the acknowledger said.
    pub(crate) fn settled(&self, outcomes: &[(Settle, Outcome)]) {
        let (mut acked, mut rejected, mut released, mut returned, mut stale, mut failed) = (0, 0, 0, 0, 0, 0);
        for (settle, outcome) in outcomes {
            match (outcome, &settle.settlement) {
                (Outcome::Sent, Settlement::Ack) => acked += 1,
                (Outcome::Sent, Settlement::Reject(_)) => rejected += 1,
                (Outcome::Sent, Settlement::Release) => released += 1,
                (Outcome::Sent, Settlement::Retry { .. }) => returned += 1,
                (Outcome::Stale, _) => stale += 1,
                (Outcome::Failed, _) => failed += 1,
            }
        }
        self.counters.acked.add(acked);
        self.counters.rejected.add(rejected);
        self.counters.released.add(released);
        self.counters.returned.add(returned);
        self.counters.stale.add(stale);
        self.counters.settle_retries.add(failed);
        if stale > 0
            && let Some(unwritten) = self.rare.stale.tell()
        {
            warn!(
                pipeline = self.name(),
                messages = stale,
                unwritten,
                "settled too late; the source hands them out again"
            );
        }
        if failed > 0
            && let Some(unwritten) = self.rare.settle_failed.tell()
        {
            warn!(
                pipeline = self.name(),
                messages = failed,
                unwritten,
                "settlements failed and are tried again"
            );
        }
        self.returning.answered(outcomes);
        let gone = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Failed);
        self.places.free(gone.map(|(settle, _)| &settle.ticket));
        if self.any_lost.load(Ordering::Relaxed) {
            self.forget_lost();
        }
    }

    // === lost and revoked scopes

    /// Whether its lease or assignment is gone, so that it must not start.
    pub(crate) fn is_lost(&self, ticket: &Ticket) -> bool {
        self.any_lost.load(Ordering::Acquire) && self.lost.read().iter().any(|scope| scope.holds(ticket))
    }

    /// Drops what has not started and cancels what runs. Says how many were dropped.
    pub(crate) fn lose(&self, scope: Scope) -> usize {
        let dropped = self.withdraw(scope);
        self.cancel(|ticket| scope.holds(ticket));
        dropped
    }

    /// The connection is gone, and every delivery with it.
    pub(crate) fn lose_all(&self) {
        for scope in self.places.scopes() {
            self.lose(scope);
            for batcher in self.batchers() {
                self.drop_lost(&batcher.discard(scope));
            }
        }
    }

    /// Takes out what arrives after its lease or assignment went.
    pub(crate) fn drop_late(&self, arrived: &mut Vec<Envelope>) {
        let lost = self.lost_lately.lock();
        if !lost.is_empty() {
            let before = arrived.len();
            arrived.retain(|envelope| !lost.iter().any(|scope| scope.holds(&envelope.ticket)));
            self.counters.lost.add(before - arrived.len());
        }
    }

    /// Drops what has not started, and lets nothing of the scope start again.
    pub(crate) fn withdraw(&self, scope: Scope) -> usize {
        {
            let mut lately = self.lost_lately.lock();
            if !lately.contains(&scope) {
                lately.push_back(scope);
            }
            while lately.len() > REMEMBERED {
                lately.pop_front();
            }
        }
        {
            let mut lost = self.lost.write();
            if !lost.contains(&scope) {
                lost.push(scope);
            }
            self.any_lost.store(true, Ordering::Release);
        }
        let dropped = self.ready.remove(|envelope| scope.holds(&envelope.ticket));
        let number = dropped.len();
        self.drop_lost(&dropped);
        number
    }

    /// Forgets messages whose delivery is gone: nobody would hear a settlement.
    pub(crate) fn drop_lost(&self, dropped: &[Envelope]) {
        self.counters.lost.add(dropped.len());
        self.places.free(
            dropped
                .iter()
                .filter(|envelope| !envelope.settled)
                .map(|envelope| &envelope.ticket),
        );
        self.forget_lost();
    }

    /// A scope that nothing in flight belongs to need not be remembered.
    fn forget_lost(&self) {
        let mut lost = self.lost.write();
        lost.retain(|scope| self.places.messages_of(*scope) > 0);
        self.any_lost.store(!lost.is_empty(), Ordering::Release);
    }

    // === cancelling

    /// Cancels what workers run now of these. Says how many.
    pub(crate) fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> usize {
        self.seats.iter().filter(|seat| seat.cancel(&which)).count()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    /// From now on nothing is parked: what is, and what waits behind it, goes back to the source.
    pub(crate) fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        let now = rt::now();
        for (due, envelope, followers) in self.ready.remove_parked() {
            self.return_later(&envelope, due.saturating_duration_since(now));
            self.release(followers);
        }
        for batcher in self.batchers() {
            batcher.begin_drain();
        }
    }

    /// From now on nothing is run: what has not started goes back to the source, what runs is cancelled.
    pub(crate) fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.release(self.ready.remove(|_| true));
        for batcher in self.batchers() {
            batcher.cut();
        }
        self.cancel(|_| true);
        self.flush_now.notify_one();
    }

    // === breaker

    /// How many of so many messages may be taken to run now.
    pub(crate) fn may_take(&self, number: usize) -> usize {
        match &self.breaker {
            Some(breaker) if !breaker.is_closed() => usize::from(breaker.try_probe(rt::now())),
            _ => number,
        }
    }

    /// Whether what was just taken runs as a probe.
    pub(crate) fn probing(&self) -> Option<Alone> {
        self.breaker
            .as_ref()
            .is_some_and(|breaker| !breaker.is_closed())
            .then_some(Alone::Probe)
    }

    /// Counts runs for the breaker.
    pub(crate) fn record(&self, succeeded: usize, failed: usize) {
        let Some(breaker) = &self.breaker else { return };
        if succeeded + failed == 0 {
            return;
        }
        let was_closed = breaker.is_closed();
        let [succeeded, failed] = [succeeded, failed].map(|number| u32::try_from(number).unwrap_or(u32::MAX));
        match breaker.record(succeeded, failed, rt::now()) {
            Some(BreakerState::Open) => {
                self.counters.breaker_opened.add(1);
                warn!(
                    pipeline = self.name(),
                    "breaker opened: too many runs failed; the source pauses"
                );
                self.gate.change(|gate| gate.broken = true);
                self.breaker_changed.notify_one();
            }
            Some(BreakerState::Closed) => {
                info!(pipeline = self.name(), "breaker closed");
                self.gate.change(|gate| gate.broken = false);
            }
            Some(BreakerState::HalfOpen) | None => {}
        }
        if !was_closed {
            self.wake_all();
        }
    }

    /// Something may run now that could not before.
    pub(crate) fn wake_all(&self) {
        self.ready.wake_takers();
        for batcher in self.batchers() {
            batcher.wake();
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
                    info!(pipeline = self.name(), part, "recovered");
                }
            }
        }
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

/// The part of a pipeline that reads and settles.
pub(crate) const SOURCE: &str = "source";

/// The longest that a handler may ask a message to wait within the process.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3_600);

/// How many lost scopes are remembered for chunks that arrive late.
const REMEMBERED: usize = 64;

/// How much work is worth waking another worker for.
const WAKE_WORTH: Duration = Duration::from_micros(20);

impl Seat {
    /// The token that cancels what runs here next.
    pub(crate) fn cancellation(&self) -> CancellationToken {
        let mut state = self.0.lock();
        if state.cancellation.is_cancelled() {
            state.cancellation = CancellationToken::new();
        }
        state.cancellation.clone()
    }

    /// Says what runs here, once it has turned out to take a while.
    pub(crate) fn occupy(&self, ticket: Ticket) {
        self.0.lock().ticket = Some(ticket);
    }

    pub(crate) fn leave(&self) {
        self.0.lock().ticket = None;
    }

    fn cancel(&self, which: impl Fn(&Ticket) -> bool) -> bool {
        let state = self.0.lock();
        let hit = state.ticket.as_ref().is_some_and(which);
        if hit {
            state.cancellation.cancel();
        }
        hit
    }
}
