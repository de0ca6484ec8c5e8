//! The lanes: one queue for each key that has a message in the engine (P3).
//!
//! A lane is *busy* while one of its messages runs or waits for its next attempt, and *ready* while one may run.
//! A lane that is neither and in which nobody waits is gone: an idle key costs nothing, and two keys never wait for
//! each other.

use std::collections::VecDeque;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;

use bytes::Bytes;
use rustc_hash::{FxBuildHasher, FxHashMap};

use super::envelope::{Envelope, LaneId};
use crate::message::OriginId;

/// What a lane is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum OrderKey {
    Bytes(Bytes),
    Origin(OriginId),
}

impl OrderKey {
    /// A hash that stands for the key where only "same or not" matters and a collision merely costs
    /// concurrency; never zero, which stands for unordered.
    fn hash(&self) -> u64 {
        FxBuildHasher.hash_one(self) | 1
    }
}

#[derive(Debug, Default)]
pub(crate) struct Lanes {
    index: FxHashMap<OrderKey, LaneId>,
    slots: Vec<Lane>,
    free: Vec<LaneId>,
    /// Lanes whose first message may run.
    ready: VecDeque<LaneId>,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Lane {
    key: Option<OrderKey>,
    messages: VecDeque<Envelope>,
    busy: bool,
}

impl Lanes {
    /// Puts a message at the end of its key's lane, unless so many are there already: then it is given back.
    #[expect(
        clippy::result_large_err,
        reason = "it is moved once, and only where a lane is full"
    )]
    pub(crate) fn admit(
        &mut self,
        key: OrderKey,
        mut envelope: Envelope,
        most: usize,
    ) -> Result<(), Envelope> {
        envelope.order = key.hash();
        let lane = match self.index.entry(key) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let lane = self.free.pop().unwrap_or_else(|| {
                    self.slots.push(Lane::default());
                    LaneId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX - 1))
                });
                if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
                    slot.key = Some(new.key().clone());
                }
                *new.insert(lane)
            }
        };
        let Some(slot) = self.slots.get_mut(lane.0 as usize) else {
            return Err(envelope);
        };
        if slot.messages.len() >= most {
            return Err(envelope);
        }
        envelope.lane = lane;
        if slot.messages.is_empty() && !slot.busy {
            self.ready.push_back(lane);
        }
        slot.messages.push_back(envelope);
        self.waiting += 1;
        Ok(())
    }

    /// Takes the first message of each of up to so many ready lanes, which are busy from then on.
    pub(crate) fn take(&mut self, number: usize, taken: &mut VecDeque<Envelope>) {
        for lane in self.ready.drain(..number.min(self.ready.len())) {
            if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
                slot.busy = true;
                if let Some(envelope) = slot.messages.pop_front() {
                    self.waiting -= 1;
                    taken.push_back(envelope);
                }
            }
        }
    }

    /// The message that kept the lane busy is out of it: the next one may run, or the lane is gone.
    pub(crate) fn advance(&mut self, lane: LaneId) {
        let Some(slot) = self.slots.get_mut(lane.0 as usize) else {
            return;
        };
        slot.busy = false;
        if !slot.messages.is_empty() {
            self.ready.push_back(lane);
        } else if let Some(key) = slot.key.take() {
            self.index.remove(&key);
            // A lane that once was long does not keep its memory.
            slot.messages.shrink_to(16);
            self.free.push(lane);
        }
    }

    /// The message that kept the lane busy may run again, before all that is ready.
    pub(crate) fn put_back(&mut self, envelope: Envelope) {
        let lane = envelope.lane;
        if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
            slot.busy = false;
            slot.messages.push_front(envelope);
            self.waiting += 1;
            self.ready.push_front(lane);
        }
    }

    /// How many lanes are ready.
    pub(crate) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many messages are in all lanes, those that may run included.
    pub(crate) fn messages(&self) -> usize {
        self.waiting
    }

    /// How many keys have a message in the engine.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    /// Takes out the messages that `leave` picks; lanes stay with what keeps them busy.
    pub(crate) fn remove(&mut self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let mut removed = Vec::new();
        for slot in &mut self.slots {
            if slot.messages.iter().any(&leave) {
                let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut slot.messages)
                    .into_iter()
                    .partition(|envelope| leave(envelope));
                slot.messages = stay.into();
                removed.extend(gone);
            }
        }
        self.waiting -= removed.len();
        for lane in std::mem::take(&mut self.ready) {
            self.advance(lane);
        }
        removed
    }

    /// Takes out everything in the lane behind the message that keeps it busy.
    pub(crate) fn take_followers(&mut self, lane: LaneId) -> VecDeque<Envelope> {
        let followers = self
            .slots
            .get_mut(lane.0 as usize)
            .map(|slot| std::mem::take(&mut slot.messages))
            .unwrap_or_default();
        self.waiting -= followers.len();
        followers
    }
}
