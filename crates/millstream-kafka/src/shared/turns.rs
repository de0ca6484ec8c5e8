//! What may be handed out by now, after it could not be at first.

use millstream_core::{Chunk, OriginId, Ticket, rt};
use rustc_hash::FxHashSet;

use super::{AHEAD, Assignment, Phase, Shared, State};

/// How much is read all the same while none can be handed out: messages, and bytes.
const FEW: (usize, usize) = (100, 256 << 10);

/// What may be read by now.
#[derive(Debug, Default)]
pub(crate) struct Turned {
    /// How much may be read ahead: messages, and bytes.
    pub(crate) room: (usize, usize),
    /// The partitions that may be read from.
    pub(crate) open: FxHashSet<OriginId>,
}

impl Shared {
    /// Lets through what may be handed out by now, and says what may be read on account of what may not.
    pub(crate) fn turn(&self) -> Turned {
        let mut turned = Turned::default();
        let mut state = self.state.lock();
        let now = rt::now();
        let before = state.buffer.len();
        let State {
            buffer,
            assignments,
            suspicious,
            phase,
            ..
        } = &mut *state;
        if *phase != Phase::Running {
            return turned;
        }
        let (mut messages, mut bytes) = (0, 0);
        for (origin, assignment) in assignments {
            // What may be at fault may end in offsets that nothing is at.
            if let Some(mark) = assignment.offsets.mark() {
                assignment.gate.ends.settled_before(mark);
            }
            while let Some(offset) = assignment.gate.let_through(now) {
                if let Some(message) = assignment.offsets.out(offset) {
                    let ticket = Ticket::new(assignment.generation, *origin, offset);
                    buffer.push_back(ticket, message.size());
                }
            }
            assignment.stuck &= !self.is_free(assignment);
            if assignment.gate.turn(now) && !assignment.stuck {
                turned.open.insert(*origin);
            }
            messages += assignment.gate.held();
            bytes += assignment.gate.held_bytes();
        }
        messages += buffer.len();
        bytes += buffer.bytes();
        if messages < AHEAD.0 && bytes < AHEAD.1 {
            turned.room = (AHEAD.0 - messages, AHEAD.1 - bytes);
        }
        // What comes may be of a partition that does not wait for anything.
        if buffer.is_empty() {
            turned.room = (turned.room.0.max(FEW.0), turned.room.1.max(FEW.1));
        }
        if buffer.len() > before || *suspicious {
            self.arrived.notify_one();
        }
        turned
    }

    /// Where partitions stand still, if that has changed since the last call.
    pub(crate) fn halted(&self) -> Option<Vec<String>> {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.halts_changed) {
            return None;
        }
        let at = |assignment: &Assignment| {
            let offset = assignment.gate.halted()?;
            Some(format!("{}@{offset}", assignment.place.name()))
        };
        let mut halted: Vec<_> = state.assignments.values().filter_map(at).collect();
        halted.sort();
        Some(halted)
    }
}

impl State {
    /// While there are suspects: hands out one once nothing else is, and says that nothing else may be.
    pub(super) fn hand_out_suspect(&mut self, chunk: &mut Chunk) -> bool {
        self.suspicious = self
            .assignments
            .values()
            .any(|assignment| assignment.gate.ends.suspects());
        let now = rt::now();
        let waits = self
            .assignments
            .values()
            .any(|assignment| assignment.gate.has_suspect(now));
        // What is being taken away is not handed out.
        if self.suspect.is_some() || self.suspicious && self.revoking {
            return true;
        }
        if !waits {
            return false;
        }
        // What was handed out of a partition that stands still may never be settled.
        let moving = || {
            self.assignments
                .values()
                .filter(|assignment| assignment.gate.halted().is_none())
        };
        let unsettled: usize = moving().map(|assignment| assignment.offsets.unsettled()).sum();
        let held: usize = moving().map(|assignment| assignment.gate.held()).sum();
        if unsettled > held + self.buffer.len() {
            return true;
        }
        let next = self
            .assignments
            .iter_mut()
            .filter(|(_, assignment)| assignment.gate.has_suspect(now))
            .min_by_key(|(origin, _)| **origin);
        if let Some((origin, assignment)) = next
            && let Some((offset, times)) = assignment.gate.suspect()
            && let Some(mut message) = assignment.offsets.out(offset).cloned()
        {
            message.deliveries = times;
            self.suspect = Some((*origin, assignment.generation, offset));
            chunk.push(Ticket::new(assignment.generation, *origin, offset), message);
        }
        true
    }
}
