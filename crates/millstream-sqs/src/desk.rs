//! What the polls, the heartbeat, the source and the acknowledger of one opened connector share: [`Desk`].

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use millstream_core::rt::{self, Instant};
use millstream_core::{Chunk, Credit, EngineHandle, Message, OriginId, Scope, Ticket};
use parking_lot::Mutex;
use rustc_hash::FxHashSet;
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tracing::debug;

use crate::condition::Condition;
use crate::leases::{Due, Lease, Leases, Received};
use crate::returned::Returned;
use crate::service::{BATCH, Service, Taken};
use crate::wire::Arrived;

/// A message delivered more often than this may be what ends the process: the engine runs it alone, and then nothing
/// else is kept here either, whose count would grow with its own.
const SUSPECT: u32 = 3;
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
    /// A suspect was handed out, and nothing was read since.
    suspicious: bool,
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Messages,
    Nothing,
    Ended,
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
                suspicious: false,
            }),
            stage: watch::Sender::new(Stage::Open),
            changed: Notify::new(),
            beaten: Notify::new(),
        })
    }

    // === the end

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

    // === polling

    /// Reserves polls for as much of the credit as is not on its way yet; gives the most that each may bring.
    pub(crate) fn reserve(self: &Arc<Self>, credit: Credit) -> Vec<Reservation> {
        let mut reservations = Vec::new();
        if self.stage() != Stage::Open {
            return reservations;
        }
        let mut state = self.state.lock();
        let mut wanted = credit.messages.saturating_sub(state.inbox.len() + state.reserved);
        let weight = state.typical.saturating_mul(BATCH).max(1);
        while wanted > 0 && state.polls < state.allowed.min(self.pace.pollers) {
            let idle = state.polls == 0 && state.inbox.is_empty();
            // What would bring few is left for later, while others bring many; so is what might weigh too much.
            let heavy = (state.polls + 1).saturating_mul(weight) > credit.bytes;
            if !idle && (wanted < BATCH || heavy) {
                break;
            }
            let most = wanted.min(BATCH);
            wanted -= most;
            state.polls += 1;
            state.reserved += most;
            reservations.push(Reservation {
                desk: Arc::clone(self),
                most,
            });
        }
        reservations
    }

    /// Polls less: there is little to be had.
    pub(crate) fn narrow(&self) {
        self.state.lock().allowed = 1;
    }

    /// Takes in what a poll brought.
    fn deliver(self: &Arc<Self>, most: usize, arrived: Vec<Arrived>, asked: Instant) {
        let number = arrived.len();
        let unwanted = {
            let mut state = self.state.lock();
            if number >= most {
                state.allowed = (state.allowed * 2).min(self.pace.pollers);
            } else if number == 0 {
                state.allowed = 1;
            }
            let mut unwanted = Vec::new();
            let keep = self.stage() != Stage::Closed && !state.suspicious;
            for mut arrived in arrived {
                let sequence = self.sequences.fetch_add(1, Ordering::Relaxed);
                let id: Arc<str> = arrived.id.into();
                let (deliveries, failures) = self.returned.look(&id, arrived.receives);
                arrived.message.origin = self.origin;
                arrived.message.position = sequence;
                arrived.message.deliveries = deliveries;
                arrived.message.failures = failures;
                state.typical = (state.typical * 7 + arrived.message.size()) / 8;
                let group: Option<Arc<str>> = arrived.group.filter(|_| self.fifo).map(Arc::from);
                let received = Received {
                    receipt: arrived.receipt.into(),
                    id,
                    group: group.clone(),
                    receives: arrived.receives,
                    deliveries,
                    message: self.dead.as_ref().map(|_| arrived.message.clone()),
                };
                state.leases.add(sequence, received, asked);
                if keep {
                    state
                        .inbox
                        .push_back((self.ticket(sequence), arrived.message, group));
                } else {
                    unwanted.push(sequence);
                }
            }
            unwanted
        };
        self.give_back(&unwanted, Excuse::Unread);
    }

    /// The ticket of a delivery, which is a generation of its own: each lease is lost by itself.
    fn ticket(&self, sequence: u64) -> Ticket {
        Ticket::new(sequence as u32, self.origin, sequence)
    }

    // === reading

    /// Moves what was received into the chunk as far as the credit goes. Of a group that the engine has some of,
    /// nothing more is handed out until it has settled those: should one of them come back, what follows it must not
    /// be before it.
    pub(crate) fn take(self: &Arc<Self>, credit: Credit, chunk: &mut Chunk) -> Found {
        let stage = self.stage();
        let (found, unread) = {
            let mut state = self.state.lock();
            let State {
                inbox,
                leases,
                polls,
                suspicious,
                ..
            } = &mut *state;
            *suspicious = false;
            let (before, bytes_before) = (chunk.len(), chunk.bytes());
            let (mut handed, mut expired) = (FxHashSet::default(), FxHashSet::default());
            let mut blocked = VecDeque::new();
            while chunk.len() - before < credit.messages
                && (chunk.len() == before || chunk.bytes() - bytes_before < credit.bytes)
                && !*suspicious
            {
                let Some((ticket, message, group)) = inbox.pop_front() else {
                    break;
                };
                let waits = group.as_ref().is_some_and(|group| {
                    let is_out = leases.is_out(group) && !handed.contains(group);
                    (stage == Stage::Open && is_out) || expired.contains(group)
                });
                if waits || !leases.hand_out(ticket.sequence) {
                    // What has expired is about to be lost, and what follows it in its group with it.
                    if !waits {
                        expired.extend(group.clone());
                    }
                    blocked.push_back((ticket, message, group));
                    continue;
                }
                handed.extend(group);
                *suspicious = message.deliveries > SUSPECT;
                chunk.push(ticket, message);
            }
            blocked.append(inbox);
            *inbox = blocked;
            let found = if chunk.len() > before {
                Found::Messages
            } else if stage != Stage::Open && *polls == 0 {
                Found::Ended
            } else {
                Found::Nothing
            };
            let unread = if *suspicious { tickets(inbox) } else { Vec::new() };
            (found, unread)
        };
        self.give_back(&unread, Excuse::Unread);
        found
    }

    // === settling

    /// A settlement is on its way for this ticket, which is not put off any more; nothing if it is not held.
    pub(crate) fn begin(&self, ticket: &Ticket) -> Option<Lease> {
        self.state.lock().leases.begin(ticket.sequence).cloned()
    }

    /// What follows a message of this group that goes back, and was not read yet, goes back with it.
    pub(crate) fn take_back(self: &Arc<Self>, group: &Arc<str>) {
        let unread = {
            let mut state = self.state.lock();
            let (back, kept) = std::mem::take(&mut state.inbox)
                .into_iter()
                .partition(|(_, _, of)| of.as_ref() == Some(group));
            state.inbox = kept;
            let mut back: VecDeque<_> = back;
            tickets(&mut back)
        };
        self.give_back(&unread, Excuse::Unread);
    }

    /// Waits until none of these is being put off: what is on its way would undo what comes now.
    pub(crate) async fn quiet(&self, sequences: &[u64]) {
        loop {
            let mut beaten = std::pin::pin!(self.beaten.notified());
            beaten.as_mut().enable();
            if !self.state.lock().leases.is_beating(sequences) {
                return;
            }
            beaten.await;
        }
    }

    /// The settlement has arrived, or came too late.
    pub(crate) fn end(&self, sequence: u64) {
        self.state.lock().leases.remove(sequence);
        if self.fifo {
            self.changed.notify_waiters();
        }
    }

    /// The settlement did not arrive; the delivery is held on for another try.
    pub(crate) fn relent(&self, sequence: u64) {
        self.state.lock().leases.relent(sequence);
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

    // === heartbeat

    pub(crate) fn next_beat(&self) -> Instant {
        self.state.lock().leases.next()
    }

    pub(crate) fn due(&self) -> Due {
        self.state.lock().leases.due()
    }

    /// What came of putting these off, from then on. Gives those that are lost.
    pub(crate) fn beaten(
        &self,
        from: Instant,
        beats: &[(u64, Arc<str>, Duration)],
        taken: &[Taken],
    ) -> Vec<u64> {
        let mut lost = Vec::new();
        {
            let leases = &mut self.state.lock().leases;
            for ((sequence, _, time), taken) in beats.iter().zip(taken) {
                match taken {
                    Ok(()) => leases.extended(*sequence, from, *time),
                    Err(trouble) => {
                        debug!(trouble.text, "a delivery was not put off");
                        leases.not_extended(*sequence);
                        if trouble.kind.is_of_the_delivery() {
                            lost.push(*sequence);
                        }
                    }
                }
            }
        }
        self.beaten.notify_waiters();
        lost
    }

    /// These are somebody else's now, or will be. Of a group, all that follows is given up with them: it must not run
    /// before what comes again.
    pub(crate) fn lose(self: &Arc<Self>, sequences: Vec<u64>) {
        let (mut lost, mut followers) = (Vec::new(), Vec::new());
        {
            let mut state = self.state.lock();
            for sequence in sequences {
                if let Some(lease) = state.leases.remove(sequence) {
                    lost.push(sequence);
                    if let Some(group) = lease.group {
                        followers.extend(state.leases.of_group(&group));
                    }
                }
            }
            followers.sort_unstable();
            followers.dedup();
            state.inbox.retain(|(ticket, _, _)| {
                !lost.contains(&ticket.sequence) && !followers.contains(&ticket.sequence)
            });
        }
        // The last one first: what follows a message must not run for a moment because that is gone.
        let mut gone: Vec<_> = lost.iter().chain(&followers).collect();
        gone.sort_unstable_by_key(|sequence| std::cmp::Reverse(**sequence));
        for sequence in gone {
            let ticket = self.ticket(*sequence);
            self.engine.lost(Scope::Origin(ticket.origin, ticket.generation));
        }
        self.give_back(&followers, Excuse::Unread);
        self.changed.notify_waiters();
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

/// Credit that a poll may use up. Dropped, it is free again, whatever became of the poll.
#[derive(Debug)]
pub(crate) struct Reservation {
    desk: Arc<Desk>,
    most: usize,
}

impl Reservation {
    pub(crate) fn desk(&self) -> &Arc<Desk> {
        &self.desk
    }

    pub(crate) fn most(&self) -> usize {
        self.most
    }

    /// The poll, which asked for it then, brought this.
    pub(crate) fn redeem(self, arrived: Vec<Arrived>, asked: Instant) {
        self.desk.deliver(self.most, arrived, asked);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        {
            let mut state = self.desk.state.lock();
            state.polls -= 1;
            state.reserved -= self.most;
        }
        self.desk.changed.notify_waiters();
    }
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
