//! The lanes: one queue for each key that has a message at work (P3).
//!
//! A key is busy from the moment its first message becomes ready until that message is done, handed to a batcher
//! or given up. What comes meanwhile waits in the lane. A lane that nobody waits in and that nothing holds is
//! gone: an idle key costs nothing, and two keys never wait for each other.

use std::collections::VecDeque;
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
    waiting: usize,
}

#[derive(Debug, Default)]
struct Lane {
    key: Option<OrderKey>,
    waiting: VecDeque<Envelope>,
}

impl Lanes {
    /// Gives the envelope back if its key was idle and is now held by it; otherwise keeps it in its lane.
    pub(crate) fn admit(&mut self, key: OrderKey, mut envelope: Envelope) -> Option<Envelope> {
        envelope.order = key.hash();
        if let Some(&lane) = self.index.get(&key) {
            envelope.lane = lane;
            if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
                slot.waiting.push_back(envelope);
                self.waiting += 1;
            }
            return None;
        }
        let lane = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Lane::default());
            LaneId(u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX - 1))
        });
        if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
            slot.key = Some(key.clone());
        }
        self.index.insert(key, lane);
        envelope.lane = lane;
        Some(envelope)
    }

    /// The message that held the lane is out of it: gives the next one, which now holds it, or frees the lane.
    pub(crate) fn advance(&mut self, lane: LaneId) -> Option<Envelope> {
        let slot = self.slots.get_mut(lane.0 as usize)?;
        if let Some(next) = slot.waiting.pop_front() {
            self.waiting -= 1;
            return Some(next);
        }
        if let Some(key) = slot.key.take() {
            self.index.remove(&key);
            // A lane that once was long does not keep its memory.
            slot.waiting.shrink_to(16);
            self.free.push(lane);
        }
        None
    }

    /// How many wait in the lane of this key.
    pub(crate) fn waiting_for(&self, key: &OrderKey) -> usize {
        self.index
            .get(key)
            .and_then(|lane| self.slots.get(lane.0 as usize))
            .map_or(0, |slot| slot.waiting.len())
    }

    /// How many wait in all lanes.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many keys are busy.
    pub(crate) fn busy(&self) -> usize {
        self.index.len()
    }

    /// Takes out the waiting ones that `leave` picks; lanes stay with what holds them.
    pub(crate) fn remove(&mut self, leave: impl Fn(&Envelope) -> bool) -> Vec<Envelope> {
        let mut removed = Vec::new();
        for slot in &mut self.slots {
            if slot.waiting.iter().any(&leave) {
                let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut slot.waiting)
                    .into_iter()
                    .partition(|envelope| leave(envelope));
                slot.waiting = stay.into();
                self.waiting -= gone.len();
                removed.extend(gone);
            }
        }
        removed
    }

    /// Takes out everything that waits behind the message that holds this lane.
    pub(crate) fn take_followers(&mut self, lane: LaneId) -> VecDeque<Envelope> {
        let followers = self
            .slots
            .get_mut(lane.0 as usize)
            .map(|slot| std::mem::take(&mut slot.waiting))
            .unwrap_or_default();
        self.waiting -= followers.len();
        followers
    }
}
