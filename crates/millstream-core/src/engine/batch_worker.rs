//! Batch workers: each takes one closed batch at a time, runs the handler on it, and decides what comes of each
//! of its messages.

use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustc_hash::FxHashSet;
use tracing::warn;

use super::batcher::{Again, Batcher};
use super::bisect::Split;
use super::breaker::Runs;
use super::envelope::Envelope;
use super::fate::{Fault, Next};
use super::guard::{caught, put_away};
use super::hub::Hub;
use super::probes::Permit;
use super::shard::{Closed, Turn};
use super::stage::{Failures, Stage};
use crate::batch::Batch;
use crate::failure::Failure;
use crate::measures::Failed;
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Reason, Settle, Settlement};
use crate::simulation::{Ended, Seen, inside, see};

pub(crate) async fn run<T: Send + 'static>(batcher: Arc<Batcher<T>>, hub: Arc<Hub>, worker: usize) {
    let shard = batcher.shard_of(worker);
    let Some(work) = batcher.work_of(shard) else {
        return;
    };
    loop {
        let mut told = pin!(work.notified());
        told.as_mut().enable();
        let Some(turn) = batcher.turn(&hub, worker) else {
            // What it may have been told goes to another.
            work.notify_one();
            return;
        };
        match turn {
            Turn::Run(batch) => {
                // While it runs it waits for nothing: what it would have been told goes to another worker.
                told.set(work.notified());
                handle(&batcher, &hub, worker, batch).await;
                tokio::task::consume_budget().await;
            }
            Turn::Wait(Some(then)) => {
                tokio::select! {
                    biased;
                    () = told => {}
                    () = rt::sleep_until(then) => {}
                }
            }
            Turn::Wait(None) => told.await,
        }
    }
}

/// How a run of a handler ended.
enum Ran {
    Ended,
    Failed(Failure),
    Panicked(String),
    TimedOut(Duration),
    Cancelled,
    /// The worker died while it ran.
    Died,
}

async fn handle<T: Send + 'static>(batcher: &Batcher<T>, hub: &Hub, worker: usize, closed: Closed<T>) {
    let (cancellation, timeout) = batcher.terms(worker);
    let Closed {
        key,
        items,
        mut envelopes,
        by,
        runs,
        split,
    } = closed;
    if runs == 0 && split.is_none() {
        batcher.batches.handed_over(envelopes.len(), by);
    }
    let mut permit = Permit {
        era: hub.breakers.era(),
        probe: None,
    };
    for envelope in &mut envelopes {
        // One that has taken too long, of another message, is none.
        permit.probe = permit.probe.or(envelope.probe.take());
    }
    let mut running = Running {
        batcher,
        hub,
        worker,
        permit,
        started: rt::now(),
        runs: runs + 1,
        split,
        batch: Batch {
            len: envelopes.len(),
            items,
            key,
            attempt: runs + 1,
            closed_by: by,
            failures: Vec::new(),
            cancellation: cancellation.clone(),
            breakers: Some(Arc::clone(&hub.breakers)),
        },
        envelopes,
    };
    if inside() {
        let tickets: Vec<_> = running.envelopes.iter().map(|envelope| envelope.ticket).collect();
        see(Seen::BatchBegan(running.number(), &tickets));
    }
    let ran = {
        let mut future = pin!(caught(async { batcher.handler.handle(&mut running.batch).await }));
        match poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await {
            Poll::Ready(result) => result.into(),
            Poll::Pending => {
                tokio::select! {
                    biased;
                    result = &mut future => result.into(),
                    () = cancellation.cancelled() => Ran::Cancelled,
                    () = rt::sleep(timeout) => Ran::TimedOut(timeout),
                }
            }
        }
    };
    if matches!(ran, Ran::TimedOut(_)) {
        cancellation.cancel();
    }
    running.end(&ran);
}

impl From<Result<Result<(), Failure>, String>> for Ran {
    fn from(result: Result<Result<(), Failure>, String>) -> Self {
        match result {
            Ok(Ok(())) => Self::Ended,
            Ok(Err(failure)) => Self::Failed(failure),
            Err(panic) => Self::Panicked(panic),
        }
    }
}

/// A batch while its handler runs. Dropped before its end, the worker has died: the batch fails, unless it was cancelled.
struct Running<'a, T: Send + 'static> {
    batcher: &'a Batcher<T>,
    hub: &'a Hub,
    worker: usize,
    permit: Permit,
    started: Instant,
    runs: u32,
    split: Option<Arc<Split>>,
    batch: Batch<T>,
    envelopes: Vec<Envelope>,
}

impl<T: Send + 'static> Drop for Running<'_, T> {
    fn drop(&mut self) {
        if !self.envelopes.is_empty() {
            let ran = match self.batch.cancellation.is_cancelled() {
                true => Ran::Cancelled,
                false => Ran::Died,
            };
            self.end(&ran);
        }
    }
}

impl<T: Send + 'static> Running<'_, T> {
    /// The keys of these, where they matter.
    fn orders(&self, envelopes: &[Envelope]) -> Vec<u64> {
        if !self.hub.spec.ordering.is_ordered() {
            return Vec::new();
        }
        envelopes.iter().map(|envelope| envelope.order).collect()
    }

    /// So many messages ended with the batch, for the breaker.
    fn runs(&self, succeeded: usize, failed: usize) -> Runs {
        let slow = self.hub.breakers.is_slow(self.started.elapsed());
        Runs {
            succeeded,
            failed,
            slow: if slow { succeeded + failed } else { 0 },
        }
    }

    /// Every message of the batch is done.
    fn succeed(&self, envelopes: &[Envelope]) {
        self.hub.record(&self.permit, self.runs(envelopes.len(), 0));
        self.batcher.batches.stage.succeeded.add(envelopes.len());
        self.batcher.done(
            self.hub,
            self.worker,
            envelopes.len(),
            &self.orders(envelopes),
            Again::Never,
        );
        let settles = envelopes
            .iter()
            .filter_map(|envelope| envelope.settle(Settlement::Ack));
        self.hub.settling.add(settles);
    }

    /// Which batcher of the flow this is.
    fn number(&self) -> usize {
        self.hub
            .batcher(&self.batcher.batches.stage.name)
            .unwrap_or(usize::MAX)
    }

    /// Shows a simulation how the run has ended for each message.
    fn show(&self, ran: &Ran, envelopes: &[Envelope]) {
        let named = &self.batch.failures;
        let fault = |index: usize| match named.iter().find(|(failed, _)| *failed == index) {
            Some((_, failure)) => Some(failure.is_reject()),
            None => ran.fault().map(|fault| fault.kind() == Failed::Rejected),
        };
        let ends = envelopes.iter().enumerate().map(|(index, envelope)| {
            let ended = match (ran, fault(index)) {
                (Ran::Cancelled, _) => Ended::Cancelled,
                (_, None) => Ended::Done,
                (_, Some(true)) => Ended::Rejected,
                (_, Some(false)) => Ended::Failed,
            };
            (envelope.ticket, ended)
        });
        see(Seen::BatchEnded(self.number(), &ends.collect::<Vec<_>>()));
    }

    /// Decides what comes of each message, and lets go of the batch.
    fn end(&mut self, ran: &Ran) {
        let mut envelopes = std::mem::take(&mut self.envelopes);
        let hub = self.hub;
        let stage = &self.batcher.batches.stage;
        stage.took.record_time(self.started.elapsed(), 1);
        if self.is_to_be_split(ran, envelopes.len()) {
            match self.bisect(ran, envelopes) {
                Some(decided) => envelopes = decided,
                None => return,
            }
        }
        if inside() {
            self.show(ran, &envelopes);
        }
        if matches!(ran, Ran::Cancelled) {
            let (gone, orders) = (envelopes.len(), self.orders(&envelopes));
            hub.release(envelopes);
            return self.batcher.done(hub, self.worker, gone, &orders, Again::Never);
        }
        if matches!(ran, Ran::Ended) {
            if let Some(split) = &self.split {
                split.succeeded();
            }
            if self.batch.failures.is_empty() {
                return self.succeed(&envelopes);
            }
        }
        let mut verdict = Verdict::new(hub, self);
        let mut named: Vec<Option<Failure>> = Vec::new();
        let failures = std::mem::take(&mut self.batch.failures);
        if !failures.is_empty() {
            named.resize_with(envelopes.len(), || None);
            for (index, failure) in failures {
                if let Some(slot) = named.get_mut(index) {
                    *slot = Some(failure);
                }
            }
        }
        let mut named = named.into_iter();
        // Where the handler took the items out there is nothing to hand it again.
        let mut items = (self.batch.items.len() == envelopes.len())
            .then(|| std::mem::take(&mut self.batch.items).into_iter());
        for envelope in envelopes {
            let mut item = items.as_mut().and_then(Iterator::next);
            let fault = match named.next().flatten() {
                Some(failure) => Some(Fault::Failure(failure)),
                None => ran.fault(),
            };
            verdict.decide(envelope, &mut item, fault);
            put_away(item);
        }
        let runs = self.runs(verdict.succeeded, verdict.failed);
        hub.record(&self.permit, runs);
        verdict.carry_out(self.batcher, self.worker);
    }
}

impl<T: Send + 'static> Running<'_, T> {
    /// Whether the message at fault is to be found out: not while what all of them need is away or not permitted, and not
    /// where the handler took the items out.
    fn is_to_be_split(&self, ran: &Ran, messages: usize) -> bool {
        !matches!(ran, Ran::Ended | Ran::Cancelled)
            && ran
                .fault()
                .is_some_and(|fault| fault.kind() != Failed::NotPermitted)
            && self.batcher.bisects()
            && (messages > 1 || self.split.is_some())
            && self.batch.items.len() == messages
            && self.hub.breakers.is_closed()
    }

    /// Has a batch that failed as a whole run again in parts, or gives the messages to decide on. Failures that the
    /// handler named before count for nothing where it runs again.
    fn bisect(&mut self, ran: &Ran, envelopes: Vec<Envelope>) -> Option<Vec<Envelope>> {
        let hub = self.hub;
        let failed = Closed {
            key: self.batch.key.clone(),
            items: std::mem::take(&mut self.batch.items),
            envelopes,
            by: self.batch.closed_by,
            runs: self.runs - 1,
            split: self.split.take(),
        };
        let messages = failed.len();
        let tickets = || failed.envelopes.iter().map(|envelope| envelope.ticket);
        let tickets: Vec<_> = if inside() { tickets().collect() } else { Vec::new() };
        let is_last = |batch: &Closed<T>| {
            ran.fault().is_some_and(|fault| fault.kind() == Failed::Rejected)
                || batch.envelopes.iter().any(|envelope| hub.is_last(envelope))
        };
        match failed.bisect(is_last, |split| self.batcher.parts_of(self.worker, split)) {
            Ok(parts) => {
                hub.counters.batches_split.add(1);
                if inside() {
                    let ends: Vec<_> = tickets.into_iter().map(|ticket| (ticket, Ended::Split)).collect();
                    see(Seen::BatchEnded(self.number(), &ends));
                }
                if let Some(unwritten) = hub.rare.split.tell() {
                    warn!(
                        pipeline = hub.name(), batcher = %self.batcher.batches.stage.name, messages,
                        parts = parts.len(), cause = %ran, unwritten,
                        "a batch failed and is run again in parts"
                    );
                }
                self.batcher.done(hub, self.worker, 0, &[], Again::InParts(parts));
                None
            }
            Err(decided) => {
                self.batch.items = decided.items;
                Some(decided.envelopes)
            }
        }
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("none"),
            Self::Failed(failure) => failure.fmt(f),
            Self::Panicked(text) => write!(f, "the handler panicked: {text}"),
            Self::TimedOut(limit) => write!(f, "the handler took longer than its timeout of {limit:?}"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Died => f.write_str("the worker died while the handler ran"),
        }
    }
}

impl Ran {
    /// What this says of a message that the handler did not name.
    fn fault(&self) -> Option<Fault> {
        match self {
            Self::Ended | Self::Cancelled => None,
            Self::Failed(failure) => Some(Fault::Failure(failure.again())),
            Self::Panicked(text) => Some(Fault::Panic(text.clone())),
            Self::TimedOut(limit) => Some(Fault::Timeout(*limit)),
            Self::Died => Some(Fault::Died),
        }
    }
}

/// What comes of the messages of one batch.
struct Verdict<'a, T> {
    hub: &'a Hub,
    stage: &'a Stage,
    ordered: bool,
    settles: Vec<Settle>,
    /// The keys of messages that have left the batcher.
    gone: Vec<u64>,
    again: Closed<T>,
    due: Option<Instant>,
    /// Keys of messages that come again: later ones of the same key come with them.
    blocked: FxHashSet<u64>,
    succeeded: usize,
    failed: usize,
    failures: Failures,
}

impl<'a, T: Send + 'static> Verdict<'a, T> {
    fn new(hub: &'a Hub, running: &Running<'a, T>) -> Self {
        Self {
            hub,
            stage: &running.batcher.batches.stage,
            ordered: hub.spec.ordering.is_ordered(),
            settles: Vec::with_capacity(running.batch.len),
            gone: Vec::with_capacity(running.batch.len),
            again: Closed {
                key: running.batch.key.clone(),
                items: Vec::new(),
                envelopes: Vec::new(),
                by: running.batch.closed_by,
                runs: running.runs,
                split: None,
            },
            due: None,
            blocked: FxHashSet::default(),
            succeeded: 0,
            failed: 0,
            failures: Failures::default(),
        }
    }

    /// Takes the item where it comes again; the rest are the caller's to drop.
    fn decide(&mut self, mut envelope: Envelope, item: &mut Option<T>, fault: Option<Fault>) {
        let Some(fault) = fault else {
            self.succeeded += 1;
            if self.blocked.contains(&envelope.order)
                && let Some(item) = item.take()
            {
                return self.again.push(envelope, item);
            }
            self.gone.push(envelope.order);
            self.settles.extend(envelope.settle(Settlement::Ack));
            return;
        };
        self.failed += usize::from(fault.feeds_breaker());
        if let Some(failures) = self.failures.get_mut(fault.kind() as usize) {
            *failures += 1;
        }
        if envelope.settled {
            self.gone.push(envelope.order);
            let error = "its batch failed after it was settled".to_owned();
            return self
                .hub
                .give_up(envelope, &self.stage.name, Reason::Rejected, error);
        }
        let due = match self.hub.next(&mut envelope, fault) {
            Next::GiveUp(reason, error) => {
                self.gone.push(envelope.order);
                return self.hub.give_up(envelope, &self.stage.name, reason, error);
            }
            // Under an ordering it stays, so that what follows it stays behind it, until the cut releases all.
            Next::Return(wait) if !self.ordered => {
                self.gone.push(envelope.order);
                return self.hub.return_failed(envelope, wait);
            }
            Next::Return(wait) => rt::now() + wait,
            Next::Park(due) => {
                let now = rt::now();
                now + self.hub.within_budget(due.saturating_duration_since(now))
            }
            // What has not failed probes before it.
            Next::Behind => rt::now(),
        };
        match item.take() {
            Some(item) => {
                if envelope.order != 0 {
                    self.blocked.insert(envelope.order);
                }
                self.due = self.due.max(Some(due));
                self.again.push(envelope, item);
            }
            None => {
                self.gone.push(envelope.order);
                let ticket = envelope.ticket;
                self.hub.ready.readmit(due, envelope);
                if self.hub.is_lost(&ticket) {
                    self.hub.drop_lost_ready();
                }
            }
        }
    }

    fn carry_out(mut self, batcher: &Batcher<T>, worker: usize) {
        let hub = self.hub;
        self.stage.succeeded.add(self.succeeded);
        self.stage.failed_all(&mut self.failures);
        // What would come again and was lost meanwhile, unless later ones of its key might then run before it.
        let lost = self
            .again
            .take_out(|envelope| !self.ordered && hub.is_lost(&envelope.ticket));
        self.gone.extend(lost.orders());
        // Out of the batcher before it is settled: whoever sees the place free finds the batcher has room too.
        let again = match self.due.filter(|_| !self.again.is_empty()) {
            Some(due) => Again::At(due, self.again),
            None => Again::Never,
        };
        batcher.done(hub, worker, self.gone.len(), &self.gone, again);
        hub.settling.add(self.settles);
        if !lost.is_empty() {
            hub.drop_lost(&lost.envelopes);
            put_away(lost.items);
        }
    }
}
