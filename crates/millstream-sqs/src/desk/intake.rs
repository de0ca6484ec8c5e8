//! What polls bring, until it is read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_core::rt::{self, Instant};
use millstream_core::{Chunk, Credit, Message};
use rustc_hash::FxHashSet;

use super::{Desk, Excuse, Stage, State};
use crate::leases::Received;
use crate::service::BATCH;
use crate::wire::{Arrived, MESSAGE_ID};

/// A message delivered more often than this may be what ends the process: the engine runs it alone.
///
/// What came with it is kept here meanwhile. To give it back would spare it nothing, since SQS counts the next receive
/// whether the process has died or not, and processes that give each other's messages back raise all counts until
/// messages are given up that nobody has run. So all that is no suspect is handed out first, nothing is polled for until
/// the last suspect is gone, and of those the one that was delivered least comes first, and any of those alike: what is
/// not at fault has an outcome sooner or later, before the one that ends the process is given up.
const SUSPECT: u32 = 3;

fn is_suspect(message: &Message) -> bool {
    message.deliveries > SUSPECT
}

/// What a read finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Messages,
    Nothing,
    Ended,
}

impl Desk {
    /// Reserves polls for as much of the credit as is not on its way yet; gives the most that each may bring.
    pub(crate) fn reserve(self: &Arc<Self>, credit: Credit) -> Vec<Reservation> {
        let mut reservations = Vec::new();
        if self.stage() != Stage::Open {
            return reservations;
        }
        let mut state = self.state.lock();
        if state.inbox.iter().any(|(_, message, _)| is_suspect(message)) {
            return reservations;
        }
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
            let wants_ids = self.engine.wants_ids();
            let keep = self.stage() != Stage::Closed;
            let mut suspected = FxHashSet::default();
            for mut arrived in arrived {
                let sequence = self.sequences.fetch_add(1, Ordering::Relaxed);
                let id: Arc<str> = arrived.id.into();
                let (deliveries, failures) = self.returned.look(&id, arrived.receives);
                if wants_ids {
                    arrived.message.headers.push(MESSAGE_ID, &id);
                }
                arrived.message.origin = self.origin;
                arrived.message.position = sequence;
                arrived.message.deliveries = deliveries;
                arrived.message.failures = failures;
                state.typical = (state.typical * 7 + arrived.message.size()) / 8;
                let group: Option<Arc<str>> = arrived.group.filter(|_| self.fifo).map(Arc::from);
                if is_suspect(&arrived.message)
                    && let Some(group) = &group
                    && !suspected.insert(Arc::clone(group))
                {
                    // SQS cannot hand it out without the one before it in its group, which explains its count: it runs
                    // alone, and is not given up for it.
                    arrived.message.deliveries = SUSPECT + 1;
                }
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

    /// Moves what was received into the chunk as far as the credit goes. Of a group that the engine has some of,
    /// nothing more is handed out until it has settled those: should one of them come back, what follows it must not
    /// be before it.
    pub(crate) fn take(self: &Arc<Self>, credit: Credit, chunk: &mut Chunk) -> Found {
        let stage = self.stage();
        let mut state = self.state.lock();
        let State {
            inbox, leases, polls, ..
        } = &mut *state;
        let (before, bytes_before) = (chunk.len(), chunk.bytes());
        let (mut handed, mut held) = (FxHashSet::default(), FxHashSet::default());
        let (mut kept, mut suspects) = (VecDeque::new(), Vec::new());
        while chunk.len() - before < credit.messages
            && (chunk.len() == before || chunk.bytes() - bytes_before < credit.bytes)
        {
            let Some((ticket, message, group)) = inbox.pop_front() else {
                break;
            };
            let waits = group.as_ref().is_some_and(|group| {
                let is_out = leases.is_out(group) && !handed.contains(group);
                (stage == Stage::Open && is_out) || held.contains(group)
            });
            let alone = !waits && stage == Stage::Open && is_suspect(&message);
            if alone {
                let chance = (rt::chance() * f64::from(u32::MAX)) as u32;
                suspects.push((message.deliveries, chance, kept.len()));
            }
            if waits || alone || !leases.hand_out(ticket.sequence) {
                // What follows it in its group waits with it, also if it has expired and is about to be lost.
                held.extend(group.clone());
                kept.push_back((ticket, message, group));
                continue;
            }
            handed.extend(group);
            chunk.push(ticket, message);
        }
        kept.append(inbox);
        *inbox = kept;
        suspects.sort_unstable();
        let mut suspects = suspects.into_iter();
        while chunk.len() == before
            && let Some((_, _, place)) = suspects.next()
        {
            let suspect = inbox.get(place);
            if suspect.is_some_and(|(ticket, ..)| leases.hand_out(ticket.sequence))
                && let Some((ticket, message, _)) = inbox.remove(place)
            {
                chunk.push(ticket, message);
            }
        }
        if chunk.len() > before {
            Found::Messages
        } else if stage != Stage::Open && *polls == 0 {
            Found::Ended
        } else {
            Found::Nothing
        }
    }
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
