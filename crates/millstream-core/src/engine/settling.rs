//! The settlement stage: what was decided goes to the acknowledger here, away from every handler, and is tried
//! again until the broker has it.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::hub::Hub;
use super::retry::patience;
use super::twins::Twins;
use crate::connector::DynAcknowledger;
use crate::future::BoxFuture;
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Outcome, Settle, Settlement};
use crate::ticket::Ticket;

/// How long an acknowledger may keep settlements back to coalesce them.
const LINGER: Duration = Duration::from_millis(5);

/// Settlements on their way to the acknowledger.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    queue: Mutex<Vec<Settle>>,
    /// Those that wait, and until when.
    later: Mutex<Vec<(Instant, Settle)>>,
    added: Notify,
    /// How many the acknowledger was given and has not answered for.
    owed: AtomicUsize,
}

impl Settling {
    /// Hands over settlements. Never waits: every one of them still occupies its place in flight.
    pub(crate) fn add(&self, settlements: impl IntoIterator<Item = Settle>) {
        let mut queue = self.queue.lock();
        let was_empty = queue.is_empty();
        queue.extend(settlements);
        let wake = was_empty && !queue.is_empty();
        drop(queue);
        if wake {
            self.added.notify_one();
        }
    }

    /// Hands over one that is not to go to the acknowledger before then, unless the pipeline drains.
    pub(crate) fn add_later(&self, then: Instant, settle: Settle) {
        self.later.lock().push((then, settle));
        self.added.notify_one();
    }

    /// What waits has no more to wait for: the pipeline drains, or deliveries were lost.
    pub(crate) fn look_again(&self) {
        self.added.notify_one();
    }

    /// Puts in what is due, what is lost, and in a drain all there is; says when more is due.
    fn collect_later(&self, hub: &Hub, given: &mut Vec<Settle>) -> Option<Instant> {
        let mut later = self.later.lock();
        if later.is_empty() {
            return None;
        }
        let (now, drains) = (rt::now(), hub.is_draining());
        let due = later.extract_if(.., |(then, settle)| {
            drains || *then <= now || hub.is_lost(&settle.ticket)
        });
        given.extend(due.map(|(_, settle)| settle));
        later.iter().map(|(then, _)| *then).min()
    }

    /// How many wait until they may go to the acknowledger.
    pub(crate) fn waiting(&self) -> usize {
        self.later.lock().len()
    }

    /// How many the broker has not answered for.
    pub(crate) fn len(&self) -> usize {
        self.queue.lock().len() + self.owed.load(Ordering::Acquire)
    }
}

/// What the acknowledger was given and has not answered. Dropped, the acknowledger has died: what it owed goes back
/// to the queue, for its successor.
struct Owed<'a> {
    settling: &'a Settling,
    /// In the call under way.
    given: Vec<Settle>,
    /// Successes that the store of ids has not been told of, and those of which it is being told.
    unentered: Vec<Settle>,
    entering: Vec<Settle>,
    /// Kept back by it in earlier calls.
    kept: FxHashMap<Ticket, Settlement>,
    /// Failed, and waiting for another try.
    again: VecDeque<(Instant, u32, Settle)>,
    /// How often each of those under way has failed.
    failures: FxHashMap<Ticket, u32>,
}

impl Drop for Owed<'_> {
    fn drop(&mut self) {
        let kept = self
            .kept
            .drain()
            .map(|(ticket, settlement)| Settle { ticket, settlement });
        let again = self.again.drain(..).map(|(_, _, settle)| settle);
        let entering = self.entering.drain(..).chain(self.unentered.drain(..));
        self.settling
            .add(self.given.drain(..).chain(entering).chain(kept).chain(again));
        self.settling.owed.store(0, Ordering::Release);
    }
}

impl Owed<'_> {
    /// Moves what is queued, and what is due for another try, into `given`; says when more is due.
    fn collect(&mut self, hub: &Hub) -> Option<Instant> {
        match self.given.is_empty() {
            true => std::mem::swap(&mut self.given, &mut self.settling.queue.lock()),
            false => self.given.append(&mut self.settling.queue.lock()),
        }
        let mut next = self.settling.collect_later(hub, &mut self.given);
        if self.again.is_empty() {
            return next;
        }
        let now = rt::now();
        for _ in 0..self.again.len() {
            if let Some((due, failures, settle)) = self.again.pop_front() {
                if due <= now {
                    self.failures.insert(settle.ticket, failures);
                    self.given.push(settle);
                } else {
                    next = Some(next.map_or(due, |next| next.min(due)));
                    self.again.push_back((due, failures, settle));
                }
            }
        }
        next
    }

    /// Keeps back what the store of ids has to know first, and begins to tell it, unless a call is under way.
    fn enter<'b>(&mut self, hub: &'b Hub, twins: &'b Twins, call: &mut Option<BoxFuture<'b, bool>>) {
        twins.sort_out(&mut self.given, &mut self.unentered);
        if call.is_none() && !self.unentered.is_empty() {
            std::mem::swap(&mut self.entering, &mut self.unentered);
            let ids = twins.ids(&self.entering);
            *call = Some(Box::pin(async move { twins.enter(hub, &ids).await }));
        }
        twins.told(hub, &self.given);
    }

    /// The call has ended: the source may hear of these, or the store is asked again later.
    fn entered(&mut self, hub: &Hub, told: bool) {
        let Some(twins) = &hub.twins else { return };
        if told {
            twins.told(hub, &self.entering);
            self.given.append(&mut self.entering);
        } else {
            let due = twins.again_at();
            let later = self.entering.drain(..);
            self.again.extend(later.map(|settle| (due, 0, settle)));
        }
    }

    /// Says how many there are.
    fn tell(&self) {
        let entering = self.entering.len() + self.unentered.len();
        let owed = self.given.len() + entering + self.kept.len() + self.again.len();
        self.settling.owed.store(owed, Ordering::Release);
    }

    /// The call has returned with so many answers; what it did not answer for it keeps.
    fn returned(&mut self, answers: usize) {
        // Most acknowledgers answer at once, and then there is nothing to remember.
        if answers == self.given.len() && self.kept.is_empty() {
            self.given.clear();
        } else {
            self.kept.extend(
                self.given
                    .drain(..)
                    .map(|settle| (settle.ticket, settle.settlement)),
            );
        }
    }

    /// Acts on what the acknowledger said: frees places, counts, and puts failures off to another try.
    fn answer(&mut self, hub: &Hub, outcomes: &mut Vec<(Settle, Outcome)>) {
        let failed = outcomes.iter().any(|(_, outcome)| *outcome == Outcome::Failed);
        if failed || !self.kept.is_empty() || !self.failures.is_empty() {
            for (settle, outcome) in outcomes.iter() {
                self.kept.remove(&settle.ticket);
                let failures = self.failures.remove(&settle.ticket).unwrap_or(0);
                if *outcome == Outcome::Failed {
                    let failures = failures.saturating_add(1);
                    self.again
                        .push_back((rt::now() + patience(failures), failures, settle.clone()));
                }
            }
        }
        self.tell();
        hub.settled(outcomes);
        outcomes.clear();
    }
}

/// Serves the acknowledger until the stage is dropped.
pub(crate) async fn run(hub: Arc<Hub>, acknowledger: &mut dyn DynAcknowledger) {
    let mut owed = Owed {
        settling: &hub.settling,
        given: Vec::new(),
        unentered: Vec::new(),
        entering: Vec::new(),
        kept: FxHashMap::default(),
        again: VecDeque::new(),
        failures: FxHashMap::default(),
    };
    let mut outcomes = Vec::new();
    let mut entering: Option<BoxFuture<'_, bool>> = None;
    // When the acknowledger shall keep nothing back any more.
    let mut linger: Option<Instant> = None;
    loop {
        let next_try = owed.collect(&hub);
        if let Some(twins) = &hub.twins {
            owed.enter(&hub, twins, &mut entering);
        }
        owed.tell();
        if owed.given.is_empty() {
            let keeps_back = !owed.kept.is_empty();
            linger = keeps_back.then(|| linger.unwrap_or_else(|| rt::now() + LINGER));
            let wake = [next_try, linger].into_iter().flatten().min();
            // What comes in all the time is last: all else has an end.
            let flushes = tokio::select! {
                biased;
                told = answer(&mut entering) => {
                    owed.entered(&hub, told);
                    false
                }
                () = hub.flush_now.notified() => true,
                () = until(wake) => true,
                () = hub.settling.added.notified() => false,
            };
            if flushes && keeps_back {
                linger = None;
                let told = beside(&mut entering, acknowledger.flush(&mut outcomes)).await;
                owed.answer(&hub, &mut outcomes);
                if let Some(told) = told {
                    owed.entered(&hub, told);
                }
            }
            if owed.given.is_empty() {
                continue;
            }
        }
        let told = beside(&mut entering, acknowledger.settle(&owed.given, &mut outcomes)).await;
        owed.returned(outcomes.len());
        owed.answer(&hub, &mut outcomes);
        if let Some(told) = told {
            owed.entered(&hub, told);
        }
    }
}

/// Does some work of the acknowledger, and hears meanwhile what the call says that is under way: neither keeps the other
/// waiting.
async fn beside(call: &mut Option<BoxFuture<'_, bool>>, work: impl Future<Output = ()>) -> Option<bool> {
    let mut work = pin!(work);
    let mut told = None;
    loop {
        tokio::select! {
            biased;
            said = answer(call) => told = Some(said),
            () = &mut work => return told,
        }
    }
}

/// What the call says that is under way, which is over then; nothing ever where there is none.
async fn answer(call: &mut Option<BoxFuture<'_, bool>>) -> bool {
    let said = match call {
        Some(call) => call.await,
        None => std::future::pending().await,
    };
    *call = None;
    said
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(then) => rt::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
