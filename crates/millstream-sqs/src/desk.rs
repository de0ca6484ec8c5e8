//! What the polls, the heartbeat, the source and the acknowledger of one opened connector share: [`Desk`].

mod held;
mod intake;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use millstream_core::rt::{self, Instant};
use millstream_core::{EngineHandle, Message, OriginId, Ticket};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tracing::debug;

pub(crate) use self::intake::{Found, Reservation};
use crate::condition::Condition;
use crate::leases::Leases;
use crate::returned::Returned;
use crate::service::{BATCH, Service};

/// What a message is taken to weigh before one has come.
const TYPICAL: usize = 1024;

/// What an opened connector works with.
#[derive(Debug)]
pub(crate) struct Desk {
    pub(crate) service: Service,
    /// Where what is rejected goes, if the queue says so.
    pub(crate) dead: Option<Service>,
    pub(crate) pace: Pace,
    pub(crate) fifo: bool,
    pub(crate) engine: EngineHandle,
    pub(crate) condition: Condition,
    pub(crate) returned: Arc<Returned>,
    origin: OriginId,
    sequences: Arc<AtomicU64>,
    runtime: Handle,
    state: Mutex<State>,
    stage: watch::Sender<Stage>,
    /// There may be something to read, or to poll for.
    pub(crate) changed: Notify,
    /// A beat has ended.
    beaten: Notify,
}

/// How long and how often.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) wait: Duration,
    pub(crate) pollers: usize,
    pub(crate) visibility: Duration,
    pub(crate) heartbeat: Duration,
}

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Open,
    /// No further poll.
    Draining,
    /// Source and acknowledger are gone.
    Closed,
}

#[derive(Debug)]
struct State {
    /// Received, and not read.
    inbox: VecDeque<(Ticket, Message, Option<Arc<str>>)>,
    leases: Leases,
    /// Polls under way, and what they may bring.
    polls: usize,
    reserved: usize,
    /// How many polls there may be at a time now.
    allowed: usize,
    /// What a message weighs of late.
    typical: usize,
}

/// Who opens a desk, and with what.
#[derive(Debug)]
pub(crate) struct Opening {
    pub(crate) service: Service,
    pub(crate) dead: Option<Service>,
    pub(crate) pace: Pace,
    pub(crate) fifo: bool,
    pub(crate) engine: EngineHandle,
    pub(crate) origin: OriginId,
    pub(crate) returned: Arc<Returned>,
    pub(crate) sequences: Arc<AtomicU64>,
}

impl Desk {
    pub(crate) fn new(opening: Opening) -> Arc<Self> {
        Arc::new(Self {
            condition: Condition::new(opening.engine.clone()),
            service: opening.service,
            dead: opening.dead,
            pace: opening.pace,
            fifo: opening.fifo,
            engine: opening.engine,
            returned: opening.returned,
            origin: opening.origin,
            sequences: opening.sequences,
            runtime: Handle::current(),
            state: Mutex::new(State {
                inbox: VecDeque::new(),
                leases: Leases::new(opening.pace.visibility, opening.pace.heartbeat),
                polls: 0,
                reserved: 0,
                allowed: 1,
                typical: TYPICAL,
            }),
            stage: watch::Sender::new(Stage::Open),
            changed: Notify::new(),
            beaten: Notify::new(),
        })
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Waits until it is past this stage.
    pub(crate) async fn past(&self, stage: Stage) {
        let mut stages = self.stage.subscribe();
        // The sender is here: it cannot be gone.
        stages.wait_for(|now| *now as u8 > stage as u8).await.ok();
    }

    pub(crate) fn drain(&self) {
        self.stage.send_if_modified(|stage| {
            let open = *stage == Stage::Open;
            if open {
                *stage = Stage::Draining;
            }
            open
        });
        self.changed.notify_waiters();
    }

    /// Source and acknowledger are gone: what is held goes back, and so will what polls still bring.
    pub(crate) fn close(self: &Arc<Self>) {
        self.stage.send_replace(Stage::Closed);
        let held = {
            let mut state = self.state.lock();
            state.inbox.clear();
            state.leases.idle()
        };
        self.give_back(&held, Excuse::None);
    }

    /// The ticket of a delivery, which is a generation of its own: each lease is lost by itself.
    fn ticket(&self, sequence: u64) -> Ticket {
        Ticket::new(sequence as u32, self.origin, sequence)
    }

    /// Gives deliveries back that nobody waits for. What SQS does not take of it, it hands out when the time is up.
    fn give_back(self: &Arc<Self>, sequences: &[u64], excuse: Excuse) {
        if sequences.is_empty() {
            return;
        }
        let desk = Arc::clone(self);
        let leases: Vec<_> = {
            let mut state = self.state.lock();
            let begun = sequences.iter().filter_map(|sequence| {
                let lease = state.leases.begin(*sequence)?.clone();
                Some((*sequence, lease))
            });
            begun.collect()
        };
        // A task of its own, which outlives source and acknowledger if the runtime does.
        self.runtime.spawn(async move {
            for some in leases.chunks(BATCH) {
                let sequences: Vec<_> = some.iter().map(|(sequence, _)| *sequence).collect();
                desk.quiet(&sequences).await;
                let entries: Vec<_> = some
                    .iter()
                    .map(|(_, lease)| (Arc::clone(&lease.receipt), Duration::ZERO))
                    .collect();
                for ((sequence, lease), taken) in some.iter().zip(desk.service.hide(&entries).await) {
                    match taken {
                        Ok(()) if excuse == Excuse::Unread => {
                            desk.returned
                                .released(&lease.id, lease.receives, lease.deliveries);
                        }
                        Ok(()) => {}
                        Err(trouble) => debug!(trouble.text, "a delivery is left until its time is up"),
                    }
                    desk.end(*sequence);
                }
            }
        });
    }
}

/// Whether a delivery that goes back counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Excuse {
    /// It may have run.
    None,
    /// Nobody has run it.
    Unread,
}

fn tickets(inbox: &mut VecDeque<(Ticket, Message, Option<Arc<str>>)>) -> Vec<u64> {
    inbox.drain(..).map(|(ticket, _, _)| ticket.sequence).collect()
}

/// Whoever holds the last of these is the last who needs the desk.
#[derive(Debug)]
pub(crate) struct Seat(pub(crate) Arc<Desk>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// So long from now, at random between half and all of it.
pub(crate) fn jittered(time: Duration) -> Instant {
    rt::after(time.mul_f64(0.5 + rt::chance() / 2.0))
}
