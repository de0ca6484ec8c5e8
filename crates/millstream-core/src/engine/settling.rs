//! The settlement stage: what was decided goes to the acknowledger here, away from every handler, and is tried
//! again until the broker has it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

use super::hub::Hub;
use super::retry::patience;
use crate::connector::DynAcknowledger;
use crate::rt::{self, Duration, Instant};
use crate::settlement::{Outcome, Settle, Settlement};
use crate::ticket::Ticket;

/// How long an acknowledger may keep settlements back to coalesce them.
const LINGER: Duration = Duration::from_millis(5);

/// Settlements on their way to the acknowledger. They survive its death: what it owed goes to its successor.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    queue: Mutex<Vec<Settle>>,
    added: Notify,
    owed: Mutex<Owed>,
}

/// What the acknowledger was given and has not answered.
#[derive(Debug, Default)]
struct Owed {
    /// In the call under way.
    given: Vec<Settle>,
    /// Kept back by it in earlier calls.
    kept: FxHashMap<Ticket, Settlement>,
    /// Failed, and waiting for another try.
    again: VecDeque<(Instant, u32, Settle)>,
    /// How often each of those under way has failed.
    failures: FxHashMap<Ticket, u32>,
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

    /// Takes up what a dead acknowledger still owed.
    fn inherit(&self) {
        let mut owed = self.owed.lock();
        let given = std::mem::take(&mut owed.given);
        let kept = std::mem::take(&mut owed.kept)
            .into_iter()
            .map(|(ticket, settlement)| Settle { ticket, settlement });
        let again = std::mem::take(&mut owed.again)
            .into_iter()
            .map(|(_, _, settle)| settle);
        let mut queue = self.queue.lock();
        queue.extend(given.into_iter().chain(kept).chain(again));
    }

    /// Moves what is queued, and what is due for another try, into `batch`; says when more is due.
    fn collect(&self, batch: &mut Vec<Settle>) -> Option<Instant> {
        batch.clear();
        std::mem::swap(batch, &mut self.queue.lock());
        let mut owed = self.owed.lock();
        if owed.again.is_empty() {
            return None;
        }
        let now = rt::now();
        let mut next: Option<Instant> = None;
        for _ in 0..owed.again.len() {
            if let Some((due, failures, settle)) = owed.again.pop_front() {
                if due <= now {
                    owed.failures.insert(settle.ticket, failures);
                    batch.push(settle);
                } else {
                    next = Some(next.map_or(due, |next| next.min(due)));
                    owed.again.push_back((due, failures, settle));
                }
            }
        }
        next
    }
}

/// Serves the acknowledger until the stage is dropped.
pub(crate) async fn run(hub: Arc<Hub>, acknowledger: &mut dyn DynAcknowledger) {
    let settling = &hub.settling;
    settling.inherit();
    let mut batch = Vec::new();
    let mut outcomes = Vec::new();
    loop {
        let next_try = settling.collect(&mut batch);
        if batch.is_empty() {
            let keeps_back = !settling.owed.lock().kept.is_empty();
            let linger = keeps_back.then(|| rt::now() + LINGER);
            let wake = [next_try, linger].into_iter().flatten().min();
            tokio::select! {
                biased;
                () = settling.added.notified() => continue,
                () = hub.flush_now.notified() => {}
                () = until(wake) => {}
            }
            if keeps_back {
                acknowledger.flush(&mut outcomes).await;
                answer(&hub, &mut outcomes);
            }
            continue;
        }
        settling.owed.lock().given.clone_from(&batch);
        acknowledger.settle(&batch, &mut outcomes).await;
        {
            let mut owed = settling.owed.lock();
            let given = std::mem::take(&mut owed.given);
            // Most acknowledgers answer at once, and then there is nothing to remember.
            if outcomes.len() != given.len() {
                owed.kept
                    .extend(given.into_iter().map(|settle| (settle.ticket, settle.settlement)));
            }
        }
        answer(&hub, &mut outcomes);
    }
}

async fn until(wake: Option<Instant>) {
    match wake {
        Some(then) => rt::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// Acts on what the acknowledger said: frees places, counts, and puts failures off to another try.
fn answer(hub: &Hub, outcomes: &mut Vec<(Settle, Outcome)>) {
    {
        let mut owed = hub.settling.owed.lock();
        let owed = &mut *owed;
        if !owed.kept.is_empty()
            || !owed.failures.is_empty()
            || outcomes.iter().any(|(_, o)| *o == Outcome::Failed)
        {
            for (settle, outcome) in outcomes.iter() {
                owed.kept.remove(&settle.ticket);
                let failures = owed.failures.remove(&settle.ticket).unwrap_or(0);
                if *outcome == Outcome::Failed {
                    let failures = failures.saturating_add(1);
                    owed.again
                        .push_back((rt::now() + patience(failures), failures, settle.clone()));
                }
            }
        }
    }
    hub.settled(outcomes);
    outcomes.clear();
}
