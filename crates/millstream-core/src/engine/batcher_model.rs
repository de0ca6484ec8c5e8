//! A whole batcher against a model that is plainly right: whatever enters, runs, fails, is lost, flushed, changed, drained or
//! cut, each message comes out once, in batches as they may be (P2, P3, P4).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::any_batcher::AnyBatcher;
use super::batcher::{Again, Batcher};
use super::entrance::{Entrance, Entries, Mark};
use super::envelope::Envelope;
use super::hub::Hub;
use super::shard::{Closed, Turn};
use crate::batch::{Batch, BatchHandler, ClosedBy};
use crate::failure::Failure;
use crate::flow::Flow;
use crate::memory::MemoryQueue;
use crate::message::{Message, OriginId};
use crate::ordering::Ordering;
use crate::processor::{Context, Processor};
use crate::rt::{self, Duration, Instant};
use crate::spec::{BatcherSpec, Limits, PipelineSpec};
use crate::ticket::{Scope, Ticket};

const SIZE: usize = 4;
const BYTES: usize = 24;
const AGE: Duration = Duration::from_millis(10);
const WORKERS: usize = 4;
/// Messages that the batcher may hold before intake waits.
const SHARE: usize = 12;
/// Generations that messages come from, one after the other.
const GENERATIONS: u64 = 3;

type Id = u64;

#[derive(Clone, Debug)]
enum Step {
    /// Messages with this batch key, what they are ordered by, so heavy, and whether they close their batch.
    Enter(Vec<(u8, u64, u32, bool)>),
    /// This worker, if it runs nothing, does what is next.
    Turn(usize),
    /// The batch of this worker ends so.
    End(usize, Ended),
    Pass(u64),
    /// What comes of a generation that is to be revoked, and of one that is gone.
    Flush(u64),
    Discard(u64),
    /// So many workers are wanted.
    Workers(usize),
}

#[derive(Clone, Copy, Debug)]
enum Ended {
    Done,
    /// Those with a number that this divides come again then, with what follows them in their keys.
    Parked(u64, u64),
    Halved,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ended = prop_oneof![
        4 => Just(Ended::Done),
        3 => (1..4_u64, 0..30_u64).prop_map(|(by, wait)| Ended::Parked(by, wait)),
        2 => Just(Ended::Halved),
    ];
    let message = (0..3_u8, 0..5_u64, 1..12_u32, prop::bool::weighted(0.1));
    let step = prop_oneof![
        6 => prop::collection::vec(message, 1..6).prop_map(Step::Enter),
        8 => (0..WORKERS).prop_map(Step::Turn),
        6 => (0..WORKERS, ended).prop_map(|(worker, ended)| Step::End(worker, ended)),
        3 => (0..15_u64).prop_map(Step::Pass),
        1 => (0..GENERATIONS).prop_map(Step::Flush),
        1 => (0..GENERATIONS).prop_map(Step::Discard),
        1 => (1..=WORKERS).prop_map(Step::Workers),
    ];
    prop::collection::vec(step, 1..120)
}

struct NoOp;

impl Processor for NoOp {
    type Input = ();
    type Output = Id;

    async fn process(&self, (): (), _: &mut Context<'_>) -> Result<Id, Failure> {
        Ok(0)
    }
}

impl BatchHandler for NoOp {
    type Input = Id;

    async fn handle(&self, _: &mut Batch<Id>) -> Result<(), Failure> {
        Ok(())
    }
}

#[derive(Debug)]
struct Item {
    key: u8,
    order: u64,
    weight: usize,
    flush: bool,
    entered: Instant,
    /// It comes again then.
    due: Option<Instant>,
    runs: bool,
}

/// What has not ended, by its number, which is its place in source order.
#[derive(Debug, Default)]
struct Model {
    items: BTreeMap<Id, Item>,
    ordered: bool,
    released: usize,
    /// Something was parked, taken out, flushed or changed: why a batch was closed can no longer be told from its messages.
    disturbed: bool,
}

impl Model {
    fn ran(&mut self, batch: &Closed<Id>, flushes: bool) {
        let ids: Vec<_> = batch
            .envelopes
            .iter()
            .map(|envelope| envelope.ticket.sequence)
            .collect();
        assert_eq!(batch.items, ids, "an item went with another's message");
        let items: Vec<_> = ids
            .iter()
            .map(|id| self.items.get(id).unwrap_or_else(|| panic!("{id} has ended")))
            .collect();
        let weight: usize = items.iter().map(|item| item.weight).sum();
        assert!(ids.len() <= SIZE, "P4: {} in a batch", ids.len());
        assert!(weight <= BYTES || ids.len() == 1, "P4: {weight} bytes in a batch");
        assert!(
            items.iter().all(|item| item.key == items[0].key),
            "batch keys are mixed"
        );
        for (index, (id, item)) in ids.iter().zip(&items).enumerate() {
            assert!(!item.runs, "P2: {id} runs already");
            assert!(
                item.due.is_none_or(|due| due <= rt::now()),
                "{id} comes again too early"
            );
            if item.order == 0 {
                continue;
            }
            for (other, before) in self.items.iter().filter(|(_, other)| other.order == item.order) {
                assert!(!before.runs, "P3: {other} of the same key runs, and {id}");
                let ahead = other >= id || ids[..index].contains(other);
                let waits = before.due.is_some() || before.key == item.key;
                assert!(ahead || !waits, "P3: {id} overtook {other}");
            }
        }
        if !self.disturbed && !flushes && items.iter().all(|item| item.due.is_none()) {
            self.was_closed(batch.by, &ids, weight);
        }
        for id in ids {
            if let Some(item) = self.items.get_mut(&id) {
                (item.runs, item.due) = (true, None);
            }
        }
    }

    /// A batch runs no sooner than something has closed it.
    fn was_closed(&self, by: ClosedBy, ids: &[Id], weight: usize) {
        let items = || ids.iter().filter_map(|id| self.items.get(id));
        let key = items().next().map(|item| item.key);
        let last = ids.last().copied().unwrap_or_default();
        let next = self
            .items
            .range(last + 1..)
            .find(|(_, item)| Some(item.key) == key);
        let why = match by {
            ClosedBy::Size => ids.len() == SIZE,
            ClosedBy::Age => items().any(|item| item.entered + AGE <= rt::now()),
            ClosedBy::Flush => items().next_back().is_some_and(|item| item.flush),
            // Under an ordering the next of its batch key may have gone to another shard.
            ClosedBy::Bytes => self.ordered || next.is_some_and(|(_, next)| weight + next.weight > BYTES),
        };
        assert!(why, "{ids:?} was closed by {by:?}");
    }
}

struct Both {
    hub: Arc<Hub>,
    batcher: Arc<Batcher<Id>>,
    running: Vec<Option<Closed<Id>>>,
    model: Model,
    next: Id,
    draining: bool,
    cut: bool,
}

impl Both {
    fn new(ordered: bool, workers: usize) -> Self {
        let flow = Flow::process(NoOp).batch("batcher", NoOp);
        let mut spec = PipelineSpec::new("test", Arc::new(MemoryQueue::new()), flow);
        spec.ordering = if ordered { Ordering::Key } else { Ordering::None };
        spec.limits.in_flight = number(SHARE * 2);
        let hub = Arc::new(Hub::new(spec));
        let batcher = Batcher::new(&hub, "batcher", batcher_spec(workers), Arc::new(NoOp));
        Self {
            hub,
            batcher,
            running: (0..WORKERS).map(|_| None).collect(),
            model: Model {
                ordered,
                ..Model::default()
            },
            next: 1,
            draining: false,
            cut: false,
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Enter(ref messages) => self.enter(messages),
            Step::Turn(worker) => drop(self.turn(worker)),
            Step::End(worker, ended) => self.end(worker, ended),
            // Time alone is the test's to pass.
            Step::Pass(_) => {}
            Step::Flush(generation) => {
                let gone = self.batcher.flush(scope(generation));
                let gone: BTreeSet<_> = gone.iter().map(|envelope| envelope.ticket.sequence).collect();
                let now = rt::now();
                for (id, item) in &self.model.items {
                    let waits = !self.model.ordered && !item.runs && id % GENERATIONS == generation;
                    let due = item.due.filter(|_| waits);
                    // What is due may have joined what is closed.
                    assert!(!gone.contains(id) || due.is_some(), "{id} was given up");
                    assert!(
                        gone.contains(id) || due.is_none_or(|due| due <= now),
                        "{id} waits"
                    );
                }
                self.model.items.retain(|id, _| !gone.contains(id));
                self.model.disturbed = true;
            }
            Step::Discard(generation) => {
                let gone = self.batcher.discard(scope(generation));
                let gone: BTreeSet<_> = gone.iter().map(|envelope| envelope.ticket.sequence).collect();
                let items = &mut self.model.items;
                let lost = |id: &Id, item: &Item| !item.runs && id % GENERATIONS == generation;
                let expected: BTreeSet<_> = items
                    .extract_if(.., |id, item| lost(id, item))
                    .map(|(id, _)| id)
                    .collect();
                assert_eq!(gone, expected);
                self.model.disturbed = true;
            }
            Step::Workers(workers) => {
                self.batcher.set(&self.hub, batcher_spec(workers), self.limits());
                self.model.disturbed = true;
            }
        }
    }

    fn limits(&self) -> Limits {
        self.hub.spec.limits
    }

    fn enter(&mut self, messages: &[(u8, u64, u32, bool)]) {
        let mut entries = Entries::new();
        for &(key, order, weight, flush) in messages {
            let order = if self.hub.spec.ordering.is_ordered() {
                order
            } else {
                0
            };
            let id = self.next;
            self.next += 1;
            let mut ticket = Ticket::new(generation(id % GENERATIONS), OriginId::default(), id);
            ticket.weight = weight;
            let mut envelope = Envelope::new(ticket, Message::new(Bytes::new()));
            envelope.order = order;
            entries.envelopes.push(envelope);
            entries.outputs.push(id);
            entries.marks.push(Mark {
                key: Some(key.to_string().into()),
                flush,
                alone: false,
            });
            if self.cut {
                self.model.released += 1;
                continue;
            }
            let item = Item {
                key,
                order,
                weight: weight as usize,
                flush,
                entered: rt::now(),
                due: None,
                runs: false,
            };
            self.model.items.insert(id, item);
        }
        self.batcher.enter(&self.hub, &mut entries);
        assert!(entries.is_empty() && entries.outputs.is_empty() && entries.marks.is_empty());
    }

    /// Whether this worker has begun something.
    fn turn(&mut self, worker: usize) -> bool {
        if self.running[worker].is_some() {
            return false;
        }
        match self.batcher.turn(&self.hub, worker) {
            Some(Turn::Run(batch)) => {
                assert!(!self.cut, "what runs after the cut?");
                self.model.ran(&batch, self.draining);
                self.running[worker] = Some(batch);
                true
            }
            Some(Turn::Wait(_)) | None => false,
        }
    }

    fn end(&mut self, worker: usize, ended: Ended) {
        let Some(mut batch) = self.running[worker].take() else {
            return;
        };
        let ids = batch.items.clone();
        let again = |model: &mut Model, id: Id, due: Option<Instant>| {
            if let Some(item) = model.items.get_mut(&id) {
                (item.runs, item.due) = (false, due);
            }
        };
        let (mut gone, mut orders) = (0, Vec::new());
        let again = match ended {
            Ended::Halved if batch.len() > 1 => {
                ids.iter().for_each(|id| again(&mut self.model, *id, None));
                self.model.disturbed = true;
                match batch.bisect(|_| false, |split| self.batcher.parts_of(worker, split)) {
                    Ok(parts) => Again::InParts(parts),
                    // More have failed in a row than one at fault explains: all that is left comes again together.
                    Err(batch) => {
                        let now = rt::now();
                        batch
                            .items
                            .iter()
                            .for_each(|id| again(&mut self.model, *id, Some(now)));
                        Again::At(now, batch)
                    }
                }
            }
            Ended::Parked(by, wait) => {
                let due = rt::now() + Duration::from_millis(wait);
                let mut keys = BTreeSet::new();
                let mut left = Vec::new();
                for id in &ids {
                    let order = self.model.items[id].order;
                    if id % by == 0 || keys.contains(&order) {
                        keys.extend((order != 0).then_some(order));
                        again(&mut self.model, *id, Some(due));
                        left.push(*id);
                    } else {
                        self.model.items.remove(id);
                        orders.push(order);
                        gone += 1;
                    }
                }
                self.model.disturbed |= !left.is_empty();
                batch
                    .envelopes
                    .retain(|envelope| left.contains(&envelope.ticket.sequence));
                batch.items = left;
                batch.split = None;
                match batch.is_empty() {
                    true => Again::Never,
                    false => Again::At(due, batch),
                }
            }
            Ended::Done | Ended::Halved => {
                for id in &ids {
                    orders.extend(self.model.items.remove(id).map(|item| item.order));
                    gone += 1;
                }
                Again::Never
            }
        };
        self.batcher.done(&self.hub, worker, gone, &orders, again);
        if self.cut {
            // What would come again goes back.
            let back = self.model.items.extract_if(.., |id, _| ids.contains(id));
            self.model.released += back.count();
        }
    }

    /// What holds at any time.
    fn compare(&self) {
        assert_eq!(self.batcher.held(), self.model.items.len());
        assert_eq!(self.hub.settling.len(), self.model.released, "P2: released");
        if self.cut {
            return;
        }
        let full = self.hub.gate.state().full_batchers;
        assert_eq!(full, usize::from(self.model.items.len() >= SHARE), "P4: the gate");
    }

    /// With all workers idle and nothing to run, nothing that is old enough waits.
    fn comes_to_rest(&mut self) {
        if self.running.iter().any(Option::is_some) {
            return;
        }
        let mut began = false;
        for worker in 0..WORKERS {
            began |= self.turn(worker);
        }
        if began || self.model.items.values().any(|item| item.due.is_some()) {
            return;
        }
        let overdue = self
            .model
            .items
            .iter()
            .find(|(_, item)| item.entered + AGE <= rt::now());
        assert!(overdue.is_none(), "{overdue:?} is old enough, and does not run");
    }

    /// Lets everything come out.
    async fn drain(&mut self) {
        self.draining = true;
        self.batcher.begin_drain();
        for _ in 0..1_000 {
            for worker in 0..WORKERS {
                self.turn(worker);
                self.end(worker, Ended::Done);
            }
            self.compare();
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert!(self.model.items.is_empty(), "left behind: {:?}", self.model.items);
    }

    /// Gives back what does not run, and what comes to it later.
    fn cut(&mut self) {
        self.cut = true;
        self.batcher.cut();
        self.model.released += self.model.items.extract_if(.., |_, item| !item.runs).count();
        self.compare();
        self.enter(&[(0, 1, 1, true), (1, 0, 1, false)]);
        for worker in 0..WORKERS {
            assert!(!self.turn(worker));
            self.end(
                worker,
                if worker % 2 == 0 {
                    Ended::Parked(1, 5)
                } else {
                    Ended::Halved
                },
            );
            self.compare();
        }
        assert!(self.model.items.is_empty(), "left behind: {:?}", self.model.items);
    }
}

fn number(number: usize) -> NonZeroUsize {
    NonZeroUsize::new(number).unwrap()
}

fn generation(of: u64) -> u32 {
    u32::try_from(of).unwrap()
}

fn scope(of: u64) -> Scope {
    Scope::Generation(generation(of))
}

fn batcher_spec(workers: usize) -> BatcherSpec {
    BatcherSpec {
        size: number(SIZE),
        bytes: number(BYTES),
        max_age: AGE,
        concurrency: number(workers),
        bisect: true,
        ..BatcherSpec::default()
    }
}

async fn run(ordered: bool, workers: usize, steps: Vec<Step>, is_cut: bool) {
    let mut both = Both::new(ordered, workers);
    for step in steps {
        if let Step::Pass(time) = step {
            tokio::time::advance(Duration::from_millis(time)).await;
            both.comes_to_rest();
        }
        both.step(&step);
        both.compare();
    }
    match is_cut {
        true => both.cut(),
        false => both.drain().await,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn p2_p3_p4_a_batcher_and_a_model_that_is_plainly_right_agree(
        ordered in any::<bool>(),
        workers in 1..=WORKERS,
        steps in steps(),
        is_cut in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(ordered, workers, steps, is_cut));
    }
}
