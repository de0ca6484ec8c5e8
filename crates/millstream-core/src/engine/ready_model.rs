//! The ready queue and its lanes against a model that is plainly right: whatever is done to both, they agree (P3).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;

use super::budget::Budget;
use super::envelope::{Envelope, LaneId};
use super::ready::{Following, Left, Load, Ready};
use super::returning::Returning;
use super::sentinels::Sentinels;
use crate::message::{Message, OriginId};
use crate::ordering::Ordering;
use crate::rt::{self, Duration, Instant};
use crate::ticket::Ticket;

const KEYS: u8 = 4;
/// How many may wait in a lane.
const PER_KEY: usize = 5;

type Id = u64;

#[derive(Clone, Debug)]
enum Step {
    /// Admit messages with these keys; the first has none.
    Admit(Vec<u8>),
    Take(usize),
    /// One of what runs ends so.
    End(usize, Ended),
    Pass(u64),
    /// Everything with a number that this divides is removed.
    Remove(u64),
    RemoveParked,
}

#[derive(Clone, Copy, Debug)]
enum Ended {
    Gone,
    Parked(u64),
    Back,
    Withdrawn,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let ended = prop_oneof![
        3 => Just(Ended::Gone),
        2 => (0..20_u64).prop_map(Ended::Parked),
        1 => Just(Ended::Back),
        1 => Just(Ended::Withdrawn),
    ];
    let step = prop_oneof![
        4 => prop::collection::vec(0..=KEYS, 0..8).prop_map(Step::Admit),
        4 => (1..6_usize).prop_map(Step::Take),
        8 => (any::<usize>(), ended).prop_map(|(which, ended)| Step::End(which, ended)),
        2 => (0..15_u64).prop_map(Step::Pass),
        1 => (1..4_u64).prop_map(Step::Remove),
        1 => Just(Step::RemoveParked),
    ];
    prop::collection::vec(step, 1..120)
}

/// Messages by where they are. A key is busy while one of its messages runs or is parked.
#[derive(Debug, Default)]
struct Model {
    unordered: VecDeque<Id>,
    lanes: BTreeMap<u8, VecDeque<Id>>,
    busy: BTreeSet<u8>,
    /// In the order in which they are due.
    parked: Vec<(Instant, Id)>,
    keys: BTreeMap<Id, u8>,
    running: usize,
}

impl Model {
    fn key(&self, id: Id) -> Option<u8> {
        Some(self.keys[&id]).filter(|key| *key > 0)
    }

    fn heads(&self) -> Vec<Id> {
        let free = self.lanes.iter().filter(|(key, _)| !self.busy.contains(key));
        free.filter_map(|(_, lane)| lane.front().copied()).collect()
    }

    fn waiting(&self) -> usize {
        self.lanes.values().map(VecDeque::len).sum()
    }

    fn load(&self) -> Load {
        let lanes = self
            .lanes
            .iter()
            .filter(|(key, lane)| !lane.is_empty() || self.busy.contains(key))
            .count();
        Load {
            ready: self.unordered.len() + self.heads().len(),
            waiting: self.waiting() - self.heads().len(),
            parked: self.parked.len(),
            aside: 0,
            running: self.running,
            lanes,
        }
    }

    fn admit(&mut self, id: Id, key: u8) -> bool {
        self.keys.insert(id, key);
        if key == 0 {
            self.unordered.push_back(id);
            return true;
        }
        let lane = self.lanes.entry(key).or_default();
        let fits = lane.len() < PER_KEY;
        if fits {
            lane.push_back(id);
        }
        fits
    }

    fn take(&mut self, id: Id) {
        match self.key(id) {
            None => assert_eq!(self.unordered.pop_front(), Some(id), "out of turn"),
            Some(key) => {
                assert!(self.busy.insert(key), "two of a key at a time");
                let lane = self.lanes.get_mut(&key).unwrap();
                assert_eq!(lane.pop_front(), Some(id), "out of its key's order");
            }
        }
        self.running += 1;
    }

    fn free(&mut self, id: Id) {
        if let Some(key) = self.key(id) {
            self.busy.remove(&key);
        }
    }

    fn back(&mut self, id: Id) {
        self.free(id);
        match self.key(id) {
            None => self.unordered.push_front(id),
            Some(key) => self.lanes.get_mut(&key).unwrap().push_front(id),
        }
    }

    fn park(&mut self, due: Instant, id: Id) {
        let at = self.parked.partition_point(|(other, _)| *other <= due);
        self.parked.insert(at, (due, id));
    }

    fn followers(&mut self, id: Id) -> Vec<Id> {
        self.free(id);
        let lane = self.key(id).and_then(|key| self.lanes.get_mut(&key));
        lane.map(|lane| lane.drain(..).collect()).unwrap_or_default()
    }

    fn unpark(&mut self, now: Instant) {
        let due = self.parked.partition_point(|(due, _)| *due <= now);
        for (_, id) in self.parked.drain(..due).rev().collect::<Vec<_>>() {
            self.back(id);
        }
    }

    fn remove(&mut self, leaves: impl Fn(Id) -> bool) -> BTreeSet<Id> {
        let mut removed = BTreeSet::new();
        for lane in self.lanes.values_mut().chain([&mut self.unordered]) {
            removed.extend(lane.iter().copied().filter(|id| leaves(*id)));
            lane.retain(|id| !leaves(*id));
        }
        for (_, id) in self
            .parked
            .extract_if(.., |(_, id)| leaves(*id))
            .collect::<Vec<_>>()
        {
            self.free(id);
            removed.insert(id);
        }
        removed
    }
}

fn envelope(id: Id, key: u8) -> Envelope {
    let mut message = Message::new(Bytes::new());
    if key > 0 {
        message = message.with_key(vec![key]);
    }
    Envelope::new(Ticket::new(1, OriginId::default(), id), message)
}

fn id(envelope: &Envelope) -> Id {
    envelope.ticket.sequence
}

/// Takes without waiting.
fn take(ready: &Ready, most: usize) -> VecDeque<Envelope> {
    let mut taken = VecDeque::new();
    let polled = {
        let taking = pin!(ready.take(0, &mut taken, || most, || 0, |number, _| number));
        taking.poll(&mut Context::from_waker(Waker::noop()))
    };
    assert_ne!(polled, Poll::Ready(false));
    taken
}

async fn run(steps: Vec<Step>) {
    let ready = Ready::new(1, Sentinels::new("model".into()));
    let mut model = Model::default();
    let mut running: Vec<Envelope> = Vec::new();
    let mut next: Id = 0;
    for step in steps {
        match step {
            Step::Admit(keys) => {
                let mut envelopes: Vec<_> = keys
                    .iter()
                    .map(|key| {
                        next += 1;
                        envelope(next, *key)
                    })
                    .collect();
                let admitted: Vec<_> = envelopes.iter().map(id).zip(keys).collect();
                let mut full = Vec::new();
                let returning = Returning::default();
                let mut following = Following(&returning, Vec::new());
                ready.admit_ordered(
                    &mut envelopes,
                    &Ordering::Key,
                    PER_KEY,
                    Some(&mut full),
                    &mut following,
                    0,
                );
                let expected: Vec<_> = admitted
                    .into_iter()
                    .filter_map(|(id, key)| (!model.admit(id, key)).then_some(id))
                    .collect();
                assert_eq!(full.iter().map(id).collect::<Vec<_>>(), expected, "full");
            }
            Step::Take(most) => {
                let expected = model.load().ready.min(most);
                let taken = take(&ready, most);
                assert_eq!(taken.len(), expected);
                taken.iter().for_each(|envelope| model.take(id(envelope)));
                running.extend(taken);
            }
            Step::End(..) if running.is_empty() => {}
            Step::End(which, ended) => {
                let envelope = running.swap_remove(which % running.len());
                let (ended_id, lane) = (id(&envelope), envelope.lane);
                model.running -= 1;
                let mut expected = Vec::new();
                let left = match ended {
                    Ended::Gone => {
                        model.free(ended_id);
                        None
                    }
                    Ended::Parked(wait) => {
                        let due = rt::now() + Duration::from_millis(wait);
                        model.park(due, ended_id);
                        Some(Left::Parked(due, envelope))
                    }
                    Ended::Back => {
                        model.back(ended_id);
                        Some(Left::Back(envelope))
                    }
                    Ended::Withdrawn => {
                        expected = model.followers(ended_id);
                        Some(Left::Withdrawn(lane))
                    }
                };
                let gone = usize::from(left.is_none());
                let lane = Some(lane).filter(|lane| gone == 1 && *lane != LaneId::NONE);
                let followers = ready.finish(gone, lane.into_iter(), left.into_iter());
                assert_eq!(
                    followers.iter().map(id).collect::<Vec<_>>(),
                    expected,
                    "followers"
                );
            }
            Step::Pass(time) => {
                tokio::time::advance(Duration::from_millis(time)).await;
                model.unpark(rt::now());
                let next = model.parked.first().map(|(due, _)| *due);
                assert_eq!(ready.unpark(&Budget::new(None), true), (next, 0));
            }
            Step::Remove(by) => {
                let removed = ready.remove(|envelope| id(envelope).is_multiple_of(by));
                let removed: BTreeSet<_> = removed.iter().map(id).collect();
                assert_eq!(removed, model.remove(|id| id.is_multiple_of(by)));
            }
            Step::RemoveParked => {
                let removed: Vec<_> = ready
                    .remove_parked(&Returning::default())
                    .iter()
                    .map(|(due, parked, followers)| {
                        (*due, id(parked), followers.iter().map(id).collect::<Vec<_>>())
                    })
                    .collect();
                let parked = std::mem::take(&mut model.parked);
                let expected: Vec<_> = parked
                    .into_iter()
                    .map(|(due, id)| (due, id, model.followers(id)))
                    .collect();
                assert_eq!(removed, expected);
            }
        }
        assert_eq!(ready.load(), model.load());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn p3_the_queue_and_a_model_that_is_plainly_right_agree(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run(steps));
    }
}
