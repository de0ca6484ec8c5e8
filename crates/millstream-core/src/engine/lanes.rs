//! The lanes: one queue for each key that has a message in the engine (P3).
//!
//! A lane is *busy* while one of its messages runs or waits for its next attempt, and *ready* while one may run.
//! A lane that is neither and in which nobody waits is gone: an idle key costs nothing, and two keys never wait for
//! each other.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::hash::BuildHasher;

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use rustc_hash::FxBuildHasher;

use super::envelope::{Envelope, LaneId};
use super::guard;
use crate::message::{Message, OriginId};
use crate::mutants::{Mutant, mutant};
use crate::ordering::Ordering;

/// What a lane is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum OrderKey<'a> {
    Bytes(Cow<'a, Bytes>),
    Origin(OriginId),
}

impl<'a> OrderKey<'a> {
    /// What this message is ordered by, if anything.
    fn of(ordering: &Ordering, message: &'a Message) -> Option<Self> {
        match ordering {
            Ordering::None => None,
            Ordering::Key => message.key.as_ref().map(|key| Self::Bytes(Cow::Borrowed(key))),
            Ordering::By(by) => guard::by(by, message).map(|key| Self::Bytes(Cow::Owned(key))),
            Ordering::Partition => Some(Self::Origin(message.origin)),
        }
    }

    /// A hash that also stands for the key where only "same or not" matters and a collision merely costs
    /// concurrency; never zero, which stands for unordered.
    fn hash(&self) -> u64 {
        FxBuildHasher.hash_one(self) | 1
    }

    fn into_owned(self) -> OrderKey<'static> {
        match self {
            Self::Bytes(key) => OrderKey::Bytes(Cow::Owned(key.into_owned())),
            Self::Origin(origin) => OrderKey::Origin(origin),
        }
    }
}

/// The key of a message that is ordered by one.
pub(super) fn key_of<'a>(ordering: &Ordering, message: &'a Message) -> Option<Cow<'a, Bytes>> {
    match OrderKey::of(ordering, message)? {
        OrderKey::Bytes(key) => Some(key),
        OrderKey::Origin(_) => None,
    }
}

#[derive(Debug, Default)]
pub(crate) struct Lanes {
    /// The lanes by their keys, which stand in the slots.
    index: HashTable<LaneId>,
    slots: Vec<Lane>,
    free: Vec<LaneId>,
    /// Lanes whose first message may run.
    ready: VecDeque<LaneId>,
    waiting: usize,
    /// Messages started out of turn: how many, and the position of the first.
    inverted: Option<(usize, u64)>,
}

#[derive(Debug, Default)]
struct Lane {
    key: Option<OrderKey<'static>>,
    order: u64,
    messages: VecDeque<Envelope>,
    busy: bool,
    /// Numbers for its messages as they come, and that of the one that was started last.
    turns: u16,
    started: u16,
}

impl Lane {
    /// Messages were taken out: however many turns they had, those that stay are not before the one that was started last.
    fn skip(&mut self) {
        let next = self.messages.front();
        self.started = next.map_or(self.turns, |next| next.turn);
    }
}

/// Why a message was not put into a lane.
pub(crate) enum Outside {
    /// It is not ordered by anything.
    Unordered(Envelope),
    /// Its lane is full.
    Full(Envelope),
    /// One before it is on its way back to the source.
    Follows(Envelope),
}

impl Lanes {
    /// Puts a message at the end of its key's lane, unless so many are there already.
    #[expect(
        clippy::result_large_err,
        reason = "it is moved once, and only where it stays outside"
    )]
    pub(crate) fn admit(
        &mut self,
        ordering: &Ordering,
        mut envelope: Envelope,
        most: usize,
        follows: impl Fn(u64) -> bool,
    ) -> Result<(), Outside> {
        let Some(key) = OrderKey::of(ordering, &envelope.message) else {
            return Err(Outside::Unordered(envelope));
        };
        let order = key.hash();
        envelope.order = order;
        if follows(order) {
            return Err(Outside::Follows(envelope));
        }
        let lane = self.lane(key, order);
        let Some(slot) = self.slots.get_mut(lane.0 as usize) else {
            return Err(Outside::Full(envelope));
        };
        if slot.messages.len() >= most {
            return Err(Outside::Full(envelope));
        }
        envelope.lane = lane;
        slot.turns = slot.turns.wrapping_add(1);
        envelope.turn = slot.turns;
        if slot.messages.is_empty() && !slot.busy {
            self.ready.push_back(lane);
        }
        slot.messages.push_back(envelope);
        self.waiting += 1;
        Ok(())
    }

    /// The lane of this key, a new one if it has none.
    fn lane(&mut self, key: OrderKey<'_>, order: u64) -> LaneId {
        let slots = &self.slots;
        let same = |lane: &LaneId| {
            slots
                .get(lane.0 as usize)
                .is_some_and(|slot| slot.order == order && slot.key.as_ref() == Some(&key))
        };
        let hash = |lane: &LaneId| slots.get(lane.0 as usize).map_or(0, |slot| slot.order);
        match self.index.entry(order, same, hash) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => {
                let lane = self
                    .free
                    .pop()
                    .unwrap_or_else(|| LaneId(u32::try_from(slots.len()).unwrap_or(u32::MAX - 1)));
                new.insert(lane);
                if lane.0 as usize == self.slots.len() {
                    self.slots.push(Lane::default());
                }
                if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
                    slot.key = Some(key.into_owned());
                    slot.order = order;
                }
                lane
            }
        }
    }

    /// Takes the first message of each of up to so many ready lanes, which are busy from then on.
    pub(crate) fn take(&mut self, number: usize, taken: &mut VecDeque<Envelope>) {
        let mut released = VecDeque::new();
        for lane in self.ready.drain(..number.min(self.ready.len())) {
            if let Some(slot) = self.slots.get_mut(lane.0 as usize) {
                let was_busy = std::mem::replace(&mut slot.busy, true);
                if let Some(envelope) = slot.messages.pop_front() {
                    // The same one may start again; an earlier one must not.
                    if was_busy || (envelope.turn.wrapping_sub(slot.started)).cast_signed() < 0 {
                        let (times, first) = self.inverted.unwrap_or((0, envelope.message.position));
                        self.inverted = Some((times + 1, first));
                    }
                    slot.started = envelope.turn;
                    self.waiting -= 1;
                    taken.push_back(envelope);
                    if mutant(Mutant::EarlyLaneRelease) && !slot.messages.is_empty() {
                        released.push_back(lane);
                    }
                }
            }
        }
        self.ready.append(&mut released);
    }

    /// What was started out of turn since the last look: how many, and the position of the first.
    pub(crate) fn inverted(&mut self) -> Option<(usize, u64)> {
        self.inverted.take()
    }

    /// What this lane is for, where it is for a key.
    pub(crate) fn key(&self, lane: LaneId) -> Option<Bytes> {
        match self.slots.get(lane.0 as usize)?.key.as_ref()? {
            OrderKey::Bytes(key) => Some(key.as_ref().clone()),
            OrderKey::Origin(_) => None,
        }
    }

    /// The first message of each lane.
    pub(crate) fn firsts(&self) -> impl Iterator<Item = &Envelope> {
        self.slots.iter().filter_map(|slot| slot.messages.front())
    }

    /// The message that would be taken next.
    pub(crate) fn first(&self) -> Option<&Envelope> {
        self.first_of(*self.ready.front()?)
    }

    fn first_of(&self, lane: LaneId) -> Option<&Envelope> {
        self.slots.get(lane.0 as usize)?.messages.front()
    }

    /// Whether one may run that is not doubtful.
    pub(crate) fn has_undoubted(&self, round: u32) -> bool {
        self.undoubted(round).is_some()
    }

    /// The place among ready lanes of the first whose message is not doubtful.
    fn undoubted(&self, round: u32) -> Option<usize> {
        let is_undoubted = |lane: &LaneId| {
            self.first_of(*lane)
                .is_some_and(|first| !first.is_doubtful(round))
        };
        self.ready.iter().position(is_undoubted)
    }

    /// Has a lane whose message is not doubtful go before all others. Says whether there is one.
    pub(crate) fn bring_undoubted_forward(&mut self, round: u32) -> bool {
        let index = self.undoubted(round);
        if let Some(lane) = index.and_then(|index| self.ready.remove(index)) {
            self.ready.push_front(lane);
        }
        index.is_some()
    }

    /// The message that kept the lane busy is out of it: the next one may run, or the lane is gone.
    pub(crate) fn advance(&mut self, lane: LaneId) {
        let Some(slot) = self.slots.get_mut(lane.0 as usize) else {
            return;
        };
        slot.busy = false;
        if !slot.messages.is_empty() {
            self.ready.push_back(lane);
        } else if slot.key.take().is_some() {
            let order = slot.order;
            // A lane that once was long does not keep its memory.
            slot.messages.shrink_to(16);
            if let Ok(entry) = self.index.find_entry(order, |known| *known == lane) {
                entry.remove();
            }
            self.free.push(lane);
        }
    }

    /// The message that kept the lane busy may run again, before all that is ready.
    pub(crate) fn put_back(&mut self, envelope: Envelope) {
        let lane = envelope.lane;
        if self.refill(envelope) {
            self.ready.push_front(lane);
        }
    }

    /// The message that kept the lane busy may run again, after all that is ready.
    pub(crate) fn put_behind(&mut self, envelope: Envelope) {
        let lane = envelope.lane;
        if self.refill(envelope) {
            self.ready.push_back(lane);
        }
    }

    /// The message that kept its lane busy is its first again.
    fn refill(&mut self, envelope: Envelope) -> bool {
        let Some(slot) = self.slots.get_mut(envelope.lane.0 as usize) else {
            return false;
        };
        slot.busy = false;
        slot.messages.push_front(envelope);
        self.waiting += 1;
        true
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
                if !slot.busy {
                    slot.skip();
                }
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
            .map(|slot| {
                let followers = std::mem::take(&mut slot.messages);
                slot.skip();
                followers
            })
            .unwrap_or_default();
        self.waiting -= followers.len();
        followers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticket::Ticket;

    fn lanes(messages: u64) -> Lanes {
        let mut lanes = Lanes::default();
        for position in 1..=messages {
            let mut message = Message::new("a").with_key("key");
            message.position = position;
            let ticket = Ticket::new(1, OriginId::default(), position);
            assert!(
                lanes
                    .admit(&Ordering::Key, Envelope::new(ticket, message), 10, |_| false)
                    .is_ok()
            );
        }
        lanes
    }

    fn take(lanes: &mut Lanes) -> Envelope {
        let mut taken = VecDeque::new();
        lanes.take(1, &mut taken);
        taken.pop_front().unwrap()
    }

    #[test]
    fn p3_turns_taken_in_order_and_again_fire_nothing() {
        let mut lanes = lanes(3);
        let first = take(&mut lanes);
        lanes.put_back(first);
        for _ in 0..3 {
            let envelope = take(&mut lanes);
            lanes.advance(envelope.lane);
        }
        assert_eq!((lanes.inverted(), lanes.len()), (None, 0));
    }

    #[test]
    fn p3_a_lane_that_is_ready_while_one_of_its_messages_runs_fires_the_sentinel() {
        let mut lanes = lanes(2);
        let first = take(&mut lanes);
        lanes.ready.push_back(first.lane);
        take(&mut lanes);
        assert_eq!(lanes.inverted(), Some((1, 2)));
        assert_eq!(lanes.inverted(), None);
    }

    #[test]
    fn p3_a_message_that_starts_behind_a_later_one_fires_the_sentinel() {
        let mut lanes = lanes(3);
        lanes.slots[0].messages.swap(0, 1);
        for _ in 0..3 {
            let envelope = take(&mut lanes);
            lanes.advance(envelope.lane);
        }
        assert_eq!(lanes.inverted(), Some((1, 1)));
    }
}
