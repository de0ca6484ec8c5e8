//! What was read: whether it may be handed out, and which partitions are not fetched from because of it.

use std::sync::atomic::Ordering;

use millstream_core::{Message, OriginId, Scope, Ticket};
use tracing::warn;

use super::{Assignment, Buffer, GENERATION, Place, Return, Shared, State};
use crate::copies::Assigned;
use crate::ends::{Ends, Note};
use crate::gate::Gate;
use crate::offsets::Arrival;

/// What came of handing over a batch.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// These hold too many offsets in memory now.
    pub(crate) stuck: Vec<Place>,
    /// Nothing of these stands any more, because their logs were cut or made anew.
    pub(crate) lost: Vec<Scope>,
}

/// What may be handed out.
struct Ahead<'a> {
    buffer: &'a mut Buffer,
    suspect: &'a mut Option<(OriginId, u32, u64)>,
    halts_changed: &'a mut bool,
    lost: &'a mut Vec<Scope>,
}

impl Ahead<'_> {
    /// Takes note of a message, and has it handed out if its gate is open.
    fn take_in(
        &mut self,
        origin: OriginId,
        assignment: &mut Assignment,
        mut message: Message,
        back: &Return,
    ) {
        let offset = message.position;
        if let Some(home) = back.home {
            (message.origin, message.position) = home;
        }
        message.deliveries = assignment.gate.ends.deliveries(offset);
        if assignment.offsets.goes_back(offset) {
            warn!(
                partition = assignment.place.name(),
                offset, "the log was cut or made anew: what was read of it is forgotten from here on"
            );
            self.lost.push(Scope::Origin(origin, assignment.generation));
            self.buffer.withdraw(origin);
            if self.suspect.is_some_and(|(from, ..)| from == origin) {
                *self.suspect = None;
            }
            *self.halts_changed |= assignment.gate.halted().is_some();
            assignment.cut(offset);
            message.deliveries = 1;
        }
        let size = message.size();
        if assignment.offsets.arrive(offset, || message) != Arrival::New {
            return;
        }
        if assignment.gate.is_open() {
            self.buffer
                .push_back(Ticket::new(assignment.generation, origin, offset), size);
        } else {
            assignment.gate.hold(offset, back.due, size);
        }
    }
}

impl Assignment {
    /// Goes on with a log that was cut, or made anew, at this offset. What is unsettled before it is handed out again,
    /// ahead of what follows: the broker would not give it again.
    fn cut(&mut self, offset: u64) {
        self.cut = Some((self.generation, offset));
        self.generation = GENERATION.fetch_add(1, Ordering::Relaxed);
        self.offsets.cut(offset);
        let fresh = Gate::new(Ends::new(Note::default(), None, None), self.gate.delays());
        let old = std::mem::replace(&mut self.gate, fresh);
        if let Some(halted) = old.halted().filter(|halted| *halted < offset) {
            self.gate.halt(halted);
        }
        self.gate.ends = old.ends;
        self.gate.ends.cut(offset);
        if let Some(mark) = self.offsets.mark() {
            self.gate.ends.settled_before(mark);
        }
        for (offset, message) in self.offsets.handed_out() {
            self.gate.hold(offset, None, message.size());
        }
    }

    /// Whether there is room for the first that waits outside.
    pub(super) fn may_go_on(&self) -> bool {
        let next = self.outside.front();
        next.is_some_and(|(message, _)| self.offsets.has_room(message.position))
    }
}

impl Shared {
    /// Hands over what was read, but for what was read before its partition was assigned again: that begins anew where
    /// the group has committed.
    ///
    /// What there is no room to tell of waits outside, with all that comes after it. Only what is taken in comes to its
    /// gate, so neither lets anything overtake.
    pub(crate) fn take(&self, messages: impl Iterator<Item = (Assigned, Message, Return)>) -> Taken {
        let mut taken = Taken::default();
        let mut state = self.state.lock();
        let State {
            buffer,
            assignments,
            suspect,
            halts_changed,
            ..
        } = &mut *state;
        let mut ahead = Ahead {
            buffer,
            suspect,
            halts_changed,
            lost: &mut taken.lost,
        };
        // Messages of one partition come one after the other.
        let mut last: Option<(OriginId, u32, Option<&mut Assignment>)> = None;
        for (from, message, back) in messages {
            let is_same = |(origin, assigned)| (origin, assigned) == (from.origin, from.assignment);
            if !last
                .as_ref()
                .is_some_and(|(origin, assigned, _)| is_same((*origin, *assigned)))
            {
                let assignment = assignments
                    .get_mut(&from.origin)
                    .filter(|assignment| assignment.assigned == from.assignment);
                last = Some((from.origin, from.assignment, assignment));
            }
            let Some((_, _, Some(assignment))) = &mut last else {
                continue;
            };
            if self.rules.tells_all {
                assignment.outside.push_back((message, back));
            } else {
                ahead.take_in(from.origin, assignment, message, &back);
            }
        }
        for (origin, assignment) in assignments {
            while assignment.may_go_on()
                && let Some((message, back)) = assignment.outside.pop_front()
            {
                ahead.take_in(*origin, assignment, message, &back);
            }
            let full = assignment.offsets.len() >= self.rules.window || !assignment.outside.is_empty();
            if full && !assignment.stuck {
                assignment.stuck = true;
                taken.stuck.push(assignment.place.clone());
            }
        }
        drop(state);
        self.arrived.notify_one();
        taken
    }

    /// Whether it may be read from again.
    pub(super) fn is_free(&self, assignment: &Assignment) -> bool {
        let told = !self.rules.tells_all || assignment.offsets.has_plenty();
        told && assignment.outside.is_empty() && assignment.offsets.len() <= self.rules.window / 2
    }

    /// Whether anything waits outside and need not any more.
    pub(crate) fn may_take_in(&self) -> bool {
        self.rules.tells_all && self.state.lock().assignments.values().any(Assignment::may_go_on)
    }
}
