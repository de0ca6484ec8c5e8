//! The settling side: [`Settling`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use millstream_core::rt;
use millstream_core::{Acknowledger, Outcome, Settle, Settlement};
use tokio::task::JoinSet;
use tracing::warn;

use crate::condition::Part;
use crate::desk::{Desk, Seat};
use crate::leases::{LONGEST, Lease};
use crate::service::{BATCH, Kind, Service, Taken, Trouble};
use crate::wire::Parcel;

/// Calls under way at a time.
const CALLS: usize = 16;

/// The acknowledger of an [`SqsConnector`](crate::SqsConnector).
///
/// It keeps settlements back until there are ten of a kind, which is what one call takes, and answers for them when
/// SQS has.
pub struct Settling {
    desk: Arc<Desk>,
    _seat: Arc<Seat>,
    deletions: Vec<Held>,
    returns: Vec<Held>,
    rejections: Vec<Held>,
    calls: JoinSet<Vec<(Settle, Outcome)>>,
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
        }
    }

    /// Starts calls for every ten settlements of a kind, or for all there are.
    fn start(&mut self, all: bool) {
        for kind in [&mut self.deletions, &mut self.returns, &mut self.rejections] {
            while kind.len() >= BATCH || (all && !kind.is_empty()) {
                let some = kind.drain(..kind.len().min(BATCH)).collect();
                self.calls.spawn(call(Arc::clone(&self.desk), some));
            }
        }
    }

    /// Takes the answers of calls that have ended, and waits while more than so many are under way.
    async fn gather(&mut self, most: usize, outcomes: &mut Vec<(Settle, Outcome)>) {
        loop {
            let answered = if self.calls.len() > most {
                self.calls.join_next().await
            } else {
                self.calls.try_join_next()
            };
            match answered {
                Some(Ok(answers)) => outcomes.extend(answers),
                // It is never aborted, and does not panic.
                Some(Err(_)) => {}
                None => return,
            }
        }
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
        self.gather(CALLS, outcomes).await;
    }

    async fn flush(&mut self, outcomes: &mut Vec<(Settle, Outcome)>) {
        self.start(true);
        self.gather(0, outcomes).await;
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

/// Settles up to ten deliveries of a kind in one call.
async fn call(desk: Arc<Desk>, held: Vec<Held>) -> Vec<(Settle, Outcome)> {
    let taken = match held.first().map(|held| &held.settle.settlement) {
        Some(Settlement::Ack) => delete(&desk.service, &held).await,
        Some(Settlement::Reject(_)) => bury(&desk, &held).await,
        _ => give_back(&desk, &held).await,
    };
    let trouble = taken.iter().find_map(|taken| match taken {
        Err(trouble) if !trouble.kind.is_of_the_delivery() => Some(trouble.text.clone()),
        _ => None,
    });
    desk.condition.note(Part::Settling, trouble.as_deref());
    held.into_iter()
        .zip(taken)
        .map(|(held, taken)| {
            let outcome = conclude(&desk, &held, taken);
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

async fn give_back(desk: &Desk, held: &[Held]) -> Vec<Taken> {
    let sequences: Vec<_> = held.iter().map(|held| held.settle.ticket.sequence).collect();
    desk.quiet(&sequences).await;
    let entries: Vec<_> = held
        .iter()
        .map(|held| (Arc::clone(&held.lease.receipt), wait(held)))
        .collect();
    desk.service.hide(&entries).await
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
