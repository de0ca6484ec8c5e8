//! The processor pool: each worker takes a few ready messages, runs the user's code on them one after the other,
//! and hands over what came of all of them at once.
//!
//! A message never leaves the worker: user code gets the decoded input and a [`Context`]. Should the worker die,
//! [`Running`] fails the message that ran and [`Round`] hands over what had ended and returns the rest unrun (P2).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

use tokio_util::sync::CancellationToken;

use super::adaptive::Taken;
use super::batcher::{Entrance, Entries, Mark};
use super::breaker::Runs;
use super::envelope::{Envelope, LaneId};
use super::fate::Fault;
use super::guard::{caught, text_of};
use super::hub::{FAIR_TAKE, Hub};
use super::probes::Permit;
use super::ready::Left;
use super::seat::Seat;
use super::stage::Failures;
use super::twins::{Turn, Twins};
use crate::decode::Decode;
use crate::measures::Failed;
use crate::mutants::{Mutant, mutant};
use crate::processor::{Context, Destination, Processor, Route};
use crate::rt::{self, Duration};
use crate::settlement::{Reason, Settle, Settlement};
use crate::simulation::{Ended, Seen, see};

/// How long a source waits before it hands out again what a stuck batcher could not take.
const STUCK_BATCHER_DELAY: Duration = Duration::from_secs(1);

/// The ends of a flow, each with what enters it.
pub(crate) type Entrances<T> = Arc<[Box<dyn Entrance<T>>]>;

pub(crate) struct Worker<P: Processor> {
    pub(crate) hub: Arc<Hub>,
    pub(crate) processor: Arc<P>,
    pub(crate) entrances: Entrances<P::Output>,
    pub(crate) seat: usize,
}

/// How a run ended.
enum Ran<T> {
    Ended(Result<T, Fault>),
    /// Its lease is lost, or the pipeline was cut.
    Cancelled,
}

impl<P: Processor> Worker<P> {
    pub(crate) async fn run(self) {
        let hub = Arc::clone(&self.hub);
        let stage = Arc::clone(&hub.processor.name);
        let mut round = Round::new(&hub, &self.entrances);
        let _at_work = hub.ready.begin();
        let seat = hub.seats.get(self.seat);
        let mut cancellation = seat.cancellation();
        let mut running = Running {
            settled: AtomicBool::new(false),
            hub: &hub,
            stage: &stage,
            era: 0,
            envelope: None,
        };
        while hub
            .ready
            .take(
                self.seat,
                &mut round.rest,
                || hub.fair_take(),
                || hub.spare(),
                |number, doubtful| hub.may_take(number, doubtful, &mut round.permit),
            )
            .await
        {
            if let Some(twins) = &hub.twins {
                round.sort_out(twins);
            }
            let started = rt::now();
            let busy = hub.adaptive.begin();
            running.era = round.permit.era;
            loop {
                // A breaker that opens meanwhile sends back what has not run.
                if round.permit.probe.is_none() && !hub.breakers.is_closed() {
                    break;
                }
                running.envelope = round.rest.pop_front();
                running.settled.store(false, Ordering::Relaxed);
                let Some(envelope) = &running.envelope else {
                    break;
                };
                if hub.is_lost(&envelope.ticket) {
                    round.dropped(running.envelope.take());
                    continue;
                }
                if hub.is_cut() {
                    // Nothing starts any more.
                    round.end(&mut running.envelope, Ran::Cancelled, Route::default(), &stage);
                    continue;
                }
                let decoded = running
                    .message()
                    .map(|message| catch_unwind(AssertUnwindSafe(|| P::Input::decode(message))));
                let input = match decoded {
                    Some(Ok(Ok(input))) => input,
                    Some(Ok(Err(error))) => {
                        show(&running.envelope, Ended::Rejected);
                        round.failed(Failed::Decode);
                        round.give_up(running.envelope.take(), &stage, Reason::Decode, error.to_string());
                        continue;
                    }
                    Some(Err(panic)) => {
                        show(&running.envelope, Ended::Rejected);
                        round.failed(Failed::Decode);
                        let error = format!("decoding panicked: {}", text_of(&*panic));
                        round.give_up(running.envelope.take(), &stage, Reason::Decode, error);
                        continue;
                    }
                    None => continue,
                };
                let mut route = Route::default();
                let ran = self
                    .run_one(input, &running, &mut route, &mut round, &seat, &cancellation)
                    .await;
                if matches!(ran, Ran::Ended(Err(Fault::Timeout(_)))) {
                    cancellation.cancel();
                }
                round.runs += 1;
                if cancellation.is_cancelled() {
                    cancellation = seat.cancellation();
                }
                if let Some(envelope) = &mut running.envelope {
                    envelope.settled |= running.settled.load(Ordering::Relaxed);
                }
                round.end(&mut running.envelope, ran, route, &stage);
            }
            round.ran(started.elapsed());
            drop(busy);
            round.hand_over();
            round.permit.probe = None;
            tokio::task::consume_budget().await;
        }
    }

    /// Runs the user's code on one message. Most futures are ready at once; for one that is not, the rest of the
    /// take goes back to the queue after a millisecond, so that nobody waits behind it.
    async fn run_one(
        &self,
        input: P::Input,
        running: &Running<'_>,
        route: &mut Route,
        round: &mut Round<'_, P::Output>,
        seat: &Seat,
        cancellation: &CancellationToken,
    ) -> Ran<P::Output> {
        let Some(envelope @ Envelope { ticket, message, .. }) = &running.envelope else {
            return Ran::Cancelled;
        };
        see(Seen::Began(*ticket));
        let hub = &*self.hub;
        let mut context = Context {
            message,
            ticket: *ticket,
            hub,
            cancellation,
            settled: &running.settled,
            route,
        };
        let mut future = pin!(caught(async {
            self.processor.process(input, &mut context).await
        }));
        if let Poll::Ready(result) = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            return Ran::Ended(flatten(result));
        }

        let Some(occupied) = hub.occupy(seat, envelope) else {
            cancellation.cancel();
            return Ran::Cancelled;
        };
        let away = hub.ready.away();
        let pending_since = rt::now();
        let timeout = hub.settings.timeout();
        let give_back_at = pending_since + FAIR_TAKE;
        let deadline = rt::after(timeout);
        let mut gave_back = round.is_empty();
        let mut cancelled = pin!(cancellation.cancelled());
        let mut alarm = pin!(rt::sleep_until(if gave_back {
            deadline
        } else {
            give_back_at.min(deadline)
        }));
        let ran = loop {
            tokio::select! {
                biased;
                result = &mut future => break Ran::Ended(flatten(result)),
                () = &mut cancelled => break Ran::Cancelled,
                () = &mut alarm => {
                    if rt::now() >= deadline {
                        break Ran::Ended(Err(Fault::Timeout(timeout)));
                    }
                    if !std::mem::replace(&mut gave_back, true) {
                        hub.ran(1, FAIR_TAKE);
                        round.hand_over();
                    }
                    alarm.as_mut().reset(deadline);
                }
            }
        };
        let waited = pending_since.elapsed();
        round.slow_now = hub.breakers.is_slow(waited);
        round.waited.push(waited);
        drop((away, occupied));
        ran
    }
}

fn flatten<T>(result: Result<Result<T, crate::Failure>, String>) -> Result<T, Fault> {
    match result {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(failure)) => Err(Fault::Failure(failure)),
        Err(panic) => Err(Fault::Panic(panic)),
    }
}

/// The message that runs. Dropped with it, the worker has died: the message fails.
struct Running<'a> {
    /// The user's code has settled what runs.
    settled: AtomicBool,
    hub: &'a Hub,
    stage: &'a Arc<str>,
    /// In which the take began.
    era: u64,
    envelope: Option<Envelope>,
}

impl Running<'_> {
    fn message(&self) -> Option<&crate::Message> {
        self.envelope.as_ref().map(|envelope| &envelope.message)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let Some(mut envelope) = self.envelope.take() else {
            return;
        };
        envelope.settled |= self.settled.load(Ordering::Relaxed);
        see(Seen::Ended(envelope.ticket, Ended::Failed));
        self.hub.processor.failed(Failed::Died, 1);
        let permit = Permit {
            era: self.era,
            probe: None,
        };
        let failed = Runs {
            failed: 1,
            ..Runs::default()
        };
        self.hub.record(&permit, failed);
        let next = self.hub.next(&mut envelope, Fault::Died);
        let lane = envelope.lane;
        let left = self.hub.leave(self.stage, envelope, next);
        let gone = left.is_none();
        let lane = Some(lane).filter(|lane| gone && *lane != LaneId::NONE);
        self.hub
            .finish(usize::from(gone), lane.into_iter(), left.into_iter());
    }
}

fn show(running: &Option<Envelope>, ended: Ended) {
    if let Some(envelope) = running {
        see(Seen::Ended(envelope.ticket, ended));
    }
}

/// What a worker has taken, and what has come of it so far.
struct Round<'a, T> {
    hub: &'a Hub,
    entrances: &'a [Box<dyn Entrance<T>>],
    /// What it was taken with.
    permit: Permit,
    /// Taken and not yet run.
    rest: VecDeque<Envelope>,
    /// For each entrance, what goes in.
    outputs: Vec<Entries<T>>,
    settles: Vec<Settle>,
    /// Messages that are gone from the queue, and the lanes that some of them held.
    gone: usize,
    lanes: Vec<LaneId>,
    left: Vec<Left>,
    dropped: Vec<Envelope>,
    runs: usize,
    /// Of those, the ones that failed in a way worth another attempt.
    faults: usize,
    /// How long each of those runs was pending that was.
    waited: Vec<Duration>,
    processed: usize,
    failures: Failures,
    /// Processed messages that end here, for the breaker: those that go to a batcher count there.
    ended: Runs,
    /// What runs now was slow.
    slow_now: bool,
}

impl<'a, T> Round<'a, T> {
    fn new(hub: &'a Hub, entrances: &'a [Box<dyn Entrance<T>>]) -> Self {
        Self {
            hub,
            entrances,
            permit: Permit::default(),
            rest: VecDeque::new(),
            outputs: entrances.iter().map(|_| Entries::new()).collect(),
            settles: Vec::new(),
            gone: 0,
            lanes: Vec::new(),
            left: Vec::new(),
            dropped: Vec::new(),
            runs: 0,
            faults: 0,
            waited: Vec::new(),
            processed: 0,
            failures: Failures::default(),
            ended: Runs::default(),
            slow_now: false,
        }
    }

    fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.settles.is_empty() && self.left.is_empty() && self.gone == 0
    }

    /// Runs no twin of a message that is in flight, or that has ended meanwhile.
    fn sort_out(&mut self, twins: &Twins) {
        let hub = self.hub;
        if !self.rest.iter().any(|envelope| envelope.is_twin) {
            return;
        }
        for mut envelope in std::mem::take(&mut self.rest) {
            if !envelope.is_twin {
                self.rest.push_back(envelope);
            } else if hub.is_lost(&envelope.ticket) {
                self.dropped(Some(envelope));
            } else {
                match twins.turn(&envelope.ticket) {
                    Turn::Run => {
                        envelope.is_twin = false;
                        self.rest.push_back(envelope);
                    }
                    Turn::Wait => self.left.push(Left::Aside(envelope)),
                    Turn::Done => {
                        hub.counters.duplicates.add(1);
                        self.settles.extend(envelope.settle(Settlement::Ack));
                        self.free(envelope.lane);
                    }
                    Turn::GivenUp(first) => {
                        self.give_up(Some(envelope), &first.stage, first.reason, first.error.clone());
                    }
                }
            }
        }
    }

    /// Decides what comes of a run. The envelope is taken out, or dropped in place once it is settled.
    fn end(&mut self, running: &mut Option<Envelope>, ran: Ran<T>, route: Route, stage: &Arc<str>) {
        let Some(envelope) = running else { return };
        let slow = usize::from(std::mem::take(&mut self.slow_now));
        match ran {
            Ran::Ended(Ok(output)) => {
                self.processed += 1;
                let done = self.ended.succeeded;
                self.route(running, output, route, stage);
                self.ended.slow += slow * (self.ended.succeeded - done);
            }
            Ran::Ended(Err(fault)) => {
                let ended = if fault.kind() == Failed::Rejected {
                    Ended::Rejected
                } else {
                    Ended::Failed
                };
                see(Seen::Ended(envelope.ticket, ended));
                if mutant(Mutant::ForgetOnPanic) && fault.kind() == Failed::Panic {
                    let lane = envelope.lane;
                    *running = None;
                    return self.free(lane);
                }
                self.failed(fault.kind());
                if fault.feeds_breaker() {
                    self.ended.failed += 1;
                    self.faults += 1;
                    self.ended.slow += slow;
                }
                let next = self.hub.next(envelope, fault);
                let lane = envelope.lane;
                match running
                    .take()
                    .and_then(|envelope| self.hub.leave(stage, envelope, next))
                {
                    Some(left) => self.left.push(left),
                    None => self.free(lane),
                }
            }
            Ran::Cancelled if self.hub.is_lost(&envelope.ticket) => {
                see(Seen::Ended(envelope.ticket, Ended::Cancelled));
                self.dropped(running.take());
            }
            Ran::Cancelled => {
                see(Seen::Ended(envelope.ticket, Ended::Cancelled));
                self.settles.extend(envelope.settle(Settlement::Release));
                self.left.push(Left::Withdrawn(envelope.lane));
                *running = None;
            }
        }
    }

    fn route(&mut self, running: &mut Option<Envelope>, output: T, route: Route, stage: &Arc<str>) {
        let index = match route.to {
            Destination::Done => None,
            Destination::Batcher(index) => Some(index),
            Destination::Default => match self.entrances.len() {
                0 => None,
                1 => Some(0),
                _ => {
                    show(running, Ended::Rejected);
                    let error = "the flow has several batchers and the processor chose none";
                    return self.give_up(running.take(), stage, Reason::Route, error.to_owned());
                }
            },
            Destination::Unknown(name) => {
                show(running, Ended::Rejected);
                let error = format!("the flow has no batcher `{name}`");
                return self.give_up(running.take(), stage, Reason::Route, error);
            }
        };
        let end = index.and_then(|index| Some((self.entrances.get(index)?, self.outputs.get_mut(index)?)));
        show(
            running,
            match (index, &end) {
                (Some(index), Some((entrance, _))) if !entrance.is_stuck() => Ended::Batched(index),
                (_, Some(_)) => Ended::PutOff,
                (_, None) => Ended::Done,
            },
        );
        let Some(envelope) = running else { return };
        let lane = envelope.lane;
        match end {
            None => {
                self.ended.succeeded += 1;
                self.settles.extend(envelope.settle(Settlement::Ack));
                if mutant(Mutant::SettleTwice) {
                    self.settles.extend(envelope.settle(Settlement::Ack));
                }
                *running = None;
            }
            Some((entrance, _)) if entrance.is_stuck() => {
                // It holds its share already (P5): the others go on, and this one comes again later.
                self.hub.counters.throttled.add(1);
                if let Some(envelope) = running.take() {
                    self.hub.return_later(envelope, STUCK_BATCHER_DELAY);
                }
            }
            Some((_, outputs)) => {
                envelope.probe = self.permit.probe.take();
                let flush =
                    route.flush || envelope.probe.is_some() || envelope.is_suspect() || envelope.alone;
                if mutant(Mutant::AckBeforeBatch) {
                    self.settles.extend(envelope.settle(Settlement::Ack));
                    envelope.settled = true;
                }
                outputs.envelopes.extend(running.take());
                outputs.outputs.push(output);
                outputs.marks.push(Mark {
                    key: route.batch_key,
                    flush,
                });
            }
        }
        self.free(lane);
    }

    fn failed(&mut self, kind: Failed) {
        if let Some(failures) = self.failures.get_mut(kind as usize) {
            *failures += 1;
        }
    }

    /// The take has ended, and took so long. What a run was pending is its own; the rest is shared by all alike.
    fn ran(&mut self, took: Duration) {
        let runs = std::mem::take(&mut self.runs);
        let failures = std::mem::take(&mut self.faults);
        self.hub.ran(runs, took);
        if self.hub.budget.is_set() {
            self.hub.budget.ran(runs, rt::now());
        }
        let Some(others) = runs.checked_sub(self.waited.len()).filter(|_| runs > 0) else {
            return self.waited.clear();
        };
        let waited: Duration = self.waited.iter().sum();
        let share = took.saturating_sub(waited) / u32::try_from(runs).unwrap_or(u32::MAX);
        let hub = self.hub;
        if hub.adaptive.is_on() && hub.breakers.is_closed() {
            let pending = &self.waited;
            let taken = Taken {
                runs,
                failures,
                pending,
                share,
            };
            hub.adaptive
                .took(rt::now(), &taken, |workers| hub.resize(workers));
        }
        if hub.breakers.is_slow(share) {
            self.ended.slow = self.ended.succeeded + self.ended.failed;
        }
        let times = &hub.processor.took;
        if others > 0 {
            times.record_time(share, others);
        }
        for waited in self.waited.drain(..) {
            times.record_time(waited + share, 1);
        }
    }

    fn give_up(&mut self, envelope: Option<Envelope>, stage: &Arc<str>, reason: Reason, error: String) {
        let Some(envelope) = envelope else { return };
        self.free(envelope.lane);
        self.hub.give_up(envelope, stage, reason, error);
    }

    /// A message whose delivery is gone.
    fn dropped(&mut self, envelope: Option<Envelope>) {
        let Some(envelope) = envelope else { return };
        self.free(envelope.lane);
        self.dropped.push(envelope);
    }

    fn free(&mut self, lane: LaneId) {
        self.gone += 1;
        if lane != LaneId::NONE {
            self.lanes.push(lane);
        }
    }

    /// Hands over what has ended so far and returns what has not run.
    fn hand_over(&mut self) {
        let hub = self.hub;
        // Counted before it is settled: whoever finds nothing in flight finds the counts complete.
        hub.processor.succeeded.add(std::mem::take(&mut self.processed));
        hub.processor.failed_all(&mut self.failures);
        hub.balance.ended.add(self.ended.succeeded);
        // Into the batchers before the lanes go on: messages of a key enter batches in order.
        for (entrance, outputs) in self.entrances.iter().zip(&mut self.outputs) {
            if !outputs.is_empty() {
                entrance.enter(outputs);
            }
        }
        if !self.settles.is_empty() {
            hub.settling.add(self.settles.drain(..));
        }
        if !self.dropped.is_empty() {
            hub.drop_lost(&self.dropped);
            self.dropped.clear();
        }
        let rest = self.rest.drain(..).rev().map(Left::Back);
        let gone = std::mem::take(&mut self.gone);
        if gone > 0 || !self.left.is_empty() || rest.len() > 0 {
            let aside = self.left.iter().any(|left| matches!(left, Left::Aside(_)));
            hub.finish(gone, self.lanes.drain(..), self.left.drain(..).chain(rest));
            // What they wait for may have happened since they were asked.
            if let (true, Some(twins)) = (aside, &hub.twins) {
                twins.bring_back(hub);
            }
        }
        hub.record(&self.permit, std::mem::take(&mut self.ended));
    }
}

impl<T> Drop for Round<'_, T> {
    fn drop(&mut self) {
        self.hand_over();
    }
}
