//! What must hold of every delivery: the model that each event of a run is compared with.
//!
//! A delivery is one handing out of one message. It waits, runs, perhaps enters a batcher and runs there, and is settled;
//! how far it is decides what may happen to it next.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_core::simulation::{Ended, Seen};
use millstream_core::{BreakerState, Message, Ticket};
use rustc_hash::FxHashMap;

use super::plan::{Letters, Order, Rate, ms};
use super::script::group;
use super::world::{Event, State, World};

/// How long the engine may take over what it does at once, while time stands still but for it.
const AT_ONCE: Duration = ms(100);

#[derive(Debug, Default)]
pub(super) struct Model {
    process: u32,
    deliveries: Vec<Delivery>,
    tickets: FxHashMap<(u32, u64), usize>,
    /// Handed out in this process, and neither answered for nor lost.
    out: BTreeSet<usize>,
    /// Those that the processor is not done with, of each key.
    lanes: BTreeMap<u64, Vec<usize>>,
    /// Those that a batcher is not done with, of each batcher and key.
    batching: BTreeMap<(usize, u64), Vec<usize>>,
    /// The keys that batches under way hold.
    batched: BTreeSet<(usize, u64)>,
    /// Given back unfinished, of each generation and key.
    given_back: BTreeMap<(u32, u64), BTreeSet<usize>>,
    pub(super) running: usize,
    begun: u64,
    /// Suspects have been seen: what was fetched with them is given back out of turn.
    suspects: bool,
    /// Generations that are being revoked: nothing of them starts, and what waits is forgotten.
    withdrawn: BTreeSet<u32>,
    watched: Option<(u64, BTreeSet<usize>)>,
    pub(super) tally: Tally,
}

#[derive(Debug)]
pub(super) struct Delivery {
    post: usize,
    /// The start of the pipeline that it belongs to.
    process: u32,
    ticket: Ticket,
    /// What it is ordered by.
    key: Option<u64>,
    bytes: usize,
    pub(super) deliveries: u32,
    /// Attempts that have failed and count.
    pub(super) failures: u32,
    pub(super) stage: Stage,
    /// It succeeded in a batch behind a failed one of its key: it may have to come again with that one.
    pub(super) behind_failed: bool,
    pub(super) lost: bool,
    /// The engine has been told that it is lost.
    told: bool,
    pub(super) answered: bool,
    pub(super) settled_now: bool,
    /// Its dead letter, or its letter to the retry sink, is confirmed.
    pub(super) written: bool,
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
    fn enter(&mut self, stage: Stage) -> Stage {
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

    /// Lost, and the engine has not heard so yet.
    pub(super) fn unheard(&self) -> usize {
        let heard = |delivery: &&Delivery| delivery.lost && !delivery.answered;
        self.deliveries
            .iter()
            .rev()
            .take_while(|delivery| delivery.process == self.process)
            .filter(heard)
            .count()
    }

    fn stage(&self, delivery: usize) -> Option<Stage> {
        self.deliveries.get(delivery).map(|delivery| delivery.stage)
    }

    /// It is nobody's any more: what ran before has no bearing on what runs next.
    pub(super) fn lose(&mut self, delivery: usize) {
        self.out.remove(&delivery);
        if let Some(found) = self.deliveries.get_mut(delivery) {
            found.lost = true;
        }
        self.forget(delivery);
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
    fn forget(&mut self, delivery: usize) {
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
        self.suspects = false;
        self.withdrawn.clear();
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
        // One that came too often is given up unrun.
        if let Some(key) = key.filter(|_| !deadly) {
            model.lanes.entry(key).or_default().push(delivery);
        }
        model.suspects |= message.deliveries > 3;
        model.tally.received += 1;
        model.deliveries.push(Delivery {
            post,
            process: model.process,
            ticket,
            key,
            bytes: message.size(),
            deliveries: message.deliveries,
            failures: message.failures,
            stage: Stage::Waits(now),
            behind_failed: false,
            lost: false,
            told: false,
            answered: false,
            settled_now: false,
            written: false,
            put_off: false,
        });
    }

    fn began(&mut self, delivery: usize) {
        self.note(Event::Began(delivery));
        let plan = (self.plan.concurrency, self.plan.max_deliveries);
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return;
        };
        let stage = found.enter(Stage::Runs);
        let (key, generation, post) = (found.key, found.ticket.generation, found.post);
        let (told, answered, lost) = (found.told, found.answered && !found.settled_now, found.lost);
        let deliveries = found.deliveries;
        if told {
            self.violate(
                "P3",
                format!("delivery {delivery} begins though the engine knows that it is lost"),
            );
        }
        if answered && !lost {
            self.violate("P2", format!("delivery {delivery} begins though it is settled"));
        }
        if !matches!(stage, Stage::Waits(_) | Stage::Parked(_) | Stage::Undecided) {
            self.violate(
                "P2",
                format!("delivery {delivery} begins a run while it is {stage:?}"),
            );
        }
        if deliveries > plan.1 {
            self.violate(
                "P5",
                format!("delivery {delivery} runs though it was delivered {deliveries} times"),
            );
        }
        self.model.begun += 1;
        self.model.running += 1;
        if self.model.running > plan.0 {
            self.violate(
                "P4",
                format!("{} runs at a time, and {} may", self.model.running, plan.0),
            );
        }
        if deliveries > 3 && self.model.running > 1 {
            self.violate(
                "P5",
                format!("delivery {delivery} is a suspect, and does not run alone"),
            );
        }
        let Some(key) = key.filter(|_| !lost) else { return };
        let lane = self.model.lanes.get(&key).cloned().unwrap_or_default();
        for earlier in lane.into_iter().take_while(|other| *other < delivery) {
            let same = self
                .model
                .ticket(earlier)
                .is_some_and(|ticket| ticket.generation == generation);
            if same {
                let stage = self.model.stage(earlier);
                self.violate(
                    "P3",
                    format!("delivery {delivery} of key {key} begins while {earlier} before it is {stage:?}"),
                );
            }
        }
        let back = self.model.given_back.get(&(generation, key));
        let back: Vec<_> = back
            .into_iter()
            .flatten()
            .copied()
            .take_while(|earlier| *earlier < post)
            .collect();
        let suspects = self.model.suspects;
        for earlier in back.into_iter().filter(|_| !suspects) {
            let again = self.broker.posts.get(earlier);
            let again = again
                .filter(|post| !post.settled)
                .map(|post| post.out.and_then(|out| self.model.stage(out)));
            if matches!(again, Some(None | Some(Stage::Waits(_)))) {
                self.violate(
                    "P3",
                    format!(
                        "message {post} of key {key} begins, and message {earlier} before it was given back"
                    ),
                );
            }
        }
    }

    fn ended(&mut self, delivery: usize, ended: Ended) {
        self.note(Event::Ended(delivery, ended));
        let stage = match ended {
            Ended::Done => Stage::Done,
            Ended::Batched(batcher) => Stage::InBatcher(batcher),
            Ended::PutOff | Ended::Cancelled => Stage::PutBack,
            Ended::Rejected => Stage::GivenUp,
            Ended::Failed => self.failed(delivery),
        };
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return;
        };
        let (key, lost) = (found.key, found.lost);
        if std::mem::replace(&mut found.stage, stage) == Stage::Runs {
            self.model.running -= 1;
            let tally = &mut self.model.tally;
            tally.processed += u64::from(matches!(ended, Ended::Done | Ended::Batched(_) | Ended::PutOff));
            tally.failed += u64::from(ended == Ended::Failed);
        }
        if let (Some(key), false, false) = (key, lost, matches!(stage, Stage::Parked(_))) {
            self.model.forget(delivery);
            if let Stage::InBatcher(batcher) = stage {
                self.model
                    .batching
                    .entry((batcher, key))
                    .or_default()
                    .push(delivery);
            }
        }
    }

    /// What comes of a run that failed, as the policy has it: no attempt counts while the breaker is not closed.
    fn failed(&mut self, delivery: usize) -> Stage {
        let counts = self
            .breaker()
            .is_none_or(|breaker| breaker == BreakerState::Closed);
        let (attempts, backoff, now) = (self.plan.attempts, self.plan.backoff, self.now());
        let Some(found) = self.model.deliveries.get_mut(delivery) else {
            return Stage::GivenUp;
        };
        if found.settled_now {
            return Stage::Done;
        }
        if !counts {
            return Stage::Parked(Duration::MAX);
        }
        found.failures += 1;
        if found.failures >= attempts {
            return match self.plan.breaker {
                true => Stage::Undecided,
                false => Stage::GivenUp,
            };
        }
        Stage::Parked(now + backoff * 2u32.pow(found.failures - 1))
    }

    /// Where its breaker stands, if it has one.
    fn breaker(&self) -> Option<BreakerState> {
        self.pipeline
            .as_ref()
            .filter(|_| self.plan.breaker)
            .and_then(|pipeline| pipeline.status().breaker)
    }

    fn batch_began(&mut self, batcher: usize, deliveries: &[usize]) {
        self.note(Event::BatchBegan(batcher, deliveries.to_vec()));
        let mut keys = BTreeSet::new();
        for (index, delivery) in deliveries.iter().enumerate() {
            let Some(found) = self.model.deliveries.get_mut(*delivery) else {
                continue;
            };
            let stage = found.enter(Stage::RunsInBatch(batcher));
            let (key, generation, lost) = (found.key, found.ticket.generation, found.lost);
            // A message that succeeded beside a failed one of its key comes again with it.
            let may = matches!(stage, Stage::InBatcher(_) | Stage::Parked(_) | Stage::Undecided)
                || (stage == Stage::Done && (!found.answered || found.settled_now));
            if !may {
                self.violate(
                    "P2",
                    format!("delivery {delivery} is in a batch that begins while it is {stage:?}"),
                );
            }
            let Some(key) = key else { continue };
            keys.insert(key);
            let others = self
                .model
                .batching
                .get(&(batcher, key))
                .cloned()
                .unwrap_or_default();
            let before = others.into_iter().take_while(|other| other != delivery);
            for earlier in before.filter(|_| !lost) {
                let same = self
                    .model
                    .ticket(earlier)
                    .is_some_and(|ticket| ticket.generation == generation);
                let ahead = deliveries.iter().take(index).any(|other| *other == earlier);
                if same && !ahead && earlier < *delivery {
                    self.violate("P3", format!("a batch with delivery {delivery} of key {key} begins before {earlier}, which entered first"));
                }
            }
        }
        for key in keys {
            if !self.model.batched.insert((batcher, key)) {
                self.violate(
                    "P3",
                    format!("two batches of batcher {batcher} with key {key} run at a time"),
                );
            }
        }
    }

    fn batch_ended(&mut self, batcher: usize, ends: &[(usize, Ended)]) {
        self.note(Event::BatchEnded(batcher, ends.to_vec()));
        let mut failed_keys = BTreeSet::new();
        for (delivery, ended) in ends {
            let stage = match ended {
                Ended::Done | Ended::Batched(_) => Stage::Done,
                Ended::PutOff | Ended::Cancelled => Stage::PutBack,
                Ended::Rejected => Stage::GivenUp,
                Ended::Failed => self.failed(*delivery),
            };
            if matches!(ended, Ended::Failed | Ended::Rejected) {
                let written = self
                    .broker
                    .posts
                    .get(self.model.post(*delivery))
                    .map(|post| post.written);
                if let Some(written) = written.and_then(|written| self.broker.written.get_mut(written)) {
                    written.failed_in_batch = true;
                }
            }
            let Some(found) = self.model.deliveries.get_mut(*delivery) else {
                continue;
            };
            found.stage = stage;
            if let Some(key) = found.key {
                found.behind_failed = failed_keys.contains(&key);
                if *ended == Ended::Failed {
                    failed_keys.insert(key);
                }
                self.model.batched.remove(&(batcher, key));
                if !matches!(stage, Stage::Parked(_)) {
                    self.model.forget(*delivery);
                }
            }
        }
    }

    /// P4: what a source may fetch keeps the limits.
    pub(super) fn asked(&mut self, messages: usize, bytes: usize) {
        let (out, held) = self.model.outstanding();
        let (most, limit) = (self.plan.in_flight, self.plan.bytes);
        if out.saturating_add(messages) > most {
            self.violate(
                "P4",
                format!("{out} messages are in flight, {messages} more are asked for, and {most} may be"),
            );
        }
        if held.saturating_add(bytes) > limit && (held < limit || bytes > 0) {
            self.violate(
                "P4",
                format!("{held} bytes are in flight, {bytes} more are asked for, and {limit} may be"),
            );
        }
        if self.breaker() == Some(BreakerState::Open) {
            self.violate("P5", "the source is read though the breaker is open");
        }
    }

    /// P5: what may run does, while a worker is free. Called every now and then; so many workers may be `gone`, if the
    /// pipeline serves at all.
    pub(super) fn check_progress(&mut self, gone: Option<usize>) {
        let (now, model, plan) = (self.now(), &self.model, &self.plan);
        // Fewer may run where their number adapts, and what is over the limit of its key waits in the engine.
        let freely = plan.adapts_from.is_none() && plan.rate != Rate::Keys && !plan.breaker;
        let seated = gone.map_or(0, |gone| plan.concurrency.saturating_sub(gone));
        // What goes back because its lane is full is on its way for as long as settlements are slow.
        let trouble = &self.broker.trouble;
        let slow = trouble.slow_acks.max(trouble.failing_acks);
        let settles = slow.is_zero() || now > slow + ms(500);
        let free = model.running < seated && !model.suspects && freely && settles;
        let long = model.lanes.values().any(|lane| lane.len() >= plan.per_key);
        let may_run = |delivery: &&usize| {
            let Some(found) = model.deliveries.get(**delivery) else {
                return false;
            };
            let since = match found.stage {
                Stage::Waits(since) => since,
                // One that is to be redelivered waits at the source.
                Stage::Parked(due) if plan.strategy == millstream_core::RetryStrategy::InPlace => due,
                _ => return false,
            };
            let first = found.key.and_then(|key| model.lanes.get(&key)?.first());
            since.saturating_add(AT_ONCE) < now && first.is_none_or(|first| *first == **delivery)
        };
        let ready: BTreeSet<usize> = if free && !long {
            model.out.iter().filter(may_run).copied().collect()
        } else {
            BTreeSet::new()
        };
        let begun = model.begun;
        if let Some((before, waited)) = &model.watched
            && *before == begun
            && let Some(stuck) = waited.intersection(&ready).next()
        {
            let what = format!("delivery {stuck} could run, workers are free, and it does not");
            self.violate("P5", what);
        }
        self.model.watched = Some((begun, ready));
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
        }
    }

    /// The source has answered for it.
    pub(super) fn answered(&mut self, delivery: usize) {
        self.model.out.remove(&delivery);
        self.model.forget(delivery);
        if let Some(found) = self.model.deliveries.get_mut(delivery) {
            found.answered = true;
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
