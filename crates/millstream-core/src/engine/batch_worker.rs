//! Batch workers: each takes one closed batch at a time, runs the handler on it, and decides what comes of each
//! of its messages.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use rustc_hash::FxHashSet;

use super::batcher::Batcher;
use super::envelope::{Alone, Envelope};
use super::fate::{Fault, Next};
use super::guard::{caught, put_away};
use super::hub::Hub;
use super::shard::{Closed, Turn};
use super::stage::{Failures, Stage};
use crate::batch::Batch;
use crate::failure::Failure;
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Reason, Settle, Settlement};
use crate::simulation::{Ended, Seen, inside, see};

pub(crate) async fn run<T: Send + 'static>(batcher: Arc<Batcher<T>>, hub: Arc<Hub>, worker: usize) {
    let shard = batcher.shard_of(worker);
    let Some(work) = batcher.work.get(shard) else {
        return;
    };
    loop {
        let mut told = pin!(work.notified());
        told.as_mut().enable();
        match batcher.turn(&hub, worker) {
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
    let cancellation = batcher.cancellation(worker);
    let Closed {
        key,
        items,
        envelopes,
        by,
        runs,
    } = closed;
    if runs == 0 {
        batcher.batches.handed_over(envelopes.len(), by);
    }
    let mut running = Running {
        batcher,
        hub,
        worker,
        started: rt::now(),
        runs: runs + 1,
        batch: Batch {
            len: envelopes.len(),
            items,
            key,
            attempt: runs + 1,
            closed_by: by,
            failures: Vec::new(),
            cancellation: cancellation.clone(),
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
                let timeout = batcher.spec.timeout;
                tokio::select! {
                    biased;
                    result = &mut future => result.into(),
                    () = cancellation.cancelled() => Ran::Cancelled,
                    () = rt::sleep(timeout) => {
                        cancellation.cancel();
                        Ran::TimedOut(timeout)
                    }
                }
            }
        }
    };
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

/// A batch while its handler runs. Dropped before its end, the worker has died: the batch fails.
struct Running<'a, T: Send + 'static> {
    batcher: &'a Batcher<T>,
    hub: &'a Hub,
    worker: usize,
    started: Instant,
    runs: u32,
    batch: Batch<T>,
    envelopes: Vec<Envelope>,
}

impl<T: Send + 'static> Drop for Running<'_, T> {
    fn drop(&mut self) {
        if !self.envelopes.is_empty() {
            self.end(&Ran::Died);
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

    /// Every message of the batch is done.
    fn succeed(&self, envelopes: &[Envelope]) {
        self.hub.record(envelopes.len(), 0);
        self.batcher.batches.stage.succeeded.add(envelopes.len());
        self.batcher.done(
            self.hub,
            self.worker,
            envelopes.len(),
            &self.orders(envelopes),
            None,
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
    fn show(&self, ran: &Ran) {
        let named = &self.batch.failures;
        let fault = |index: usize| match named.iter().find(|(failed, _)| *failed == index) {
            Some((_, failure)) => Some(failure.is_reject()),
            None => ran.fault().map(|fault| fault.is_reject()),
        };
        let ends = self.envelopes.iter().enumerate().map(|(index, envelope)| {
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
        if inside() {
            self.show(ran);
        }
        let envelopes = std::mem::take(&mut self.envelopes);
        let hub = self.hub;
        let stage = &self.batcher.batches.stage;
        stage.took.record_time(self.started.elapsed(), 1);
        if matches!(ran, Ran::Cancelled) {
            let (gone, orders) = (envelopes.len(), self.orders(&envelopes));
            hub.release(envelopes);
            return self.batcher.done(hub, self.worker, gone, &orders, None);
        }
        if matches!(ran, Ran::Ended) && self.batch.failures.is_empty() {
            return self.succeed(&envelopes);
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
        verdict.carry_out(self.batcher, self.worker);
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
                envelope.alone = envelope.alone.filter(|alone| *alone != Alone::Probe);
                return self.again.push(envelope, item);
            }
            self.gone.push(envelope.order);
            self.settles.extend(envelope.settle(Settlement::Ack));
            return;
        };
        self.failed += usize::from(!fault.is_reject());
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
                return self.hub.return_later(envelope, wait);
            }
            Next::Return(wait) => rt::now() + wait,
            Next::Park(due) => due,
            Next::Back => rt::now(),
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
                self.hub.ready.readmit(due, envelope);
            }
        }
    }

    fn carry_out(mut self, batcher: &Batcher<T>, worker: usize) {
        let hub = self.hub;
        self.stage.succeeded.add(self.succeeded);
        self.stage.failed_all(&mut self.failures);
        hub.record(self.succeeded, self.failed);
        // Out of the batcher before it is settled: whoever sees the place free finds the batcher has room too.
        let again = self.due.map(|due| (due, self.again));
        batcher.done(hub, worker, self.gone.len(), &self.gone, again);
        hub.settling.add(self.settles);
    }
}
