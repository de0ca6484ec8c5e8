//! What a worker has taken, and what has come of it so far: [`Round`].

use std::collections::VecDeque;
use std::sync::Arc;

use super::adaptive::Taken;
use super::breaker::Runs;
use super::entrance::{Entrance, Entries, Mark};
use super::envelope::{Envelope, LaneId};
use super::fate::Fault;
use super::hub::Hub;
use super::probes::Permit;
use super::ready::Left;
use super::stage::Failures;
use super::twins::{Turn, Twins};
use crate::measures::Failed;
use crate::mutants::{Mutant, mutant};
use crate::processor::{Destination, Route};
use crate::rt::{self, Duration};
use crate::settlement::{Reason, Settle, Settlement};
use crate::simulation::{Ended, Seen, see};

/// How long a source waits before it hands out again what a stuck batcher could not take.
const STUCK_BATCHER_DELAY: Duration = Duration::from_secs(1);

/// How a run ended.
pub(super) enum Ran<T> {
    Ended(Result<T, Fault>),
    /// Its lease is lost, or the pipeline was cut.
    Cancelled,
}

/// What a worker has taken, and what has come of it so far.
pub(super) struct Round<'a, T> {
    hub: &'a Hub,
    entrances: &'a [Box<dyn Entrance<T>>],
    /// What it was taken with.
    pub(super) permit: Permit,
    /// Taken and not yet run.
    pub(super) rest: VecDeque<Envelope>,
    /// For each entrance, what goes in.
    outputs: Vec<Entries<T>>,
    settles: Vec<Settle>,
    /// Messages that are gone from the queue, and the lanes that some of them held.
    gone: usize,
    lanes: Vec<LaneId>,
    left: Vec<Left>,
    dropped: Vec<Envelope>,
    pub(super) runs: usize,
    /// Of those, the ones that failed in a way worth another attempt.
    faults: usize,
    /// How long each of those runs was pending that was.
    pub(super) waited: Vec<Duration>,
    processed: usize,
    failures: Failures,
    /// Processed messages that end here, for the breaker: those that go to a batcher count there.
    ended: Runs,
    /// What runs now was slow.
    pub(super) slow_now: bool,
}

impl<'a, T> Round<'a, T> {
    pub(super) fn new(hub: &'a Hub, entrances: &'a [Box<dyn Entrance<T>>]) -> Self {
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

    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty() && self.settles.is_empty() && self.left.is_empty() && self.gone == 0
    }

    /// Runs no twin of a message that is in flight, or that has ended meanwhile.
    pub(super) fn sort_out(&mut self, twins: &Twins) {
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
    pub(super) fn end(
        &mut self,
        running: &mut Option<Envelope>,
        ran: Ran<T>,
        route: Route,
        stage: &Arc<str>,
    ) {
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
                if next.comes_again() && self.hub.is_lost(&envelope.ticket) {
                    return self.dropped(running.take());
                }
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
                let alone = envelope.is_suspect() || envelope.alone;
                let flush = route.flush || envelope.probe.is_some();
                if mutant(Mutant::AckBeforeBatch) {
                    self.settles.extend(envelope.settle(Settlement::Ack));
                    envelope.settled = true;
                }
                outputs.envelopes.extend(running.take());
                outputs.outputs.push(output);
                outputs.marks.push(Mark {
                    key: route.batch_key,
                    flush,
                    alone,
                });
            }
        }
        self.free(lane);
    }

    pub(super) fn failed(&mut self, kind: Failed) {
        if let Some(failures) = self.failures.get_mut(kind as usize) {
            *failures += 1;
        }
    }

    /// The take has ended, and took so long. What a run was pending is its own; the rest is shared by all alike.
    pub(super) fn ran(&mut self, took: Duration) {
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
        if hub.adaptive.is_on() && !hub.one_at_a_time() {
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

    pub(super) fn give_up(
        &mut self,
        envelope: Option<Envelope>,
        stage: &Arc<str>,
        reason: Reason,
        error: String,
    ) {
        let Some(envelope) = envelope else { return };
        self.free(envelope.lane);
        self.hub.give_up(envelope, stage, reason, error);
    }

    /// A message whose delivery is gone.
    pub(super) fn dropped(&mut self, envelope: Option<Envelope>) {
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
    pub(super) fn hand_over(&mut self) {
        let hub = self.hub;
        // Counted before it is settled: whoever finds nothing in flight finds the counts complete.
        hub.processor.succeeded.add(std::mem::take(&mut self.processed));
        hub.processor.failed_all(&mut self.failures);
        hub.balance.ended.add(self.ended.succeeded);
        // Into the batchers before the lanes go on: messages of a key enter batches in order.
        for (entrance, outputs) in self.entrances.iter().zip(&mut self.outputs) {
            if !outputs.is_empty() {
                entrance.enter(hub, outputs);
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

/// Shows a simulation how a run has ended.
pub(super) fn show(running: &Option<Envelope>, ended: Ended) {
    if let Some(envelope) = running {
        see(Seen::Ended(envelope.ticket, ended));
    }
}
