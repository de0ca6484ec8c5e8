//! A shard of a batcher against a model that is plainly right: what runs when, and what waits behind it (P3).

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use bytes::Bytes;
use proptest::prelude::*;

use super::entrance::Mark;
use super::envelope::Envelope;
use super::shard::{Closed, Shard, Turn};
use crate::message::{Message, OriginId};
use crate::rt::{self, Duration, Instant};
use crate::spec::BatcherSpec;
use crate::ticket::Ticket;

const SIZE: usize = 4;
const BYTES: usize = 24;
const AGE: Duration = Duration::from_millis(10);

type Id = u64;

#[derive(Clone, Debug)]
enum Step {
    /// An item with this batch key and what it is ordered by, so heavy, and whether it closes its batch.
    Add(u8, u64, u32, bool),
    /// What runs next ends so.
    Run(Ended),
    Pass(u64),
    /// Everything with a number that this divides is removed.
    Remove(u64),
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
    let step = prop_oneof![
        8 => (0..3_u8, 0..4_u64, 1..12_u32, prop::bool::weighted(0.1))
            .prop_map(|(key, order, weight, flush)| Step::Add(key, order, weight, flush)),
        4 => ended.prop_map(Step::Run),
        2 => (0..15_u64).prop_map(Step::Pass),
        1 => (2..6_u64).prop_map(Step::Remove),
    ];
    prop::collection::vec(step, 1..150)
}

#[derive(Debug)]
struct Item {
    key: u8,
    order: u64,
    weight: usize,
}

#[derive(Debug, Default)]
struct Model {
    /// What has not ended, by its number, which is its place in source order.
    items: BTreeMap<Id, Item>,
    /// Of those, what is in a batch that is open still, and when that is old enough.
    open: BTreeMap<u8, (Instant, Vec<Id>)>,
    parked: BTreeMap<Id, Instant>,
    /// Something parked was removed: what waits behind its batch still does, until the rest of that has had its turn.
    bereft: bool,
}

impl Model {
    fn add(&mut self, id: Id, item: Item, flush: bool) {
        let (key, weight) = (item.key, item.weight);
        let held: usize = self
            .open
            .get(&key)
            .map_or(0, |(_, ids)| ids.iter().map(|id| self.items[id].weight).sum());
        if held + weight > BYTES {
            self.open.remove(&key);
        }
        self.items.insert(id, item);
        let open = self
            .open
            .entry(key)
            .or_insert_with(|| (rt::now() + AGE, Vec::new()));
        open.1.push(id);
        if open.1.len() == SIZE || flush {
            self.open.remove(&key);
        }
    }

    fn close_aged(&mut self, all: bool) {
        self.open.retain(|_, (deadline, _)| *deadline > rt::now() && !all);
    }

    fn is_open(&self, id: Id) -> bool {
        self.open.values().any(|(_, ids)| ids.contains(&id))
    }

    /// What of its key came before it and has not ended.
    fn before(&self, id: Id) -> impl Iterator<Item = Id> {
        let order = self.items[&id].order;
        self.items
            .range(..id)
            .filter(move |(_, item)| order != 0 && item.order == order)
            .map(|(id, _)| *id)
    }

    /// Whether it may run: closed, and nothing of its key waits for another attempt. That holds what is earlier too, where
    /// the key's messages go to several batch keys and a later one was batched before.
    fn may_run(&self, id: Id) -> bool {
        let order = self.items[&id].order;
        let waits = |other: &Id| *other == id || order != 0 && self.items[other].order == order;
        !self.is_open(id) && !self.bereft && !self.parked.keys().any(waits)
    }

    fn ran(&self, batch: &Closed<Id>) {
        let keys = |id: &Id| self.items[id].key;
        assert!(batch.items.iter().all(|id| keys(id) == keys(&batch.items[0])));
        let weight: usize = batch.items.iter().map(|id| self.items[id].weight).sum();
        assert!(batch.len() <= SIZE && (weight <= BYTES || batch.len() == 1));
        let ids: Vec<_> = batch
            .envelopes
            .iter()
            .map(|envelope| envelope.ticket.sequence)
            .collect();
        assert_eq!(batch.items, ids, "an item went with another's message");
        for (index, id) in ids.iter().enumerate() {
            assert!(!self.is_open(*id), "an open batch ran");
            assert!(
                self.parked.get(id).is_none_or(|due| *due <= rt::now()),
                "too early"
            );
            let before = self.before(*id).filter(|other| !ids[..index].contains(other));
            // Batches of different batch keys close in no order; within one, nothing overtakes.
            let overtaken: Vec<_> = before
                .filter(|other| self.parked.contains_key(other) || keys(other) == keys(id))
                .collect();
            assert!(overtaken.is_empty(), "{id} overtook {overtaken:?}");
        }
    }

    fn next(&self) -> Option<Instant> {
        let ages = self.open.values().map(|(deadline, _)| *deadline);
        ages.chain(self.parked.values().copied())
            .filter(|at| *at > rt::now())
            .min()
    }
}

fn envelope(id: Id, order: u64, weight: u32) -> Envelope {
    let mut ticket = Ticket::new(1, OriginId::default(), id);
    ticket.weight = weight;
    let mut envelope = Envelope::new(ticket, Message::new(Bytes::new()));
    envelope.order = order;
    envelope
}

struct Both {
    shard: Shard<Id>,
    model: Model,
    spec: BatcherSpec,
}

impl Both {
    /// Runs what there is to run. Whether there was something.
    fn run(&mut self, ended: Ended, draining: bool) -> bool {
        let turn = self.shard.turn(rt::now(), draining);
        // What is parked and due goes first, and nothing is looked at beside it.
        let again = matches!(&turn, Turn::Run(batch) if batch.items.iter().any(|id| self.model.parked.contains_key(id)));
        if !again {
            self.model.close_aged(draining);
        }
        self.model.bereft &= !self.model.parked.is_empty();
        let mut batch = match turn {
            Turn::Run(batch) => batch,
            Turn::Wait(then) => {
                let left: Vec<_> = self
                    .model
                    .items
                    .keys()
                    .filter(|id| self.model.may_run(**id))
                    .collect();
                assert!(left.is_empty(), "{left:?} may run and does not");
                assert_eq!(then, self.model.next());
                return false;
            }
        };
        self.model.ran(&batch);
        batch.items.iter().for_each(|id| {
            self.model.parked.remove(id);
        });
        match ended {
            Ended::Halved if batch.len() > 1 => {
                let parts = batch
                    .bisect(|_| false, |_| Vec::new())
                    .unwrap_or_else(|batch| vec![batch]);
                self.shard.put_first(parts);
            }
            Ended::Done | Ended::Halved => batch.items.iter().for_each(|id| {
                self.model.items.remove(id);
            }),
            Ended::Parked(by, wait) => {
                let mut again = Vec::new();
                for id in &batch.items {
                    let order = self.model.items[id].order;
                    let follows = order != 0 && again.iter().any(|id| self.model.items[id].order == order);
                    if id % by == 0 || follows {
                        again.push(*id);
                    } else {
                        self.model.items.remove(id);
                    }
                }
                let due = rt::now() + Duration::from_millis(wait);
                again.iter().for_each(|id| {
                    self.model.parked.insert(*id, due);
                });
                batch
                    .envelopes
                    .retain(|envelope| again.contains(&envelope.ticket.sequence));
                batch.items = again;
                batch.split = None;
                if !batch.is_empty() {
                    self.shard.park(due, batch);
                }
            }
        }
        true
    }
}

async fn run(steps: Vec<Step>) {
    let mut both = Both {
        shard: Shard::default(),
        model: Model::default(),
        spec: BatcherSpec {
            size: NonZeroUsize::new(SIZE).unwrap(),
            bytes: NonZeroUsize::new(BYTES).unwrap(),
            max_age: AGE,
            ..BatcherSpec::default()
        },
    };
    for (id, step) in (1..).zip(steps) {
        match step {
            Step::Add(key, order, weight, flush) => {
                let mark = Mark {
                    key: Some(key.to_string().into()),
                    flush,
                    alone: false,
                };
                both.shard
                    .add(&both.spec, rt::now() + AGE, envelope(id, order, weight), id, mark);
                let weight = weight as usize;
                both.model.add(id, Item { key, order, weight }, flush);
            }
            Step::Run(ended) => drop(both.run(ended, false)),
            Step::Pass(time) => tokio::time::advance(Duration::from_millis(time)).await,
            Step::Remove(by) => {
                let removed = both.shard.remove(|ticket| ticket.sequence.is_multiple_of(by));
                let mut removed: Vec<_> = removed
                    .iter()
                    .flat_map(|gone| &gone.envelopes)
                    .map(|envelope| envelope.ticket.sequence)
                    .collect();
                removed.sort_unstable();
                let gone: Vec<_> = both
                    .model
                    .items
                    .extract_if(.., |id, _| id.is_multiple_of(by))
                    .collect();
                assert_eq!(removed, gone.into_iter().map(|(id, _)| id).collect::<Vec<_>>());
                both.model.bereft |= both.model.parked.keys().any(|id| id.is_multiple_of(by));
                both.model.parked.retain(|id, _| id % by != 0);
                both.model
                    .open
                    .values_mut()
                    .for_each(|(_, ids)| ids.retain(|id| id % by != 0));
                both.model.open.retain(|_, (_, ids)| !ids.is_empty());
            }
        }
    }
    // Everything comes out in the end.
    for _ in 0..1_000 {
        if !both.run(Ended::Done, true) {
            tokio::time::advance(Duration::from_millis(10)).await;
        }
    }
    assert!(both.model.items.is_empty(), "left behind: {:?}", both.model.items);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn p3_a_shard_and_a_model_that_is_plainly_right_agree(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps));
    }
}
