//! What must hold of every delivery: the model that each event of a run is compared with.
//!
//! A delivery is one handing out of one message. It waits, runs, perhaps enters a batcher and runs there, and is settled;
//! how far it is decides what may happen to it next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_core::simulation::Seen;
use millstream_core::{BreakerState, Message, Ticket};
use rustc_hash::FxHashMap;

use super::numbers::Sequences;
use super::plan::{Letters, Order};
use super::script::{group, sequence_number};
use super::twins::Flights;
use super::world::{Event, State, World};

#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) process: u32,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) tickets: FxHashMap<(u32, u64), usize>,
    /// Handed out in this process, and neither answered for nor lost.
    pub(super) out: BTreeSet<usize>,
    /// Those that the processor is not done with, of each key.
    pub(super) lanes: BTreeMap<u64, Vec<usize>>,
    /// Those that a batcher is not done with, of each batcher and key.
    pub(super) batching: BTreeMap<(usize, u64), Vec<usize>>,
    /// The keys that batches under way hold.
    pub(super) batched: BTreeSet<(usize, u64)>,
    /// Given back unfinished, of each generation and key.
    pub(super) given_back: BTreeMap<(u32, u64), BTreeSet<usize>>,
    pub(super) running: usize,
    pub(super) begun: u64,
    pub(super) batches_begun: u64,
    pub(super) batches_running: usize,
    /// What the batch that began last is of.
    pub(super) last_batch: Vec<usize>,
    /// Suspects have been seen: what was fetched with them is given back out of turn.
    pub(super) suspects: bool,
    /// Generations that are being revoked: nothing of them starts, and what waits is forgotten.
    pub(super) withdrawn: BTreeSet<u32>,
    /// Generations of partitions that stand still at a message that was given up.
    pub(super) halted: BTreeSet<u32>,
    pub(super) sequences: Sequences,
    pub(super) flights: Flights,
    pub(super) watched: Option<(u64, u64, BTreeSet<usize>)>,
    pub(super) tally: Tally,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) post: usize,
    /// The start of the pipeline that it belongs to.
    pub(super) process: u32,
    pub(super) ticket: Ticket,
    /// What it is ordered by.
    pub(super) key: Option<u64>,
    pub(super) bytes: usize,
    pub(super) handed: Duration,
    pub(super) deliveries: u32,
    /// Attempts that have failed and count.
    pub(super) failures: u32,
    pub(super) stage: Stage,
    /// It succeeded in a batch behind a failed one of its key: it may have to come again with that one.
    pub(super) behind_failed: bool,
    pub(super) lost: bool,
    /// The engine has been told that it is lost.
    pub(super) told: bool,
    pub(super) answered: bool,
    pub(super) settled_now: bool,
    /// Its dead letter, or its letter to the retry sink, is confirmed.
    pub(super) written: bool,
    /// Its last run that failed was of it alone, or it was named as the one at fault.
    pub(super) blamed: bool,
    /// The handler of its batch has named it as the one that failed, or has taken it out.
    pub(super) named: bool,
    /// It has run in a batch, and would run there again.
    pub(super) batched: bool,
    /// It was the retry sink.
    pub(super) put_off: bool,
}

impl Model {
    /// It is on its way back: unrun, it will not run.
    pub(super) fn leaves(&mut self, delivery: usize) {
        if let Some(found) = self.deliveries.get_mut(delivery)
            && matches!(found.stage, Stage::Waits(_))
        {
            found.stage = Stage::PutBack;
        }
    }
}

impl Delivery {
    /// It runs again, in this stage. Where it was.
    pub(super) fn enter(&mut self, stage: Stage) -> Stage {
        let was = std::mem::replace(&mut self.stage, stage);
        self.behind_failed = false;
        if was == Stage::Undecided {
            self.failures -= 1;
        }
        was
    }
}

/// How far a delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has not run, or comes again, then.
    Waits(Duration),
    Runs,
    /// It failed and shall run again by then.
    Parked(Duration),
    /// Its last attempt failed. Whether that counts, the engine decides: not where a breaker may be about to open.
    Undecided,
    InBatcher(usize),
    RunsInBatch(usize),
    Done,
    GivenUp,
    /// Cancelled, or its batcher is stuck.
    PutBack,
}

/// What the pipeline must have counted (P8).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) received: u64,
    pub(super) acked: u64,
    pub(super) rejected: u64,
    pub(super) released: u64,
    pub(super) returned: u64,
    pub(super) stale: u64,
    pub(super) failed_settlements: u64,
    pub(super) processed: u64,
    pub(super) failed: u64,
    pub(super) settled_early: u64,
    pub(super) dead_lettered: u64,
    pub(super) put_off: u64,
}

impl Model {
    pub(super) fn next(&self) -> usize {
        self.deliveries.len()
    }

    pub(super) fn out(&self) -> Vec<usize> {
        self.out.iter().copied().collect()
    }

    pub(super) fn outstanding(&self) -> (usize, usize) {
        let out = self
            .out
            .iter()
            .filter_map(|delivery| self.deliveries.get(*delivery));
        let bytes = out
            .filter(|delivery| !self.withdrawn.contains(&delivery.ticket.generation))
            .map(|delivery| delivery.bytes);
        bytes.fold((0, 0), |(messages, sum), bytes| (messages + 1, sum + bytes))
    }

    pub(super) fn find(&self, ticket: &Ticket) -> Option<usize> {
        self.tickets.get(&(ticket.generation, ticket.sequence)).copied()
    }

    pub(super) fn get(&mut self, delivery: usize) -> Option<&mut Delivery> {
        self.deliveries.get_mut(delivery)
    }

    pub(super) fn ticket(&self, delivery: usize) -> Option<Ticket> {
        self.deliveries.get(delivery).map(|delivery| delivery.ticket)
    }

    pub(super) fn post(&self, delivery: usize) -> usize {
        self.deliveries
            .get(delivery)
            .map_or(usize::MAX, |delivery| delivery.post)
    }

    /// Lost, or of what is being taken away: the engine may not have heard so yet, or run it still.
    pub(super) fn unheard(&self) -> usize {
        let over =
            |delivery: &Delivery| delivery.lost || self.withdrawn.contains(&delivery.ticket.generation);
        let heard = |delivery: &&Delivery| over(delivery) && !delivery.answered;
        self.deliveries
            .iter()
            .rev()
            .take_while(|delivery| delivery.process == self.process)
            .filter(heard)
            .count()
    }

    pub(super) fn stage(&self, delivery: usize) -> Option<Stage> {
        self.deliveries.get(delivery).map(|delivery| delivery.stage)
    }

    /// It is nobody's any more: what ran before has no bearing on what runs next.
    pub(super) fn lose(&mut self, delivery: usize) {
        self.out.remove(&delivery);
        if let Some(found) = self.deliveries.get_mut(delivery) {
            found.lost = true;
        }
        self.disturb(delivery);
        self.forget(delivery);
    }

    /// What has numbers is no longer followed in the key of this one.
    pub(super) fn disturb(&mut self, delivery: usize) {
        if let Some(key) = self.deliveries.get(delivery).and_then(|delivery| delivery.key) {
            let free = self.sequences.disturb(key);
            self.lanes.entry(key).or_default().extend(free);
        }
    }

    /// This generation is about to be taken away.
    pub(super) fn withdraw(&mut self, generation: u32) {
        self.withdrawn.insert(generation);
    }

    /// The engine knows by now what was lost.
    pub(super) fn tell(&mut self, generations: &[u32]) {
        for delivery in &mut self.deliveries {
            delivery.told |= delivery.lost && generations.contains(&delivery.ticket.generation);
        }
    }

    /// It is done with, or no longer in order.
    pub(super) fn forget(&mut self, delivery: usize) {
        let Some(key) = self.deliveries.get(delivery).and_then(|delivery| delivery.key) else {
            return;
        };
        if let Some(lane) = self.lanes.get_mut(&key) {
            lane.retain(|other| *other != delivery);
        }
        for ((_, of), batching) in &mut self.batching {
            if *of == key {
                batching.retain(|other| *other != delivery);
            }
        }
    }

    /// The process is dead, and all that it held.
    pub(super) fn reset(&mut self) {
        self.process += 1;
        self.lanes.clear();
        self.batching.clear();
        self.batched.clear();
        self.given_back.clear();
        self.running = 0;
        self.batches_running = 0;
        self.last_batch.clear();
        self.suspects = false;
        self.withdrawn.clear();
        self.halted.clear();
        self.sequences.clear();
        self.flights.clear();
        self.watched = None;
        self.tally = Tally::default();
    }
}

impl State {
    pub(super) fn handed_out(&mut self, post: usize, partition: usize, ticket: Ticket, message: &Message) {
        let key = match self.plan.ordering {
            Order::None => None,
            Order::Key | Order::Header => {
                group(message).map(|key| key.iter().fold(1, |sum, byte| sum * 257 + u64::from(*byte)))
            }
            Order::Partition => Some(partition as u64),
        };
        let (now, deadly) = (self.now(), message.deliveries > self.plan.max_deliveries);
        let model = &mut self.model;
        let delivery = model.next();
        model
            .tickets
            .insert((ticket.generation, ticket.sequence), delivery);
        model.out.insert(delivery);
        model.suspects |= message.deliveries > 3;
        model.tally.received += 1;
        model.deliveries.push(Delivery {
            post,
            process: model.process,
            ticket,
            key,
            bytes: message.size(),
            handed: now,
            deliveries: message.deliveries,
            failures: message.failures,
            stage: Stage::Waits(now),
            behind_failed: false,
            lost: false,
            told: false,
            answered: false,
            settled_now: false,
            written: false,
            blamed: true,
            named: false,
            batched: false,
            put_off: false,
        });
        self.joins(delivery, deadly);
        if deadly && self.plan.letters == Letters::Halt {
            self.model.withdraw(ticket.generation);
        }
        // One that came too often is given up unrun.
        let Some(key) = key.filter(|_| !deadly) else {
            return;
        };
        let line = match sequence_number(message) {
            Some(number) => self.numbered(key, number, ticket.generation, delivery),
            None => vec![delivery],
        };
        self.model.lanes.entry(key).or_default().extend(line);
    }

    /// Where its breaker stands, if it has one.
    pub(super) fn breaker(&self) -> Option<BreakerState> {
        self.pipeline
            .as_ref()
            .filter(|_| self.plan.breaker)
            .and_then(|pipeline| pipeline.status().breaker)
    }

    /// Whether given-up messages are acknowledged and forgotten.
    pub(super) fn discards(&self) -> bool {
        self.plan.letters == Letters::Discard
    }

    /// An unfinished delivery went back to the source.
    pub(super) fn gave_back(&mut self, delivery: usize) {
        let Some(found) = self.model.deliveries.get(delivery) else {
            return;
        };
        if let Some(key) = found.key {
            let scope = (found.ticket.generation, key);
            let post = found.post;
            self.model.given_back.entry(scope).or_default().insert(post);
            self.model.disturb(delivery);
        }
    }

    /// The source has answered for it.
    pub(super) fn answered(&mut self, delivery: usize) {
        self.model.out.remove(&delivery);
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return;
        };
        found.answered = true;
        // What its handler has settled keeps its turn until it has ended.
        let goes_on = matches!(
            found.stage,
            Stage::Runs | Stage::InBatcher(_) | Stage::RunsInBatch(_)
        );
        if !(found.settled_now && goes_on) {
            self.model.forget(delivery);
        }
    }
}

impl World {
    /// What the engine does with user code.
    pub(super) fn see(&self, process: u32, seen: &Seen<'_>) {
        let Some(mut state) = self.of(process) else { return };
        let find = |ticket: &Ticket| state.model.find(ticket);
        match seen {
            Seen::Began(ticket) => {
                if let Some(delivery) = find(ticket) {
                    state.began(delivery);
                }
            }
            Seen::Ended(ticket, ended) => {
                if let Some(delivery) = find(ticket) {
                    state.ended(delivery, *ended);
                }
            }
            Seen::SettledNow(ticket) => {
                if let Some(delivery) = find(ticket) {
                    state.note(Event::SettledNow(delivery));
                    state.model.tally.settled_early += 1;
                    if let Some(found) = state.model.get(delivery) {
                        found.settled_now = true;
                    }
                }
            }
            Seen::BatchBegan(batcher, tickets) => {
                let deliveries: Vec<_> = tickets.iter().filter_map(find).collect();
                state.batch_began(*batcher, &deliveries);
            }
            Seen::BatchEnded(batcher, ends) => {
                let ends: Vec<_> = ends
                    .iter()
                    .filter_map(|(ticket, ended)| Some((find(ticket)?, *ended)))
                    .collect();
                state.batch_ended(*batcher, &ends);
            }
        }
        drop(state);
        self.look();
    }
}
