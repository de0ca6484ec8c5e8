//! The settling side: [`Settling`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Acknowledger, Outcome, Settle, Settlement};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::warn;

use crate::condition::Part;
use crate::desk::{Desk, Seat};
use crate::leases::{LONGEST, Lease};
use crate::service::{BATCH, CALLS, Kind, Service, Taken, Trouble};
use crate::wire::Parcel;

/// The acknowledger of an [`SqsConnector`](crate::SqsConnector).
///
/// It keeps settlements back until there are ten of a kind, which is what one call takes, and answers for them when
/// SQS has: for those of each call as soon as that has ended, since a drain counts what it has heard of by its deadline.
pub struct Settling {
    desk: Arc<Desk>,
    _seat: Arc<Seat>,
    deletions: Vec<Held>,
    returns: Vec<Held>,
    rejections: Vec<Held>,
    calls: JoinSet<Ended>,
    /// Calls with fewer than ten that are under way.
    short: usize,
    places: Arc<Semaphore>,
}

/// What has come of a call.
struct Ended {
    answers: Vec<(Settle, Outcome)>,
    short: bool,
}

/// A settlement that waits for its call.
#[derive(Debug)]
struct Held {
    settle: Settle,
    lease: Lease,
}

impl Settling {
    pub(crate) fn new(desk: Arc<Desk>, seat: Arc<Seat>) -> Self {
        Self {
            desk,
            _seat: seat,
            deletions: Vec::new(),
            returns: Vec::new(),
            rejections: Vec::new(),
            calls: JoinSet::new(),
            short: 0,
            places: Arc::new(Semaphore::new(CALLS)),
        }
    }

    /// Starts calls for every ten settlements of a kind, or for all there are.
    fn start(&mut self, all: bool) {
        for kind in [&mut self.deletions, &mut self.returns, &mut self.rejections] {
            while kind.len() >= BATCH || (all && !kind.is_empty()) {
                let some: Vec<_> = kind.drain(..kind.len().min(BATCH)).collect();
                let short = some.len() < BATCH;
                self.short += usize::from(short);
                let (desk, places) = (Arc::clone(&self.desk), Arc::clone(&self.places));
                self.calls.spawn(async move {
                    let answers = call(&desk, &places, some).await;
                    Ended { answers, short }
                });
            }
        }
    }

    /// Takes the answers of calls that have ended.
    fn gather(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        while let Some(ended) = self.calls.try_join_next() {
            // It is never aborted, and does not panic.
            if let Ok(ended) = ended {
                self.take(ended, outcomes);
            }
        }
    }

    fn take(&mut self, ended: Ended, outcomes: &mut Vec<(Settle, Outcome)>) {
        self.short -= usize::from(ended.short);
        outcomes.extend(ended.answers);
    }
}

impl Acknowledger for Settling {
    async fn settle(&mut self, settlements: &[Settle], outcomes: &mut Vec<(Settle, Outcome)>) {
        for settle in settlements {
            let Some(lease) = self.desk.begin(&settle.ticket) else {
                outcomes.push((settle.clone(), Outcome::Stale));
                continue;
            };
            let kind = match &settle.settlement {
                Settlement::Ack => &mut self.deletions,
                Settlement::Reject(_) => &mut self.rejections,
                Settlement::Retry { .. } | Settlement::Release => {
                    if let Some(group) = &lease.group {
                        self.desk.take_back(group);
                    }
                    &mut self.returns
                }
            };
            kind.push(Held {
                settle: settle.clone(),
                lease,
            });
        }
        self.start(false);
        self.gather(outcomes);
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        // While a call with few is under way, what comes is gathered for the next one: SQS is paid for by calls.
        self.start(self.short == 0);
        if let Some(Ok(ended)) = self.calls.join_next().await {
            self.take(ended, outcomes);
        }
        self.gather(outcomes);
    }
}

impl Drop for Settling {
    /// What is on its way arrives.
    fn drop(&mut self) {
        self.calls.detach_all();
    }
}

impl fmt::Debug for Settling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Settling")
    }
}

/// Settles up to ten deliveries of a kind in one call, when there is a place for it.
async fn call(desk: &Desk, places: &Semaphore, held: Vec<Held>) -> Vec<(Settle, Outcome)> {
    let returns = !matches!(
        held.first().map(|held| &held.settle.settlement),
        Some(Settlement::Ack | Settlement::Reject(_))
    );
    if returns {
        let sequences: Vec<_> = held.iter().map(|held| held.settle.ticket.sequence).collect();
        desk.quiet(&sequences).await;
    }
    // It is never closed.
    let _place = places.acquire().await;
    let taken = match held.first().map(|held| &held.settle.settlement) {
        Some(Settlement::Ack) => delete(&desk.service, &held).await,
        Some(Settlement::Reject(_)) => bury(desk, &held).await,
        _ => give_back(&desk.service, &held).await,
    };
    let trouble = taken.iter().find_map(|taken| match taken {
        Err(trouble) if !trouble.kind.is_of_the_delivery() => Some(trouble.text.clone()),
        _ => None,
    });
    desk.condition.note(Part::Settling, trouble.as_deref());
    held.into_iter()
        .zip(taken)
        .map(|(held, taken)| {
            let outcome = conclude(desk, &held, taken);
            (held.settle, outcome)
        })
        .collect()
}

fn conclude(desk: &Desk, held: &Held, taken: Taken) -> Outcome {
    let (sequence, lease) = (held.settle.ticket.sequence, &held.lease);
    match taken {
        Ok(()) => {
            match &held.settle.settlement {
                Settlement::Ack | Settlement::Reject(_) => desk.returned.forget(&lease.id),
                Settlement::Retry { failures, .. } => {
                    desk.returned.retried(&lease.id, lease.receives, *failures);
                }
                Settlement::Release => desk
                    .returned
                    .released(&lease.id, lease.receives, lease.deliveries),
            }
            desk.end(sequence);
            Outcome::Sent
        }
        Err(trouble) if trouble.kind.is_of_the_delivery() => {
            desk.end(sequence);
            Outcome::Stale
        }
        Err(_) => {
            desk.relent(sequence);
            Outcome::Failed
        }
    }
}

async fn delete(service: &Service, held: &[Held]) -> Vec<Taken> {
    let receipts: Vec<_> = held.iter().map(|held| Arc::clone(&held.lease.receipt)).collect();
    service.delete(&receipts).await
}

async fn give_back(service: &Service, held: &[Held]) -> Vec<Taken> {
    let entries: Vec<_> = held
        .iter()
        .map(|held| (Arc::clone(&held.lease.receipt), wait(held)))
        .collect();
    service.hide(&entries).await
}

/// How long it shall be hidden from now on.
fn wait(held: &Held) -> Duration {
    let Settlement::Retry { after, .. } = held.settle.settlement else {
        return Duration::ZERO;
    };
    // Whole seconds, less the one that rounding up may add.
    let left = LONGEST.saturating_sub(rt::now() - held.lease.received + Duration::from_secs(1));
    if after > left {
        warn!(
            ?after,
            ?left,
            "SQS holds a message back for twelve hours at most: it comes sooner"
        );
    }
    after.min(left)
}

/// Sends copies to the dead-letter queue and, once they are there, deletes what they were made of. SQS has no reject,
/// and moves a message itself only after more receives; this one shall not run again, and its copy says why.
async fn bury(desk: &Desk, held: &[Held]) -> Vec<Taken> {
    let Some(dead) = &desk.dead else {
        // What the engine gives up goes elsewhere: this is the handler's own word.
        warn!(
            messages = held.len(),
            "rejected, and discarded: the queue has no redrive policy"
        );
        return delete(&desk.service, held).await;
    };
    let mut buried = Vec::new();
    // One by one: ten of them may weigh more than a call can carry, and they are rare.
    for held in held {
        buried.push(copy(dead, held, desk.fifo).await);
    }
    let kept: Vec<_> = held
        .iter()
        .zip(&buried)
        .filter(|(_, taken)| taken.is_ok())
        .map(|(held, _)| Arc::clone(&held.lease.receipt))
        .collect();
    if kept.is_empty() {
        return buried;
    }
    let mut deleted = desk.service.delete(&kept).await.into_iter();
    buried
        .into_iter()
        .map(|taken| taken.and_then(|()| deleted.next().unwrap_or(Ok(()))))
        .collect()
}

async fn copy(dead: &Service, held: &Held, fifo: bool) -> Taken {
    let (Some(message), Settlement::Reject(rejection)) = (&held.lease.message, &held.settle.settlement)
    else {
        return Ok(());
    };
    let parcel = Parcel::of(&rejection.dead_letter(message), fifo);
    // The message's own id: should the copy arrive and the answer be lost, a FIFO queue takes no second one.
    let deduplication = fifo.then(|| held.lease.id.to_string());
    let wrong = |text: String| Trouble {
        kind: Kind::Wrong,
        text,
    };
    let entry = parcel
        .entry(0, deduplication)
        .map_err(|error| wrong(error.to_string()))?;
    let taken = dead.send(vec![entry]).await.pop().unwrap_or(Ok(()));
    taken.map_err(|trouble| Trouble {
        // Whatever is wrong is wrong with the copy: the delivery is held on.
        kind: Kind::Passing,
        text: format!("the dead-letter queue: {}", trouble.text),
    })
}
